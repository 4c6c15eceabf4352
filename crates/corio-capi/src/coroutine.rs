//! Coroutines: made, entered, suspended.
//!
//! A `Coroutine *` is the address of the coroutine's control block ([`corio::raw::Loose`]).

use std::ffi::{c_uint, c_void};
use std::panic::Location;
use std::ptr::NonNull;

use corio::raw::{self, Loose, Refused};

use crate::abort;
use crate::context::Context;

/// What C calls a `Coroutine`.
pub(crate) struct Coroutine {
    _opaque: [u8; 0],
}

/// A coroutine's function.
type CoroutineEntry = unsafe extern "C" fn(*mut c_void);

/// The coroutine at `co`; dies if it is null.
///
/// # Safety
/// `co` is null or what `qemu_coroutine_create` has returned.
#[inline(always)]
pub(crate) unsafe fn loose(co: *mut Coroutine, function: &str) -> Loose {
    match NonNull::new(co) {
        // SAFETY: the caller's promise.
        Some(co) => unsafe { Loose::from_ptr(co.cast()) },
        None => null(function),
    }
}

#[cold]
#[inline(never)]
fn null(function: &str) -> ! {
    die!("{function}: the coroutine is NULL")
}

#[cold]
#[inline(never)]
pub(crate) fn refused(why: Refused, function: &str) -> ! {
    match why {
        Refused::Entered => die!("Co-routine re-entered recursively"),
        Refused::Scheduled => {
            die!("{function}: Co-routine was already scheduled in 'aio_co_schedule'")
        }
        Refused::Waits => die!(
            "{function}: Co-routine waits for a lock, a queue, a sleep or a request already, \
             which alone may wake it"
        ),
        Refused::Ended => die!("{function}: the coroutine has ended"),
    }
}

/// What follows the entry of `co`.
///
/// # Safety
/// `entered` is what entering `co` has just returned.
#[inline(always)]
unsafe fn after(entered: Result<bool, Refused>, co: Loose, function: &str) {
    match entered {
        Ok(true) => {}
        // SAFETY: the caller's promise.
        Ok(false) => unsafe { co.settle() },
        Err(why) => refused(why, function),
    }
}

/// Enters `co` on this thread.
///
/// # Safety
/// It is a coroutine of `qemu_coroutine_create` that nobody else enters.
#[inline(always)]
pub(crate) unsafe fn enter(co: Loose, function: &str) {
    // SAFETY: the caller's promise.
    unsafe { after(raw::enter(co), co, function) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_coroutine_create(
    entry: Option<CoroutineEntry>,
    opaque: *mut c_void,
) -> *mut Coroutine {
    abort::on_panic();
    let Some(entry) = entry else {
        die!("qemu_coroutine_create: the function is NULL")
    };
    // SAFETY: the header asks for a function that may be called so, once, when it is entered.
    let made = raw::create(move || unsafe { entry(opaque) }, Location::caller());
    match made {
        Ok(co) => co.as_ptr().cast(),
        Err(error) => die!("qemu_coroutine_create: {error}"),
    }
}

// Elsewhere in `switch`.
#[cfg(not(all(target_arch = "x86_64", not(feature = "asan"))))]
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn qemu_coroutine_enter(co: *mut Coroutine) {
    // SAFETY: the header asks for a coroutine of `qemu_coroutine_create` that nobody else enters.
    unsafe { enter(loose(co, "qemu_coroutine_enter"), "qemu_coroutine_enter") }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_coroutine_enter_if_inactive(co: *mut Coroutine) {
    const NAME: &str = "qemu_coroutine_enter_if_inactive";
    // SAFETY: as for `qemu_coroutine_enter`.
    unsafe {
        let co = loose(co, NAME);
        if !co.is_entered() {
            enter(co, NAME);
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_aio_coroutine_enter(ctx: *mut Context, co: *mut Coroutine) {
    const NAME: &str = "qemu_aio_coroutine_enter";
    // SAFETY: as for `qemu_coroutine_enter`; the header asks for a context or NULL.
    unsafe {
        let co = loose(co, NAME);
        match ctx.as_ref() {
            Some(ctx) => after(ctx.turns().enter(co), co, NAME),
            None => enter(co, NAME),
        }
    }
}

// As `qemu_coroutine_enter`.
#[cfg(not(all(target_arch = "x86_64", not(feature = "asan"))))]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn qemu_coroutine_yield() {
    if !corio::in_coroutine() {
        die!("Co-routine is yielding to no one");
    }
    corio::suspend();
}

// The header asks for it by this name on x86-64 alone.
#[cfg(not(target_arch = "x86_64"))]
#[unsafe(no_mangle)]
unsafe extern "C" fn corio_enter_by_jump(co: *mut Coroutine) {
    // SAFETY: as for `qemu_coroutine_enter`.
    unsafe { qemu_coroutine_enter(co) }
}

// As `corio_enter_by_jump`.
#[cfg(not(target_arch = "x86_64"))]
#[unsafe(no_mangle)]
extern "C" fn corio_yield_by_jump() {
    qemu_coroutine_yield();
}

#[unsafe(no_mangle)]
extern "C" fn qemu_coroutine_self() -> *mut Coroutine {
    Loose::running().map_or(std::ptr::null_mut(), |co| co.as_ptr().cast())
}

#[unsafe(no_mangle)]
extern "C" fn qemu_in_coroutine() -> bool {
    corio::in_coroutine()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_coroutine_entered(co: *mut Coroutine) -> bool {
    // SAFETY: the header asks for a coroutine of `qemu_coroutine_create`.
    unsafe { loose(co, "qemu_coroutine_entered").is_entered() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_coroutine_get_aio_context(co: *mut Coroutine) -> *mut Context {
    // SAFETY: the header asks for a coroutine that has not ended.
    unsafe { Context::of(loose(co, "qemu_coroutine_get_aio_context")) }
}

#[unsafe(no_mangle)]
extern "C" fn qemu_coroutine_inc_pool_size(additional: c_uint) {
    if let Err(error) = corio::stack_pool::raise(additional as usize) {
        die!("qemu_coroutine_inc_pool_size: {error}");
    }
}

#[unsafe(no_mangle)]
extern "C" fn qemu_coroutine_dec_pool_size(removing: c_uint) {
    if let Err(error) = corio::stack_pool::lower(removing as usize) {
        die!("qemu_coroutine_dec_pool_size: {error}");
    }
}
