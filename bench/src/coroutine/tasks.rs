//! Exercises `spawn_join` and `yield_loop`: what tasks of tokio's current_thread runtime can do
//! too.
//!
//! - `spawn_join`: a coroutine starts another by `spawn_local` and joins it; its body counts. A
//!   round is all of it. tokio: a task of a `LocalSet` does the same with `spawn_local`, which is
//!   faster there than `tokio::spawn`, from a task or from `block_on`.
//! - `yield_loop`: the only coroutine of a context yields to the loop, which has nothing else to
//!   do. A round is one yield, and so one turn of the loop. tokio: the future of `block_on` yields,
//!   which is faster there than a task that does.

use crate::contest::{Lap, Stopwatch};
use crate::place;
use crate::tally::Tally;

pub(crate) fn ours_spawn_join(rounds: u32) -> Lap {
    place::coroutine(move || {
        let tally = Tally::leak();
        let spawn_join = || {
            let child = corio::spawn_local(move || tally.work());
            child.join().expect("it does not panic");
        };
        // The first makes the stack that all others reuse.
        spawn_join();
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            spawn_join();
        }
        let lap = watch.stop();
        assert_eq!(tally.count(), rounds + 1);
        lap
    })
}

pub(crate) fn tokio_spawn_join(rounds: u32) -> Lap {
    place::local_task(async move {
        let tally = Tally::leak();
        let spawn_join = async || {
            let child = tokio::task::spawn_local(async move { tally.work() });
            child.await.expect("it does not panic");
        };
        spawn_join().await;
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            spawn_join().await;
        }
        let lap = watch.stop();
        assert_eq!(tally.count(), rounds + 1);
        lap
    })
}

pub(super) fn ours_yield_loop(rounds: u32) -> Lap {
    place::coroutine(move || {
        let tally = Tally::leak();
        corio::yield_now();
        let watch = Stopwatch::start();
        while tally.count() < rounds {
            tally.work();
            corio::yield_now();
        }
        watch.stop()
    })
}

pub(super) fn tokio_yield_loop(rounds: u32) -> Lap {
    place::block_on(async move {
        let tally = Tally::leak();
        tokio::task::yield_now().await;
        let watch = Stopwatch::start();
        while tally.count() < rounds {
            tally.work();
            tokio::task::yield_now().await;
        }
        watch.stop()
    })
}
