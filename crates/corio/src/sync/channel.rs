//! The bounded channel: many send, one receives (SPEC L5).
//!
//! `state` is the state machine; here are the two ends, waiting and cancellation, `error` what can
//! go wrong. A message that finds the receiver waiting goes straight into the receiver's frame, and
//! a waiting sender's message goes into the channel without the sender coming back for it, so that
//! nothing is allocated but the ring, once, and neither side takes a lock twice for one message.

// Wait records are pointers into frames.
#![allow(unsafe_code)]

mod error;
mod line;
mod state;

use core::fmt;
use std::sync::Arc;

pub use self::error::{RecvError, SendError, TryRecvError, TrySendError};
use self::state::{Attempt, receiving, reserving, sending};
use super::record::Grant;
use super::select::{InLine as Arm, Selectable};
use super::waiter::Waiter;
use crate::coroutine;
use crate::track::{self, Kind};

type State<T> = state::State<Waiter, T>;
type Waiting<T> = state::Waiting<Waiter, T>;

/// A channel with room for `capacity` messages: its sending end, of which there may be many, and
/// its receiving end.
///
/// Messages arrive in the order in which they were sent; those who wait for room are served in the
/// order in which they came. The room is allocated here and nothing later.
///
/// # Panics
/// With a capacity of 0: a message needs a place to be in between (take 1, and have the receiver
/// answer, if the sender is to know that it has arrived). If there is no memory for so many
/// messages.
///
/// ```
/// use corio::{IoThread, sync};
///
/// let (producers, consumer) = (IoThread::builder().spawn()?, IoThread::builder().spawn()?);
/// let (tx, rx) = sync::channel::<u64>(16);
/// for part in 0..4 {
///     let tx = tx.clone();
///     producers.context().spawn(move || {
///         for number in part * 100..(part + 1) * 100 {
///             tx.send(number).unwrap(); // Parks while there are 16 in it.
///         }
///     });
/// }
/// drop(tx);
/// let sum = consumer.context().spawn(move || rx.into_iter().sum::<u64>());
/// assert_eq!(sum.join().unwrap(), 399 * 200);
/// # Ok::<(), corio::Error>(())
/// ```
#[track_caller]
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(
        capacity > 0,
        "a channel of capacity 0: a message needs a place between its sender and the receiver; ask \
         for 1, and have the receiver answer if the sender is to know that it has arrived"
    );
    let state = Arc::new(State::new(capacity));
    let sender = Sender {
        state: Arc::clone(&state),
    };
    (sender, Receiver { state })
}

/// The sending end of a [`channel`]; clone it for more senders. When the last one goes, the
/// receiver gets what is left, and is then told.
///
/// ```
/// let (tx, mut rx) = corio::sync::channel(2);
/// tx.send("one").unwrap();
/// tx.try_send("two").unwrap();
/// assert!(tx.try_send("three").is_err());
/// assert_eq!(rx.recv(), Ok("one"));
/// ```
pub struct Sender<T> {
    state: Arc<State<T>>,
}

impl<T> Sender<T> {
    /// Sends, and waits while the channel is full. A coroutine parks, a plain thread blocks. A
    /// cancellation point when it waits: then the message is dropped, unless it was just taken. May
    /// be called from any thread.
    ///
    /// # Errors
    /// The receiver has gone, and the message is given back. That it has not gone does not mean
    /// that the message will be received.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine (use [`try_send`](Self::try_send)); if it has to wait
    /// in a home without a loop.
    #[track_caller]
    #[inline]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        const WHAT: &str = "sync::Sender::send";
        Waiter::check(WHAT);
        let mut message = Some(message);
        if self.state.try_send(&mut message) == Attempt::Done {
            return Ok(());
        }
        // Closed, or full: asked again with a record, which costs time where time is lost anyway.
        match message {
            Some(message) => self.send_waiting(message, Waiter::current(WHAT)),
            None => Ok(()),
        }
    }

    #[cold]
    #[track_caller]
    fn send_waiting(&self, message: T, waiter: Waiter) -> Result<(), SendError<T>> {
        let record = sending(waiter, message);
        let closed = !self.wait_for_place(&record);
        // SAFETY: not queued any more, so ours (state I5).
        match unsafe { record.payload().take() } {
            Some(message) if closed => Err(SendError(message)),
            _ => Ok(()),
        }
    }

    /// Waits until the record is served (true) or the receiver has gone.
    #[track_caller]
    fn wait_for_place(&self, record: &Waiting<T>) -> bool {
        // SAFETY: `waiting` sees to it that the record is granted or withdrawn before it goes.
        match unsafe { self.state.place_or_queue(record) } {
            Attempt::Done => return true,
            Attempt::Closed => return false,
            Attempt::Waits => {}
        }
        let waiting = InLine {
            state: &self.state,
            record,
        };
        wait(&self.state, record);
        core::mem::forget(waiting);
        record.granted() == Some(Grant::Turn)
    }

    /// Sends if there is room. Never waits; from anywhere.
    ///
    /// # Errors
    /// The channel is full, or the receiver has gone; either way the message is given back.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let mut message = Some(message);
        let attempt = self.state.try_send(&mut message);
        match (attempt, message) {
            (Attempt::Closed, Some(message)) => Err(TrySendError::Closed(message)),
            (_, Some(message)) => Err(TrySendError::Full(message)),
            (_, None) => Ok(()),
        }
    }

    /// Waits for room and keeps it, for a message that is made only then. Waits like
    /// [`send`](Self::send), in the same line.
    ///
    /// # Errors
    /// The receiver has gone.
    ///
    /// # Panics
    /// As [`send`](Self::send).
    ///
    /// ```
    /// let (tx, mut rx) = corio::sync::channel(1);
    /// let room = tx.reserve().unwrap();
    /// assert!(tx.try_send("no room").is_err());
    /// room.send("newest").unwrap(); // Does not wait.
    /// assert_eq!(rx.recv(), Ok("newest"));
    /// ```
    #[track_caller]
    pub fn reserve(&self) -> Result<Room<'_, T>, SendError<()>> {
        const WHAT: &str = "sync::Sender::reserve";
        Waiter::check(WHAT);
        match self.state.try_reserve() {
            Attempt::Done => return Ok(self.room()),
            Attempt::Closed => return Err(SendError(())),
            Attempt::Waits => {}
        }
        let record = reserving(Waiter::current(WHAT));
        if self.wait_for_place(&record) {
            Ok(self.room())
        } else {
            Err(SendError(()))
        }
    }

    /// Keeps room if there is some. Never waits; from anywhere.
    ///
    /// # Errors
    /// The channel is full, or the receiver has gone.
    pub fn try_reserve(&self) -> Result<Room<'_, T>, TrySendError<()>> {
        match self.state.try_reserve() {
            Attempt::Done => Ok(self.room()),
            Attempt::Waits => Err(TrySendError::Full(())),
            Attempt::Closed => Err(TrySendError::Closed(())),
        }
    }

    /// For [`select`](super::select()): room for a message, or that the receiver has gone, as
    /// [`reserve`](Self::reserve) has it. A message that is there already is sent into it
    /// afterwards, so that it is not lost when something else comes first.
    ///
    /// ```
    /// use corio::sync::{Event, OneOf, channel, select};
    /// let ((tx, mut rx), stop) = (channel(1), Event::new());
    /// match select((stop.on_set(), tx.on_room())) {
    ///     OneOf::First(()) => return,
    ///     OneOf::Second(room) => room.unwrap().send("message").unwrap(),
    /// }
    /// assert_eq!(rx.recv(), Ok("message"));
    /// ```
    pub fn on_room(&self) -> impl Selectable<Output = Result<Room<'_, T>, SendError<()>>> {
        Arm::new(line::OnRoom(self))
    }

    /// The room that has been reserved.
    fn room(&self) -> Room<'_, T> {
        Room { sender: self }
    }

    /// Whether the receiver has gone, so that sending is of no use. From anywhere.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.is_receiver_gone()
    }

    /// How many messages are in it. It may have changed by the time it is known.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // Empty is what only the receiver can act on.
    pub fn len(&self) -> usize {
        self.state.len()
    }

    /// How many messages it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.state.capacity()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.state.add_sender();
        Sender {
            state: Arc::clone(&self.state),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.state.remove_sender();
    }
}

/// Room for one message, from [`Sender::reserve`]. Dropping it gives the room to the next in line.
///
/// ```
/// let (tx, mut rx) = corio::sync::channel(1);
/// drop(tx.reserve().unwrap());
/// tx.reserve().unwrap().send(1).unwrap();
/// assert_eq!(rx.recv(), Ok(1));
/// ```
#[must_use = "the room is given back when this is dropped"]
pub struct Room<'a, T> {
    sender: &'a Sender<T>,
}

impl<T> Room<'_, T> {
    /// Sends. Never waits; from anywhere.
    ///
    /// # Errors
    /// The receiver has gone, and the message is given back.
    pub fn send(self, message: T) -> Result<(), SendError<T>> {
        let mut message = Some(message);
        let _ = self.sender.state.send_reserved(&mut message);
        core::mem::forget(self);
        message.map_or(Ok(()), |message| Err(SendError(message)))
    }
}

impl<T> Drop for Room<'_, T> {
    fn drop(&mut self) {
        self.sender.state.unreserve();
    }
}

/// The receiving end of a [`channel`]. When it goes, what it has not received is dropped, and all
/// who send are told.
///
/// Receiving borrows it mutably: one coroutine receives at a time. It may be sent to another thread.
///
/// ```
/// let (tx, mut rx) = corio::sync::channel(1);
/// tx.send(1).unwrap();
/// drop(tx);
/// assert_eq!(rx.recv(), Ok(1));
/// assert!(rx.recv().is_err());
/// ```
pub struct Receiver<T> {
    state: Arc<State<T>>,
}

impl<T> Receiver<T> {
    /// Takes the oldest message, and waits until there is one. A coroutine parks, a plain thread
    /// blocks. A cancellation point when it waits: a message that comes in that moment stays in the
    /// channel, as the oldest.
    ///
    /// # Errors
    /// There is none, and nobody is left to send one.
    ///
    /// # Panics
    /// On a loop's thread outside a coroutine (use [`try_recv`](Self::try_recv)); if it has to wait
    /// in a home without a loop.
    #[track_caller]
    #[inline(always)] // As `Waiter::wait_until`.
    pub fn recv(&mut self) -> Result<T, RecvError> {
        const WHAT: &str = "sync::Receiver::recv";
        Waiter::check(WHAT);
        let mut message = None;
        // Nobody else takes messages out: if there is one, there is one.
        if self.state.len() != 0 && self.state.try_receive(&mut message) == Attempt::Done {
            return message.ok_or(RecvError);
        }
        let Some(waiter) = Waiter::possible() else {
            return self.recv_without_loop(WHAT);
        };
        let record = receiving(waiter);
        // SAFETY: `waiting` sees to it that the record is granted or withdrawn before it goes.
        if unsafe { self.state.receive_or_queue(&record, &mut message) } != Attempt::Waits {
            return message.ok_or(RecvError);
        }
        let waiting = Expecting {
            state: &self.state,
            record: &record,
        };
        wait(&self.state, &record);
        core::mem::forget(waiting);
        // SAFETY: granted, so ours (state I5).
        unsafe { record.payload().take() }.ok_or(RecvError)
    }

    /// In a coroutine that cannot wait.
    #[cold]
    #[track_caller]
    fn recv_without_loop(&mut self, what: &str) -> Result<T, RecvError> {
        let received = self.try_recv();
        if matches!(received, Err(TryRecvError::Empty)) {
            Waiter::current(what);
        }
        received.map_err(|_| RecvError)
    }

    /// Takes the oldest message if there is one. Never waits; from anywhere.
    ///
    /// # Errors
    /// There is none now, or there will be none any more.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let mut message = None;
        match self.state.try_receive(&mut message) {
            Attempt::Waits => Err(TryRecvError::Empty),
            Attempt::Done | Attempt::Closed => message.ok_or(TryRecvError::Closed),
        }
    }

    /// For [`select`](super::select()): a message, or that there is none and nobody is left to send
    /// one.
    pub fn on_recv(&mut self) -> impl Selectable<Output = Result<T, RecvError>> {
        Arm::new(line::OnMessage(self))
    }

    /// The messages, until nobody is left to send one. Waits like [`recv`](Self::recv).
    ///
    /// ```
    /// let (tx, mut rx) = corio::sync::channel(2);
    /// tx.send(1).unwrap();
    /// tx.send(2).unwrap();
    /// drop(tx);
    /// assert_eq!(rx.iter().sum::<i32>(), 3);
    /// ```
    pub fn iter(&mut self) -> Iter<'_, T> {
        Iter { receiver: self }
    }

    /// How many messages are in it. More may have come by the time it is known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.len()
    }

    /// Whether there is no message in it now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.state.capacity()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.state.close();
    }
}

/// The messages of a borrowed [`Receiver`], from [`Receiver::iter`].
///
/// ```
/// let (tx, mut rx) = corio::sync::channel(1);
/// tx.send(1).unwrap();
/// assert_eq!(rx.iter().next(), Some(1));
/// ```
#[derive(Debug)]
pub struct Iter<'a, T> {
    receiver: &'a mut Receiver<T>,
}

impl<T> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

/// The messages of a [`Receiver`], which it owns.
///
/// ```
/// let (tx, rx) = corio::sync::channel(1);
/// tx.send(1).unwrap();
/// assert_eq!(rx.into_iter().next(), Some(1));
/// ```
#[derive(Debug)]
pub struct IntoIter<T> {
    receiver: Receiver<T>,
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        IntoIter { receiver: self }
    }
}

impl<'a, T> IntoIterator for &'a mut Receiver<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Sender", &self.state, f)
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Receiver", &self.state, f)
    }
}

impl<T> fmt::Debug for Room<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Room", &self.sender.state, f)
    }
}

fn debug<T>(name: &str, state: &State<T>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_struct(name)
        .field("len", &state.len())
        .field("capacity", &state.capacity())
        .finish()
}

/// Until the record is granted. May unwind.
#[track_caller]
#[inline(always)] // As `Waiter::wait_until`.
fn wait<T>(state: &State<T>, record: &Waiting<T>) {
    if track::is_enabled() {
        track::emit(Kind::LockWait, state.number(), coroutine::running_id(), 0);
    }
    record.waker().wait_until(|| record.is_granted());
}

/// Takes the record out when a cancelled sender unwinds.
struct InLine<'a, T> {
    state: &'a State<T>,
    record: &'a Waiting<T>,
}

impl<T> Drop for InLine<'_, T> {
    fn drop(&mut self) {
        // SAFETY: queued by `wait_for_place`, which made this.
        unsafe { self.state.abandon_place(self.record) };
    }
}

/// Takes the record out when a cancelled receiver unwinds.
struct Expecting<'a, T> {
    state: &'a State<T>,
    record: &'a Waiting<T>,
}

impl<T> Drop for Expecting<'_, T> {
    fn drop(&mut self) {
        // SAFETY: queued by `recv`, which made this.
        unsafe { self.state.abandon_receive(self.record) };
    }
}
