//! What the C interface (the crate `corio-capi`) needs and Rust's own does not offer: coroutines by
//! pointers, which no home owns and any thread may enter, and threads that are home for good.
//!
//! Not for use from Rust: nothing here is checked by types. No version promises that it stays.

use std::io;

pub use crate::coroutine::loose::{Loose, Refused};
pub use crate::schedule::loose::{
    Loop, create, enter, queue_beside_running, token_of_running, wake_token,
};

use crate::context::AioContext;

/// Runs the bottom halves that are scheduled, and no more. True: progress. The home thread only.
pub fn run_bottom_halves(context: &AioContext) -> bool {
    context.run_bottom_halves()
}

/// Whether a turn would find something to do. The home thread only.
///
/// # Errors
/// The monitor refused something.
pub fn has_work(context: &AioContext) -> io::Result<bool> {
    context.has_work()
}

/// How long a wait may last for all that the context knows but descriptors; None: without limit. The
/// home thread only.
#[must_use]
pub fn wait_ns_max(context: &AioContext) -> Option<u64> {
    context.wait_ns_max()
}

/// Has a notification that has come used up, as a turn does. Any thread.
pub fn accept_notification(context: &AioContext) {
    context.accept_notification();
}
