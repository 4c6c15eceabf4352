//! The least an NBD server can do, as a peer: what it costs is what the kernel and the protocol
//! cost.
//!
//! A blocking thread a connection. One receive of up to 64 KiB may bring many requests; each is
//! read from the file straight behind its reply header in one buffer; one write sends them all.
//! Nothing is shared, scheduled, limited or logged. What is written goes to the file from where
//! it was received, before anything else is looked at. No flush, one client's trust: not a server to
//! use. It grants structured replies, as its peers do: the client that asks for them has more to
//! do for each, which is no server's merit.
//!
//! Protocol: NBD, "Fixed newstyle negotiation" and "Transmission" (doc/proto.md of the NBD
//! project).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

const RECEIVE: usize = 64 << 10;
/// A batch of replies larger than this leaves in parts, so that large reads stay in the CPU's
/// cache.
const BATCH: usize = 1 << 20;
const PAGE: usize = 4096;
const LEAD: usize = 64;
/// The largest read and option taken; a write has to fit into what is received at once.
const PAYLOAD_MAX: u32 = 32 << 20;
const OPTION_MAX: u32 = 64 << 10;

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;
const REQUEST_LEN: usize = 28;
const REPLY_FLAG_DONE: u16 = 1;
const REPLY_TYPE_NONE: u16 = 0;
const REPLY_TYPE_OFFSET_DATA: u16 = 1;
const REPLY_TYPE_ERROR: u16 = (1 << 15) | 1;

const FLAG_FIXED_NEWSTYLE_NO_ZEROES: u16 = 0b11;
const CLIENT_NO_ZEROES: u32 = 0b10;
/// HAS_FLAGS, CAN_MULTI_CONN.
const TRANSMISSION: u16 = 1 | 1 << 8;
const READ_ONLY: u16 = 1 << 1;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) | 1;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const EINVAL: u32 = 22;

/// Serves `file` on the socket `unix` until killed.
pub(crate) fn serve(file: &Path, unix: &Path, writable: bool) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let disk = options.read(true).write(writable).open(file);
    let disk = disk.with_context(|| format!("cannot open {}", file.display()))?;
    let size = disk.metadata()?.len();
    let flags = TRANSMISSION | if writable { 0 } else { READ_ONLY };
    let disk = Arc::new(disk);
    let listener =
        UnixListener::bind(unix).with_context(|| format!("cannot listen on {}", unix.display()))?;
    for stream in listener.incoming() {
        let (mut stream, disk) = (stream?, Arc::clone(&disk));
        std::thread::spawn(move || {
            let served = handshake(&mut stream, size, flags).and_then(|next| match next {
                ControlFlow::Continue(style) => transmit(&mut stream, &disk, size, style),
                ControlFlow::Break(()) => Ok(()),
            });
            if let Err(error) = served
                && error.kind() != io::ErrorKind::UnexpectedEof
            {
                eprintln!("floor: {error}");
            }
        });
    }
    Ok(())
}

/// How replies look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Style {
    #[default]
    Simple,
    Structured,
}

/// Breaks when the client wants no transmission.
fn handshake(stream: &mut UnixStream, size: u64, flags: u16) -> io::Result<ControlFlow<(), Style>> {
    let mut hello = Vec::from(NBDMAGIC.to_be_bytes());
    hello.extend(IHAVEOPT.to_be_bytes());
    hello.extend(FLAG_FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes());
    stream.write_all(&hello)?;
    let no_zeroes = read_u32(stream)? & CLIENT_NO_ZEROES != 0;
    let mut style = Style::Simple;
    loop {
        let mut magic = [0; 8];
        stream.read_exact(&mut magic)?;
        let (option, len) = (read_u32(stream)?, read_u32(stream)?);
        if u64::from_be_bytes(magic) != IHAVEOPT || len > OPTION_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Whatever name is asked for, there is but one disk.
        io::copy(
            &mut Read::take(&mut *stream, u64::from(len)),
            &mut io::sink(),
        )?;
        match option {
            OPT_EXPORT_NAME => {
                let mut reply = Vec::from(size.to_be_bytes());
                reply.extend(flags.to_be_bytes());
                if !no_zeroes {
                    reply.resize(reply.len() + 124, 0);
                }
                stream.write_all(&reply)?;
                return Ok(ControlFlow::Continue(style));
            }
            OPT_INFO | OPT_GO => {
                let mut info = Vec::from(0u16.to_be_bytes());
                info.extend(size.to_be_bytes());
                info.extend(flags.to_be_bytes());
                reply_option(stream, option, REP_INFO, &info)?;
                reply_option(stream, option, REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(ControlFlow::Continue(style));
                }
            }
            OPT_ABORT => {
                reply_option(stream, option, REP_ACK, &[])?;
                return Ok(ControlFlow::Break(()));
            }
            OPT_STRUCTURED_REPLY => {
                reply_option(stream, option, REP_ACK, &[])?;
                style = Style::Structured;
            }
            // Metadata, TLS, lists, extended headers: refused, clients go on without.
            _ => reply_option(stream, option, REP_ERR_UNSUP, &[])?,
        }
    }
}

fn read_u32(stream: &mut UnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn reply_option(stream: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut reply = Vec::from(OPTION_REPLY.to_be_bytes());
    reply.extend(option.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend(
        u32::try_from(data.len())
            .map_err(io::Error::other)?
            .to_be_bytes(),
    );
    reply.extend(data);
    stream.write_all(&reply)
}

/// A request's fields that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    kind: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
}

/// None when the magic is wrong.
fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Request> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (_flags, rest) = rest.split_first_chunk::<2>()?;
    let (kind, rest) = rest.split_first_chunk::<2>()?;
    let (cookie, rest) = rest.split_first_chunk::<8>()?;
    let (offset, rest) = rest.split_first_chunk::<8>()?;
    let (len, _) = rest.split_first_chunk::<4>()?;
    (u32::from_be_bytes(*magic) == REQUEST).then_some(Request {
        kind: u16::from_be_bytes(*kind),
        cookie: *cookie,
        offset: u64::from_be_bytes(*offset),
        len: u32::from_be_bytes(*len),
    })
}

fn transmit(stream: &mut UnixStream, disk: &File, size: u64, style: Style) -> io::Result<()> {
    let mut received = vec![0; RECEIVE];
    // Bytes received and not yet taken, at the front.
    let mut held = 0;
    let mut replies = Replies {
        style,
        ..Replies::default()
    };
    loop {
        let count = stream.read(&mut received[held..])?;
        if count == 0 {
            return Ok(());
        }
        held += count;
        let mut taken = 0;
        while let Some((bytes, rest)) = received[taken..held].split_first_chunk::<REQUEST_LEN>() {
            let request = parse(bytes).ok_or(io::ErrorKind::InvalidData)?;
            let mut payload: &[u8] = &[];
            match request.kind {
                CMD_DISC => return stream.write_all(replies.bytes()),
                CMD_WRITE if request.len as usize > RECEIVE - REQUEST_LEN => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                CMD_WRITE => match rest.get(..request.len as usize) {
                    Some(all) => payload = all,
                    None => break,
                },
                _ => {}
            }
            taken += REQUEST_LEN + payload.len();
            replies.add(&request, payload, disk, size)?;
            if replies.len >= BATCH {
                stream.write_all(replies.bytes())?;
                replies.len = 0;
            }
        }
        stream.write_all(replies.bytes())?;
        replies.len = 0;
        received.copy_within(taken..held, 0);
        held -= taken;
    }
}

/// The replies of a batch, one behind the other. The bytes beyond `len` are old ones, kept so that
/// growing costs once, not a clearing a batch.
///
/// The first one begins [`LEAD`] bytes into a page: where its data is copied to decides how fast
/// that is (`corio-nbd` says more).
#[derive(Default)]
struct Replies {
    style: Style,
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Replies {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// Room for `len` bytes in all.
    fn grow(&mut self, len: usize) {
        let mut larger = vec![0; len + PAGE + LEAD];
        let start = larger.as_ptr().align_offset(PAGE) + LEAD;
        larger[start..start + self.len].copy_from_slice(self.bytes());
        (self.buffer, self.start) = (larger, start);
    }

    /// What comes before the data; all of a reply without any.
    #[inline(always)]
    fn header(&self, request: &Request, carried_out: bool) -> Header {
        let mut header = Header::default();
        match self.style {
            Style::Simple => {
                let errno = if carried_out { 0 } else { EINVAL };
                header.put(SIMPLE_REPLY.to_be_bytes());
                header.put(errno.to_be_bytes());
                header.put(request.cookie);
            }
            Style::Structured => {
                let (kind, len) = match (carried_out, request.kind) {
                    (true, CMD_READ) => (REPLY_TYPE_OFFSET_DATA, 8 + request.len),
                    (true, _) => (REPLY_TYPE_NONE, 0),
                    (false, _) => (REPLY_TYPE_ERROR, 6),
                };
                header.put(STRUCTURED_REPLY.to_be_bytes());
                header.put(REPLY_FLAG_DONE.to_be_bytes());
                header.put(kind.to_be_bytes());
                header.put(request.cookie);
                header.put(len.to_be_bytes());
                match kind {
                    REPLY_TYPE_OFFSET_DATA => header.put(request.offset.to_be_bytes()),
                    REPLY_TYPE_ERROR => {
                        header.put(EINVAL.to_be_bytes());
                        header.put(0u16.to_be_bytes()); // No message.
                    }
                    _ => {}
                }
            }
        }
        header
    }

    /// Carries the request out.
    fn add(&mut self, request: &Request, payload: &[u8], disk: &File, size: u64) -> io::Result<()> {
        let end = request.offset.checked_add(u64::from(request.len));
        let is_known = matches!(request.kind, CMD_READ | CMD_WRITE);
        let can = is_known && request.len <= PAYLOAD_MAX && end.is_some_and(|end| end <= size);
        let reads = can && request.kind == CMD_READ;
        if can && !reads {
            disk.write_all_at(payload, request.offset)?;
        }
        let header = self.header(request, can);
        let data = self.len + header.len();
        let end = data + if reads { request.len as usize } else { 0 };
        if self.buffer.len() < self.start + end {
            self.grow(end);
        }
        let room = &mut self.buffer[self.start..];
        room[self.len..data].copy_from_slice(&header);
        disk.read_exact_at(&mut room[data..end], request.offset)?;
        self.len = end;
        Ok(())
    }
}

/// The bytes of a header.
#[derive(Default)]
struct Header {
    bytes: [u8; 28],
    len: usize,
}

impl Header {
    #[inline(always)]
    fn put<const N: usize>(&mut self, field: [u8; N]) {
        self.bytes[self.len..self.len + N].copy_from_slice(&field);
        self.len += N;
    }
}

impl std::ops::Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::{CMD_READ, CMD_WRITE, REQUEST, REQUEST_LEN, Replies, Request, Style, parse};
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    fn bytes_of(kind: u16, offset: u64, len: u32) -> [u8; REQUEST_LEN] {
        let mut bytes = Vec::from(REQUEST.to_be_bytes());
        bytes.extend(0u16.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(*b"cookie!!");
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.try_into().unwrap()
    }

    /// Ten digits, in a file of that name which is gone already.
    fn disk(name: &str) -> File {
        let name = format!("bench-floor-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, b"0123456789").unwrap();
        let disk = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        disk
    }

    #[test]
    fn a_request_parses_and_a_wrong_magic_does_not() {
        let mut bytes = bytes_of(CMD_READ, 5, 7);
        let request = Request {
            kind: CMD_READ,
            cookie: *b"cookie!!",
            offset: 5,
            len: 7,
        };
        assert_eq!(parse(&bytes), Some(request));
        bytes[0] ^= 1;
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn replies_follow_each_other_and_a_read_past_the_end_is_refused() {
        let disk = disk("read");
        let mut replies = Replies::default();
        for (offset, len) in [(2, 3), (8, 3), (u64::MAX, 1)] {
            let request = parse(&bytes_of(CMD_READ, offset, len)).unwrap();
            replies.add(&request, b"", &disk, 10).unwrap();
        }
        let mut expected = Vec::from(*b"\x67\x44\x66\x98\0\0\0\0cookie!!234");
        expected.extend(*b"\x67\x44\x66\x98\0\0\0\x16cookie!!");
        expected.extend(*b"\x67\x44\x66\x98\0\0\0\x16cookie!!");
        assert_eq!(replies.bytes(), expected);

        let mut replies = Replies {
            style: Style::Structured,
            ..Replies::default()
        };
        for (offset, len) in [(2, 3), (8, 3)] {
            let request = parse(&bytes_of(CMD_READ, offset, len)).unwrap();
            replies.add(&request, b"", &disk, 10).unwrap();
        }
        let mut expected = Vec::from(*b"\x66\x8e\x33\xef\0\x01\0\x01cookie!!\0\0\0\x0b");
        expected.extend(*b"\0\0\0\0\0\0\0\x02234");
        expected.extend(*b"\x66\x8e\x33\xef\0\x01\x80\x01cookie!!\0\0\0\x06");
        expected.extend(*b"\0\0\0\x16\0\0");
        assert_eq!(replies.bytes(), expected);
    }

    #[test]
    fn a_write_is_in_the_file_and_one_past_the_end_is_refused() {
        let disk = disk("written");
        for (style, done, refused) in [
            (
                Style::Simple,
                &b"\x67\x44\x66\x98\0\0\0\0cookie!!"[..],
                &b"\x67\x44\x66\x98\0\0\0\x16cookie!!"[..],
            ),
            (
                Style::Structured,
                b"\x66\x8e\x33\xef\0\x01\0\0cookie!!\0\0\0\0",
                b"\x66\x8e\x33\xef\0\x01\x80\x01cookie!!\0\0\0\x06\0\0\0\x16\0\0",
            ),
        ] {
            let mut replies = Replies {
                style,
                ..Replies::default()
            };
            for offset in [2, 8] {
                let request = parse(&bytes_of(CMD_WRITE, offset, 3)).unwrap();
                replies.add(&request, b"abc", &disk, 10).unwrap();
            }
            assert_eq!(replies.bytes(), [done, refused].concat());
        }
        let mut bytes = [0; 10];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"01abc56789");
    }
}
