//! The locks and the channel between coroutines of several threads, and plain threads (SPEC L1 to
//! L8); waiting for the first of several, and for all that a scope holds.

mod barrier;
mod cancel_random;
mod channel;
mod event;
mod lock_cnt;
mod rwlock;
mod rwlock_cancel;
mod rwlock_misuse;
mod scope;
mod select;
mod sync;

use corio::{AioContext, IoThread, JoinError};

fn io(name: &str) -> IoThread {
    IoThread::builder().name(name).spawn().unwrap()
}

/// Returns when all that was spawned on the context before has run until it parked.
fn settle(io: &IoThread) {
    io.context().spawn(|| ()).join().unwrap();
}

fn panic_text(error: JoinError) -> String {
    let JoinError::Panicked(payload) = error else {
        panic!("it did not panic: {error}");
    };
    text(&*payload)
}

fn text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap()
}

/// What `f` panics with on a loop's thread outside a coroutine.
fn panic_on_a_loop(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let context = AioContext::builder().name("home").build().unwrap();
    let panicked = context.enter_home(|| std::panic::catch_unwind(f)).unwrap();
    text(&*panicked.unwrap_err())
}
