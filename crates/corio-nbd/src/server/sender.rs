//! The sending side: who writes, and what is written together.
//!
//! ```text
//!              reader: flush(batch)                    worker: push(reply)
//!                    |                                        |
//!   Idle ------------+--> Writing --> Idle       Idle --------+--> Pending --(a turn later)--> Writing
//!   Pending ---------+                           else: whoever writes, or is about to, takes it along
//!   Writing: parks until it is not
//! ```
//!
//! A worker that finds the side idle lets one turn of the loop pass before it writes, if requests
//! of its client are still being served: what the disk completed in this turn then goes out in one
//! write. Whoever writes goes on until the queue is empty.
//!
//! Invariants:
//! - I1 At most one coroutine has a [`Held`], so the bytes of one reply are never split by
//!   another's.
//! - I2 After a failed write nothing is sent any more: the client has lost the frame. Replies are
//!   then dropped, which gives back what they hold.
//! - I3 No borrow of the queue lives across a write.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::Range;
use std::rc::Rc;

use smallvec::SmallVec;

use super::budget::Grant;
use super::buffers::Buffer;
use super::signal::Signal;
use super::transport::{Transport, write_all, write_all_vectored};
use super::turn;
use crate::wire::Prefix;

/// Slices handed to one write; far below the kernel's 1024, and 2 KiB of stack.
const SLICES_MAX: usize = 128;

/// A reply, or as many chunks of one as are sent together.
#[derive(Debug)]
pub(super) struct Reply {
    pieces: SmallVec<[Piece; 1]>,
    data: Data,
    /// Given back once the reply has been written or dropped.
    _grant: Option<Grant>,
}

/// A header and the part of the reply's data that follows it.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) prefix: Prefix,
    pub(super) data: Range<usize>,
}

/// Where a reply's data is.
#[derive(Debug)]
pub(super) enum Data {
    None,
    Pooled(Buffer),
    Bytes(Vec<u8>),
}

impl Data {
    fn part(&self, range: &Range<usize>) -> &[u8] {
        let whole: &[u8] = match self {
            Self::None => &[],
            Self::Pooled(buffer) => buffer,
            Self::Bytes(bytes) => bytes,
        };
        whole.get(range.clone()).unwrap_or_default()
    }
}

impl Reply {
    pub(super) fn new(pieces: SmallVec<[Piece; 1]>, data: Data, grant: Option<Grant>) -> Self {
        Self {
            pieces,
            data,
            _grant: grant,
        }
    }

    /// A header alone.
    pub(super) fn prefix(prefix: Prefix, grant: Option<Grant>) -> Self {
        Self::new(
            SmallVec::from_buf([Piece { prefix, data: 0..0 }]),
            Data::None,
            grant,
        )
    }

    /// A header and all of `data`.
    pub(super) fn with_data(prefix: Prefix, data: Buffer, grant: Option<Grant>) -> Self {
        let pieces = SmallVec::from_buf([Piece {
            prefix,
            data: 0..data.len(),
        }]);
        Self::new(pieces, Data::Pooled(data), grant)
    }

    /// Bytes that are a whole reply.
    pub(super) fn bytes(bytes: Vec<u8>, grant: Option<Grant>) -> Self {
        let pieces = SmallVec::from_buf([Piece {
            prefix: Prefix::default(),
            data: 0..bytes.len(),
        }]);
        Self::new(pieces, Data::Bytes(bytes), grant)
    }

    /// The slices that make it up, without empty ones.
    pub(super) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces
            .iter()
            .flat_map(|piece| [piece.prefix.as_slice(), self.data.part(&piece.data)])
            .filter(|slice| !slice.is_empty())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Pending,
    Writing,
}

/// The sending side of one connection.
#[derive(Debug)]
pub(super) struct Sender<S: Transport> {
    stream: Rc<S>,
    state: Cell<State>,
    broken: Cell<bool>,
    queue: RefCell<VecDeque<Reply>>,
    /// Kept for its memory; empty whenever nobody writes.
    taken: RefCell<Vec<Reply>>,
    /// Fires when a writer is done. Only the reader waits for it.
    free: Signal,
}

impl<S: Transport> Sender<S> {
    pub(super) fn new(stream: Rc<S>) -> Self {
        Self {
            stream,
            state: Cell::new(State::Idle),
            broken: Cell::new(false),
            queue: RefCell::default(),
            taken: RefCell::default(),
            free: Signal::new(),
        }
    }

    /// Sends a worker's reply, now or with others. `gather`: more of them are on their way.
    ///
    /// A failure is the reader's to report: the stream is shut down, and so the reader learns of
    /// it.
    pub(super) fn push(&self, reply: Reply, gather: bool) {
        if self.broken.get() {
            return;
        }
        self.queue.borrow_mut().push_back(reply);
        if self.state.get() != State::Idle {
            return;
        }
        if gather {
            self.state.set(State::Pending);
            turn::pass();
            if self.state.get() != State::Pending {
                return;
            }
        }
        let _ = self.begin().send(&[]);
    }

    /// Sends the reader's replies and whatever is queued. Parks while another coroutine writes.
    ///
    /// # Errors
    /// The socket's, of this write or of one before.
    #[inline]
    pub(super) fn flush(&self, batch: &[u8]) -> io::Result<()> {
        self.hold().send(batch)
    }

    /// Takes the side for the reader. Parks while another coroutine writes.
    pub(super) fn hold(&self) -> Held<'_, S> {
        if self.state.get() == State::Writing {
            self.free.wait_until(|| self.state.get() != State::Writing);
        }
        self.begin()
    }

    /// Whether a write failed, so that no reply will be sent any more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Gives up on the client: drops what is queued, and wakes whoever waits for the stream.
    pub(super) fn give_up(&self) {
        self.broken.set(true);
        let dropped = self.queue.take();
        drop(dropped);
        // An error only says that the peer is gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn begin(&self) -> Held<'_, S> {
        debug_assert_ne!(self.state.get(), State::Writing);
        self.state.set(State::Writing);
        Held {
            sender: self,
            in_order: Cell::new(true),
        }
    }
}

/// The right to write.
#[derive(Debug)]
pub(super) struct Held<'a, S: Transport> {
    sender: &'a Sender<S>,
    /// False during a write, which a panic may leave in the middle. (Not asked of `panicking`,
    /// which is the thread's and may be another coroutine's.)
    in_order: Cell<bool>,
}

impl<S: Transport> Held<'_, S> {
    /// Writes `first`, then what is queued until nothing is.
    ///
    /// # Errors
    /// The socket's, of this write or of one before.
    pub(super) fn send(&self, mut first: &[u8]) -> io::Result<()> {
        let sender = self.sender;
        loop {
            if sender.broken.get() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let mut taken = sender.taken.take();
            take_replies(&mut sender.queue.borrow_mut(), &mut taken);
            if first.is_empty() && taken.is_empty() {
                *sender.taken.borrow_mut() = taken;
                return Ok(());
            }
            let result = self.write(first, &taken);
            first = &[];
            taken.clear();
            *sender.taken.borrow_mut() = taken;
            result?;
        }
    }

    /// Writes `bytes`, and nothing that is queued.
    ///
    /// # Errors
    /// The socket's, of this write or of one before.
    pub(super) fn send_alone(&self, bytes: &[u8]) -> io::Result<()> {
        if self.sender.broken.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.write(bytes, &[])
    }

    fn write(&self, first: &[u8], replies: &[Reply]) -> io::Result<()> {
        let stream = &*self.sender.stream;
        self.in_order.set(false);
        let result = if replies.is_empty() {
            write_all(stream, first)
        } else {
            write_gathered(stream, first, replies)
        };
        self.in_order.set(true);
        result.inspect_err(|_| self.sender.give_up())
    }
}

/// Out of line, so that the slices are on the stack of those only who have replies to gather.
#[inline(never)]
fn write_gathered(stream: &impl Transport, first: &[u8], replies: &[Reply]) -> io::Result<()> {
    let mut slices: SmallVec<[IoSlice<'_>; SLICES_MAX]> = SmallVec::new();
    slices.push(IoSlice::new(first));
    slices.extend(replies.iter().flat_map(Reply::slices).map(IoSlice::new));
    write_all_vectored(stream, &mut slices)
}

impl<S: Transport> Drop for Held<'_, S> {
    fn drop(&mut self) {
        let sender = self.sender;
        // Left in the middle: the frame is lost (I2).
        if !self.in_order.get() || !sender.queue.borrow().is_empty() {
            sender.give_up();
        }
        sender.state.set(State::Idle);
        sender.free.fire();
    }
}

/// Moves the oldest replies over, as many as one write takes.
fn take_replies(queue: &mut VecDeque<Reply>, taken: &mut Vec<Reply>) {
    let mut slices = 1;
    while let Some(reply) = queue.front() {
        slices += 2 * reply.pieces.len();
        if slices > SLICES_MAX && !taken.is_empty() {
            return;
        }
        taken.extend(queue.pop_front());
    }
}
