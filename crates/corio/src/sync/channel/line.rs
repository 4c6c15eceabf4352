//! The channel's ends among others that one waits for.

#![allow(unsafe_code)] // The lines' contracts.

use super::state::{Attempt, receiving, reserving};
use super::{Receiver, RecvError, Room, SendError, Sender, Waiting};
use crate::sync::record::Grant;
use crate::sync::select::Source;
use crate::sync::waiter::Waiter;

/// Room for a message.
pub(super) struct OnRoom<'a, T>(pub(super) &'a Sender<T>);

impl<'a, T> OnRoom<'a, T> {
    fn outcome(&self, attempt: &Attempt) -> Option<Result<Room<'a, T>, SendError<()>>> {
        match attempt {
            Attempt::Done => Some(Ok(self.0.room())),
            Attempt::Closed => Some(Err(SendError(()))),
            Attempt::Waits => None,
        }
    }
}

impl<'a, T> Source<Waiter> for OnRoom<'a, T> {
    type Record = Waiting<T>;
    type Output = Result<Room<'a, T>, SendError<()>>;

    fn look(&self) -> Option<Self::Output> {
        self.outcome(&self.0.state.try_reserve())
    }

    fn record(&self, waker: &Waiter) -> Waiting<T> {
        reserving(waker.clone())
    }

    unsafe fn queue(&self, record: &Waiting<T>) -> Option<Self::Output> {
        // SAFETY: as the caller promises.
        self.outcome(&unsafe { self.0.state.place_or_queue(record) })
    }

    fn granted(&self, record: &Waiting<T>) -> Option<Self::Output> {
        self.outcome(match record.granted()? {
            Grant::Turn => &Attempt::Done,
            Grant::Own => &Attempt::Closed,
        })
    }

    unsafe fn abandon(&self, record: &Waiting<T>) {
        // SAFETY: as the caller promises.
        unsafe { self.0.state.abandon_place(record) };
    }
}

/// A message. The receiver is borrowed mutably: nobody else receives meanwhile.
pub(super) struct OnMessage<'a, T>(pub(super) &'a mut Receiver<T>);

fn received<T>(attempt: &Attempt, message: Option<T>) -> Option<Result<T, RecvError>> {
    (*attempt != Attempt::Waits).then(|| message.ok_or(RecvError))
}

impl<T> Source<Waiter> for OnMessage<'_, T> {
    type Record = Waiting<T>;
    type Output = Result<T, RecvError>;

    fn look(&self) -> Option<Self::Output> {
        let mut message = None;
        received(&self.0.state.try_receive(&mut message), message)
    }

    fn record(&self, waker: &Waiter) -> Waiting<T> {
        receiving(waker.clone())
    }

    unsafe fn queue(&self, record: &Waiting<T>) -> Option<Self::Output> {
        let mut message = None;
        // SAFETY: as the caller promises; the borrow makes it the only one that receives.
        let attempt = unsafe { self.0.state.receive_or_queue(record, &mut message) };
        received(&attempt, message)
    }

    fn granted(&self, record: &Waiting<T>) -> Option<Self::Output> {
        record.granted()?;
        // SAFETY: granted, so the waiter's, which calls this (state I5).
        Some(unsafe { record.payload().take() }.ok_or(RecvError))
    }

    unsafe fn abandon(&self, record: &Waiting<T>) {
        // SAFETY: as the caller promises.
        unsafe { self.0.state.abandon_receive(record) };
    }
}
