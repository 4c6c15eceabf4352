//! The transmission phase of one connection.
//!
//! ```text
//!                      one large read
//!   client --------------------------------> Receiver
//!                                               | request by request, in order
//!                                             Reader
//!                    served at once         /        \         has to wait
//!                    (READ from cache,     /          \        (Grant taken)
//!                     lone WRITE to it)
//!                                      Batch          Workers ---- disk
//!                                          \          /
//!   client <--------------------------------- Sender
//!                one write for all that is there
//! ```
//!
//! A READ that the disk can serve without waiting is read straight into the batch behind its
//! header: no allocation, no copy, no other coroutine. So is a small WRITE made straight from the
//! receive buffer, where the loop has no other client that would wait with it should the file system
//! hold it up (`ServerConfig::lone_writes`). Everything else goes to a worker, so that a
//! slow request holds up no other; replies go out in whatever order they are ready. When the reader
//! has used up what has arrived it sends its batch, together with what the workers have ready, and
//! reads on.
//!
//! A client that is slower than this side would have each of its requests answered alone, which is
//! what costs both the most. So after [`PACE_BYTES`] of small replies the reader waits until the
//! client has read most of them, where the stream can tell: then many requests are there at once.
//! Nobody waits for a reply longer, as it would have come behind those that are not read yet.
//!
//! The reader gives others their turn after [`TURN_REQUESTS`] or [`TURN_BYTES`], as a client with a
//! full pipe could otherwise keep the loop for itself.
//!
//! Invariants:
//! - I1 The reader holds nothing that another coroutine needs when it waits for room, the send side
//!   or the stream; its batch is sent before it parks for any of them.
//! - I2 When `serve` returns no coroutine of the connection is left and every grant has been given
//!   back.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corio_block::{Node, Offset};

use super::batch::{BATCH_BYTES, Batch, FAST_READ_BYTES_MAX};
use super::budget::ClientBudget;
use super::buffers::Buffer;
use super::handshake::Chosen;
use super::receive::{READING, Receiver};
use super::registry::{self, Presence};
use super::request::{Action, Refusal, Terms};
use super::sender::{Reply, Sender};
use super::transport::Transport;
use super::work::{Job, Tag, Workers, serve};
use super::zeroes::only_zeroes;
use super::{Error, Shared, turn};
use crate::wire::{Decoded, Errno, HeaderStyle, Prefix, Request, encode_data_prefix, encode_error};

/// Requests after which the reader lets others have their turn.
const TURN_REQUESTS: usize = 256;
/// Bytes of data after which the reader lets others have their turn.
const TURN_BYTES: usize = 4 << 20;
/// Bytes of replies after which the reader looks whether the client keeps up.
const PACE_BYTES: usize = 64 << 10;
/// Replies of more bytes than this, on average, are not small: one costs more than the calls and
/// switches that bring it.
const SMALL_REPLY_BYTES: usize = 8 << 10;
/// For how long the reader waits for a client to catch up at most. It may be one that reads nothing
/// before all its requests are sent.
const PACE_MAX: Duration = Duration::from_millis(2);
/// A longer WRITE is not made on the spot. The receive buffer has room for it.
const FAST_WRITE_BYTES_MAX: usize = 64 << 10;
/// After this many READs in a row that the cache could not serve the next so many do not try it: a
/// disk that is not cached should not pay a system call for each request to be told so.
const MISSES_MAX: u32 = 16;

/// What the coroutines of a connection share.
#[derive(Debug)]
pub(super) struct Connection<S: Transport> {
    stream: Rc<S>,
    shared: Arc<Shared>,
    node: Arc<Node>,
    pub(super) terms: Terms,
    pub(super) sender: Sender<S>,
    pub(super) workers: Workers,
    budget: Rc<ClientBudget>,
    presence: Presence,
    peer: String,
    /// Whether the client has said all it has to say.
    ended: Cell<bool>,
    /// Whether a failure of the disk has been logged.
    logged: Cell<bool>,
}

impl<S: Transport> Connection<S> {
    pub(super) fn new(
        shared: &Arc<Shared>,
        stream: Rc<S>,
        chosen: &Chosen,
        presence: Presence,
        peer: String,
    ) -> Rc<Self> {
        let config = &shared.config;
        Rc::new(Self {
            sender: Sender::new(Rc::clone(&stream)),
            stream,
            node: Arc::clone(&shared.exports[chosen.export].node),
            terms: chosen.terms,
            workers: Workers::new(),
            budget: ClientBudget::new(
                Arc::clone(&shared.budget),
                config.client_requests_max,
                config.client_bytes_max,
            ),
            presence,
            peer,
            ended: Cell::new(false),
            logged: Cell::new(false),
            shared: Arc::clone(shared),
        })
    }

    /// Serves until the client leaves or is given up. Parks; the caller's coroutine becomes the
    /// reader.
    ///
    /// # Errors
    /// Why it did not end in good order.
    pub(super) fn serve(self: &Rc<Self>, receiver: Receiver) -> Result<(), Error> {
        // Should the reader itself unwind, the workers must not wait for ever.
        let mut closer = Closer {
            connection: Rc::clone(self),
            in_order: false,
        };
        let batch = Batch::new(
            self.shared
                .buffers
                .get(BATCH_BYTES)
                .map_err(Error::io(MEMORY))?,
        );
        let mut reader = Reader {
            connection: self,
            receiver,
            batch,
            scratch: Vec::new(),
            requests: 0,
            bytes: 0,
            sent: 0,
            replies: 0,
            misses: 0,
        };
        let result = match reader.run() {
            // The stream was ended by this side, which may have been in the middle of a request.
            Err(Error::Incomplete { .. }) if self.is_stopping() => Ok(()),
            result => result,
        };
        self.ended.set(true);
        let flushed = reader.flush();
        if result.is_err() {
            // The frame is lost, or the peer is gone: there is nobody left to reply to.
            self.sender.give_up();
        }
        drop(reader);
        self.budget.wait_until_idle();
        self.workers.end();
        closer.in_order = true;
        result.and(flushed)
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.shared.registry.is_stopping()
    }

    /// Whether the client may still ask for something.
    pub(super) fn may_ask(&self) -> bool {
        !self.ended.get() && !self.sender.is_broken() && !self.is_stopping()
    }

    /// A buffer for the data of a request.
    pub(super) fn buffer(&self, len: usize) -> Result<Buffer, Refusal> {
        self.shared.buffers.get(len).map_err(|_| Refusal {
            error: Errno::ENOMEM,
            message: "no memory for the data",
        })
    }

    /// What a client is told of a failure of the disk. The details, which name files of the server,
    /// go to the log, once a connection.
    pub(super) fn failed(&self, error: &corio_block::Error) -> Refusal {
        let errno = Errno::from_os(error.errno());
        if errno != Errno::ENOTSUP && !self.logged.replace(true) {
            tracing::warn!(
                peer = %self.peer,
                "the disk failed a request (further ones of this connection are not logged): {error}"
            );
        }
        Refusal {
            error: errno,
            message: "the disk failed",
        }
    }

    /// Whether this thread may be held up by the client's own writes.
    #[inline]
    fn writes_here(&self) -> bool {
        self.shared.config.lone_writes && registry::is_alone() && !self.sender.is_broken()
    }

    /// Keeps the figure that says at shutdown who is still busy.
    pub(super) fn report_requests(&self) {
        self.presence.set_requests(self.budget.requests());
    }
}

const MEMORY: &str = "getting memory for a connection";

/// Ends the workers however the reader ends.
struct Closer<S: Transport> {
    connection: Rc<Connection<S>>,
    in_order: bool,
}

impl<S: Transport> Drop for Closer<S> {
    fn drop(&mut self) {
        if !self.in_order {
            self.connection.sender.give_up();
        }
        self.connection.workers.close();
    }
}

/// Whether the reader goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    On,
    End,
}

/// The coroutine that takes requests in.
struct Reader<'a, S: Transport> {
    connection: &'a Rc<Connection<S>>,
    receiver: Receiver,
    batch: Batch,
    /// For replies that are not in the batch yet; kept for its memory.
    scratch: Vec<u8>,
    /// Served since others had their turn.
    requests: usize,
    bytes: usize,
    /// Bytes of batches since it was seen whether the client keeps up, and READs in them.
    sent: usize,
    replies: usize,
    /// READs in a row that had to wait; from `MISSES_MAX` to twice that: how many did not try.
    misses: u32,
}

impl<S: Transport> Reader<'_, S> {
    fn run(&mut self) -> Result<(), Error> {
        loop {
            if self.serve_arrived()? == Flow::End {
                return Ok(());
            }
            self.flush()?;
            self.pace()?;
            let stream = &self.connection.stream;
            if self.receiver.fill(&**stream).map_err(Error::io(READING))? == 0 {
                return if self.receiver.arrived().is_empty() {
                    Ok(())
                } else {
                    Err(Error::Incomplete { what: "a request" })
                };
            }
        }
    }

    /// Has the client catch up, if it has to.
    #[inline]
    fn pace(&mut self) -> Result<(), Error> {
        if self.sent < PACE_BYTES {
            return Ok(());
        }
        let small = self.sent <= self.replies * SMALL_REPLY_BYTES;
        (self.sent, self.replies) = (0, 0);
        // What workers have ready goes out at once.
        if !small || self.connection.budget.requests() > 0 {
            return Ok(());
        }
        let paced = self.connection.stream.pace(PACE_MAX);
        paced.map_err(Error::io(WRITING))
    }

    /// Takes in every request that has arrived as a whole.
    fn serve_arrived(&mut self) -> Result<Flow, Error> {
        let style = self.connection.terms.style;
        while let Decoded::Item {
            value: request,
            consumed,
        } = Request::decode(self.receiver.arrived(), style)?
        {
            self.receiver.consume(consumed);
            if self.take_in(&request)? == Flow::End {
                return Ok(Flow::End);
            }
            self.requests += 1;
            if self.requests >= TURN_REQUESTS || self.bytes >= TURN_BYTES {
                (self.requests, self.bytes) = (0, 0);
                self.flush()?;
                turn::pass();
            }
        }
        Ok(Flow::On)
    }

    #[inline]
    fn take_in(&mut self, request: &Request) -> Result<Flow, Error> {
        // One load and a branch while nobody listens.
        if tracing::enabled!(tracing::Level::TRACE) {
            self.trace(request);
        }
        let connection = self.connection;
        let tag = Tag {
            cookie: request.cookie,
            offset: request.offset,
        };
        let checked = if connection.is_stopping() {
            self.check_while_stopping(request)
        } else {
            connection.terms.check(request)
        };
        match checked {
            Ok(Action::Read { offset, len, whole }) => {
                self.bytes += len;
                if !self.try_read(tag, offset, len, whole)? {
                    self.dispatch(tag, Action::Read { offset, len, whole })?;
                }
            }
            Ok(Action::Write { offset, len, fua }) => {
                self.bytes += len;
                self.write(tag, offset, len, fua)?;
            }
            Ok(Action::Nothing) => {
                let done = Prefix::done(connection.terms.style, tag.cookie, tag.offset);
                self.reply(done.as_slice())?;
            }
            Ok(Action::Disconnect) => return Ok(Flow::End),
            Ok(action) => self.dispatch(tag, action)?,
            Err(refusal) => self.refuse(request, refusal)?,
        }
        Ok(Flow::On)
    }

    /// Says what was asked for.
    #[cold]
    fn trace(&self, request: &Request) {
        let command = request.command;
        let unknown = format!("command {}", command.0);
        tracing::trace!(
            peer = %self.connection.peer,
            command = command.name().unwrap_or(&unknown),
            offset = request.offset,
            length = request.length,
            flags = request.flags.bits(),
            cookie = request.cookie.0,
            "request"
        );
    }

    #[cold]
    fn check_while_stopping(&self, request: &Request) -> Result<Action, Refusal> {
        match self.connection.terms.check(request) {
            Ok(Action::Disconnect) => Ok(Action::Disconnect),
            _ => Err(Refusal {
                error: Errno::ESHUTDOWN,
                message: "the server is stopping",
            }),
        }
    }

    /// Serves a READ from the cache, into the batch. False: it has to wait.
    #[inline]
    fn try_read(
        &mut self,
        tag: Tag,
        offset: Offset,
        len: usize,
        whole: bool,
    ) -> Result<bool, Error> {
        if len > FAST_READ_BYTES_MAX {
            return Ok(false);
        }
        if self.misses >= MISSES_MAX && self.misses < 2 * MISSES_MAX {
            self.misses += 1;
            return Ok(false);
        }
        if !self.batch.has_room(len) {
            self.flush()?;
        }
        let connection = self.connection;
        // At most FAST_READ_BYTES_MAX.
        let size = u32::try_from(len).unwrap_or(u32::MAX);
        let style = connection.terms.style;
        let at = [tag.offset, offset.0];
        let node = &connection.node;
        let may_be_hole = style.has_chunks() && !whole;
        let mut is_hole = false;
        let served = self.batch.try_push(
            len,
            |head| encode_data_prefix(style, tag.cookie, at, size, true, head),
            |data| {
                let served = node.try_read_at(data, offset)?;
                is_hole = served && may_be_hole && only_zeroes(data);
                Ok::<_, corio_block::Error>(served && !is_hole)
            },
        );
        if is_hole {
            // In place of what was not kept, for which there was room.
            let hole = Prefix::hole(style, tag.cookie, tag.offset, offset.0, size, true);
            self.batch.push(hole.as_slice());
        }
        // A disk that fails here fails in the worker too, which reports it.
        let served = is_hole || served.unwrap_or(false);
        self.replies += usize::from(served);
        self.misses = match (served, self.misses) {
            (true, _) => 0,
            (false, misses) if misses < MISSES_MAX => misses + 1,
            (false, _) => MISSES_MAX,
        };
        Ok(served)
    }

    /// Hands a request without a payload to a worker, or serves it here if there is no room for it.
    fn dispatch(&mut self, tag: Tag, action: Action) -> Result<(), Error> {
        let connection = self.connection;
        let len = action.data_len();
        self.wait_for_room(len)?;
        match connection.budget.try_take(len) {
            Some(grant) => {
                self.submit(Job {
                    tag,
                    action,
                    payload: None,
                    grant,
                });
                Ok(())
            }
            None => self.serve_here(tag, action),
        }
    }

    /// Makes a WRITE on the spot, from where it was received. False: it may have to wait, and all of
    /// it is still to be taken in.
    fn try_write(&mut self, tag: Tag, offset: Offset, len: usize) -> Result<bool, Error> {
        let connection = self.connection;
        if len > FAST_WRITE_BYTES_MAX || !connection.writes_here() {
            return Ok(false);
        }
        while self.receiver.arrived().len() < len {
            self.flush()?;
            let stream = &*connection.stream;
            if self.receiver.fill(stream).map_err(Error::io(READING))? == 0 {
                return Err(Error::Incomplete { what: "a payload" });
            }
            if !connection.writes_here() {
                return Ok(false); // Another client has come meanwhile.
            }
        }
        let payload = &self.receiver.arrived()[..len];
        // A disk that fails here fails in the worker too, which reports it.
        if !connection
            .node
            .try_write_at(payload, offset)
            .unwrap_or(false)
        {
            return Ok(false);
        }
        self.receiver.consume(len);
        let done = Prefix::done(connection.terms.style, tag.cookie, tag.offset);
        self.reply(done.as_slice())?;
        Ok(true)
    }

    /// Reads a WRITE's payload into a buffer of its own and hands it to a worker.
    fn write(&mut self, tag: Tag, offset: Offset, len: usize, fua: bool) -> Result<(), Error> {
        let connection = self.connection;
        if !fua && self.try_write(tag, offset, len)? {
            return Ok(());
        }
        self.wait_for_room(len)?;
        let Some(grant) = connection.budget.try_take(len) else {
            return self.write_here(tag, offset, len, fua);
        };
        let mut payload = match connection.buffer(len) {
            Ok(payload) => payload,
            // The reader's own buffer will do.
            Err(_) => return self.write_here(tag, offset, len, fua),
        };
        if self.receiver.arrived().len() < len {
            self.flush()?;
        }
        self.receiver
            .read_exact(&*connection.stream, &mut payload)?;
        let action = Action::Write { offset, len, fua };
        self.submit(Job {
            tag,
            action,
            payload: Some(payload),
            grant,
        });
        Ok(())
    }

    fn submit(&self, job: Job) {
        let connection = self.connection;
        if let Some(job) = connection.workers.submit(connection, job) {
            let reply = serve(
                connection,
                job.tag,
                job.action,
                job.payload,
                Some(job.grant),
            );
            connection.sender.push(reply, false);
        }
        connection.report_requests();
    }

    /// Parks until the client has room for one more request of `len` bytes. Fails if no reply can
    /// reach the client any more.
    #[inline]
    fn wait_for_room(&mut self, len: usize) -> Result<(), Error> {
        if !self.connection.budget.has_room(len) {
            self.flush()?;
            self.connection.budget.wait_for_room(len);
        }
        if self.connection.sender.is_broken() {
            // What has arrived and is not begun would keep the disk busy for nobody.
            return Err(Error::io(WRITING)(io::ErrorKind::BrokenPipe.into()));
        }
        Ok(())
    }

    /// Lets the payload pass and says no.
    #[cold]
    fn refuse(&mut self, request: &Request, refusal: Refusal) -> Result<(), Error> {
        let terms = &self.connection.terms;
        let len = request.payload_len(terms.style);
        let max = u64::from(terms.request_bytes_max);
        // A compact WRITE may be somewhat too long by mistake; an extended header says what it
        // means.
        let max = if terms.style == HeaderStyle::Extended {
            max
        } else {
            max * 2
        };
        if len > max {
            return Err(Error::PayloadTooLong { len, max });
        }
        if len > u64::try_from(self.receiver.arrived().len()).unwrap_or(u64::MAX) {
            self.flush()?;
        }
        self.receiver.skip(&*self.connection.stream, len)?;
        self.refuse_reply(
            Tag {
                cookie: request.cookie,
                offset: request.offset,
            },
            refusal,
        )
    }

    pub(super) fn refuse_reply(&mut self, tag: Tag, refusal: Refusal) -> Result<(), Error> {
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        let style = self.connection.terms.style;
        encode_error(
            style,
            tag.cookie,
            tag.offset,
            refusal.error,
            refusal.message,
            &mut bytes,
        );
        let result = self.reply(&bytes);
        self.scratch = bytes;
        result
    }

    /// Puts a reply without data of the disk into the batch.
    fn reply(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if !self.batch.has_room(bytes.len()) {
            self.flush()?;
        }
        self.batch.push(bytes);
        Ok(())
    }

    /// Sends the batch, and with it what the workers have ready. An empty batch is nothing to wait
    /// for: the workers send theirs without it, and the disk can be at the next requests meanwhile.
    fn flush(&mut self) -> Result<(), Error> {
        if self.batch.as_slice().is_empty() {
            return Ok(());
        }
        self.sent += self.batch.as_slice().len();
        let result = self.connection.sender.flush(self.batch.as_slice());
        self.batch.clear();
        result.map_err(Error::io(WRITING))
    }

    /// Serves a request without overlapping others, as the server has no room for more.
    fn serve_here(&mut self, tag: Tag, action: Action) -> Result<(), Error> {
        if let Action::Read { offset, len, whole } = action {
            return self.read_here(tag, offset, len, whole);
        }
        let reply: Reply = serve(self.connection, tag, action, None, None);
        for slice in reply.slices() {
            if !self.batch.has_room(slice.len()) {
                self.flush()?;
            }
            self.batch.push(slice);
        }
        Ok(())
    }
}

const WRITING: &str = "writing to the client";

mod pieces;
