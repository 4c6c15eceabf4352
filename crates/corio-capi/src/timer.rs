//! Clocks and timers.
//!
//! ```text
//!   C's QEMUTimer              its context's Timers                   corio
//!     context, function, key ──▶ by key: what is armed, its Timer ──▶ the context's wheel
//!                                 ▲ taken out by timer_del, and when it runs
//! ```
//!
//! A timer that is armed has a Rust timer, which is made when it is armed and freed when it is
//! cancelled or runs: so C's struct has nothing to be freed, and what runs never looks at it. Its
//! function may free it, and so may whoever has cancelled it, on any thread.
//!
//! Invariants
//! - I1 A key stands for one arming, from when it is armed until it is cancelled or has run, re-armings
//!   included. It is never used again.
//! - I2 `key` of a QEMUTimer is written under the lock of its context's timers. One that is not in
//!   the map is as good as 0.
//! - I3 The lock of the timers is taken before those of corio's, and nothing of C's runs under it.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use corio::context::Timer;

use crate::clock::clock;
use crate::context::{self, Context};
use crate::{abort, layout};

type Callback = unsafe extern "C" fn(*mut c_void);

/// Nanoseconds a unit may have at most: a second.
const SCALE_MAX: c_int = 1_000_000_000;

/// What C allocates; all zeros: it was not initialised.
#[repr(C)]
pub(crate) struct QemuTimer {
    ctx: AtomicPtr<Context>,
    callback: Option<Callback>,
    opaque: *mut c_void,
    key: AtomicU64,
    clock: c_int,
    scale: c_int,
    attributes: c_int,
}
layout::words!(QemuTimer, 6);

/// What an armed timer does.
#[derive(Clone, Copy)]
struct Call {
    callback: Callback,
    opaque: *mut c_void,
}

// SAFETY: which thread it is called in is what C asks for: that of the context.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

/// The armed timers of a context.
#[derive(Default)]
pub(crate) struct Timers(Mutex<HashMap<u64, Timer>>);

impl Timers {
    /// Whether one is armed.
    pub(crate) fn any(&self) -> bool {
        !crate::locked(&self.0).is_empty()
    }

    /// Runs what corio has found due.
    fn run(&self, key: u64, call: Call) {
        let mut armed = crate::locked(&self.0);
        let ended = match armed.get(&key) {
            None => return, // Cancelled in this moment.
            // Re-armed in this moment: it runs now, and then again.
            Some(timer) if timer.is_armed() => None,
            Some(_) => armed.remove(&key),
        };
        drop(armed);
        drop(ended);
        // SAFETY: the header's contract.
        unsafe { (call.callback)(call.opaque) };
    }
}

impl QemuTimer {
    /// The context, once it is initialised.
    fn context(&self) -> Option<&Context> {
        // Acquire: pairs with `init`, if C shows the timer to another thread by no lock of its own.
        // SAFETY: the header asks for a context that stays as long as its timers are used.
        unsafe { self.ctx.load(Ordering::Acquire).as_ref() }
    }

    fn initialised(&self, function: &str) -> &Context {
        match self.context() {
            Some(ctx) => ctx,
            None => die!("{function}: the timer was not initialised"),
        }
    }

    fn armed_for_ns(&self) -> Option<u64> {
        let armed = crate::locked(&self.context()?.timers.0);
        let timer = armed.get(&self.key.load(Ordering::Relaxed))?;
        timer.expire_time_ns()
    }

    fn arm(&self, deadline_ns: i64, only_earlier: bool, function: &str) {
        let deadline_ns = u64::try_from(deadline_ns).unwrap_or(0);
        let ctx = self.initialised(function);
        let mut armed = crate::locked(&ctx.timers.0);
        if let Some(timer) = armed.get(&self.key.load(Ordering::Relaxed)) {
            match only_earlier {
                true => timer.arm_by_ns(deadline_ns),
                false => timer.arm_at_ns(deadline_ns),
            }
            return;
        }
        static KEYS: AtomicU64 = AtomicU64::new(1);
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        let Some(callback) = self.callback else {
            die!("{function}: the timer was not initialised")
        };
        let call = Call {
            callback,
            opaque: self.opaque,
        };
        let timers = Arc::clone(&ctx.timers);
        let clock = clock(self.clock, function);
        let timer = ctx.rust().timer_on(clock, move || timers.run(key, call));
        timer.arm_at_ns(deadline_ns);
        armed.insert(key, timer);
        self.key.store(key, Ordering::Relaxed);
    }

    /// What `time` is in nanoseconds.
    fn scaled(&self, time: i64) -> i64 {
        time.saturating_mul(i64::from(self.scale))
    }
}

fn to_c(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// The timer at `ts`; dies if it is null.
///
/// # Safety
/// `ts` is null or a timer, zeroed or initialised.
unsafe fn at<'a>(ts: *const QemuTimer, function: &str) -> &'a QemuTimer {
    // SAFETY: the caller's promise.
    match unsafe { ts.as_ref() } {
        Some(ts) => ts,
        None => die!("{function}: the timer is NULL"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn qemu_clock_get_ns(clock_type: c_int) -> i64 {
    to_c(clock(clock_type, "qemu_clock_get_ns").now_ns())
}

#[unsafe(no_mangle)]
extern "C" fn qemu_clock_enable(clock_type: c_int, enabled: bool) {
    abort::on_panic();
    let clock = clock(clock_type, "qemu_clock_enable");
    match enabled {
        true => clock.enable(),
        false => clock.disable(),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_init_full(
    ts: *mut QemuTimer,
    timer_list_group: *mut Context,
    clock_type: c_int,
    scale: c_int,
    attributes: c_int,
    cb: Option<Callback>,
    opaque: *mut c_void,
) {
    // SAFETY: the header's contract.
    unsafe {
        init(
            ts,
            timer_list_group,
            clock_type,
            scale,
            attributes,
            cb,
            opaque,
            "timer_init_full",
        )
    }
}

/// # Safety
/// `ts` is null or room for a timer that is not armed; `ctx` is null or a context that stays.
#[allow(clippy::too_many_arguments)] // They are C's.
unsafe fn init(
    ts: *mut QemuTimer,
    ctx: *mut Context,
    clock_type: c_int,
    scale: c_int,
    attributes: c_int,
    callback: Option<Callback>,
    opaque: *mut c_void,
    function: &str,
) {
    abort::on_panic();
    clock(clock_type, function);
    let ctx = if ctx.is_null() { context::main() } else { ctx };
    if ts.is_null() {
        die!("{function}: the timer is NULL");
    }
    if ctx.is_null() {
        die!("{function}: there is no main context yet");
    }
    if callback.is_none() {
        die!("{function}: the function is NULL");
    }
    if !(1..=SCALE_MAX).contains(&scale) {
        die!("{function}: a scale of {scale} nanoseconds, which is not 1 to {SCALE_MAX}");
    }
    let timer = QemuTimer {
        ctx: AtomicPtr::new(ctx),
        callback,
        opaque,
        key: AtomicU64::new(0),
        clock: clock_type,
        scale,
        attributes,
    };
    // SAFETY: the caller's promise.
    unsafe { ts.write(timer) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_deinit(ts: *mut QemuTimer) {
    const NAME: &str = "timer_deinit";
    // SAFETY: the header asks for a timer that nobody uses any more.
    unsafe {
        if at(ts, NAME).armed_for_ns().is_some() {
            die!("{NAME}: the timer is armed");
        }
        (*ts).ctx.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_free(ts: *mut QemuTimer) {
    if ts.is_null() {
        return;
    }
    // SAFETY: the header asks for one of `aio_timer_new`, which is a `Box`.
    unsafe {
        timer_del(ts);
        drop(Box::from_raw(ts));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_mod_ns(ts: *mut QemuTimer, expire_time: i64) {
    const NAME: &str = "timer_mod_ns";
    // SAFETY: the header asks for a timer.
    unsafe { at(ts, NAME) }.arm(expire_time, false, NAME);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_mod_anticipate_ns(ts: *mut QemuTimer, expire_time: i64) {
    const NAME: &str = "timer_mod_anticipate_ns";
    // SAFETY: the header asks for a timer.
    unsafe { at(ts, NAME) }.arm(expire_time, true, NAME);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_mod(ts: *mut QemuTimer, expire_time: i64) {
    const NAME: &str = "timer_mod";
    // SAFETY: the header asks for a timer.
    let ts = unsafe { at(ts, NAME) };
    ts.arm(ts.scaled(expire_time), false, NAME);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_mod_anticipate(ts: *mut QemuTimer, expire_time: i64) {
    const NAME: &str = "timer_mod_anticipate";
    // SAFETY: the header asks for a timer.
    let ts = unsafe { at(ts, NAME) };
    ts.arm(ts.scaled(expire_time), true, NAME);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_del(ts: *mut QemuTimer) {
    // SAFETY: the header asks for a timer.
    let ts = unsafe { at(ts, "timer_del") };
    let Some(ctx) = ts.context() else { return };
    let armed = crate::locked(&ctx.timers.0).remove(&ts.key.load(Ordering::Relaxed));
    drop(armed); // Not under the lock.
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_pending(ts: *mut QemuTimer) -> bool {
    // SAFETY: the header asks for a timer.
    unsafe { at(ts, "timer_pending") }.armed_for_ns().is_some()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_expired(ts: *mut QemuTimer, current_time: i64) -> bool {
    // SAFETY: the header asks for a timer.
    let ts = unsafe { at(ts, "timer_expired") };
    let now_ns = ts.scaled(current_time);
    ts.armed_for_ns()
        .is_some_and(|deadline_ns| to_c(deadline_ns) <= now_ns)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn timer_expire_time_ns(ts: *mut QemuTimer) -> i64 {
    // SAFETY: the header asks for a timer.
    let armed = unsafe { at(ts, "timer_expire_time_ns") }.armed_for_ns();
    armed.map_or(-1, to_c)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_timer_init(
    ctx: *mut Context,
    ts: *mut QemuTimer,
    clock_type: c_int,
    scale: c_int,
    cb: Option<Callback>,
    opaque: *mut c_void,
) {
    const NAME: &str = "aio_timer_init";
    // SAFETY: the header's contract.
    unsafe {
        Context::at(ctx, NAME);
        init(ts, ctx, clock_type, scale, 0, cb, opaque, NAME);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_timer_new(
    ctx: *mut Context,
    clock_type: c_int,
    scale: c_int,
    cb: Option<Callback>,
    opaque: *mut c_void,
) -> *mut QemuTimer {
    const NAME: &str = "aio_timer_new";
    // All zeros is a timer that was not initialised.
    let ts = Box::into_raw(Box::new(QemuTimer {
        ctx: AtomicPtr::new(ptr::null_mut()),
        callback: None,
        opaque: ptr::null_mut(),
        key: AtomicU64::new(0),
        clock: 0,
        scale: 0,
        attributes: 0,
    }));
    // SAFETY: the header's contract, and the box is a timer.
    unsafe {
        Context::at(ctx, NAME);
        init(ts, ctx, clock_type, scale, 0, cb, opaque, NAME);
    }
    ts
}
