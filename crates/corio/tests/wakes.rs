//! A blocked loop is woken as often as it is notified, and else not at all (SPEC N1, N4).
//!
//! `CORIO_SOAK=1`, which `cargo xtask soak` sets, makes the tests longer.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use corio::context::MonitorChoice;
use corio::{AioContext, IoThread};

const MONITORS: [MonitorChoice; 3] = MonitorChoice::ALL;

fn is_soak() -> bool {
    std::env::var_os("CORIO_SOAK").is_some()
}

/// Looks at `condition` until it holds, as fast as it can at first.
fn look_until(what: &str, mut condition: impl FnMut() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(10);
    let start = Instant::now();
    let mut looks = 0_u32;
    while !condition() {
        looks += 1;
        if looks.is_multiple_of(1000) {
            assert!(start.elapsed() < PATIENCE, "{what}");
            thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Wakes a loop that blocks between any two wakes, `count` times.
fn wake(monitor: MonitorChoice, count: u64) {
    let context = AioContext::builder().monitor(monitor).build().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let seen = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for wake in 1..=count {
                asked.store(wake, Ordering::Relaxed); // Published by the notification.
                context.notify();
                look_until("a wake is lost", || seen.load(Ordering::Relaxed) == wake);
            }
        });
        let home = || {
            let mut turns = 0;
            while seen.load(Ordering::Relaxed) < count {
                assert!(!context.poll(true).unwrap(), "a wake is no progress");
                turns += 1;
                seen.store(asked.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            turns
        };
        let turns: u64 = context.enter_home(home).unwrap();
        // Each wake ends one wait; its eventfd may end a second one, if it was written as the first
        // was ending by itself.
        assert!((count..=2 * count + 1).contains(&turns), "{turns} turns");
    });
}

// SPEC N1, N4: with none lost, and no turn that nobody asked for.
#[test]
fn a_blocked_loop_is_woken_as_often_as_it_is_notified() {
    for monitor in MONITORS {
        wake(monitor, if is_soak() { 1_000_000 } else { 50_000 });
    }
}

/// What a thread has had of the CPU: nanoseconds, and how often it got it.
fn schedstat(tid: u32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).ok()?;
    let mut fields = text.split_whitespace().map(|field| field.parse().ok());
    let (ran_ns, _waited_ns, slices) = (fields.next()??, fields.next()??, fields.next()??);
    Some((ran_ns, slices))
}

/// utime + stime, in ticks.
fn ticks(tid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
    let (_, rest) = text.rsplit_once(')').unwrap();
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
    next() + next()
}

// SPEC N4: a thread that has not run has made no system call.
#[test]
fn a_loop_with_nothing_to_do_does_not_run() {
    let watched = Duration::from_secs(if is_soak() { 10 } else { 2 });
    for monitor in MONITORS {
        let io = IoThread::builder().monitor(monitor).spawn().unwrap();
        let (tx, rx) = mpsc::channel();
        io.context().schedule_oneshot("tell", move || {
            tx.send(
                rustix::thread::gettid()
                    .as_raw_nonzero()
                    .get()
                    .cast_unsigned(),
            )
            .unwrap();
        });
        let tid = rx.recv().unwrap();
        if schedstat(tid).is_none() {
            println!("SKIPPED: an idle loop: there is no /proc/self/task/TID/schedstat");
            return;
        }
        // The kernel tidies up after rings that are closed, in the thread that had them, some time
        // later and once: the next time it is not disturbed.
        let is_at_rest = (0..3).any(|_| {
            let before = schedstat(tid);
            let ticks_before = ticks(tid);
            thread::sleep(watched); // The time that is watched.
            schedstat(tid) == before && ticks(tid) == ticks_before
        });
        assert!(is_at_rest, "{monitor:?}: it runs");
    }
}
