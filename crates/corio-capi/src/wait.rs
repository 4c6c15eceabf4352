//! Waiting for what other threads do, by turning a loop.

use std::ffi::c_void;

use corio::AioContext;

use crate::context::{self, Context};

type Condition = unsafe extern "C" fn(*mut c_void) -> bool;
type Function = unsafe extern "C" fn(*mut c_void);

#[unsafe(no_mangle)]
extern "C" fn aio_wait_kick() {
    corio::context::kick();
}

/// Dies where nobody may turn a loop for `ctx`.
pub(crate) fn check_waiter(ctx: &AioContext, function: &str) {
    if corio::in_coroutine() {
        die!("{function}: called in a coroutine, on whose stack the loop would run");
    }
    if !ctx.is_home() && !AioContext::main().is_some_and(|main| main.is_home()) {
        die!("{function}: this thread is home neither of the context nor of the main one");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_aio_wait_while(
    ctx: *mut Context,
    cond: Option<Condition>,
    opaque: *mut c_void,
) -> bool {
    const NAME: &str = "corio_aio_wait_while";
    let ctx = if ctx.is_null() { context::main() } else { ctx };
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, NAME) };
    let cond = cond.unwrap_or_else(|| die!("{NAME}: the condition is NULL"));
    check_waiter(ctx.rust(), NAME);
    let _turning = ctx.rust().is_home().then(|| ctx.turning());
    // SAFETY: the header's contract.
    match ctx.rust().wait_while(|| unsafe { cond(opaque) }) {
        Ok(waited) => waited,
        Err(error) => die!("{NAME}: {error}"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_wait_bh_oneshot(
    ctx: *mut Context,
    cb: Option<Function>,
    opaque: *mut c_void,
) {
    const NAME: &str = "aio_wait_bh_oneshot";
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, NAME) };
    let cb = cb.unwrap_or_else(|| die!("{NAME}: the function is NULL"));
    check_waiter(ctx.rust(), NAME);
    let _turning = ctx.rust().is_home().then(|| ctx.turning());
    let opaque = opaque.expose_provenance();
    let run = move || {
        // SAFETY: the header's contract.
        unsafe { cb(std::ptr::with_exposed_provenance_mut(opaque)) };
    };
    if let Err(error) = ctx.rust().run_in_bottom_half(NAME, run) {
        die!("{NAME}: {error}");
    }
}
