//! Where an exercise runs that needs more than a thread: in a coroutine of a context, or in a task
//! of tokio's current_thread runtime. Each makes its loop anew, outside the exercise's time.
//!
//! tokio has several places for a task on one thread, and which is the fastest depends on what the
//! task does. A contest takes the fastest for its exercise, which the exercise's documentation
//! names.

use corio::AioContext;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// Runs `f` in a coroutine of a new context, whose home is this thread meanwhile.
pub(crate) fn coroutine<T: 'static>(f: impl FnOnce() -> T + 'static) -> T {
    let context = AioContext::new().expect("no descriptors for a context");
    let outcome = context.enter_home(|| {
        let handle = corio::spawn_local(f);
        while !handle.is_finished() {
            context.poll(true).expect("the loop's wait failed");
        }
        handle.join()
    });
    outcome
        .expect("no monitor for a context")
        .unwrap_or_else(|error| panic!("{}", error.resume_panic()))
}

/// Runs a future in `block_on` of a new runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

/// Runs a future as a spawned task of a new runtime.
pub(crate) fn task<F>(future: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    block_on(async { tokio::spawn(future).await.expect("a task panicked") })
}

/// Runs a future as a spawned task of a `LocalSet` in a new runtime.
pub(crate) fn local_task<F>(future: F) -> F::Output
where
    F: Future + 'static,
{
    LocalSet::new().block_on(&runtime(), async {
        let handle = tokio::task::spawn_local(future);
        handle.await.expect("a task panicked")
    })
}

/// A processor for each of two threads; the same one twice if there is but one.
pub(crate) fn processors() -> [usize; 2] {
    let allowed = rustix::thread::sched_getaffinity(None).expect("a thread knows its processors");
    let mut all = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let first = all.next().expect("this thread runs somewhere");
    [first, all.next().unwrap_or(first)]
}

/// Runs `f` in a thread of its own on processor `cpu`.
pub(crate) fn on<T: Send + 'static>(
    cpu: usize,
    f: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        let mut only = rustix::thread::CpuSet::new();
        only.set(cpu);
        rustix::thread::sched_setaffinity(None, &only).expect("it is one of those allowed");
        f()
    })
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("no runtime of the peer's")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_coroutine_hands_its_result_out() {
        assert_eq!(super::coroutine(|| 6 * 7), 42);
    }

    #[test]
    #[should_panic(expected = "seen outside")]
    fn a_panic_of_the_exercise_is_not_swallowed() {
        super::coroutine(|| panic!("seen outside"));
    }

    #[test]
    fn a_task_hands_its_result_out() {
        assert_eq!(super::block_on(async { 1 }), 1);
        assert_eq!(super::local_task(async { 2 }), 2);
        assert_eq!(super::task(async { 3 }), 3);
    }
}
