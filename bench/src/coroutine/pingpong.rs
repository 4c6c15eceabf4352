//! Exercise `channel_pingpong`: two channels that hold one message each.
//!
//! One coroutine sends a number through the first channel and receives it through the second;
//! another sends back what it receives. Both are of one context. A round is the way there and back:
//! two sends, two receives, and each coroutine waits once.
//!
//! tokio: two tasks of the runtime and two `mpsc::channel(1)`. Spawned tasks are the fastest place
//! there; between the future of `block_on` and a task, or in a `LocalSet`, it takes longer.

use crate::contest::{Lap, Stopwatch};
use crate::place;

pub(crate) fn ours(rounds: u32) -> Lap {
    place::coroutine(move || {
        let (to_other, mut at_other) = corio::sync::channel(1);
        let (to_this, mut at_this) = corio::sync::channel(1);
        let other = corio::spawn_local(move || {
            while let Ok(number) = at_other.recv() {
                if to_this.send(number).is_err() {
                    break;
                }
            }
        });
        let mut pass = |number: u32| {
            to_other.send(number).expect("the other receives");
            assert_eq!(at_this.recv().expect("the other sends"), number);
        };
        // The other is where it waits when the time begins.
        pass(0);
        let watch = Stopwatch::start();
        for number in 0..rounds {
            pass(number);
        }
        let lap = watch.stop();
        drop(to_other);
        other.join().expect("it does not panic");
        lap
    })
}

pub(crate) fn tokio(rounds: u32) -> Lap {
    place::task(async move {
        let (to_other, mut at_other) = tokio::sync::mpsc::channel(1);
        let (to_this, mut at_this) = tokio::sync::mpsc::channel(1);
        let other = tokio::spawn(async move {
            while let Some(number) = at_other.recv().await {
                if to_this.send(number).await.is_err() {
                    break;
                }
            }
        });
        let mut pass = async |number: u32| {
            to_other.send(number).await.expect("the other receives");
            assert_eq!(at_this.recv().await.expect("the other sends"), number);
        };
        pass(0).await;
        let watch = Stopwatch::start();
        for number in 0..rounds {
            pass(number).await;
        }
        let lap = watch.stop();
        drop(to_other);
        other.await.expect("it does not panic");
        lap
    })
}
