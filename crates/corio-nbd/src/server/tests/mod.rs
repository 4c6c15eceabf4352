//! A server on a loop of its own, and a client that is a plain blocking socket with the codec's
//! client half.

mod commands;
mod disk;
mod fair;
mod limits;
mod lone;
mod options;
mod pacing;
mod silence;
mod stopping;
mod tls;
pub(super) mod tls_peer;
mod turned_away;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corio::IoThread;
use corio_block::{Length, Node, memory};

use super::{Export, Server, ServerConfig};
use crate::wire::{
    Chunk, ChunkHeader, ClientFlags, ClientHello, Command, CommandFlags, ContextId, Cookie,
    Decoded, Errno, Greeting, HeaderStyle, Info, OptionCode, OptionReply, OptionReplyHeader,
    ReplyCode, ReplyFlags, ReplyHeader, Request, encode_info_option, encode_meta_option,
    encode_option,
};
use disk::TestDisk;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, and a loop that its connections run on.
struct House {
    server: Server,
    io: IoThread,
}

impl House {
    fn new(config: ServerConfig, exports: Vec<Export>) -> Self {
        let io = IoThread::builder().name("nbd-test").spawn().unwrap();
        Self {
            server: Server::new(config, exports),
            io,
        }
    }

    /// One export without a name on the disk, and default limits.
    fn of(disk: &Arc<TestDisk>) -> Self {
        Self::new(ServerConfig::default(), vec![Export::new("", disk.node())])
    }

    /// The same, which may make writes of a lone client on the spot.
    fn with(disk: &Arc<TestDisk>, lone_writes: bool) -> Self {
        let config = ServerConfig {
            lone_writes,
            ..ServerConfig::default()
        };
        Self::new(config, vec![Export::new("", disk.node())])
    }

    /// A client that has not said anything yet.
    fn connect(&self) -> Client {
        self.connect_as("client")
    }

    fn connect_as(&self, peer: &str) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = self.server.clone();
        let peer = peer.to_owned();
        let serve = move || {
            let stream = corio::net::UnixStream::try_from_std(theirs).unwrap();
            // How a connection ends is seen from the other side.
            let _ = server.serve_unix(stream, peer);
        };
        drop(self.io.context().spawn(serve));
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        Client::of(ours)
    }

    /// A client in the transmission phase of the unnamed export.
    fn client(&self, style: HeaderStyle) -> Client {
        let mut client = self.connect();
        client.start(style, "");
        client
    }

    /// Parks the test until the server has this many connections.
    fn await_connections(&self, count: usize) {
        await_that("connections", || self.server.connections() == count);
    }

    /// Nothing is left of any connection.
    fn assert_empty(&self) {
        self.await_connections(0);
        assert_eq!(self.server.in_flight(), (0, 0));
    }
}

/// Waits for a state that is sure to come. There is no event for it outside the server.
fn await_that(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn memory_disk(len: u64) -> Arc<Node> {
    memory::Options::new(Length(len)).open().unwrap()
}

/// What a server said to an option, up to its final reply.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    exports: Vec<(String, String)>,
    contexts: Vec<(ContextId, String)>,
    infos: Vec<String>,
    /// The error, if that was the final reply.
    error: Option<ReplyCode>,
}

/// One whole reply to a request.
#[derive(Debug, PartialEq, Eq)]
struct Answered {
    cookie: Cookie,
    error: Errno,
    /// Chunks of data and holes, as offset, data and whether it was a hole.
    content: Vec<(u64, Vec<u8>, bool)>,
    /// Extents as length and state.
    extents: Vec<(u64, u64)>,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    style: HeaderStyle,
    last_cookie: u64,
}

impl Client {
    /// One that has not said anything yet.
    fn of(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            style: HeaderStyle::Simple,
            last_cookie: 0,
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Decodes one thing, reading as much as it asks for.
    fn take<T>(&mut self, decode: impl Fn(&[u8]) -> Decoded<T>) -> T {
        loop {
            match decode(&self.input) {
                Decoded::Item { value, consumed } => {
                    self.input.drain(..consumed);
                    return value;
                }
                Decoded::NeedMore(_) => self.read_more(),
            }
        }
    }

    fn read_more(&mut self) {
        let mut buf = vec![0; 1 << 16];
        let n = self
            .stream
            .read(&mut buf)
            .expect("the server sends something");
        assert!(n > 0, "the server closed the connection");
        self.input.extend_from_slice(&buf[..n]);
    }

    fn take_bytes(&mut self, len: usize) -> Vec<u8> {
        while self.input.len() < len {
            self.read_more();
        }
        self.input.drain(..len).collect()
    }

    /// The server says nothing more and closes.
    fn assert_closed(&mut self) {
        assert_eq!(self.input, [], "before the end");
        let mut rest = Vec::new();
        // A reset is a close as well.
        if self.stream.read_to_end(&mut rest).is_ok() {
            assert_eq!(rest, []);
        }
    }

    /// Greeting and flags.
    fn hello(&mut self) -> &mut Self {
        self.take(|input| Greeting::decode(input).unwrap());
        let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
        self.send(&ClientHello { flags }.encode());
        self
    }

    fn option(&mut self, code: OptionCode, payload: &[u8]) -> Answer {
        let mut bytes = Vec::new();
        encode_option(code, payload, &mut bytes);
        self.send(&bytes);
        self.answer(code)
    }

    fn info(&mut self, code: OptionCode, name: &str, wanted: &[crate::wire::InfoType]) -> Answer {
        let mut bytes = Vec::new();
        encode_info_option(code, name, wanted, &mut bytes);
        self.send(&bytes);
        self.answer(code)
    }

    fn contexts(&mut self, code: OptionCode, export: &str, queries: &[&str]) -> Answer {
        let mut bytes = Vec::new();
        encode_meta_option(code, export, queries, &mut bytes);
        self.send(&bytes);
        self.answer(code)
    }

    fn answer(&mut self, code: OptionCode) -> Answer {
        let mut answer = Answer::default();
        loop {
            let header = self.take(|input| OptionReplyHeader::decode(input).unwrap());
            assert_eq!(header.option, code);
            let payload = self.take_bytes(usize::try_from(header.len).unwrap());
            match OptionReply::parse(header.code, &payload).unwrap() {
                OptionReply::Ack => return answer,
                OptionReply::Server { name, description } => {
                    answer
                        .exports
                        .push((name.to_owned(), description.to_owned()));
                }
                OptionReply::Info(Info::Export { size, flags }) => {
                    answer.infos.push(format!("export {size} {flags:?}"));
                }
                OptionReply::Info(info) => answer.infos.push(format!("{info:?}")),
                OptionReply::MetaContext { id, name } => {
                    answer.contexts.push((id, name.to_owned()));
                }
                OptionReply::Error { code, message } => {
                    assert!(!message.is_empty());
                    answer.error = Some(code);
                    return answer;
                }
                OptionReply::Unknown { code, .. } => panic!("{code:?}"),
            }
        }
    }

    /// Handshake up to the transmission phase, with block status where there are chunks.
    fn start(&mut self, style: HeaderStyle, name: &str) -> &mut Self {
        self.hello();
        match style {
            HeaderStyle::Simple => {}
            HeaderStyle::Structured => {
                assert_eq!(
                    self.option(OptionCode::STRUCTURED_REPLY, &[]),
                    Answer::default()
                );
            }
            HeaderStyle::Extended => {
                assert_eq!(
                    self.option(OptionCode::EXTENDED_HEADERS, &[]),
                    Answer::default()
                );
            }
        }
        if style.has_chunks() {
            let answer = self.contexts(OptionCode::SET_META_CONTEXT, name, &["base:allocation"]);
            assert_eq!(answer.contexts.len(), 1);
        }
        assert_eq!(self.info(OptionCode::GO, name, &[]).error, None);
        self.style = style;
        self
    }

    /// Sends a request, and its payload if it has one.
    fn request(
        &mut self,
        command: Command,
        flags: CommandFlags,
        at: u64,
        len: u64,
        payload: &[u8],
    ) -> Cookie {
        let (bytes, cookie) = self.request_bytes(command, flags, at, len);
        self.send(&bytes);
        self.send(payload);
        cookie
    }

    fn request_bytes(
        &mut self,
        command: Command,
        mut flags: CommandFlags,
        offset: u64,
        length: u64,
    ) -> (Vec<u8>, Cookie) {
        if command == Command::WRITE && self.style == HeaderStyle::Extended {
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        self.last_cookie += 1;
        let cookie = Cookie(self.last_cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = Vec::new();
        Request {
            flags,
            command,
            cookie,
            offset,
            length,
        }
        .encode(self.style, &mut bytes)
        .unwrap();
        (bytes, cookie)
    }

    fn read_request(&mut self, at: u64, len: usize) -> Cookie {
        let len = u64::try_from(len).unwrap();
        self.request(Command::READ, CommandFlags::empty(), at, len, &[])
    }

    fn write_request(&mut self, at: u64, data: &[u8]) -> Cookie {
        let len = u64::try_from(data.len()).unwrap();
        self.request(Command::WRITE, CommandFlags::empty(), at, len, data)
    }

    /// Reads one whole reply. In simple style `read_len` says how much data a READ gets.
    fn reply(&mut self, read_len: usize) -> Answered {
        self.next_reply(|_| read_len)
    }

    /// The same where how much data there is depends on whose reply it is.
    fn next_reply(&mut self, read_len: impl Fn(Cookie) -> usize) -> Answered {
        let mut answered = Answered {
            cookie: Cookie(0),
            error: Errno::OK,
            content: Vec::new(),
            extents: Vec::new(),
        };
        loop {
            match self.take(|input| ReplyHeader::decode(input, 64 << 20).unwrap()) {
                ReplyHeader::Simple(reply) => {
                    assert_eq!(self.style, HeaderStyle::Simple);
                    (answered.cookie, answered.error) = (reply.cookie, reply.error);
                    let read_len = read_len(reply.cookie);
                    if reply.error.is_ok() && read_len > 0 {
                        let data = self.take_bytes(read_len);
                        answered.content.push((0, data, false));
                    }
                    return answered;
                }
                ReplyHeader::Chunk(header) => {
                    self.chunk(&header, &mut answered);
                    if header.flags.contains(ReplyFlags::DONE) {
                        return answered;
                    }
                }
            }
        }
    }

    fn chunk(&mut self, header: &ChunkHeader, answered: &mut Answered) {
        assert_eq!(header.offset.is_some(), self.style == HeaderStyle::Extended);
        assert!(answered.cookie == Cookie(0) || answered.cookie == header.cookie);
        answered.cookie = header.cookie;
        let payload = self.take_bytes(usize::try_from(header.len).unwrap());
        match Chunk::parse(header, &payload).unwrap() {
            Chunk::None => {}
            Chunk::OffsetData { offset, data } => {
                answered.content.push((offset, data.to_vec(), false));
            }
            Chunk::OffsetHole { offset, len } => {
                let zeroes = vec![0; usize::try_from(len).unwrap()];
                answered.content.push((offset, zeroes, true));
            }
            Chunk::BlockStatus { context, extents } => {
                assert_eq!(context, super::handshake::ALLOCATION_ID);
                answered
                    .extents
                    .extend(extents.iter().map(|it| (it.len, it.status)));
            }
            Chunk::Error { error, message } => {
                assert!(!message.is_empty());
                answered.error = error;
            }
            other => panic!("{other:?}"),
        }
    }

    /// Sends a request without data and waits for its reply.
    fn call(&mut self, command: Command, flags: CommandFlags, at: u64, len: u64) -> Answered {
        let cookie = self.request(command, flags, at, len, &[]);
        let answered = self.reply(0);
        assert_eq!(answered.cookie, cookie);
        answered
    }

    fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.read_with(CommandFlags::empty(), at, len)
            .map(|(data, _)| data)
    }

    /// The data, and how many chunks of data and of holes it came in.
    fn read_with(
        &mut self,
        flags: CommandFlags,
        at: u64,
        len: usize,
    ) -> Result<(Vec<u8>, (usize, usize)), Errno> {
        let cookie = self.request(Command::READ, flags, at, u64::try_from(len).unwrap(), &[]);
        let answered = self.reply(len);
        assert_eq!(answered.cookie, cookie);
        if !answered.error.is_ok() {
            return Err(answered.error);
        }
        Ok(assemble(&answered, self.style, at, len))
    }

    fn write(&mut self, at: u64, data: &[u8]) -> Errno {
        let cookie = self.write_request(at, data);
        let answered = self.reply(0);
        assert_eq!(answered.cookie, cookie);
        answered.error
    }

    /// Leaves in good order.
    fn disconnect(mut self) {
        self.request(Command::DISC, CommandFlags::empty(), 0, 0, &[]);
        self.assert_closed();
    }
}

/// Puts the chunks of a READ together; every byte must be covered exactly once.
fn assemble(
    answered: &Answered,
    style: HeaderStyle,
    at: u64,
    len: usize,
) -> (Vec<u8>, (usize, usize)) {
    let mut data = vec![0; len];
    let mut covered = vec![false; len];
    for (offset, bytes, _) in &answered.content {
        let start = match style {
            HeaderStyle::Simple => 0,
            _ => usize::try_from(offset - at).unwrap(),
        };
        let range = start..start + bytes.len();
        assert!(
            covered[range.clone()].iter().all(|covered| !covered),
            "chunks overlap"
        );
        covered[range.clone()].fill(true);
        data[range].copy_from_slice(bytes);
    }
    assert!(covered.iter().all(|&covered| covered), "chunks leave a gap");
    let holes = answered.content.iter().filter(|(_, _, hole)| *hole).count();
    (data, (answered.content.len() - holes, holes))
}

/// Bytes that differ from place to place.
fn pattern(at: u64, len: usize) -> Vec<u8> {
    (at..)
        .take(len)
        .map(|at| u8::try_from((at ^ at >> 8 ^ at >> 16) & 0xff).unwrap())
        .collect()
}

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];
