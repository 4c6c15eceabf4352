//! The event loop from outside: its handlers, bottom halves and waiting, and IoThreads that run it
//! (SPEC A1, A3, A4, B1 to B9, H1 to H5, I1 to I3, W1, W2).

mod bottom_halves;
mod context;
mod handlers;
mod io_thread;
mod notifiers;
mod turns;
mod waiting;

use std::panic::{AssertUnwindSafe, catch_unwind};

use corio::context::MonitorChoice;
use corio::{AioContext, IoThread};

/// Runs a test with a context of each monitor, which has no home yet.
fn with_each_monitor(test: impl Fn(AioContext)) {
    for monitor in MonitorChoice::ALL {
        test(AioContext::builder().monitor(monitor).build().unwrap());
    }
}

/// Runs a test in a home of each monitor.
fn on_each_monitor(test: impl Fn(&AioContext)) {
    with_each_monitor(|context| context.enter_home(|| test(&context)).unwrap());
}

/// Runs a test beside a loop of each monitor.
fn beside_each_monitor(test: impl Fn(&IoThread)) {
    for monitor in MonitorChoice::ALL {
        let io = IoThread::builder().monitor(monitor).spawn().unwrap();
        test(&io);
        io.join();
    }
}

/// What a panic says.
fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else {
        panic!("it did not panic");
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().unwrap().to_string(),
    }
}
