//! Waiting for whichever comes first (SPEC L5). `arm` is what can be waited for, and the wait;
//! `arms` are those that stand in no line of this module's: deadlines and ends of coroutines.

mod arm;
mod arms;

use core::convert::Infallible;
use std::thread;

pub(super) use self::arm::{InLine, Source};
pub use self::arms::{after, at_ns};

use self::arm::{Arm, wait_for_one};
use super::waiter::Waiter;
use crate::context::{Local, now_ns};
use crate::schedule;

/// What [`select`] can wait for: what the methods `on_..` of the things in [`sync`](crate::sync)
/// and of join handles give, [`after`] and [`at_ns`]; tuples of two to eight of these; slices of
/// one kind; and mutable references to all of them. Not to be implemented elsewhere.
///
/// ```
/// use corio::sync::{Event, Selectable, select};
/// fn either(first: impl Selectable<Output = ()>, second: impl Selectable<Output = ()>) {
///     select((first, second));
/// }
/// either(Event::new().on_set(), Event::new_set().on_set());
/// ```
pub trait Selectable: Arm<Waiter> {}

impl<A: Arm<Waiter> + ?Sized> Selectable for A {}

/// Which of the arms it was, in the order in which they stood in the tuple, and what it gave.
///
/// ```
/// use corio::sync::{Event, OneOf, select};
/// let (first, second) = (Event::new(), Event::new_set());
/// assert_eq!(select((first.on_set(), second.on_set())), OneOf::Second(()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // They are what they are called.
pub enum OneOf<
    A,
    B,
    C = Infallible,
    D = Infallible,
    E = Infallible,
    F = Infallible,
    G = Infallible,
    H = Infallible,
> {
    First(A),
    Second(B),
    Third(C),
    Fourth(D),
    Fifth(E),
    Sixth(F),
    Seventh(G),
    Eighth(H),
}

/// Waits until one of the arms has what it waits for, and takes that. A coroutine parks, a plain
/// thread blocks.
///
/// The arms are looked at in order, and the first that has something wins, so that the order is
/// one of priority: an event that says stop stands before a channel that may never be empty, and
/// what must not be starved stands first, or takes turns with the others.
///
/// Nothing is lost: only what is returned is taken. Messages stay in their channel, permits and
/// room go back to who is next in line, a wake of a queue is passed on. The same when the coroutine
/// is cancelled, for which this is a cancellation point when it waits. Each call gets in line
/// anew, at the end. Nothing is allocated, unless there is a deadline to wait for.
///
/// # Panics
/// On a loop's thread outside a coroutine; if it has to wait in a home without a loop.
///
/// ```
/// use corio::sync::{Event, OneOf, after, channel, select};
/// use std::{sync::Arc, time::Duration};
///
/// let io = corio::IoThread::builder().spawn()?;
/// let (tx, mut rx) = channel(4);
/// let stop = Arc::new(Event::new());
/// let sum = io.context().spawn({
///     let stop = Arc::clone(&stop);
///     move || {
///         let mut sum = 0;
///         loop {
///             match select((rx.on_recv(), stop.on_set(), after(Duration::from_secs(60)))) {
///                 OneOf::First(Ok(number)) => sum += number,
///                 OneOf::First(Err(_)) | OneOf::Second(()) => return sum,
///                 OneOf::Third(()) => panic!("nothing for a minute"),
///             }
///         }
///     }
/// });
/// tx.send(1).unwrap();
/// tx.send(2).unwrap();
/// drop(tx);
/// assert_eq!(sum.join().unwrap(), 3);
/// # Ok::<(), corio::Error>(())
/// ```
///
/// Arms of one kind, however many:
///
/// ```
/// use corio::sync::{Event, select};
/// let events = [Event::new(), Event::new_set(), Event::new()];
/// let mut arms = Vec::from_iter(events.iter().map(Event::on_set));
/// assert_eq!(select(&mut arms[..]), (1, ()));
/// ```
#[track_caller]
pub fn select<A: Selectable>(arms: A) -> A::Output {
    const WHAT: &str = "sync::select";
    Waiter::check(WHAT);
    if let Some(taken) = arms.look() {
        return taken;
    }
    let waiter = Waiter::current(WHAT);
    let deadline_ns = arms.deadline_ns();
    match &waiter {
        Waiter::Coroutine { token, .. } => {
            let token = *token;
            let timer = Local::current()
                .filter(|_| deadline_ns != u64::MAX)
                .map(|local| local.context().timer(move || token.wake_here()));
            if let Some(timer) = &timer {
                timer.arm_at_ns(deadline_ns);
            }
            wait_for_one(&arms, &waiter, schedule::park)
        }
        Waiter::Thread(_) => wait_for_one(&arms, &waiter, || block_until(deadline_ns)),
    }
}

/// Blocks the thread until it is woken, or the time has come; perhaps not so long.
fn block_until(deadline_ns: u64) {
    if deadline_ns == u64::MAX {
        return thread::park();
    }
    let rest_ns = deadline_ns.saturating_sub(now_ns());
    thread::park_timeout(core::time::Duration::from_nanos(rest_ns));
}
