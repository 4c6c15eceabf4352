//! IoThreads from outside: their thread, their parameters, their processors; and the guard against
//! re-entrancy (SPEC I1, I3, B9).

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use corio::context::{MonitorChoice, MonitorKind, ReentrancyGuard};
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::File;
use corio::net::UnixStream;
use corio::{AioContext, Error, IoThread};

use super::{beside_each_monitor, on_each_monitor};

/// A line of the calling thread's status.
fn status(key: &str) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

// SPEC I1
#[test]
fn its_thread_has_its_name_and_blocks_all_signals_but_faults() {
    let io = IoThread::builder().name("io0").spawn().unwrap();
    let there = || {
        (
            status("SigBlk"),
            std::thread::current().name().map(str::to_owned),
        )
    };
    let (blocked, name) = io.context().run_in_bottom_half("look", there).unwrap();
    assert_eq!(name.as_deref(), Some("io0"));
    let blocked = u64::from_str_radix(&blocked, 16).unwrap();
    let is_blocked = |signal: i32| blocked >> (signal - 1) & 1 == 1;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGCHLD] {
        assert!(is_blocked(signal), "{signal}");
    }
    for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
        assert!(!is_blocked(fault), "{fault}");
    }
}

/// Runs the test of this name in a program of its own. True: this is that program.
fn is_alone(name: &str) -> bool {
    const INSIDE: &str = "CORIO_TEST_ALONE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let program = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(program);
    command
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{output:?}");
    false
}

// SPEC I1, M4
#[test]
fn its_thread_waits_without_slack_and_not_for_whole_milliseconds() {
    beside_each_monitor(|io| {
        let slack = || rustix::thread::current_timer_slack().unwrap();
        assert_eq!(io.context().run_in_bottom_half("slack", slack).unwrap(), 1);
        let time = Duration::from_micros(100);
        let sleep = move || {
            let began = Instant::now();
            corio::time::sleep(time);
            began.elapsed()
        };
        let sleeps = (0..20).map(|_| io.context().spawn(sleep).join().unwrap());
        let shortest = sleeps.min().unwrap();
        assert!(shortest >= time, "{shortest:?}");
        assert!(shortest < Duration::from_millis(1), "{shortest:?}");
    });
}

// SPEC I1: what the runtime opens is not handed to programs that are started meanwhile.
#[test]
fn its_descriptors_are_closed_on_exec() {
    // As other tests open what they like.
    if !is_alone("io_thread::its_descriptors_are_closed_on_exec") {
        return;
    }
    let descriptors = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let number = |entry: std::io::Result<std::fs::DirEntry>| -> i32 {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        };
        links.map(number).collect::<std::collections::BTreeSet<_>>()
    };
    let before = descriptors();
    let threads =
        MonitorChoice::ALL.map(|monitor| IoThread::builder().monitor(monitor).spawn().unwrap());
    for io in &threads {
        // The ring, and a foreign loop's timerfd where there can be one.
        let opens = || {
            let file = corio::fs::File::from(std::os::fd::OwnedFd::from(tempfile::tempfile()?));
            file.write_all_at(b"x", 0)
        };
        io.context().spawn(opens).join().unwrap().unwrap();
        let context = io.context().clone();
        let embed = move || context.local().unwrap().embed().map(drop).is_ok();
        io.context().run_in_bottom_half("embed", embed).unwrap();
    }
    let mut seen = 0;
    for fd in descriptors().difference(&before) {
        let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else {
            continue; // The directory that was being read.
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        assert_ne!(flags & libc::O_CLOEXEC, 0, "{fd}: {info}");
        seen += 1;
    }
    assert!(
        seen >= 5,
        "three eventfds and two monitors at least: {seen}"
    );
}

// SPEC M5: descriptors and disk I/O share one.
#[test]
fn a_context_has_one_ring() {
    let rings = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
        let is_ring = |target: &PathBuf| target.as_os_str() == "anon_inode:[io_uring]";
        targets.filter(is_ring).count()
    };
    let spawn = || {
        let builder = IoThread::builder().monitor(MonitorChoice::IoUring);
        builder.engine(EngineChoice::IoUring).spawn().unwrap()
    };
    let io = spawn();
    let info = io.context().monitor().unwrap();
    if info.kind != MonitorKind::IoUring {
        println!("SKIPPED: one ring a context: {}", info.reason);
        return;
    }
    if !is_alone("io_thread::a_context_has_one_ring") {
        return;
    }
    assert_eq!(rings(), 1, "of the monitor");
    let io_on_both = || {
        let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
        file.write_all_at(b"ring", 0).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sends = corio::spawn_local(move || (&theirs).write_all(b"ring").unwrap());
        (&ours).read_exact(&mut [0; 4]).unwrap(); // It waits for the descriptor.
        sends.join().unwrap();
    };
    io.context().spawn(io_on_both).join().unwrap();
    let engine = io.context().engine().unwrap();
    assert_eq!(engine.kind, EngineKind::IoUring, "{engine:?}");
    assert_eq!(rings(), 1, "of the monitor and of disk I/O");
    let other = spawn();
    other.context().spawn(io_on_both).join().unwrap();
    assert_eq!(rings(), 2);
    io.join();
    assert_eq!(rings(), 1);
    other.join();
    assert_eq!(rings(), 0);
}

// SPEC I3
#[test]
fn it_runs_on_the_processors_that_are_chosen() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let all: Vec<_> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .collect();
    for chosen in [&all[..1], &all[all.len() - 1..], &all[..]] {
        let io = IoThread::builder()
            .cpus(chosen.iter().copied())
            .spawn()
            .unwrap();
        let there = || rustix::thread::sched_getaffinity(None).unwrap();
        let set = io.context().run_in_bottom_half("ask", there).unwrap();
        let got: Vec<_> = (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect();
        assert_eq!(got, chosen);
        let status = || status("Cpus_allowed_list");
        assert!(!io.context().spawn(status).join().unwrap().is_empty());
    }
    // The thread that made it stays where it was.
    let here = rustix::thread::sched_getaffinity(None).unwrap();
    assert!(all.iter().all(|&cpu| here.is_set(cpu)));
}

// SPEC I3
#[test]
fn processors_that_there_are_not_are_refused() {
    for (cpus, errno) in [(vec![], libc::EINVAL), (vec![1_000_000], libc::EINVAL)] {
        let refused = IoThread::builder().cpus(cpus).spawn().unwrap_err();
        assert!(matches!(refused, Error::Parameter { name: "cpus", .. }));
        assert_eq!(refused.raw_os_error(), Some(errno));
    }
    let last = rustix::thread::CpuSet::MAX_CPU - 1;
    let refused = IoThread::builder().cpus([last]).spawn();
    if let Err(error) = refused {
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
    }
}

/// Counts who is inside at once, and keeps them there until told.
#[derive(Default)]
struct Room {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Room {
    fn stay(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        let _state = self.changed.wait_while(state, |state| !state.1).unwrap();
    }

    fn wait_for(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let _state = self
            .changed
            .wait_while(state, |state| state.0 < count)
            .unwrap();
    }

    fn inside(&self) -> usize {
        self.state.lock().unwrap().0
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

// SPEC I1, E3: changed from another thread, while jobs run.
#[test]
fn the_number_of_worker_threads_follows_its_limits_at_once() {
    beside_each_monitor(|io| {
        let context = io.context();
        context.set_worker_limits(0, 2).unwrap();
        let room = Arc::new(Room::default());
        let jobs: Vec<_> = (0..5)
            .map(|_| {
                let room = Arc::clone(&room);
                context.spawn(move || corio::engine::unblock(|| room.stay()).unwrap())
            })
            .collect();
        room.wait_for(2);
        // All five are queued by now: they were spawned before this.
        context.spawn(|| ()).join().unwrap();
        assert_eq!(room.inside(), 2, "no more than two at once");
        context.set_worker_limits(1, 4).unwrap();
        room.wait_for(4);
        assert_eq!(context.worker_limits().unwrap(), (1, 4));
        room.open();
        for job in jobs {
            job.join().unwrap();
        }
        assert_eq!(room.inside(), 5);
    });
}

// SPEC I1
#[test]
fn parameters_out_of_range_are_refused_and_change_nothing() {
    let context = AioContext::new().unwrap();
    context.set_worker_limits(2, 8).unwrap();
    for (min, max, text) in [
        (0, 0, "thread_pool_max is 0, which is not 1 to 64"),
        (0, 65, "thread_pool_max is 65, which is not 1 to 64"),
        (
            5,
            4,
            "thread_pool_min is 5, which is not at most thread_pool_max",
        ),
    ] {
        let error = context.set_worker_limits(min, max).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
    assert_eq!(context.worker_limits().unwrap(), (2, 8));
    let error = context.set_request_batch_max(257).unwrap_err();
    assert_eq!(
        error.to_string(),
        "aio_max_batch is 257, which is not 0 to 256"
    );
    assert_eq!(context.request_batch_max(), 0);
}

// SPEC B9
#[test]
fn a_bottom_half_of_an_engaged_device_is_reported_and_runs() {
    on_each_monitor(|context| {
        let (disk, other) = (ReentrancyGuard::new("disk"), ReentrancyGuard::new("other"));
        let runs = Arc::new(AtomicUsize::new(0));
        let make = |device: &ReentrancyGuard| {
            let (count, own) = (Arc::clone(&runs), device.clone());
            context.guarded_bottom_half("complete", device, move || {
                assert!(own.is_engaged(), "a bottom half is an access, too");
                count.fetch_add(1, Ordering::Relaxed);
            })
        };
        let halves = [make(&disk), make(&other)];
        let turn = || {
            halves.iter().for_each(corio::context::BottomHalf::schedule);
            context.poll(true).unwrap();
        };
        turn();
        assert_eq!((disk.reports(), other.reports()), (0, 0));
        {
            let _access = disk.engage();
            turn(); // The device's access makes the loop turn.
            assert!(disk.is_engaged(), "the access is not over");
        }
        assert_eq!((disk.reports(), other.reports()), (1, 0));
        assert!(!disk.is_engaged() && !other.is_engaged());
        assert_eq!(runs.load(Ordering::Relaxed), 4);
    });
}

// SPEC B9, A3
#[test]
fn a_bottom_half_that_panics_disengages_its_device() {
    on_each_monitor(|context| {
        let disk = ReentrancyGuard::new("disk");
        let fails = context.guarded_bottom_half("fails", &disk, || panic!("this one fails"));
        fails.schedule();
        catch_unwind(AssertUnwindSafe(|| context.poll(true))).unwrap_err();
        assert!(!disk.is_engaged());
    });
}
