//! Requests that have to wait for the disk, and the coroutines that wait.
//!
//! Workers belong to one connection. They are started as requests need them, at most as many as the
//! client may have requests, and wait for the next one when they are done; a few are kept idle, the
//! others end and leave their stacks to the runtime's pool.
//!
//! Invariants:
//! - I1 Each idle worker is either parked or has a token; a queued request has a token or a new
//!   worker.
//! - I2 A worker that unwinds gives up on the client: its request would never be answered.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use corio_block::{Extent, ExtentFlags, Length, Offset, WriteFlags, ZeroFlags};
use smallvec::SmallVec;

use super::budget::Grant;
use super::buffers::Buffer;
use super::connection::Connection;
use super::handshake::ALLOCATION_ID;
use super::request::{Action, Refusal, ZeroHow};
use super::sender::{Data, Piece, Reply};
use super::signal::Signal;
use super::transport::Transport;
use super::zeroes::only_zeroes;
use crate::wire::{
    Cookie, Descriptor, Errno, HeaderStyle, Prefix, StateFlags, encode_block_status,
    encode_block_status_ext, encode_error,
};

/// Workers that stay when there is nothing to do.
const IDLE_WORKERS_MAX: usize = 32;
/// A READ of at least this that did not come from the fast path is asked for holes first. Below it
/// the question costs more than the zeroes it may save.
const HOLES_READ_BYTES_MIN: usize = 64 << 10;
/// Chunks that one READ is split into at most; what is behind the last extent comes as data.
const HOLES_MAX: usize = 32;
/// Extents in the answer to one BLOCK_STATUS; the protocol lets the client ask again from there.
const STATUS_EXTENTS_MAX: usize = 1024;
/// TRIM and WRITE_ZEROES go to the disk in pieces of this, so that a client that is gone, or a
/// server that stops, does not wait for a terabyte of zeroes.
const RANGE_PIECE_BYTES: u64 = 1 << 30;
/// CACHE goes in smaller ones, as all of it is read.
const CACHE_PIECE_BYTES: u64 = 4 << 20;

/// What a reply must say of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    pub(super) cookie: Cookie,
    /// The request's offset, which extended headers repeat.
    pub(super) offset: u64,
}

/// A request that has to wait.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) tag: Tag,
    pub(super) action: Action,
    /// A WRITE's payload.
    pub(super) payload: Option<Buffer>,
    pub(super) grant: Grant,
}

/// The workers of a connection and what they have to do.
#[derive(Debug)]
pub(super) struct Workers {
    queue: RefCell<VecDeque<Job>>,
    running: Cell<usize>,
    alive: Cell<usize>,
    parked: Cell<usize>,
    tokens: Cell<usize>,
    closing: Cell<bool>,
    ready: Signal,
    ended: Signal,
}

impl Workers {
    pub(super) fn new() -> Self {
        Self {
            queue: RefCell::default(),
            running: Cell::new(0),
            alive: Cell::new(0),
            parked: Cell::new(0),
            tokens: Cell::new(0),
            closing: Cell::new(false),
            ready: Signal::new(),
            ended: Signal::new(),
        }
    }

    /// Hands a request to a worker, who starts when the caller parks. Gives it back if there is no
    /// worker and no stack for one.
    #[must_use]
    pub(super) fn submit<S: Transport>(
        &self,
        connection: &Rc<Connection<S>>,
        job: Job,
    ) -> Option<Job> {
        self.queue.borrow_mut().push_back(job);
        if self.parked.get() > 0 {
            self.parked.set(self.parked.get() - 1);
            self.tokens.set(self.tokens.get() + 1);
            self.ready.fire_one();
            return None;
        }
        let alive = Alive::new(connection);
        // Nobody joins it: the connection waits for the count of those alive.
        let worker = corio::spawn_local(move || alive.run());
        if worker.is_finished() && self.alive.get() == 0 {
            return self.queue.borrow_mut().pop_back();
        }
        None
    }

    /// Has idle workers end, and the others when they are done. Parks until all have.
    pub(super) fn end(&self) {
        self.close();
        self.ended.wait_until(|| self.alive.get() == 0);
    }

    /// Has idle workers end, and the others when they are done.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.ready.fire();
    }

    fn next(&self) -> Option<Job> {
        loop {
            if let Some(job) = self.queue.borrow_mut().pop_front() {
                return Some(job);
            }
            if self.closing.get() || self.parked.get() >= IDLE_WORKERS_MAX {
                return None;
            }
            self.parked.set(self.parked.get() + 1);
            self.ready
                .wait_until(|| self.tokens.get() > 0 || self.closing.get());
            if self.tokens.get() > 0 {
                self.tokens.set(self.tokens.get() - 1);
            }
        }
    }

    /// Whether more replies are to be expected soon.
    fn others_are_at_it(&self) -> bool {
        self.running.get() > 0 || !self.queue.borrow().is_empty()
    }
}

/// Counts a worker, from before it is started to its end, however that comes.
struct Alive<S: Transport> {
    connection: Rc<Connection<S>>,
    /// Whether it is at work; still set at its end if it unwound (I2).
    working: bool,
}

impl<S: Transport> Alive<S> {
    fn new(connection: &Rc<Connection<S>>) -> Self {
        let alive = &connection.workers.alive;
        alive.set(alive.get() + 1);
        Self {
            connection: Rc::clone(connection),
            working: false,
        }
    }

    fn run(mut self) {
        self.working = true;
        work(&self.connection);
        self.working = false;
    }
}

impl<S: Transport> Drop for Alive<S> {
    fn drop(&mut self) {
        if self.working {
            self.connection.sender.give_up();
        }
        let workers = &self.connection.workers;
        workers.alive.set(workers.alive.get() - 1);
        workers.ended.fire();
    }
}

/// A worker.
fn work<S: Transport>(connection: &Rc<Connection<S>>) {
    let workers = &connection.workers;
    while let Some(job) = workers.next() {
        if connection.sender.is_broken() {
            continue; // For nobody. Dropping it gives back what it holds.
        }
        workers.running.set(workers.running.get() + 1);
        let reply = serve(
            connection,
            job.tag,
            job.action,
            job.payload,
            Some(job.grant),
        );
        workers.running.set(workers.running.get() - 1);
        connection.sender.push(reply, workers.others_are_at_it());
        connection.report_requests();
    }
}

/// Carries a request out. Parks while the disk is at it.
pub(super) fn serve<S: Transport>(
    connection: &Connection<S>,
    tag: Tag,
    action: Action,
    payload: Option<Buffer>,
    grant: Option<Grant>,
) -> Reply {
    let style = connection.terms.style;
    let node = connection.node();
    let result = match action {
        Action::Read { offset, len, whole } => {
            return read(connection, tag, (offset, len, whole), grant);
        }
        Action::Status { offset, len, one } => {
            return status(connection, tag, (offset, len, one), grant);
        }
        Action::Write { offset, fua, .. } => {
            let data = payload.as_deref().unwrap_or_default();
            node.write_at(data, offset, write_flags(fua))
                .map_err(|e| connection.failed(&e))
        }
        Action::Flush => node.flush().map_err(|e| connection.failed(&e)),
        Action::Trim { offset, len, fua } => trim(connection, offset, len, fua),
        Action::Zero { offset, len, how } => zero(connection, offset, len, how),
        Action::Cache { offset, len } => cache(connection, offset, len),
        Action::Nothing | Action::Disconnect => Ok(()),
    };
    match result {
        Ok(()) => Reply::prefix(Prefix::done(style, tag.cookie, tag.offset), grant),
        Err(refusal) => refusal_reply(style, tag, refusal, grant),
    }
}

pub(super) fn write_flags(fua: bool) -> WriteFlags {
    if fua {
        WriteFlags::FUA
    } else {
        WriteFlags::empty()
    }
}

/// A reply that says no.
fn refusal_reply(style: HeaderStyle, tag: Tag, refusal: Refusal, grant: Option<Grant>) -> Reply {
    let mut bytes = Vec::new();
    encode_error(
        style,
        tag.cookie,
        tag.offset,
        refusal.error,
        refusal.message,
        &mut bytes,
    );
    Reply::bytes(bytes, grant)
}

fn trim<S: Transport>(
    connection: &Connection<S>,
    offset: Offset,
    len: Length,
    fua: bool,
) -> Result<(), Refusal> {
    let node = connection.node();
    in_pieces(connection, offset, len, |at, len| {
        node.discard(at, len).map_err(|e| connection.failed(&e))
    })?;
    if fua {
        node.flush().map_err(|e| connection.failed(&e))
    } else {
        Ok(())
    }
}

fn zero<S: Transport>(
    connection: &Connection<S>,
    offset: Offset,
    len: Length,
    how: ZeroHow,
) -> Result<(), Refusal> {
    let mut flags = ZeroFlags::empty();
    flags.set(ZeroFlags::MAY_UNMAP, !how.no_hole);
    flags.set(ZeroFlags::NO_FALLBACK, how.fast);
    let node = connection.node();
    in_pieces(connection, offset, len, |at, len| {
        node.write_zeroes(at, len, flags)
            .map_err(|error| match connection.failed(&error) {
                // ENOTSUP is for FAST_ZERO alone; without it clients would take it for a promise.
                refusal if refusal.error == Errno::ENOTSUP && !how.fast => Refusal {
                    error: Errno::EIO,
                    ..refusal
                },
                refusal => refusal,
            })
    })?;
    if how.fua {
        node.flush().map_err(|e| connection.failed(&e))
    } else {
        Ok(())
    }
}

/// Reads the range ahead for as long as the client may come to ask for it. It is a hint, so that
/// less is no failure.
fn cache<S: Transport>(
    connection: &Connection<S>,
    offset: Offset,
    len: Length,
) -> Result<(), Refusal> {
    let (mut at, mut left) = (offset.0, len.0);
    while left > 0 {
        let piece = left.min(CACHE_PIECE_BYTES);
        let cached = connection.node().cache(Offset(at), Length(piece));
        cached.map_err(|error| connection.failed(&error))?;
        // The range lies within the export, so its end is a number.
        (at, left) = (at.saturating_add(piece), left - piece);
        if !connection.may_ask() {
            break;
        }
    }
    Ok(())
}

/// Calls `f` for one piece of the range after the other, cut at multiples of the piece's size, as
/// long as there is somebody to do it for.
fn in_pieces<S: Transport>(
    connection: &Connection<S>,
    offset: Offset,
    len: Length,
    mut f: impl FnMut(Offset, Length) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    // The range lies within the export, so its end is a number.
    let end = offset.0.saturating_add(len.0);
    let mut at = offset.0;
    while at < end {
        let next = (at - at % RANGE_PIECE_BYTES)
            .saturating_add(RANGE_PIECE_BYTES)
            .min(end);
        f(Offset(at), Length(next - at))?;
        at = next;
        if at < end && (connection.sender.is_broken() || connection.is_stopping()) {
            let message = "the server is stopping";
            return Err(Refusal {
                error: Errno::ESHUTDOWN,
                message,
            });
        }
    }
    Ok(())
}

fn read<S: Transport>(
    connection: &Connection<S>,
    tag: Tag,
    (offset, len, whole): (Offset, usize, bool),
    grant: Option<Grant>,
) -> Reply {
    let style = connection.terms.style;
    let mut data = match connection.buffer(len) {
        Ok(data) => data,
        Err(refusal) => return refusal_reply(style, tag, refusal, grant),
    };
    let node = connection.node();
    let may_be_hole = style.has_chunks() && !whole;
    if may_be_hole && len >= HOLES_READ_BYTES_MIN {
        // A disk that cannot tell is read.
        let mut extents = Vec::new();
        let known = node.block_status(offset, Length::of(&data), HOLES_MAX, &mut extents);
        if known.is_ok() && extents.iter().any(reads_as_zeroes) {
            return match read_around_holes(connection, tag, offset, &mut data, &extents) {
                Ok(pieces) => Reply::new(pieces, Data::Pooled(data), grant),
                Err(refusal) => refusal_reply(style, tag, refusal, grant),
            };
        }
    }
    match node.read_at(&mut data, offset) {
        Ok(()) => {
            // A READ is at most 32 bits long.
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            if may_be_hole && only_zeroes(&data) {
                let hole = Prefix::hole(style, tag.cookie, tag.offset, offset.0, len, true);
                return Reply::prefix(hole, grant);
            }
            let prefix = Prefix::data(style, tag.cookie, tag.offset, offset.0, len, true);
            Reply::with_data(prefix, data, grant)
        }
        Err(error) => refusal_reply(style, tag, connection.failed(&error), grant),
    }
}

fn reads_as_zeroes(extent: &Extent) -> bool {
    extent.flags.contains(ExtentFlags::ZERO)
}

/// Reads what is data and describes the rest: one chunk an extent.
fn read_around_holes<S: Transport>(
    connection: &Connection<S>,
    tag: Tag,
    offset: Offset,
    data: &mut [u8],
    extents: &[Extent],
) -> Result<SmallVec<[Piece; 1]>, Refusal> {
    let style = connection.terms.style;
    let mut pieces = SmallVec::new();
    let mut at = 0;
    let mut extents = extents.iter();
    while at < data.len() {
        let left = data.len() - at;
        let extent = extents.next();
        let len = extent.map_or(left, |extent| usize::try_from(extent.len).unwrap_or(left));
        let (len, end) = (len.min(left), at + len.min(left));
        if len == 0 {
            continue;
        }
        let start = Offset(offset.0.saturating_add(Length::of(&data[..at]).0));
        let last = end == data.len();
        // A READ is at most 32 bits long.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        if extent.is_some_and(reads_as_zeroes) {
            let prefix = Prefix::hole(style, tag.cookie, tag.offset, start.0, len, last);
            pieces.push(Piece { prefix, data: 0..0 });
        } else {
            connection
                .node()
                .read_at(&mut data[at..end], start)
                .map_err(|error| connection.failed(&error))?;
            let prefix = Prefix::data(style, tag.cookie, tag.offset, start.0, len, last);
            pieces.push(Piece {
                prefix,
                data: at..end,
            });
        }
        at = end;
    }
    Ok(pieces)
}

fn status<S: Transport>(
    connection: &Connection<S>,
    tag: Tag,
    (offset, len, one): (Offset, Length, bool),
    grant: Option<Grant>,
) -> Reply {
    let style = connection.terms.style;
    let max = if one { 1 } else { STATUS_EXTENTS_MAX };
    let mut extents = Vec::new();
    if let Err(error) = connection
        .node()
        .block_status(offset, len, max, &mut extents)
    {
        return refusal_reply(style, tag, connection.failed(&error), grant);
    }
    let mut left = len.0;
    let mut shown: Vec<Descriptor> = Vec::with_capacity(extents.len().max(1));
    for extent in &extents {
        let len = extent.len.min(left);
        left -= len;
        if len > 0 {
            shown.push(Descriptor {
                len,
                status: u64::from(state_of(extent).bits()),
            });
        }
    }
    if shown.is_empty() {
        // The protocol wants at least one, and lets an unknown range count as data.
        shown.push(Descriptor {
            len: len.0,
            status: 0,
        });
    }
    let mut bytes = Vec::new();
    if style == HeaderStyle::Extended {
        encode_block_status_ext(tag.cookie, tag.offset, ALLOCATION_ID, &shown, &mut bytes);
    } else {
        encode_block_status(tag.cookie, None, ALLOCATION_ID, &shown, &mut bytes);
    }
    Reply::bytes(bytes, grant)
}

fn state_of(extent: &Extent) -> StateFlags {
    let mut state = StateFlags::empty();
    state.set(StateFlags::HOLE, extent.flags.contains(ExtentFlags::HOLE));
    state.set(StateFlags::ZERO, extent.flags.contains(ExtentFlags::ZERO));
    state
}
