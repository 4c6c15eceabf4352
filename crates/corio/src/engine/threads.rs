//! The thread engine: a worker of the context's pool makes the blocking call.
//!
//! Invariants
//! - I1 A job's record lies in the frame of the coroutine that submitted it, which parks
//!   uninterruptibly until `done`.
//! - I2 The worker writes `outcome`, then `done`, and does not touch the record after that. Before
//!   `done` it counts as one that searches for a job (I4 of the pool).
//! - I3 Who has been asked to end takes its job out of the queue, where no worker can find it any
//!   more, or waits for it all the same.

#![allow(unsafe_code)] // Jobs point into the coroutine's frame.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::pool::{self, Pool, RawJob};
use super::request::{is_cancelled, trace_completed, trace_submitted};
use crate::context::{AioContext, Local};
use crate::coroutine::{self, CoRef};
use crate::error::Error;
use crate::schedule::{self, CoWaker};
use crate::track;

/// Threads of a context's pool at most, when nothing else is asked for (SPEC E3).
const WORKERS_MAX: usize = 64;

struct Record<F, T> {
    /// Taken by the worker.
    job: UnsafeCell<Option<F>>,
    outcome: UnsafeCell<MaybeUninit<std::thread::Result<T>>>,
    done: AtomicBool,
    waker: CoWaker,
}

/// # Safety
/// `data` points to a `Record<F, T>` that is submitted once and kept in place until `done`.
unsafe fn work<F: FnOnce() -> T, T>(data: NonNull<()>) {
    let record = data.cast::<Record<F, T>>();
    // SAFETY: the caller's promise; until `done` is set only the worker touches the cells.
    let job = unsafe { (*record.as_ref().job.get()).take() };
    let Some(job) = job else { return };
    let outcome = catch_unwind(AssertUnwindSafe(job));
    // SAFETY: as above; I2.
    unsafe { (*record.as_ref().outcome.get()).write(outcome) };
}

/// # Safety
/// As [`work`], which has been called in this thread.
unsafe fn end<F, T>(data: NonNull<()>) {
    let record = data.cast::<Record<F, T>>();
    // SAFETY: the caller's promise; the record is not touched after `done`.
    let waker = unsafe {
        let record = record.as_ref();
        let waker = record.waker;
        record.done.store(true, Ordering::Release); // Pairs with `submit`'s acquires.
        waker
    };
    waker.wake();
}

/// What came of a job: an error of its submission, or that it was taken back (ECANCELED); its
/// panic; or what it returned.
type Outcome<T> = Result<std::thread::Result<T>, Error>;

fn is_taken_back(error: &Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// That a job was taken back before a worker had begun with it.
fn taken_back() -> Error {
    Error::Os {
        op: "a job of the thread pool",
        source: io::Error::from_raw_os_error(libc::ECANCELED),
    }
}

/// Runs a request for `fd` on a worker and parks until it is done. Err also if no worker can be
/// had, or the job panicked.
pub(super) fn run(
    local: &Local,
    fd: BorrowedFd<'_>,
    job: impl FnOnce() -> io::Result<usize> + Send,
) -> io::Result<usize> {
    // Told before a worker can be done with it, and of one that is refused, too: each submission
    // has its completion. It is named by this frame, which stays until then.
    let id = core::ptr::from_ref(&fd).addr() as u64;
    if track::is_enabled() {
        trace_submitted(id, fd);
    }
    let outcome = submit(local, job);
    if track::is_enabled() {
        trace_completed(id, result_of(&outcome));
    }
    if outcome.as_ref().is_err_and(is_taken_back) {
        coroutine::cancellation_point();
    }
    outcome?.unwrap_or_else(|payload| {
        core::mem::forget(payload); // Reported by the panic hook; its destructor could panic again.
        Err(io::Error::other("a worker thread's job panicked"))
    })
}

/// A request's result as the kernel puts it: a count, or an errno negated; EIO where there is none.
#[cold]
fn result_of(outcome: &Outcome<io::Result<usize>>) -> i64 {
    let errno = match outcome {
        Ok(Ok(Ok(count))) => return i64::try_from(*count).unwrap_or(i64::MAX),
        Ok(Ok(Err(error))) => error.raw_os_error(),
        Ok(Err(_)) => None,
        Err(error) => error.raw_os_error(),
    };
    -i64::from(errno.unwrap_or(libc::EIO))
}

fn submit<T: Send, F: FnOnce() -> T + Send>(local: &Local, job: F) -> Outcome<T> {
    let Some(waker) = CoWaker::current() else {
        return Err(Error::Os {
            op: "submitting a job outside a coroutine",
            source: io::ErrorKind::InvalidInput.into(),
        });
    };
    let pool = pool_of(local.context())?;
    let record = Record {
        job: UnsafeCell::new(Some(job)),
        outcome: UnsafeCell::new(MaybeUninit::uninit()),
        done: AtomicBool::new(false),
        waker,
    };
    // SAFETY: `work::<F, T>` and then `end::<F, T>` are called once with the record's address. I1
    // keeps the record and what the job borrows in place; F and T are Send.
    let job = unsafe { RawJob::with_end(NonNull::from(&record).cast(), work::<F, T>, end::<F, T>) };
    let submitted = pool.submit(job)?;
    // Acquire pairs with `end`'s release.
    let is_done = || record.done.load(Ordering::Acquire);
    // Not while others have something to do.
    if submitted.is_awaited && !local.is_urgent() {
        pool.meet(is_done);
    }
    if is_done() {
        schedule::yield_uninterruptible(); // Others have their turn, as if it had parked.
    }
    let mut asked = false;
    while !is_done() {
        // What unwinds already has its destructors' jobs done.
        if !asked && is_cancelled() && !coroutine::current().is_some_and(CoRef::is_unwinding) {
            asked = true;
            if pool.cancel(submitted.id) {
                return Err(taken_back());
            }
        }
        schedule::park_uninterruptible();
    }
    // SAFETY: written before `done` (I2), read once.
    Ok(unsafe { record.outcome.into_inner().assume_init() })
}

impl AioContext {
    /// Changes how many worker threads the context keeps and has at most, from now on. Any thread.
    ///
    /// # Errors
    /// `max` is 0 or more than 64, or `min` more than `max`: nothing is changed.
    #[doc(alias = "aio_context_set_thread_pool_params")]
    pub fn set_worker_limits(&self, min: usize, max: usize) -> Result<(), Error> {
        pool_of(self)?.set_limits(min, max)
    }

    /// How many worker threads the context keeps, and has at most.
    ///
    /// # Errors
    /// The pool cannot be made.
    pub fn worker_limits(&self) -> Result<(usize, usize), Error> {
        Ok(pool_of(self)?.limits())
    }
}

/// The context's pool, made on first use. A pool that cannot be made is an error each time.
pub(super) fn pool_of(context: &AioContext) -> Result<Arc<Pool>, Error> {
    let name = context.name();
    let slot: Arc<Result<Arc<Pool>, ()>> = context.attachment(|| {
        Pool::new(name, 0, WORKERS_MAX, pool::IDLE)
            .map(Arc::new)
            .map_err(|_| ())
    });
    match &*slot {
        Ok(pool) => Ok(Arc::clone(pool)),
        Err(()) => Err(Error::Os {
            op: "making the worker pool",
            source: io::ErrorKind::OutOfMemory.into(),
        }),
    }
}

/// Runs a blocking closure without blocking the loop: on a worker of the context's pool while the
/// coroutine is parked, or right here on a plain thread. Borrows are fine: it returns only when the
/// closure has. Who is cancelled meanwhile unwinds if no worker has begun with the closure, which
/// then never runs, and waits for its end otherwise.
///
/// Where the loop has nothing else to run, and closures have been short of late, up to three
/// microseconds pass before the coroutine parks; one that ends by then costs no wake-up. The loop
/// has a turn all the same.
///
/// # Errors
/// No worker thread can be had.
///
/// # Panics
/// With the closure's panic; on a loop's thread outside a coroutine.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let text = io.context().spawn(|| corio::engine::unblock(|| std::fs::read_to_string("/proc/version")));
/// assert!(text.join().unwrap()??.contains("Linux"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "thread_pool_submit_co")]
#[track_caller]
pub fn unblock<T: Send, F: FnOnce() -> T + Send>(f: F) -> Result<T, Error> {
    let Some(local) = Local::current() else {
        return Ok(f());
    };
    schedule::parkable("engine::unblock");
    let outcome = submit(local, f);
    if outcome.as_ref().is_err_and(is_taken_back) {
        coroutine::cancellation_point();
    }
    match outcome? {
        Ok(value) => Ok(value),
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    // SPEC E3: short jobs are met without parking, many in a row, and the loop has its turns.
    #[test]
    fn short_jobs_in_a_row_keep_nobody_waiting() {
        const JOBS: u32 = 5_000;
        let context = crate::AioContext::new().unwrap();
        let turns_of = || {
            let jobs = || (0..JOBS).map(|_| super::unblock(|| 1).unwrap()).sum();
            let jobs = crate::spawn_local(jobs);
            let mut turns = 0;
            while !jobs.is_finished() {
                context.poll(true).unwrap();
                turns += 1;
            }
            let done: u32 = jobs.join().unwrap();
            assert_eq!(done, JOBS);
            turns
        };
        // One that ends between the last look and the park may give none.
        let turns = context.enter_home(turns_of).unwrap();
        assert!(turns > JOBS / 2, "{turns} turns");
    }
}
