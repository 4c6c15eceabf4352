//! `--poll-max-ns`: for quick clients the loops stay awake, and nobody else costs anything.

use std::time::Duration;

use rustix::param::clock_ticks_per_second;

use crate::common::nbd::{Client, Headers};
use crate::common::serve::{Serve, Server};
use crate::common::{self, Combo, again_through_tls, matrix, need};

matrix!(
    for_a_quick_client_the_loop_stays_awake,
    idle_and_slow_clients_cost_nothing
);
again_through_tls!(idle_and_slow_clients_cost_nothing);

fn start(combo: Combo, poll_max_ns: &str) -> Server {
    let serve = Serve::new(combo).memory("16M").tcp().unix();
    serve.args(["--poll-max-ns", poll_max_ns]).start()
}

fn connect(server: &Server) -> Client {
    Client::connect(&server.unix().addr, "", Headers::Structured).unwrap()
}

/// utime + stime.
fn cpu_time(server: &Server) -> Duration {
    let stat = server.proc_text("stat");
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    Duration::from_secs(ticks) / u32::try_from(clock_ticks_per_second()).unwrap()
}

/// How often its threads have gone to sleep.
fn sleeps(server: &Server) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid().as_raw_pid())).unwrap();
    let statuses = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")));
    let of_task = |status: String| {
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    statuses.map(|status| of_task(status.unwrap())).sum()
}

const REQUESTS: u64 = 500;

/// One request at a time.
fn read(client: &mut Client) {
    for _ in 0..REQUESTS {
        client.read(0, 512).unwrap();
    }
}

fn for_a_quick_client_the_loop_stays_awake(combo: Combo) {
    need!(combo);
    if std::thread::available_parallelism().unwrap().get() < 2 {
        common::skip!("there is one processor only, which the client would wait for");
    }
    let _alone = common::alone();
    let sleeps_as = |poll_max_ns, expected: fn(u64) -> bool| {
        let server = start(combo, poll_max_ns);
        let mut client = connect(&server);
        // Others' work on a machine can make any one measurement say anything.
        let is_as_expected = (1..=10).any(|attempt| {
            let before = sleeps(&server);
            read(&mut client);
            let slept = sleeps(&server) - before;
            println!("{poll_max_ns} ns, attempt {attempt}: {slept} sleeps in {REQUESTS} requests");
            expected(slept)
        });
        assert!(is_as_expected);
        server.stop();
    };
    sleeps_as("1000000", |slept| slept < REQUESTS / 10);
    sleeps_as("0", |slept| slept > REQUESTS / 2);
}

fn idle_and_slow_clients_cost_nothing(combo: Combo) {
    need!(combo);
    let (polling, sleeping) = (start(combo, "200000"), start(combo, "0"));
    let mut clients: Vec<_> = (0..4).map(|_| connect(&polling)).collect();
    // Its loops poll, or have polled.
    for client in &mut clients {
        read(client);
    }
    let before = cpu_time(&polling);
    std::thread::sleep(Duration::from_secs(1));
    let idle = cpu_time(&polling) - before;
    assert!(idle <= Duration::from_millis(10), "idle clients: {idle:?}");
    let mut slow = connect(&sleeping);
    let before = [&polling, &sleeping].map(cpu_time);
    for _ in 0..1000 {
        std::thread::sleep(Duration::from_millis(1));
        clients[0].read(0, 512).unwrap();
        slow.read(0, 512).unwrap();
    }
    let polled = cpu_time(&polling) - before[0];
    let slept = cpu_time(&sleeping) - before[1];
    println!("1000 requests, polling {polled:?}, sleeping {slept:?}");
    // To poll for each, in vain, would take 200 ms.
    assert!(polled < slept + Duration::from_millis(100));
    clients.push(slow);
    for client in clients {
        client.disconnect().unwrap();
    }
    polling.stop();
    sleeping.stop();
}
