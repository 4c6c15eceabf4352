//! Bottom halves.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::offset_of;
use std::sync::Mutex;

use corio::context::BottomHalf;
use corio::raw;

use crate::abort;
use crate::context::Context;

/// A bottom half's function.
type Function = unsafe extern "C" fn(*mut c_void);

/// A device that reports its bottom halves' untimely runs; C allocates it.
#[repr(C)]
pub(crate) struct MemReentrancyGuard {
    engaged_in_io: bool,
}

const _: () = assert!(
    size_of::<MemReentrancyGuard>() == 1 && offset_of!(MemReentrancyGuard, engaged_in_io) == 0,
    "the header says otherwise"
);

/// What runs: C's function and what it is called with.
#[derive(Clone, Copy)]
#[repr(C)] // What is always read comes first, where it lies behind what the loop has read.
struct Call {
    function: Function,
    opaque: *mut c_void,
    guard: *mut MemReentrancyGuard,
    name: &'static str,
}

// SAFETY: which thread it is called in is what C asks for.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

impl Call {
    /// # Safety
    /// The header's contract: the function may be called so, and the guard is there.
    #[inline]
    unsafe fn run(&self) {
        // SAFETY: the caller's promise. The function may delete what `self` is of: it is read before.
        unsafe {
            if self.guard.is_null() {
                (self.function)(self.opaque);
            } else {
                (*self).run_guarded();
            }
        }
    }

    /// # Safety
    /// As [`run`](Self::run), with a guard.
    #[cold]
    unsafe fn run_guarded(self) {
        // SAFETY: the caller's promise; the guard is of the thread that runs the device.
        unsafe {
            let before = (*self.guard).engaged_in_io;
            if before {
                eprintln!(
                    "corio: bottom half '{}' runs while its device is in the middle of an access",
                    self.name
                );
            }
            (*self.guard).engaged_in_io = true;
            (self.function)(self.opaque);
            (*self.guard).engaged_in_io = before;
        }
    }
}

/// A function, and what it is called with, where there is no guard to look at.
struct Plain(Function, *mut c_void);

// SAFETY: as above.
unsafe impl Send for Plain {}
// SAFETY: as above.
unsafe impl Sync for Plain {}

impl Plain {
    /// # Safety
    /// The header's contract: the function may be called so.
    #[inline]
    unsafe fn run(&self) {
        // SAFETY: the caller's promise.
        unsafe { (self.0)(self.1) }
    }
}

/// What C calls a `QEMUBH`.
pub(crate) struct QemuBh {
    half: BottomHalf,
    call: Call,
    ctx: *const Context,
}

/// The bottom halves of a context that are not deleted.
#[derive(Default)]
pub(crate) struct Halves(Mutex<HashMap<usize, &'static str>>);

impl Halves {
    /// The name of one of them.
    pub(crate) fn any(&self) -> Option<&'static str> {
        crate::locked(&self.0).values().next().copied()
    }
}

/// A name that stays: each is kept once.
///
/// # Safety
/// `name` is null or a string.
pub(crate) unsafe fn intern(name: *const c_char) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    if name.is_null() {
        return "unnamed";
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let mut names = crate::locked(&NAMES);
    let names = names.get_or_insert_default();
    if let Some(name) = names.get(&*name) {
        return name;
    }
    let name: &'static str = Box::leak(name.into_owned().into_boxed_str());
    names.insert(name);
    name
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_bh_new_full(
    ctx: *mut Context,
    cb: Option<Function>,
    opaque: *mut c_void,
    name: *const c_char,
    reentrancy_guard: *mut MemReentrancyGuard,
) -> *mut QemuBh {
    abort::on_panic();
    // SAFETY: the header asks for a context to which the caller has a reference, and a string.
    let (context, name) = unsafe { (Context::at(ctx, "aio_bh_new_full"), intern(name)) };
    let call = Call {
        function: cb.unwrap_or_else(|| die!("aio_bh_new_full: the function is NULL")),
        opaque,
        guard: reentrancy_guard,
        name,
    };
    let half = if reentrancy_guard.is_null() {
        let plain = Plain(call.function, opaque);
        // SAFETY: the header's contract.
        context
            .rust()
            .bottom_half(name, move || unsafe { plain.run() })
    } else {
        // SAFETY: as above, and the guard is there.
        context
            .rust()
            .bottom_half(name, move || unsafe { call.run() })
    };
    let bh = Box::into_raw(Box::new(QemuBh { half, call, ctx }));
    crate::locked(&context.halves.0).insert(bh.addr(), name);
    bh
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_bh_schedule_oneshot_full(
    ctx: *mut Context,
    cb: Option<Function>,
    opaque: *mut c_void,
    name: *const c_char,
) {
    // SAFETY: as for `aio_bh_new_full`.
    let (ctx, name) = unsafe {
        (
            Context::at(ctx, "aio_bh_schedule_oneshot_full"),
            intern(name),
        )
    };
    let call = Call {
        function: cb.unwrap_or_else(|| die!("aio_bh_schedule_oneshot_full: the function is NULL")),
        opaque,
        guard: std::ptr::null_mut(),
        name,
    };
    let pending = Pending(name);
    ctx.rust().schedule_oneshot(name, move || {
        std::mem::forget(pending);
        // SAFETY: the header's contract.
        unsafe { call.run() }
    });
}

/// A one-shot that has not run; dropped if it never will, with its context.
struct Pending(&'static str);

impl Drop for Pending {
    fn drop(&mut self) {
        die!("aio_context_unref: bottom half '{}' has not run", self.0);
    }
}

/// The bottom half at `bh`; dies if it is null.
///
/// # Safety
/// `bh` is null or one that is not deleted.
#[inline(always)]
unsafe fn at<'a>(bh: *mut QemuBh, function: &str) -> &'a QemuBh {
    // SAFETY: the caller's promise.
    match unsafe { bh.as_ref() } {
        Some(bh) => bh,
        None => null(function),
    }
}

#[cold]
#[inline(never)]
fn null(function: &str) -> ! {
    die!("{function}: the bottom half is NULL")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_bh_schedule(bh: *mut QemuBh) {
    // SAFETY: the header asks for one that is not deleted.
    match unsafe { bh.as_ref() } {
        Some(bh) if raw::schedule_plainly(&bh.half) => {}
        // SAFETY: as above.
        _ => unsafe { schedule_otherwise(bh) },
    }
}

/// # Safety
/// As for `qemu_bh_schedule`, whose caller it returns to: it does not unwind.
#[cold]
#[inline(never)]
unsafe extern "C" fn schedule_otherwise(bh: *mut QemuBh) {
    // SAFETY: the caller's promise.
    unsafe { at(bh, "qemu_bh_schedule") }.half.schedule();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_bh_schedule_idle(bh: *mut QemuBh) {
    // SAFETY: the header asks for one that is not deleted.
    unsafe { at(bh, "qemu_bh_schedule_idle") }
        .half
        .schedule_idle();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_bh_cancel(bh: *mut QemuBh) {
    // SAFETY: the header asks for one that is not deleted.
    unsafe { at(bh, "qemu_bh_cancel") }.half.cancel();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_bh_delete(bh: *mut QemuBh) {
    // SAFETY: the header asks for one that is not deleted, whose context is there.
    unsafe {
        let ctx = at(bh, "qemu_bh_delete").ctx;
        crate::locked(&(*ctx).halves.0).remove(&bh.addr());
        drop(Box::from_raw(bh));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_bh_call(bh: *mut QemuBh) {
    // SAFETY: the header asks for one that is not deleted; it may be by its function.
    unsafe {
        let call = at(bh, "aio_bh_call").call;
        call.run();
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_bh_poll(ctx: *mut Context) -> c_int {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_bh_poll") };
    ctx.check_home("aio_bh_poll");
    let _turning = ctx.turning();
    c_int::from(raw::run_bottom_halves(ctx.rust()))
}
