//! The thread pool: blocking functions, with a callback or a coroutine that gets the result.
//!
//! ```text
//!   submit ──▶ Job: one count is the callback's ──▶ callback, in the home of its context ──▶ freed
//!                   others are of those who cancel and wait
//! ```

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use corio::engine::{self, BlockingJob};
use corio::{AioContext, JoinError};

use crate::abort;
use crate::context::Context;

type Function = unsafe extern "C" fn(*mut c_void) -> c_int;
type Completion = unsafe extern "C" fn(*mut c_void, c_int);

/// What C calls a `ThreadPoolAio`: valid until its callback has returned.
pub(crate) struct Job {
    rust: OnceLock<BlockingJob>,
    ctx: AioContext,
    /// Its callback runs, in the home.
    is_called: AtomicBool,
    is_done: AtomicBool,
}

/// C's pointer, on its way to another thread.
struct Opaque(*mut c_void);

// SAFETY: which threads use it is what C asks for.
unsafe impl Send for Opaque {}

impl Opaque {
    /// Not the field: a closure would capture that alone.
    fn get(self) -> *mut c_void {
        self.0
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn thread_pool_submit_aio(
    func: Option<Function>,
    arg: *mut c_void,
    cb: Option<Completion>,
    opaque: *mut c_void,
) -> *mut Job {
    const NAME: &str = "thread_pool_submit_aio";
    abort::on_panic();
    let func = func.unwrap_or_else(|| die!("{NAME}: the function is NULL"));
    // SAFETY: the thread's context is there.
    let Some(ctx) = (unsafe { Context::current().as_ref() }) else {
        die!("{NAME}: this thread has no context")
    };
    let job = Arc::new(Job {
        rust: OnceLock::new(),
        ctx: ctx.rust().clone(),
        is_called: AtomicBool::new(false),
        is_done: AtomicBool::new(false),
    });
    let (arg, opaque, mine) = (Opaque(arg), Opaque(opaque), Arc::clone(&job));
    // SAFETY: the header's contract.
    let run = move || unsafe { func(arg.get()) };
    let jobs = Arc::clone(&ctx.jobs);
    // Relaxed: read by whoever has the last reference to the context.
    jobs.fetch_add(1, Ordering::Relaxed);
    let done = move |outcome: Result<c_int, JoinError>| {
        let ret = outcome.unwrap_or(-libc::ECANCELED);
        jobs.fetch_sub(1, Ordering::Relaxed);
        // Relaxed: looked at in this thread.
        mine.is_called.store(true, Ordering::Relaxed);
        if let Some(cb) = cb {
            // SAFETY: the header's contract.
            unsafe { cb(opaque.get(), ret) };
        }
        // Release: pairs with `corio_aio_cancel`, which may wait in another thread.
        mine.is_done.store(true, Ordering::Release);
        corio::context::kick();
    };
    match ctx.rust().submit_blocking(run, done) {
        Ok(submitted) => {
            // The callback runs in this very thread, so it has not yet.
            let handle = Arc::as_ptr(&job).cast_mut();
            if job.rust.set(submitted).is_err() {
                unreachable!("it is set once");
            }
            handle
        }
        Err(error) => die!("{NAME}: {error}"),
    }
}

/// The job at `aio`, kept; dies if it is null.
///
/// # Safety
/// `aio` is null or a job whose callback has not returned.
unsafe fn at(aio: *mut Job, function: &str) -> Arc<Job> {
    if aio.is_null() {
        die!("{function}: the job is NULL");
    }
    // SAFETY: the caller's promise: the callback's count is there.
    unsafe {
        Arc::increment_strong_count(aio);
        Arc::from_raw(aio)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_aio_cancel_async(aio: *mut Job) {
    // SAFETY: the header asks for a job whose callback has not returned.
    let job = unsafe { at(aio, "corio_aio_cancel_async") };
    if let Some(rust) = job.rust.get() {
        rust.cancel();
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_aio_cancel(aio: *mut Job) {
    const NAME: &str = "corio_aio_cancel";
    // SAFETY: the header asks for a job whose callback has not returned.
    let job = unsafe { at(aio, NAME) };
    crate::wait::check_waiter(&job.ctx, NAME);
    if job.ctx.is_home() && job.is_called.load(Ordering::Relaxed) {
        die!("{NAME}: called by the job's own callback, for whose end it would wait");
    }
    if let Some(rust) = job.rust.get() {
        rust.cancel();
    }
    // Acquire: pairs with the callback.
    let waited = job.ctx.wait_while(|| !job.is_done.load(Ordering::Acquire));
    if let Err(error) = waited {
        die!("{NAME}: {error}");
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn thread_pool_submit_co(func: Option<Function>, arg: *mut c_void) -> c_int {
    const NAME: &str = "thread_pool_submit_co";
    let func = func.unwrap_or_else(|| die!("{NAME}: the function is NULL"));
    if !corio::in_coroutine() {
        die!("{NAME}: called outside a coroutine");
    }
    if Context::current().is_null() {
        die!("{NAME}: this thread has no context");
    }
    let arg = Opaque(arg);
    // SAFETY: the header's contract.
    match engine::unblock(move || unsafe { func(arg.get()) }) {
        Ok(ret) => ret,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}
