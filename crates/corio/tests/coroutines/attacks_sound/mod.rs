//! Programs that try to break the runtime's soundness from safe code: frames that outlive what they
//! borrow, destructors that park, panic and catch, handles that are forgotten, wakers that are
//! fired when nobody expects them, and waiters that are cancelled at every step of a hand-off.

mod charged;
mod currents;
mod destructors;
mod forgotten;
mod frames;
mod handoff;
mod slices;
mod wakers;

use std::any::Any;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::Duration;

use corio::IoThread;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn io() -> IoThread {
    IoThread::builder().spawn().unwrap()
}

/// Returns when all that was spawned on the context before has run until it parked.
fn settle(io: &IoThread) {
    io.context().spawn(settle_here).join().unwrap();
}

/// The same in a coroutine.
fn settle_here() {
    for _ in 0..8 {
        corio::yield_now();
    }
}

fn park_for_ever() {
    loop {
        corio::park();
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("")
}

/// Runs `f`, which may hang, in a thread of its own.
fn within_patience<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || tx.send(f()));
    rx.recv_timeout(PATIENCE).expect("it hangs, or panicked")
}

/// Runs the calling test, by its whole name, in a process of its own, where [`is_child`] is true.
fn child(test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("CORIO_ATTACK_CHILD", test)
        .output()
        .unwrap()
}

fn is_child(test: &str) -> bool {
    std::env::var("CORIO_ATTACK_CHILD").is_ok_and(|name| name == test)
}
