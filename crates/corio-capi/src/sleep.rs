//! Sleeping, and calls that are not waited for longer than they may take.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use corio::raw;
use corio::time::Clock;

use crate::clock::clock;
use crate::context::Context;
use crate::layout::words;

/// A place to sleep in, allocated by C: the token of who sleeps there, or 0.
#[repr(transparent)]
pub(crate) struct QemuCoSleep(AtomicU64);

words!(QemuCoSleep, 1);

impl QemuCoSleep {
    /// Parks the running coroutine until it is woken here.
    fn sleep(&self, function: &str) {
        let token = raw::token_of_running();
        if token == 0 {
            die!("{function}: called outside a coroutine");
        }
        // Relaxed: whoever else wants to sleep here would have to be told all the same.
        let taken = self
            .0
            .compare_exchange(0, token, Ordering::Release, Ordering::Relaxed);
        if taken.is_err() {
            die!("{function}: another coroutine sleeps there");
        }
        self.wait(token);
    }

    /// Parks until `token`, the running coroutine's, has been taken out.
    fn wait(&self, token: u64) {
        // Acquire: pairs with `wake`.
        while self.0.load(Ordering::Acquire) == token {
            corio::park();
        }
    }

    /// Ends the sleep, if there is one.
    fn wake(&self) {
        // Release: what the waker did, to the sleeper; acquire: nothing of the waker's before it.
        let token = self.0.swap(0, Ordering::AcqRel);
        raw::wake_token(token);
    }
}

/// The context whose timers run in this thread.
fn current(function: &str) -> &'static Context {
    if !corio::in_coroutine() {
        die!("{function}: called outside a coroutine");
    }
    // SAFETY: the thread's current context is there while it is current.
    match unsafe { Context::current().as_ref() } {
        Some(ctx) => ctx,
        None => die!("{function}: this thread has no context whose timers could run"),
    }
}

fn duration(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

/// Sleeps in `place` for `duration` of `clock`, or until it is woken.
fn sleep_for(place: &QemuCoSleep, clock: Clock, duration: Duration, function: &str) {
    let ctx = current(function).rust();
    // Its frame stays until the timer has gone, and the timer's callback runs in this thread: it is
    // cancelled, or has run, before this returns.
    let address = ptr::from_ref(place).expose_provenance();
    let timer = ctx.timer_on(clock, move || {
        // SAFETY: as said above.
        unsafe { &*ptr::with_exposed_provenance::<QemuCoSleep>(address) }.wake();
    });
    timer.arm_at_ns(clock.after_ns(duration));
    place.sleep(function);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_sleep(w: *mut QemuCoSleep) {
    // SAFETY: the header asks for one.
    match unsafe { w.as_ref() } {
        Some(w) => w.sleep("qemu_co_sleep"),
        None => die!("qemu_co_sleep: the place to sleep in is NULL"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_sleep_wake(w: *mut QemuCoSleep) {
    // SAFETY: the header asks for one.
    match unsafe { w.as_ref() } {
        Some(w) => w.wake(),
        None => die!("qemu_co_sleep_wake: the place to sleep in is NULL"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_sleep_ns(r#type: c_int, ns: i64) {
    let place = QemuCoSleep(AtomicU64::new(0));
    let clock = clock(r#type, "qemu_co_sleep_ns");
    sleep_for(&place, clock, duration(ns), "qemu_co_sleep_ns");
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_sleep_ns_wakeable(w: *mut QemuCoSleep, r#type: c_int, ns: i64) {
    const NAME: &str = "qemu_co_sleep_ns_wakeable";
    // SAFETY: the header asks for one.
    match unsafe { w.as_ref() } {
        Some(w) => sleep_for(w, clock(r#type, NAME), duration(ns), NAME),
        None => die!("{NAME}: the place to sleep in is NULL"),
    }
}

type CoroutineEntry = unsafe extern "C" fn(*mut c_void);

/// What the two sides of a time-out share.
struct Call {
    entry: CoroutineEntry,
    opaque: *mut c_void,
    clean: Option<CoroutineEntry>,
    /// Where the caller sleeps.
    caller: QemuCoSleep,
    /// One of [`outcome`]: whoever changes it first has decided, as the two may be on different
    /// threads.
    outcome: AtomicU8,
}

/// What became of a call.
mod outcome {
    /// Nothing yet.
    pub(super) const OPEN: u8 = 0;
    /// The function has returned in time.
    pub(super) const ENDED: u8 = 1;
    /// The time was up first.
    pub(super) const GIVEN_UP: u8 = 2;
}

impl Call {
    /// False: the other side has decided otherwise.
    fn decide(&self, outcome: u8) -> bool {
        // AcqRel: what each side did before, to the other.
        self.outcome
            .compare_exchange(outcome::OPEN, outcome, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

// SAFETY: what C has given is used where C's coroutines are, and the rest is atomic.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_co_timeout(
    entry: Option<CoroutineEntry>,
    opaque: *mut c_void,
    timeout_ns: u64,
    clean: Option<CoroutineEntry>,
) -> c_int {
    const NAME: &str = "qemu_co_timeout";
    let entry = entry.unwrap_or_else(|| die!("{NAME}: the function is NULL"));
    if timeout_ns == 0 {
        if !corio::in_coroutine() {
            die!("{NAME}: called outside a coroutine");
        }
        // SAFETY: the header asks for a function that may be called so.
        unsafe { entry(opaque) };
        return 0;
    }
    current(NAME);
    let call = Arc::new(Call {
        entry,
        opaque,
        clean,
        caller: QemuCoSleep(AtomicU64::new(0)),
        outcome: AtomicU8::new(outcome::OPEN),
    });
    let theirs = Arc::clone(&call);
    // SAFETY: the header asks for functions that may be called so.
    let body = move || unsafe { run(&theirs) };
    let co = match raw::create(body, std::panic::Location::caller()) {
        Ok(co) => co,
        Err(error) => die!("{NAME}: {error}"),
    };
    // SAFETY: it was just made. In a coroutine it is queued, and so begins once this one sleeps.
    let queued = unsafe { raw::queue_beside_running(co) };
    debug_assert!(queued.is_ok(), "nobody else knows it");
    sleep_for(
        &call.caller,
        Clock::Realtime,
        Duration::from_nanos(timeout_ns),
        NAME,
    );
    match call.decide(outcome::GIVEN_UP) {
        true => -libc::ETIMEDOUT,
        false => 0,
    }
}

/// # Safety
/// The functions may be called so.
unsafe fn run(call: &Call) {
    // SAFETY: the caller's promise.
    unsafe { (call.entry)(call.opaque) };
    if call.decide(outcome::ENDED) {
        call.caller.wake();
    } else if let Some(clean) = call.clean {
        // SAFETY: the caller's promise.
        unsafe { clean(call.opaque) };
    }
}
