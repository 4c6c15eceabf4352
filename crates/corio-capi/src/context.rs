//! `AioContext`: what is made, referred to, current and polled; and coroutines on it.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use corio::AioContext;
use corio::raw::{self, Loop, Loose};

use crate::abort;
use crate::bottom_half::Halves;
use crate::coroutine::{self, Coroutine};
use crate::error::{self, CorioError};
use crate::handler::Watched;
use crate::timer::Timers;

/// What C calls an `AioContext`: its pointers are those of `Arc::into_raw`.
pub(crate) struct Context {
    turns: Arc<Loop>,
    pub(crate) watched: Watched,
    pub(crate) halves: Halves,
    pub(crate) timers: Arc<Timers>,
    /// How many jobs of its thread pool have not completed.
    pub(crate) jobs: Arc<AtomicUsize>,
    /// How many turns of its loop there are in one another.
    turns_begun: AtomicU32,
}

/// A turn of a context's loop. In the home.
pub(crate) struct Turning<'a>(&'a Context);

impl Drop for Turning<'_> {
    fn drop(&mut self) {
        let begun = &self.0.turns_begun;
        begun.store(begun.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }
}

/// What `qemu_get_aio_context` returns.
static MAIN: AtomicPtr<Context> = AtomicPtr::new(ptr::null_mut());

impl Context {
    pub(crate) fn new(rust: AioContext) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            turns: Arc::new(Loop::new(rust, this.as_ptr().cast())),
            watched: Watched::default(),
            halves: Halves::default(),
            timers: Arc::default(),
            jobs: Arc::default(),
            turns_begun: AtomicU32::new(0),
        })
    }

    /// Its loop turns until what is returned is dropped, and must not be freed meanwhile.
    pub(crate) fn turning(&self) -> Turning<'_> {
        // Relaxed, in two steps: the home alone writes it.
        let begun = self.turns_begun.load(Ordering::Relaxed);
        self.turns_begun.store(begun + 1, Ordering::Relaxed);
        Turning(self)
    }

    /// Makes this thread its home.
    pub(crate) fn enter_thread(&self) -> Result<(), corio::Error> {
        self.turns.enter_thread()?;
        self.watched.apply_all(self);
        Ok(())
    }

    /// Dies off its home thread, and in a coroutine.
    pub(crate) fn check_home(&self, function: &str) {
        if !std::ptr::eq(Context::current(), self) {
            die!("{function}: this thread is not the home of the context");
        }
        if corio::in_coroutine() {
            die!("{function}: called in a coroutine, on whose stack the loop would run");
        }
    }

    /// Where its coroutines are scheduled.
    #[inline]
    pub(crate) fn turns(&self) -> &Arc<Loop> {
        &self.turns
    }

    /// The context as Rust knows it.
    #[inline]
    pub(crate) fn rust(&self) -> &AioContext {
        self.turns.context()
    }

    /// The one whose home this thread is, or null.
    #[inline]
    pub(crate) fn current() -> *mut Context {
        Loop::owner_of_thread().cast::<Context>().cast_mut()
    }

    /// The one in which a coroutine was entered last, or null.
    ///
    /// # Safety
    /// The coroutine has not ended.
    #[inline]
    pub(crate) unsafe fn of(co: Loose) -> *mut Context {
        // SAFETY: the caller's promise.
        unsafe { Loop::owner_of(co).cast::<Context>().cast_mut() }
    }

    /// The context at `ctx`; dies if it is null.
    ///
    /// # Safety
    /// `ctx` is null or a context to which the caller has a reference.
    #[inline]
    pub(crate) unsafe fn at<'a>(ctx: *mut Context, function: &str) -> &'a Context {
        // SAFETY: the caller's promise.
        match unsafe { ctx.as_ref() } {
            Some(ctx) => ctx,
            None => null(function),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(name) = self.halves.any() {
            die!("aio_context_unref: bottom half '{name}' was not deleted");
        }
        if self.timers.any() {
            die!("aio_context_unref: a timer is armed");
        }
        // Relaxed, as below: this was the last reference, whose holder is ordered after all others.
        match self.jobs.load(Ordering::Relaxed) {
            0 => {}
            jobs => die!("aio_context_unref: {jobs} jobs of its thread pool have not completed"),
        }
        if self.turns.has_scheduled() {
            die!("aio_context_unref: a coroutine is scheduled");
        }
        if self.turns_begun.load(Ordering::Relaxed) > 0 {
            die!("aio_context_unref: the context is freed in a turn of its own");
        }
        self.turns.disown();
        self.turns.leave_thread();
    }
}

#[cold]
#[inline(never)]
fn null(function: &str) -> ! {
    die!("{function}: the context is NULL")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_context_new(errp: *mut *mut CorioError) -> *mut Context {
    abort::on_panic();
    match AioContext::new() {
        Ok(rust) => Arc::into_raw(Context::new(rust)).cast_mut(),
        Err(error) => {
            // SAFETY: the header's contract.
            unsafe { error::set(errp, error) };
            ptr::null_mut()
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_context_ref(ctx: *mut Context) {
    // SAFETY: the header asks for a context to which the caller has a reference.
    unsafe {
        Context::at(ctx, "aio_context_ref");
        Arc::increment_strong_count(ctx);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_context_unref(ctx: *mut Context) {
    // SAFETY: as above; this gives the reference up.
    unsafe {
        Context::at(ctx, "aio_context_unref");
        drop(Arc::from_raw(ctx));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_init_main_loop(errp: *mut *mut CorioError) -> c_int {
    if !MAIN.load(Ordering::Relaxed).is_null() {
        die!("qemu_init_main_loop: the main loop is there already");
    }
    abort::on_panic();
    let made = AioContext::init_main().and_then(|rust| {
        let ctx = Context::new(rust);
        ctx.enter_thread()?;
        Ok(ctx)
    });
    match made {
        Ok(ctx) => {
            // Release: pairs with the load of who gets it, who may not have seen it being made.
            MAIN.store(Arc::into_raw(ctx).cast_mut(), Ordering::Release);
            0
        }
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            // SAFETY: the header's contract.
            unsafe { error::set(errp, error) };
            -errno
        }
    }
}

/// The main context, or null.
pub(crate) fn main() -> *mut Context {
    // Acquire: pairs with `qemu_init_main_loop`.
    MAIN.load(Ordering::Acquire)
}

#[unsafe(no_mangle)]
extern "C" fn qemu_get_aio_context() -> *mut Context {
    main()
}

#[unsafe(no_mangle)]
extern "C" fn qemu_get_current_aio_context() -> *mut Context {
    Context::current()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_set_current_aio_context(ctx: *mut Context) {
    const NAME: &str = "qemu_set_current_aio_context";
    if !Context::current().is_null() {
        die!("{NAME}: this thread has a context already");
    }
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, NAME) };
    if let Err(error) = ctx.enter_thread() {
        die!("{NAME}: {error}");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_poll(ctx: *mut Context, blocking: bool) -> bool {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_poll") };
    ctx.check_home("aio_poll");
    turn(ctx, blocking, "aio_poll")
}

fn turn(ctx: &Context, blocking: bool, function: &str) -> bool {
    let _turning = ctx.turning();
    match ctx.rust().poll(blocking) {
        Ok(progress) => progress,
        Err(error) => die!("{function}: {error}"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_prepare(ctx: *mut Context) -> bool {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_prepare") };
    ctx.check_home("aio_prepare");
    raw::wait_ns_max(ctx.rust()) == Some(0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_pending(ctx: *mut Context) -> bool {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_pending") };
    ctx.check_home("aio_pending");
    match raw::has_work(ctx.rust()) {
        Ok(has_work) => has_work,
        Err(error) => die!("aio_pending: {error}"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_dispatch(ctx: *mut Context) {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_dispatch") };
    ctx.check_home("aio_dispatch");
    turn(ctx, false, "aio_dispatch");
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_compute_timeout(ctx: *mut Context) -> i64 {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_compute_timeout") };
    ctx.check_home("aio_compute_timeout");
    match raw::wait_ns_max(ctx.rust()) {
        Some(ns) => i64::try_from(ns).unwrap_or(i64::MAX),
        None => -1,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_notify_accept(ctx: *mut Context) {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_notify_accept") };
    raw::accept_notification(ctx.rust());
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_notify(ctx: *mut Context) {
    // SAFETY: the header asks for a context to which the caller has a reference.
    unsafe { Context::at(ctx, "aio_notify") }.rust().notify();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_co_schedule(ctx: *mut Context, co: *mut Coroutine) {
    const NAME: &str = "aio_co_schedule";
    // SAFETY: the header asks for a context, and a coroutine that has not ended.
    unsafe {
        let ctx = Context::at(ctx, NAME);
        schedule(ctx, coroutine::loose(co, NAME), NAME);
    }
}

/// # Safety
/// The coroutine has not ended.
unsafe fn schedule(ctx: &Context, co: Loose, function: &str) {
    // SAFETY: the caller's promise.
    if let Err(why) = unsafe { ctx.turns.schedule(co) } {
        coroutine::refused(why, function);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_co_enter(ctx: *mut Context, co: *mut Coroutine) {
    // SAFETY: the header asks for a coroutine that has not ended, and a context.
    unsafe { enter_in(ctx, coroutine::loose(co, "aio_co_enter"), "aio_co_enter") }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_co_wake(co: *mut Coroutine) {
    // SAFETY: the header asks for a coroutine that has not ended.
    unsafe {
        let co = coroutine::loose(co, "aio_co_wake");
        enter_in(Context::of(co), co, "aio_co_wake");
    }
}

/// Enters a coroutine in a context: at once in its home, outside of coroutines; once the running one
/// suspends, inside of one; else by its loop.
///
/// # Safety
/// It has not ended; `ctx` is a context, or null if it is of a thread that has none: this one.
unsafe fn enter_in(ctx: *mut Context, co: Loose, function: &str) {
    // SAFETY: the caller's promise.
    unsafe {
        if ctx != Context::current() {
            return schedule(Context::at(ctx, function), co, function);
        }
        match Loose::running() {
            None => coroutine::enter(co, function),
            Some(running) if running == co => die!("{function}: a coroutine wakes itself"),
            Some(_) => {
                if let Err(why) = raw::queue_beside_running(co) {
                    coroutine::refused(why, function);
                }
            }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_co_reschedule_self(ctx: *mut Context) {
    const NAME: &str = "aio_co_reschedule_self";
    if !corio::in_coroutine() {
        die!("{NAME}: called outside a coroutine");
    }
    // SAFETY: the header asks for a context to which the caller has a reference.
    let new = unsafe { Context::at(ctx, NAME) };
    if ctx != Context::current() {
        Loop::move_here(&new.turns);
    }
}
