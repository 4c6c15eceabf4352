//! The pool as it is shipped, with few workers.

use super::*;
use crate::model;
use loom::cell::UnsafeCell;

/// A job that its submitter waits for.
struct Task {
    /// How often it ran; its submitter looks once it is told.
    runs: UnsafeCell<u32>,
    is_told: loom::sync::Mutex<bool>,
    told: loom::sync::Condvar,
}

unsafe fn run(data: NonNull<()>) {
    // SAFETY: of `Task::submit`; its task is the worker's until it is told.
    let runs = unsafe { &data.cast::<Task>().as_ref().runs };
    // SAFETY: as above.
    runs.with_mut(|runs| unsafe { *runs += 1 });
}

unsafe fn end(data: NonNull<()>) {
    // SAFETY: of `Task::submit`.
    let task: &Task = unsafe { data.cast().as_ref() };
    let mut is_told = task.is_told.lock().unwrap();
    assert!(!*is_told, "an end is told twice");
    *is_told = true;
    task.told.notify_one();
}

impl Task {
    fn new() -> Arc<Task> {
        Arc::new(Task {
            runs: UnsafeCell::new(0),
            is_told: loom::sync::Mutex::new(false),
            told: loom::sync::Condvar::new(),
        })
    }

    /// Whoever calls keeps it until the pool has ended.
    fn submit(&self, pool: &Pool) -> JobId {
        // SAFETY: the task stays, and whoever looks at it waits to be told.
        let job = unsafe { RawJob::with_end(NonNull::from(self).cast(), run, end) };
        pool.submit(job).unwrap().id
    }

    /// loom reports it if nobody tells.
    fn wait(&self) {
        let mut is_told = self.is_told.lock().unwrap();
        while !*is_told {
            is_told = self.told.wait(is_told).unwrap();
        }
        assert_eq!(self.runs(), 1);
    }

    /// The worker is done with it, or the pool has ended.
    fn runs(&self) -> u32 {
        // SAFETY: as above, which the model checks.
        self.runs.with(|runs| unsafe { *runs })
    }
}

/// One that nobody leaves before its end: a model waits for no time.
fn pool(threads: usize) -> Pool {
    Pool::new("model", threads, threads, IDLE).unwrap()
}

// SPEC L7, E3, I1: who is told of an end has another job at once, for the worker that tells, goes to
// sleep, or sleeps: it is run, and the pool ends.
#[test]
fn loom_who_is_told_has_another_job_done() {
    model::check(None, || {
        let pool = pool(1);
        let (first, second) = (Task::new(), Task::new());
        first.submit(&pool);
        first.wait();
        second.submit(&pool);
        second.wait();
        drop(pool);
    });
}

// SPEC L7, E3, I1: two have jobs at a time, and wake one worker between them, or make two.
#[test]
fn loom_two_submitters_have_their_jobs_done() {
    model::check(2, || {
        let pool = Arc::new(pool(2));
        let (first, second) = (Task::new(), Task::new());
        let other = {
            let (pool, first) = (Arc::clone(&pool), Arc::clone(&first));
            loom::thread::spawn(move || {
                first.submit(&pool);
                first.wait();
            })
        };
        second.submit(&pool);
        second.wait();
        other.join().unwrap();
        drop(pool);
    });
}

// SPEC L7, E3: a job that is taken back is not run, one that is not is, and its end told; whatever
// the limits do meanwhile.
#[test]
fn loom_a_job_is_taken_back_or_done() {
    model::check(2, || {
        let pool = Arc::new(pool(2));
        let (first, second) = (Task::new(), Task::new());
        first.submit(&pool);
        let id = second.submit(&pool);
        let other = {
            let pool = Arc::clone(&pool);
            loom::thread::spawn(move || pool.set_limits(1, 1).unwrap())
        };
        let is_back = pool.cancel(id);
        first.wait();
        if !is_back {
            second.wait();
        }
        other.join().unwrap();
        drop(pool);
        assert_eq!(second.runs(), u32::from(!is_back));
    });
}

// SPEC L7, E3, I1: a worker that is too many by now, and on which a job relies, has another one see to
// that before it leaves.
#[test]
fn loom_a_worker_that_leaves_hands_over_what_it_searched_for() {
    model::check(1, || {
        let pool = Arc::new(pool(2));
        let tasks = [Task::new(), Task::new(), Task::new()];
        tasks[0].submit(&pool);
        tasks[1].submit(&pool);
        tasks[0].wait();
        tasks[1].wait();
        let other = {
            let pool = Arc::clone(&pool);
            loom::thread::spawn(move || pool.set_limits(1, 1).unwrap())
        };
        tasks[2].submit(&pool);
        tasks[2].wait();
        other.join().unwrap();
        drop(pool);
    });
}
