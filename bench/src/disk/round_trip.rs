//! Exercise `thread_pool_round_trip`: a job that does nothing goes to a worker thread, and who gave
//! it goes on when it is done. Ours: a coroutine and `engine::unblock`. tokio: a task of the
//! `current_thread` runtime and `spawn_blocking`. One job at a time, the worker warm.

use crate::contest::{Lap, Stopwatch};
use crate::place;

pub(super) fn corio(rounds: u32) -> Lap {
    place::coroutine(move || {
        let mut done = 0;
        corio::engine::unblock(|| ()).expect("no worker thread");
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            done += corio::engine::unblock(|| 1).expect("no worker thread");
        }
        let lap = watch.stop();
        assert_eq!(done, rounds);
        lap
    })
}

pub(super) fn tokio(rounds: u32) -> Lap {
    place::task(async move {
        let mut done = 0;
        tokio::task::spawn_blocking(|| ())
            .await
            .expect("it panicked");
        let watch = Stopwatch::start();
        for _ in 0..rounds {
            done += tokio::task::spawn_blocking(|| 1)
                .await
                .expect("it panicked");
        }
        let lap = watch.stop();
        assert_eq!(done, rounds);
        lap
    })
}
