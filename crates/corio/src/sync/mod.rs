//! Waiting for one another: [`Mutex`], [`Queue`], [`Semaphore`], [`Event`], a [`channel()`], and
//! [`select()`] for whichever comes first (SPEC section 3).
//!
//! They work between coroutines of any threads and contexts: whoever has to wait parks, and its
//! thread goes on with others. A plain thread that is no loop's may use them as well: it blocks.
//! None of them poisons: what a panic leaves behind is for the data's owner to judge.
//!
//! All are fair: the oldest waiter is served first. A waiter that is cancelled leaves the line, and
//! if it had been served in that very moment, passes on what it got.
//!
//! Files: `record` is the wait record and the lists; `waiter` the coroutine or thread that waits;
//! `spin` a lock for a few instructions; each lock has its state machine in a `state` of its own, which knows no stacks, so that loom
//! checks what is shipped.

mod channel;
mod event;
mod mutex;
mod queue;
mod record;
mod select;
mod semaphore;
mod spin;
mod waiter;

pub use channel::{
    IntoIter, Iter, Receiver, RecvError, Room, SendError, Sender, TryRecvError, TrySendError,
    channel,
};
pub use event::Event;
pub use mutex::{Mutex, MutexGuard};
pub use queue::{Place, Queue};
pub use select::{OneOf, Selectable, after, at_ns, select};
pub use semaphore::{Permit, Semaphore};
