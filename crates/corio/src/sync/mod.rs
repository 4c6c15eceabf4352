//! Waiting for one another: [`Mutex`], [`RwLock`], [`Queue`], [`Semaphore`], [`Barrier`],
//! [`Event`], a [`channel()`], and [`select()`] for whichever comes first (SPEC section 3).
//!
//! They work between coroutines of any threads and contexts: whoever has to wait parks, and its
//! thread goes on with others. A plain thread that is no loop's may use them as well: it blocks.
//! None of them poisons: what a panic leaves behind is for the data's owner to judge.
//!
//! All are fair: the oldest waiter is served first. A waiter that is cancelled leaves the line, and
//! if it had been served in that very moment, passes on what it got.
//!
//! [`LockCnt`] is another kind: a lock for a few instructions, which blocks the thread.
//!
//! Files: `record` is the wait record and the lists; `waiter` the coroutine or thread that waits;
//! `holder` the coroutine that holds a lock; `spin` a lock for a few instructions. Each lock has
//! its state machine in a `state` of its own, which knows no stacks, so that loom checks what is
//! shipped; `permits` is that of [`Semaphore`] and [`RwLock`].

mod barrier;
mod channel;
mod event;
mod holder;
mod mutex;
mod permits;
mod queue;
mod record;
mod rwlock;
mod select;
mod semaphore;
mod spin;
mod waiter;

pub use crate::context::lock_cnt::{LockCnt, LockCntGuard, Visit};
pub use barrier::{Barrier, BarrierWaitResult};
pub use channel::{
    IntoIter, Iter, Receiver, RecvError, Room, SendError, Sender, TryRecvError, TrySendError,
    channel,
};
pub use event::Event;
pub use mutex::{Mutex, MutexGuard};
#[doc(hidden)]
pub use queue::Woken;
pub use queue::{Place, Queue};
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use select::{OneOf, Selectable, after, at_ns, select};
pub use semaphore::{Permit, Semaphore};
