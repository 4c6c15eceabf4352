//! What of a context can be set while it works. Numbers out of range are refused by corio; here is
//! what C's integers can hold and Rust's cannot.

use std::fmt::Display;

use corio::Error;
use corio::context::PollParams;

use crate::abort;
use crate::context::Context;
use crate::error::{self, CorioError};

/// A number of C's that must not be negative, nor more than its type holds.
fn number<T: TryFrom<i64>>(
    name: &'static str,
    value: i64,
    expected: &'static str,
) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::Parameter {
        name,
        value: value.to_string(),
        expected,
    })
}

/// # Safety
/// `errp` is null or can be written.
unsafe fn report<E: Display>(outcome: Result<(), E>, errp: *mut *mut CorioError) {
    if let Err(error) = outcome {
        // SAFETY: the caller's promise.
        unsafe { error::set(errp, error) };
    }
}

fn set_poll_params(ctx: &Context, max_ns: i64, grow: i64, shrink: i64) -> Result<(), Error> {
    let grow = if grow == 0 {
        PollParams::IO_THREAD.grow.into()
    } else {
        grow
    };
    ctx.rust().set_poll_params(PollParams {
        max_ns: number("poll_max_ns", max_ns, "0 or more")?,
        grow: number("poll_grow", grow, "0, for the default, or 2 and more")?,
        shrink: number("poll_shrink", shrink, "0 or more")?,
        ..ctx.rust().poll_params()
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_context_set_poll_params(
    ctx: *mut Context,
    max_ns: i64,
    grow: i64,
    shrink: i64,
    errp: *mut *mut CorioError,
) {
    // SAFETY: the header asks for a context to which the caller has a reference.
    unsafe {
        let ctx = Context::at(ctx, "aio_context_set_poll_params");
        report(set_poll_params(ctx, max_ns, grow, shrink), errp);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_context_set_aio_params(ctx: *mut Context, max_batch: i64) {
    const NAME: &str = "aio_context_set_aio_params";
    abort::on_panic();
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, NAME) };
    let set = number("aio_max_batch", max_batch, "0 to 256")
        .and_then(|max| ctx.rust().set_request_batch_max(max));
    if let Err(error) = set {
        die!("{NAME}: {error}");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_context_set_thread_pool_params(
    ctx: *mut Context,
    min: i64,
    max: i64,
    errp: *mut *mut CorioError,
) {
    // SAFETY: the header asks for a context to which the caller has a reference.
    unsafe {
        let ctx = Context::at(ctx, "aio_context_set_thread_pool_params");
        let set = number("thread_pool_min", min, "0 to thread_pool_max")
            .and_then(|min| Ok((min, number("thread_pool_max", max, "1 to 64")?)))
            .and_then(|(min, max)| ctx.rust().set_worker_limits(min, max));
        report(set, errp);
    }
}
