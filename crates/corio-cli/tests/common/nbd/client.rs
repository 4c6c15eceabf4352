//! Requests and their replies.

use std::collections::HashMap;
use std::io::{self, BufReader, Write};

use super::{
    CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, EXTENDED_REQUEST_MAGIC, Export, Handshake, Headers,
    PAYLOAD_LEN, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, Stream, cmd, invalid, take_bytes, take_u16,
    take_u32, take_u64, to_usize,
};
use crate::common::serve::Addr;

/// What became of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// 0, or the error as the protocol numbers it.
    pub(crate) error: u32,
    /// The bytes of a read; holes are zeroes.
    pub(crate) data: Vec<u8>,
    pub(crate) data_chunks: usize,
    pub(crate) hole_chunks: usize,
    /// Length and flags of the extents of a BLOCK_STATUS.
    pub(crate) extents: Vec<(u64, u64)>,
}

/// A request whose reply is not complete.
struct Pending {
    command: u16,
    offset: u64,
    length: u64,
    /// Bytes of a read that chunks have covered.
    covered: u64,
    reply: Reply,
}

/// A connection in transmission.
pub(crate) struct Client {
    stream: Stream,
    input: BufReader<Stream>,
    headers: Headers,
    context: Option<u32>,
    pub(crate) export: Export,
    pending: HashMap<u64, Pending>,
    next_cookie: u64,
}

impl Client {
    pub(super) fn new(handshake: Handshake, export: Export) -> io::Result<Client> {
        Ok(Client {
            input: BufReader::with_capacity(64 << 10, handshake.stream.try_clone()?),
            stream: handshake.stream,
            headers: handshake.headers,
            context: handshake.context,
            export,
            pending: HashMap::new(),
            next_cookie: 0x1000,
        })
    }

    /// Connects to an export; base:allocation is selected where the headers allow it.
    pub(crate) fn connect(addr: &Addr, name: &str, headers: Headers) -> io::Result<Client> {
        let mut handshake = Handshake::start(addr)?;
        handshake.ask_for(headers)?;
        if headers != Headers::Simple {
            handshake.select_allocation(name)?;
        }
        handshake.go(name)
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Requests whose replies have not come.
    pub(crate) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// The cookie and the header's bytes of a request, which [`Client::reply`] then waits for.
    pub(crate) fn header(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> (u64, Vec<u8>) {
        self.next_cookie += 1;
        let cookie = self.next_cookie;
        let reply = Reply {
            cookie,
            ..Reply::default()
        };
        let pending = Pending {
            command,
            offset,
            length,
            covered: 0,
            reply,
        };
        self.pending.insert(cookie, pending);
        let mut bytes = Vec::with_capacity(32);
        if self.headers == Headers::Extended {
            let flags = if command == cmd::WRITE {
                flags | PAYLOAD_LEN
            } else {
                flags
            };
            bytes.extend(EXTENDED_REQUEST_MAGIC.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend(cookie.to_be_bytes());
            bytes.extend(offset.to_be_bytes());
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend(REQUEST_MAGIC.to_be_bytes());
            bytes.extend(flags.to_be_bytes());
            bytes.extend(command.to_be_bytes());
            bytes.extend(cookie.to_be_bytes());
            bytes.extend(offset.to_be_bytes());
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        (cookie, bytes)
    }

    /// Sends a request and returns its cookie.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> io::Result<u64> {
        let (cookie, mut bytes) = self.header(command, flags, offset, length);
        bytes.extend(payload);
        self.stream.write_all(&bytes)?;
        Ok(cookie)
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The reply that is complete next.
    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        loop {
            let done = match take_u32(&mut self.input)? {
                SIMPLE_REPLY_MAGIC if self.headers != Headers::Extended => self.simple_reply()?,
                CHUNK_MAGIC if self.headers == Headers::Structured => self.chunk(false)?,
                EXTENDED_CHUNK_MAGIC if self.headers == Headers::Extended => self.chunk(true)?,
                magic => return Err(invalid(format!("reply magic {magic:#010x}"))),
            };
            if let Some(cookie) = done {
                let pending = self.pending.remove(&cookie).unwrap();
                let read = pending.command == cmd::READ && pending.reply.error == 0;
                if read && pending.covered != pending.length {
                    return Err(invalid("a read was not covered by its chunks"));
                }
                return Ok(pending.reply);
            }
        }
    }

    fn simple_reply(&mut self) -> io::Result<Option<u64>> {
        let error = take_u32(&mut self.input)?;
        let cookie = take_u64(&mut self.input)?;
        let pending = self
            .pending
            .get_mut(&cookie)
            .ok_or_else(|| invalid("unknown cookie"))?;
        pending.reply.error = error;
        if pending.command == cmd::READ {
            if self.headers != Headers::Simple {
                return Err(invalid(
                    "simple reply to a read where structured ones were agreed on",
                ));
            }
            if error == 0 {
                pending.reply.data = take_bytes(&mut self.input, pending.length)?;
                pending.reply.data_chunks = 1;
                pending.covered = pending.length;
            }
        }
        Ok(Some(cookie))
    }

    /// One chunk of a structured reply. Some(cookie) if it was the last.
    fn chunk(&mut self, extended: bool) -> io::Result<Option<u64>> {
        let input = &mut self.input;
        let flags = take_u16(input)?;
        let kind = take_u16(input)?;
        let cookie = take_u64(input)?;
        let pending = self
            .pending
            .get_mut(&cookie)
            .ok_or_else(|| invalid("unknown cookie"))?;
        if extended && take_u64(input)? != pending.offset {
            return Err(invalid("an extended reply for another offset"));
        }
        let length = if extended {
            take_u64(input)?
        } else {
            u64::from(take_u32(input)?)
        };
        let payload = take_bytes(input, length)?;
        let mut rest = &payload[..];
        match kind {
            0 if length == 0 && flags & 1 != 0 => {}
            1 => {
                let offset = take_u64(&mut rest)?;
                let len = u64::try_from(rest.len()).unwrap();
                let at = pending.cover(offset, len)?;
                pending.reply.data[at..at + rest.len()].copy_from_slice(rest);
                pending.reply.data_chunks += 1;
            }
            2 => {
                let offset = take_u64(&mut rest)?;
                let len = u64::from(take_u32(&mut rest)?);
                pending.cover(offset, len)?;
                pending.reply.hole_chunks += 1;
            }
            5 | 6 if (kind == 6) == extended => {
                if Some(take_u32(&mut rest)?) != self.context {
                    return Err(invalid("the extents of a context that was not selected"));
                }
                pending.extents(rest, extended)?;
            }
            _ if kind & 0x8000 != 0 => pending.reply.error = take_u32(&mut rest)?,
            _ => {
                return Err(invalid(format!(
                    "chunk {kind} of {length} bytes, flags {flags}"
                )));
            }
        }
        Ok((flags & 1 != 0).then_some(cookie))
    }

    /// Sends one request and returns its reply; nothing else is in flight.
    pub(crate) fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> io::Result<Reply> {
        let cookie = self.send(command, flags, offset, length, payload)?;
        let reply = self.reply()?;
        if reply.cookie == cookie {
            Ok(reply)
        } else {
            Err(invalid("the reply to another"))
        }
    }

    pub(crate) fn read(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        self.call(cmd::READ, 0, offset, length, &[])
            .and_then(Reply::good)
            .map(|reply| reply.data)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = u64::try_from(data.len()).unwrap();
        self.call(cmd::WRITE, 0, offset, length, data)
            .and_then(Reply::good)
            .map(drop)
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.call(cmd::FLUSH, 0, 0, 0, &[])
            .and_then(Reply::good)
            .map(drop)
    }

    /// Takes leave as the protocol asks for.
    pub(crate) fn disconnect(mut self) -> io::Result<()> {
        self.send(cmd::DISC, 0, 0, 0, &[]).map(drop)
    }
}

impl Reply {
    /// The reply, unless it is an error.
    pub(crate) fn good(self) -> io::Result<Reply> {
        match self.error {
            0 => Ok(self),
            error => Err(io::Error::other(format!(
                "the server answered with error {error}"
            ))),
        }
    }
}

impl Pending {
    /// Counts a chunk of a read; returns where its bytes belong.
    fn cover(&mut self, offset: u64, len: u64) -> io::Result<usize> {
        let end = offset
            .checked_add(len)
            .ok_or_else(|| invalid("chunk past the end of numbers"))?;
        let inside = offset >= self.offset && end <= self.offset + self.length && len > 0;
        if self.command != cmd::READ || !inside {
            return Err(invalid("a chunk outside its request"));
        }
        // The sum alone would let two chunks overlap and leave a gap of the same length; the
        // tests read random bytes, and a gap would show as zeroes.
        self.covered += len;
        if self.reply.data.is_empty() {
            self.reply.data = vec![0; to_usize(self.length)];
        }
        Ok(to_usize(offset - self.offset))
    }

    fn extents(&mut self, mut rest: &[u8], extended: bool) -> io::Result<()> {
        if extended && to_usize(u64::from(take_u32(&mut rest)?)) * 16 != rest.len() {
            return Err(invalid("count of the extents"));
        }
        while !rest.is_empty() {
            let extent = if extended {
                (take_u64(&mut rest)?, take_u64(&mut rest)?)
            } else {
                (
                    u64::from(take_u32(&mut rest)?),
                    u64::from(take_u32(&mut rest)?),
                )
            };
            if extent.0 == 0 {
                return Err(invalid("an empty extent"));
            }
            self.reply.extents.push(extent);
        }
        Ok(())
    }
}
