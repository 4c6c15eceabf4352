//! Blocking calls whose result a callback gets (SPEC E3).
//!
//! ```text
//!   submit_blocking ──▶ pool ──▶ worker: the job ──────────┐
//!                        │                                 ▼
//!     cancel ◀───────────┘ not begun               a bottom half: the callback
//!        └──────────────── Cancelled ─────────────────────▲
//! ```
//!
//! Invariants
//! - I1 The pool's job owns the task; whoever takes the job, a worker or a canceller, takes the task,
//!   which runs once.

#![allow(unsafe_code)] // The pool's jobs are pointers.

use core::ptr::NonNull;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use super::pool::{JobId, Pool, RawJob};
use super::threads::pool_of;
use crate::context::AioContext;
use crate::error::Error;
use crate::schedule::JoinError;

/// What is to become of a job, and whoever does it.
enum Turn {
    /// A worker has it.
    Run,
    /// It was taken back.
    Cancel,
}

type Task = Box<dyn FnOnce(Turn) + Send>;

/// A blocking call that was handed to a context's workers, from
/// [`AioContext::submit_blocking`]. Dropping it changes nothing. Any thread.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let (tx, rx) = std::sync::mpsc::channel();
/// let job = io.context().submit_blocking(|| 6 * 7, move |outcome| tx.send(outcome).unwrap())?;
/// let outcome = rx.recv().expect("the callback runs");
/// assert_eq!(outcome.expect("it does not panic"), 42);
/// assert!(!job.cancel(), "it has ended");
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Debug)]
pub struct BlockingJob {
    /// What takes it back ends with the context.
    pool: Weak<Pool>,
    id: JobId,
    task: NonNull<()>,
}

// SAFETY: the pointer is used only by `cancel`, and only after the pool has given up the job, which
// it does once and under its lock; the task itself is Send.
unsafe impl Send for BlockingJob {}
// SAFETY: as above.
unsafe impl Sync for BlockingJob {}

/// # Safety
/// `task` is a `Task` in a box that was leaked, and nobody else takes it (I1).
unsafe fn take(task: NonNull<()>) -> Task {
    // SAFETY: the caller's promise.
    unsafe { *Box::from_raw(task.cast::<Task>().as_ptr()) }
}

/// # Safety
/// As [`take`]'s.
unsafe fn work(task: NonNull<()>) {
    // SAFETY: the caller's promise.
    let run = unsafe { take(task) };
    // The job's own panic is caught in there. What else it has, the last clone of a context perhaps,
    // is dropped there, too, and no destructor's panic may leave a worker.
    let done = catch_unwind(AssertUnwindSafe(|| run(Turn::Run)));
    core::mem::forget(done);
}

impl BlockingJob {
    /// Takes the job back if no worker has begun with it: true, and the callback gets
    /// [`JoinError::Cancelled`]. False: it has begun, or ended. Never waits.
    #[doc(alias = "bdrv_aio_cancel")]
    pub fn cancel(&self) -> bool {
        let taken = self.pool.upgrade().is_some_and(|pool| pool.cancel(self.id));
        if taken {
            // SAFETY: the pool has given it up, and does so once (I1).
            let run = unsafe { take(self.task) };
            run(Turn::Cancel);
        }
        taken
    }
}

impl AioContext {
    /// Runs the blocking closure `job` on a worker of this context's pool, and then `done` with what
    /// came of it in the home thread, as a bottom half. Any thread; neither waits nor runs anything.
    /// Jobs begin in the order in which they are submitted.
    ///
    /// `done` runs once, unless no home is to come: then it is dropped with the context.
    ///
    /// # Errors
    /// No worker thread can be had, or no memory: neither closure runs.
    #[doc(alias = "thread_pool_submit_aio")]
    pub fn submit_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(Result<T, JoinError>) + Send + 'static,
    ) -> Result<BlockingJob, Error> {
        let pool = pool_of(self)?;
        let context = self.clone();
        let run = move |turn: Turn| {
            let outcome = match turn {
                Turn::Run => catch_unwind(AssertUnwindSafe(job)).map_err(JoinError::Panicked),
                Turn::Cancel => {
                    // Its destructor is the canceller's, as its panic is; the callback runs then, too.
                    let cancelled = move || done(Err(JoinError::Cancelled));
                    context.schedule_oneshot("blocking job", cancelled);
                    return drop(job);
                }
            };
            context.schedule_oneshot("blocking job", move || done(outcome));
        };
        let raw = NonNull::from(Box::leak(Box::<Task>::new(Box::new(run)))).cast();
        // SAFETY: whoever takes the job takes the task (I1); nothing unwinds from `work`.
        match pool.submit(unsafe { RawJob::new(raw, work) }) {
            Ok(submitted) => Ok(BlockingJob {
                pool: Arc::downgrade(&pool),
                id: submitted.id,
                task: raw,
            }),
            Err(error) => {
                // SAFETY: the pool has refused the job.
                drop(unsafe { take(raw) });
                Err(error)
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::schedule::IoThread;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Keeps the only worker busy until the sender is dropped.
    fn occupy(context: &AioContext) -> mpsc::Sender<()> {
        context.set_worker_limits(0, 1).unwrap();
        let (release, wait) = mpsc::channel::<()>();
        let (begun, begin) = mpsc::channel();
        let busy = move || {
            begun.send(()).unwrap();
            let _ = wait.recv();
        };
        context.submit_blocking(busy, |_| ()).unwrap();
        begin.recv_timeout(PATIENCE).unwrap();
        release
    }

    // SPEC E3
    #[test]
    fn callbacks_run_at_home_in_the_order_of_their_jobs() {
        let io = IoThread::builder().spawn().unwrap();
        let release = occupy(io.context());
        let (tx, rx) = mpsc::channel();
        for at in 0..100 {
            let (tx, context) = (tx.clone(), io.context().clone());
            let done = move |outcome: Result<i32, JoinError>| {
                tx.send((outcome.unwrap(), context.is_home())).unwrap();
            };
            io.context().submit_blocking(move || at, done).unwrap();
        }
        drop((release, tx));
        let said: Vec<_> = rx.iter().collect();
        assert!(said.into_iter().eq((0..100).map(|at| (at, true))));
    }

    // SPEC E3
    #[test]
    fn a_panic_is_told_to_the_callback() {
        let io = IoThread::builder().spawn().unwrap();
        let (tx, rx) = mpsc::channel();
        let job = || -> () { panic!("expected by the test") };
        let done = move |outcome| tx.send(outcome).unwrap();
        io.context().submit_blocking(job, done).unwrap();
        let outcome = rx.recv_timeout(PATIENCE).unwrap();
        let Err(JoinError::Panicked(payload)) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(payload.downcast_ref(), Some(&"expected by the test"));
    }

    // SPEC E3: what has begun is not; either way the callback runs, once.
    #[test]
    fn what_has_not_begun_is_taken_back() {
        let io = IoThread::builder().spawn().unwrap();
        let release = occupy(io.context());
        let (tx, rx) = mpsc::channel();
        let submit = |runs: bool| {
            let tx = tx.clone();
            let job = move || assert!(runs, "it was taken back");
            let done = move |outcome: Result<(), JoinError>| {
                tx.send((runs, matches!(outcome, Err(JoinError::Cancelled))))
                    .unwrap();
            };
            io.context().submit_blocking(job, done).unwrap()
        };
        let (taken, kept) = (submit(false), submit(true));
        assert!(taken.cancel());
        assert!(!taken.cancel(), "twice");
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), (false, true));
        drop(release);
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), (true, false));
        assert!(!kept.cancel());
        let context = io.context().clone();
        io.join();
        drop(context);
        assert!(!kept.cancel(), "its context is gone");
        drop((kept, tx));
        assert!(rx.recv().is_err(), "a callback ran twice, or is left");
    }

    // SPEC E3, E5: a coroutine that is cancelled takes its job back, too, and unwinds.
    #[test]
    fn a_cancelled_coroutine_takes_back_what_has_not_begun() {
        let io = IoThread::builder().spawn().unwrap();
        let release = occupy(io.context());
        let waits = io.context().spawn(|| {
            let mut borrowed = [0];
            super::super::unblock(|| borrowed[0] = 1).unwrap();
            unreachable!("it unwinds");
        });
        // It has made its job when this one runs.
        io.context().spawn(|| ()).join().unwrap();
        waits.cancel().unwrap();
        let outcome = waits.join();
        assert!(matches!(outcome, Err(JoinError::Cancelled)), "{outcome:?}");
        drop(release);
        let after = io.context().spawn(|| super::super::unblock(|| 5).unwrap());
        assert_eq!(after.join().unwrap(), 5);
    }
}
