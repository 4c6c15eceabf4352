//! Futures in coroutines: the bridge to async Rust (SPEC E7).
//!
//! ```text
//!                     Pending                  nobody woke it yet
//!   poll the future ----------> look at WOKEN --------------------> park, or block
//!         ^                         | it is set: clear it                |
//!         |                         v                                    |
//!         +--------- in a coroutine, the others have a turn first <------+  look again
//! ```
//!
//! A future lies in the frame that blocks on it. That is all there is to cancellation: the parked
//! coroutine unwinds, and the frame drops the future.
//!
//! A wake token alone would not do for a waker. It is a hint that the next park uses up, and a poll
//! may itself park, in a lock of ours or in another `block_on`: a wake that came then would be gone
//! before the future's own park. So the waker remembers, in a word that is the call's.
//!
//! Invariants
//! - I1 WOKEN is set before the sleeper is woken, and cleared by the sleeper alone, after a poll and
//!   before the next: no wake is lost, however often it sleeps elsewhere in between, and who finds
//!   WOKEN set need not wake it again.
//! - I2 What a caller has entered around a poll is left before the poll's result is looked at, so
//!   that it never spans a park of ours.

use core::future::{Future, IntoFuture};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::task::Wake;
use std::thread::{self, Thread};

use super::{CoWaker, park, parkable, wakeable, yield_now};
use crate::atomic::{AtomicBool, Ordering};
use crate::context::Local;
use crate::coroutine;

/// Runs a future to its end. In a coroutine it parks where the future is pending, and its thread
/// goes on with others; on a plain thread it blocks.
///
/// The future need not be `Send`, and may borrow from the caller's frame. It is polled when its
/// waker was fired, and not otherwise. A cancellation point when it waits: a coroutine that is
/// cancelled drops the future as it unwinds. One that keeps waking itself gives the loop a turn
/// between polls. Each call allocates once, for the waker.
///
/// Futures of a runtime, as are tokio's timers and sockets, need that runtime to be entered:
/// [`block_on_within`].
///
/// # Panics
/// On a loop's thread outside a coroutine, where waiting would stop the loop, and in a home without
/// one. A panic of the future's goes on.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let sum = io.context().spawn(|| {
///     let parts = [corio::spawn(|| 1 + 2), corio::spawn(|| 3 + 4)];
///     corio::block_on(async {
///         let mut sum = 0;
///         for part in parts {
///             sum += part.await.unwrap(); // A handle is a future.
///         }
///         sum
///     })
/// });
/// assert_eq!(corio::block_on(sum).unwrap(), 10); // On a plain thread.
/// # Ok::<(), corio::Error>(())
/// ```
#[track_caller]
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    let sleeper = Sleeper::current();
    let mut future = pin!(future.into_future());
    drive(sleeper, |task| future.as_mut().poll(task))
}

/// As [`block_on`], with something entered around each poll, and around the future's drop, but
/// never while the caller waits. What `enter` returns is held that long.
///
/// So another runtime's futures are used: `enter` enters it, by tokio's `Handle::enter`. Any number
/// of coroutines of one thread may do so with as many runtimes. What a runtime's futures wait for
/// is done by the runtime's own threads: one of tokio's `current_thread` kind must be run by some
/// thread, in its `block_on`. Futures that have to be *made* inside the runtime are made in an
/// `async` block.
///
/// The future itself must not park in its polls, nor in its drop, as by locking a mutex of
/// [`sync`](crate::sync) that is held: what is entered would then stay so for the thread's other
/// coroutines. Of tokio, that ends in a panic that guards were dropped out of order.
///
/// # Panics
/// As [`block_on`]; and if `enter` does.
///
/// ```
/// # std::thread::scope(|scope| {
/// # let (done, ends) = tokio::sync::oneshot::channel::<()>();
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// let handle = runtime.handle().clone();
/// # scope.spawn(move || runtime.block_on(ends));
/// // .. and a thread that runs it.
/// let io = corio::IoThread::builder().spawn()?;
/// let answer = io.context().spawn(move || {
///     corio::block_on_within(|| handle.enter(), async {
///         tokio::time::sleep(std::time::Duration::from_millis(1)).await;
///         tokio::task::spawn_blocking(|| 6 * 7).await
///     })
/// });
/// assert_eq!(answer.join().unwrap()?, 42);
/// # drop(done);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn block_on_within<G, F: IntoFuture>(enter: impl Fn() -> G, future: F) -> F::Output {
    let sleeper = Sleeper::current();
    let future = {
        let _entered = enter();
        future.into_future()
    };
    let future = pin!(Some(future));
    let mut within = Within { enter, future };
    drive(sleeper, |task| within.poll(task))
}

/// A future that is polled and dropped with something entered (I2).
struct Within<'a, E: Fn() -> G, G, F> {
    enter: E,
    /// None only after the drop.
    future: Pin<&'a mut Option<F>>,
}

impl<E: Fn() -> G, G, F: Future> Within<'_, E, G, F> {
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<F::Output> {
        let _entered = (self.enter)();
        match self.future.as_mut().as_pin_mut() {
            Some(future) => future.poll(task),
            None => unreachable!("polled after its drop"),
        }
    }
}

impl<E: Fn() -> G, G, F> Drop for Within<'_, E, G, F> {
    fn drop(&mut self) {
        let _entered = (self.enter)();
        self.future.set(None);
    }
}

/// Polls until it is ready, and sleeps in between.
#[track_caller]
fn drive<T>(sleeper: Sleeper, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let signal = Arc::new(Signal::new(sleeper));
    let waker = Waker::from(Arc::clone(&signal));
    let mut task = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = poll(&mut task) {
            return output;
        }
        if signal.take() {
            signal.sleeper.give_way();
            continue;
        }
        while !signal.take() {
            signal.sleeper.sleep();
        }
    }
}

/// Who blocks on a future.
enum Sleeper {
    Coroutine(CoWaker),
    Thread(Thread),
}

impl Sleeper {
    /// The running coroutine or thread. Panics with advice where waiting is misuse.
    #[track_caller]
    fn current() -> Self {
        match wakeable() {
            Some(co) => Self::Coroutine(CoWaker::of(co)),
            None if coroutine::in_coroutine() || Local::current().is_some() => {
                let co = parkable("block_on");
                unreachable!("{} can park but cannot be woken", co.describe())
            }
            None => Self::Thread(thread::current()),
        }
    }

    /// May return early. A cancellation point for a coroutine: may unwind.
    #[track_caller]
    fn sleep(&self) {
        match self {
            Self::Coroutine(_) => park(),
            Self::Thread(_) => thread::park(),
        }
    }

    /// Instead of sleeping: a future that wakes itself must not keep a loop from all others, nor
    /// its own coroutine from being cancelled.
    #[track_caller]
    fn give_way(&self) {
        match self {
            Self::Coroutine(_) => yield_now(),
            Self::Thread(_) => thread::yield_now(),
        }
    }
}

impl Rouse for Sleeper {
    fn rouse(&self) {
        match self {
            Self::Coroutine(token) => token.wake(),
            Self::Thread(thread) => thread.unpark(),
        }
    }
}

/// Gets one going again that sleeps, or keeps its next sleep from lasting.
trait Rouse {
    fn rouse(&self);
}

/// What the waker of one call holds.
struct Signal<S> {
    woken: AtomicBool,
    sleeper: S,
}

impl<S: Rouse> Signal<S> {
    fn new(sleeper: S) -> Self {
        Self {
            woken: AtomicBool::new(false),
            sleeper,
        }
    }

    /// Any thread.
    fn fire(&self) {
        if planted!("bridge_roused_first") {
            self.sleeper.rouse();
            self.woken.swap(true, Ordering::Release);
            return;
        }
        // Pairs with the acquire of `take`: what was done before is seen by the poll after it. A
        // read-modify-write also where it changes nothing, so that it is in that order too.
        if !self.woken.swap(true, Ordering::Release) {
            self.sleeper.rouse();
        }
    }

    /// Whether it was fired since the last time. The sleeper only.
    fn take(&self) -> bool {
        // Pairs with the release of `fire`.
        self.woken.swap(false, Ordering::Acquire)
    }
}

impl Wake for Signal<Sleeper> {
    fn wake(self: Arc<Self>) {
        self.fire();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.fire();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::atomic::AtomicU32;
    use crate::model;
    use loom::sync::Notify;

    impl Rouse for Notify {
        fn rouse(&self) {
            self.notify();
        }
    }

    // SPEC E7: a wake that comes while a poll sleeps on its own account, and is used up there, is
    // not lost; and the poll that follows a wake sees what was done before it.
    #[test]
    fn loom_bridge_a_wake_in_a_poll_that_sleeps_is_not_lost() {
        model::check(2, || {
            let signal = loom::sync::Arc::new(Signal::new(Notify::new()));
            let [lock, first, second] = [(); 3].map(|()| loom::sync::Arc::new(AtomicU32::new(0)));
            let unlocks = loom::thread::spawn({
                let (signal, lock) = (signal.clone(), lock.clone());
                move || {
                    lock.store(1, Ordering::Release);
                    signal.sleeper.rouse();
                }
            });
            let completes = loom::thread::spawn({
                let (signal, first, second) = (signal.clone(), first.clone(), second.clone());
                move || {
                    for part in [first, second] {
                        part.store(1, Ordering::Relaxed);
                        signal.fire();
                    }
                }
            });
            let poll = || {
                [&first, &second]
                    .iter()
                    .all(|p| p.load(Ordering::Relaxed) == 1)
            };
            let mut ready = poll();
            // It was pending, and went on to wait for a lock.
            while lock.load(Ordering::Acquire) == 0 {
                signal.sleeper.wait();
            }
            while !ready {
                while !signal.take() {
                    signal.sleeper.wait();
                }
                ready = poll();
            }
            unlocks.join().unwrap();
            completes.join().unwrap();
        });
    }
}
