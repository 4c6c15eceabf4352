//! Exercise `wake_1m`: a million wakes through the wake queue (SPEC C4).
//!
//! One coroutine wakes a thousand parked ones and yields; they run, each parks again; and so on a
//! thousand times. A round is one wake and all that follows from it: the woken one is queued,
//! entered, counts and parks.
//!
//! tokio's tasks do the same by their own wakers, which is the least that it can be done with
//! there, and what our tokens are: a `Notify` would be one more thing to pay for.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use corio::CoWaker;

use crate::contest::{Lap, Stopwatch};
use crate::place;
use crate::tally::Tally;

/// Woken at a time.
const WAITERS: u32 = 1000;

/// How many wait, and how often each is woken.
fn split(rounds: u32) -> (u32, u32) {
    let waiters = WAITERS.min(rounds);
    assert!(
        rounds.is_multiple_of(waiters),
        "all are woken equally often"
    );
    (waiters, rounds / waiters)
}

pub(super) fn ours(rounds: u32) -> Lap {
    let (waiters, times) = split(rounds);
    place::coroutine(move || {
        let tally = Tally::leak();
        let tokens: &'static RefCell<Vec<CoWaker>> = Box::leak(Box::default());
        let wait = move || {
            let token = CoWaker::current().expect("it is of a context");
            tokens.borrow_mut().push(token);
            corio::park();
            while !tally.stopped() {
                tally.work();
                corio::park();
            }
        };
        let children: Vec<_> = (0..waiters).map(|_| corio::spawn_local(wait)).collect();
        corio::yield_now();
        let tokens = tokens.take();
        assert_eq!(Some(tokens.len()), usize::try_from(waiters).ok());
        let watch = Stopwatch::start();
        for _ in 0..times {
            for token in &tokens {
                token.wake();
            }
            corio::yield_now();
        }
        let lap = watch.stop();
        // None was lost, and none ran twice for one.
        assert_eq!(tally.count(), rounds);
        tally.stop();
        for (token, child) in tokens.iter().zip(children) {
            token.wake();
            child.join().expect("it does not panic");
        }
        lap
    })
}

pub(super) fn tokio(rounds: u32) -> Lap {
    let (waiters, times) = split(rounds);
    place::local_task(async move {
        let tally = Tally::leak();
        let wakers: &'static RefCell<Vec<Waker>> = Box::leak(Box::default());
        let wait = move || {
            let mut started = false;
            poll_fn(move |context| {
                if tally.stopped() {
                    return Poll::Ready(());
                }
                if started {
                    tally.work();
                } else {
                    started = true;
                    wakers.borrow_mut().push(context.waker().clone());
                }
                Poll::Pending
            })
        };
        let tasks: Vec<_> = (0..waiters)
            .map(|_| tokio::task::spawn_local(wait()))
            .collect();
        tokio::task::yield_now().await;
        let wakers = wakers.take();
        assert_eq!(Some(wakers.len()), usize::try_from(waiters).ok());
        let watch = Stopwatch::start();
        for _ in 0..times {
            for waker in &wakers {
                waker.wake_by_ref();
            }
            tokio::task::yield_now().await;
        }
        let lap = watch.stop();
        assert_eq!(tally.count(), rounds);
        tally.stop();
        for (waker, task) in wakers.iter().zip(tasks) {
            waker.wake_by_ref();
            task.await.expect("it does not panic");
        }
        lap
    })
}
