//! What sending and receiving can fail with.

use core::fmt;

/// The receiver has gone. The message is given back.
///
/// ```
/// let (tx, rx) = corio::sync::channel(1);
/// drop(rx);
/// assert_eq!(tx.send("lost").unwrap_err().0, "lost");
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SendError<T>(pub T);

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendError(..)") // Messages need not be Debug.
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the channel's receiver has gone")
    }
}

impl<T> core::error::Error for SendError<T> {}

/// Why a message could not be sent at once. It is given back.
///
/// ```
/// use corio::sync::{TrySendError, channel};
/// let (tx, rx) = channel(1);
/// tx.send(1).unwrap();
/// assert_eq!(tx.try_send(2), Err(TrySendError::Full(2)));
/// drop(rx);
/// assert_eq!(tx.try_send(2).unwrap_err().into_inner(), 2);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// There is no room now, or others have waited for it before.
    Full(T),
    /// The receiver has gone.
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The message.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(message) | TrySendError::Closed(message) => message,
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "the channel is full",
            TrySendError::Closed(_) => "the channel's receiver has gone",
        })
    }
}

impl<T> core::error::Error for TrySendError<T> {}

/// The channel is empty, and nobody is left to send.
///
/// ```
/// let (tx, mut rx) = corio::sync::channel::<i32>(1);
/// drop(tx);
/// assert_eq!(rx.recv(), Err(corio::sync::RecvError));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the channel is empty and its senders have gone")]
pub struct RecvError;

/// Why there was no message to take.
///
/// ```
/// use corio::sync::{TryRecvError, channel};
/// let (tx, mut rx) = channel::<i32>(1);
/// assert_eq!(rx.try_recv(), Err(TryRecvError::Empty));
/// drop(tx);
/// assert_eq!(rx.try_recv(), Err(TryRecvError::Closed));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TryRecvError {
    /// There is none now.
    #[error("the channel is empty")]
    Empty,
    /// There is none, and nobody is left to send.
    #[error("the channel is empty and its senders have gone")]
    Closed,
}
