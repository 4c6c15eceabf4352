//! Programs and kernels that try to break the event loop: what the kernel refuses for a while or
//! for ever, what ends while something else does, and what peers send.

#![allow(unsafe_code)] // The kernel's part is played by seccomp(2), which has no safe wrapper.

mod endings;
mod kernel;
mod load;
mod refusals;

use std::time::{Duration, Instant};

use corio::IoThread;
use corio::context::MonitorChoice;

const MONITORS: [MonitorChoice; 3] = MonitorChoice::ALL;

/// How long a test waits for what must come, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(10);

fn io_thread(monitor: MonitorChoice) -> IoThread {
    IoThread::builder().monitor(monitor).spawn().unwrap()
}

/// Whether `condition` comes true while a test can wait.
fn eventually(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1)); // Between two looks.
    }
    true
}

/// In a coroutine: lets every other that can run do so, until it waits.
fn settle_here() {
    for _ in 0..8 {
        corio::yield_now();
    }
}

/// The same from a plain thread; what the coroutines ask of the kernel has reached it then.
fn settle(io: &IoThread) {
    io.context().spawn(settle_here).join().unwrap();
}
