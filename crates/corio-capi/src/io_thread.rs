//! `CorioIOThread`: a thread that runs a context.
//!
//! Not [`corio::IoThread`], whose thread is home only inside of a scope of Rust's: this one does
//! what a thread of C does that makes a context current and polls it.

use std::ffi::{CStr, c_char};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use corio::context::PollParams;
use corio::{AioContext, Error, raw};

use crate::abort;
use crate::context::Context;
use crate::error::{self, CorioError};

/// What C calls a `CorioIOThread`.
pub(crate) struct IoThread {
    ctx: Arc<Context>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A context on its way to its thread.
struct ForThread(Arc<Context>);

// SAFETY: C uses contexts from any thread; what is the home's alone is in the home's thread-locals.
unsafe impl Send for ForThread {}

impl ForThread {
    /// Not the field: a closure would capture that alone.
    fn get(self) -> Arc<Context> {
        self.0
    }
}

fn start(name: &str) -> Result<IoThread, Error> {
    let rust = AioContext::builder()
        .name(name)
        .poll_params(PollParams::IO_THREAD)
        .build()?;
    let ctx = Context::new(rust);
    let stopping = Arc::new(AtomicBool::new(false));
    let (started, start) = mpsc::sync_channel(1);
    let (mine, asked) = (ForThread(Arc::clone(&ctx)), Arc::clone(&stopping));
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&mine.get(), &asked, &started))
        .map_err(|source| Error::Os {
            op: "starting a thread",
            source,
        })?;
    match start.recv() {
        Ok(Ok(())) => Ok(IoThread {
            ctx,
            stopping,
            thread,
        }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Os {
            op: "starting a thread",
            source: io::Error::other("the thread ended before its loop ran"),
        }),
    }
}

fn run(ctx: &Context, stopping: &AtomicBool, started: &mpsc::SyncSender<Result<(), Error>>) {
    raw::prepare_loop_thread();
    let entered = ctx.enter_thread();
    let is_home = entered.is_ok();
    let _ = started.send(entered);
    // Acquire: pairs with `corio_iothread_stop`.
    while is_home && !stopping.load(Ordering::Acquire) {
        turn(ctx, true);
    }
    if is_home {
        turn(ctx, false); // What was scheduled before it was stopped runs.
    }
}

fn turn(ctx: &Context, blocking: bool) {
    if let Err(error) = ctx.rust().poll(blocking) {
        die!("the loop of '{}': {error}", ctx.rust().name());
    }
}

/// The thread at `iothread`; dies if it is null.
///
/// # Safety
/// `iothread` is null or one that is not joined.
unsafe fn at<'a>(iothread: *mut IoThread, function: &str) -> &'a IoThread {
    // SAFETY: the caller's promise.
    match unsafe { iothread.as_ref() } {
        Some(iothread) => iothread,
        None => die!("{function}: the thread is NULL"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_iothread_new(
    name: *const c_char,
    errp: *mut *mut CorioError,
) -> *mut IoThread {
    abort::on_panic();
    let name = if name.is_null() {
        c"iothread"
    } else {
        // SAFETY: the header asks for a string.
        unsafe { CStr::from_ptr(name) }
    };
    match start(&name.to_string_lossy()) {
        Ok(iothread) => Box::into_raw(Box::new(iothread)),
        Err(error) => {
            // SAFETY: the header's contract.
            unsafe { error::set(errp, error) };
            std::ptr::null_mut()
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_iothread_get_aio_context(iothread: *mut IoThread) -> *mut Context {
    // SAFETY: the header asks for one that is not joined.
    let iothread = unsafe { at(iothread, "corio_iothread_get_aio_context") };
    Arc::as_ptr(&iothread.ctx).cast_mut()
}

fn stop(iothread: &IoThread) {
    // Release: pairs with the thread's look at it.
    iothread.stopping.store(true, Ordering::Release);
    iothread.ctx.rust().notify();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_iothread_stop(iothread: *mut IoThread) {
    // SAFETY: the header asks for one that is not joined.
    stop(unsafe { at(iothread, "corio_iothread_stop") });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_iothread_join(iothread: *mut IoThread) {
    const NAME: &str = "corio_iothread_join";
    // SAFETY: the header asks for one that is not joined, and used by nobody any more.
    unsafe {
        let at = at(iothread, NAME);
        if at.thread.thread().id() == thread::current().id() {
            die!("{NAME}: a thread cannot wait for its own end");
        }
        stop(at);
        let iothread = Box::from_raw(iothread);
        if iothread.thread.join().is_err() {
            die!("{NAME}: the thread has panicked"); // Which ends the process before.
        }
        drop(iothread.ctx);
    }
}
