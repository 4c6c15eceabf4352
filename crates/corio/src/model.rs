//! The one way in which the protocols are model-checked.
//!
//! A model that stops before it has seen every execution proves less than it seems to, and loom
//! itself says nothing when it stops at a limit on executions or time. [`check`] sets all of loom's
//! limits itself, whatever the environment says, fails at the one on time, and prints what
//! `cargo xtask loom` shows and insists on: a line for each model that went to its end.
//!
//! loom's own limit on the length of one execution panics, so that it needs no care here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loom::model::Builder;

/// How long a model may take: some twenty times what the slowest needs when it has a core to
/// itself.
const TIME_MAX: Duration = Duration::from_secs(300);
/// Steps in one execution at most. One with more is a loop that waits without yielding.
const BRANCHES_MAX: usize = 1000;
/// After how many executions loom looks at the clock.
const LOOK_EVERY: usize = 256;

/// Runs `f` in every interleaving with at most `preemption_bound` preemptions, or in every
/// interleaving there is.
///
/// # Panics
///
/// When `f` does, when an execution deadlocks, races or leaks, and when the model is cut short.
pub(crate) fn check(
    preemption_bound: impl Into<Option<usize>>,
    f: impl Fn() + Sync + Send + 'static,
) {
    check_within(TIME_MAX, preemption_bound.into(), f);
}

fn check_within<F>(time_max: Duration, preemption_bound: Option<usize>, f: F)
where
    F: Fn() + Sync + Send + 'static,
{
    // Every limit that loom would take from the environment is set here.
    let mut builder = Builder::new();
    builder.preemption_bound = preemption_bound;
    builder.max_branches = BRANCHES_MAX;
    builder.max_permutations = None;
    builder.max_duration = Some(time_max);
    builder.checkpoint_file = None;
    builder.checkpoint_interval = LOOK_EVERY;

    let executions = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&executions);
    let began = Instant::now();
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        f();
    });
    let taken = began.elapsed();
    let executions = executions.load(Ordering::Relaxed);
    // loom returns the same way at its end and at its limit.
    assert!(
        taken < time_max,
        "the model was cut short: {executions} executions took {taken:?} of {time_max:?}; make it \
         smaller, or bound its preemptions"
    );
    let bound = match preemption_bound {
        Some(bound) => format!("preemption bound {bound}"),
        None => "exhaustive".to_owned(),
    };
    println!(
        "MODEL {}: {bound}, {executions} executions in {:.2} s",
        name::<F>(),
        taken.as_secs_f64()
    );
}

/// The test's name, which libtest gives its thread where it starts one.
fn name<F>() -> String {
    let thread = std::thread::current();
    match thread.name() {
        Some(name) if name.contains("loom_") => name.to_owned(),
        _ => std::any::type_name::<F>().to_owned(),
    }
}

mod loom_tests {
    use super::*;
    use loom::sync::atomic::AtomicUsize;

    /// Three threads: some thousands of interleavings.
    fn adding() {
        let sum = loom::sync::Arc::new(AtomicUsize::new(0));
        let threads = [(); 2].map(|()| {
            let sum = loom::sync::Arc::clone(&sum);
            loom::thread::spawn(move || {
                for _ in 0..2 {
                    sum.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        sum.fetch_add(1, Ordering::SeqCst);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(sum.load(Ordering::SeqCst), 5);
    }

    /// SPEC L7: what proves less than it says is no success.
    #[test]
    fn loom_a_model_that_is_cut_short_fails() {
        let cut = std::panic::catch_unwind(|| check_within(Duration::ZERO, None, adding));
        let message = *cut.unwrap_err().downcast::<String>().unwrap();
        assert!(
            message.starts_with("the model was cut short: 255 executions"),
            "{message}"
        );
        check(1, adding);
    }
}
