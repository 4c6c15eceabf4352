//! The handshake: from the greeting to an export that was chosen.
//!
//! ```text
//!   Greeting -> ClientHello -> option* -> EXPORT_NAME | GO | ABORT
//! ```
//!
//! Everything here is bounded: the time as a whole, the number of options, the length of each. An
//! option that is refused leaves what was agreed on before as it was, except that SET_META_CONTEXT
//! always replaces the selection.

use std::time::{Duration, Instant};

use super::Error;
use super::config::{Export, ServerConfig};
use super::receive::{READING, Receiver};
use super::registry::Registry;
use super::request::Terms;
use super::transport::{Transport, write_all};
use crate::wire::{
    BASE_ALLOCATION, BlockSizes, ClientFlags, ClientHello, ContextId, Decoded, ExportNameReply,
    Greeting, HandshakeFlags, HeaderStyle, Info, InfoQuery, InfoType, MetaQuery, OptionCode,
    OptionHeader, OptionReply, OptionRequest, ReplyCode, TransmissionFlags, WireError,
    encode_option_reply,
};

/// The number `base:allocation` gets when it is selected.
pub(super) const ALLOCATION_ID: ContextId = ContextId(1);
/// An option this many times longer than allowed is not even skipped.
const SKIP_FACTOR: u32 = 16;
/// Largest minimum block size the protocol allows.
const MIN_BLOCK_MAX: u32 = 64 << 10;
/// Smallest preferred block size that makes sense to advertise.
const PREFERRED_BLOCK_MIN: u32 = 4096;

/// What the client chose.
#[derive(Debug)]
pub(super) struct Chosen {
    /// Index of the export.
    pub(super) export: usize,
    pub(super) terms: Terms,
}

/// A handshake going on.
pub(super) struct Handshake<'a, S: Transport> {
    pub(super) stream: &'a S,
    pub(super) receiver: &'a mut Receiver,
    pub(super) config: &'a ServerConfig,
    pub(super) exports: &'a [Export],
    pub(super) registry: &'a Registry,
    /// Why this client is turned away, whatever it asks for.
    pub(super) turned_away: Option<&'a str>,
}

/// What has been agreed on so far.
#[derive(Debug)]
struct Agreed {
    no_zeroes: bool,
    style: HeaderStyle,
    /// The export for which `base:allocation` was selected last.
    allocation_of: Option<usize>,
}

/// What an option leads to.
enum Next {
    Option,
    Transmission(usize),
    End,
}

impl<S: Transport> Handshake<'_, S> {
    /// Parks the coroutine while it waits for the client. `None`: the client left in good order.
    ///
    /// # Errors
    /// The client broke the protocol, took too long, or is gone.
    pub(super) fn run(mut self) -> Result<Option<Chosen>, Error> {
        let deadline = Deadline::after(self.config.handshake_timeout);
        let result = self.negotiate(&deadline);
        match result {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::TimedOut => {
                Err(Error::HandshakeTimeout(self.config.handshake_timeout))
            }
            Ok(Some(chosen)) => {
                self.stream
                    .set_timeout(None)
                    .map_err(Error::io("setting time-outs"))?;
                Ok(Some(chosen))
            }
            other => other,
        }
    }

    fn negotiate(&mut self, deadline: &Deadline) -> Result<Option<Chosen>, Error> {
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        self.send(deadline, &Greeting { flags }.encode())?;
        if !self.await_bytes(deadline, ClientHello::LEN)? {
            return Ok(None);
        }
        let Decoded::Item {
            value: hello,
            consumed,
        } = ClientHello::decode(self.receiver.arrived())?
        else {
            return Err(Error::Incomplete {
                what: "the client's flags",
            });
        };
        self.receiver.consume(consumed);
        let mut agreed = Agreed {
            no_zeroes: hello.flags.contains(ClientFlags::NO_ZEROES),
            style: HeaderStyle::Simple,
            allocation_of: None,
        };
        let mut out = Vec::new();
        for _ in 0..self.config.options_max {
            match self.one_option(deadline, &mut agreed, &mut out)? {
                Next::Option => {}
                Next::End => return Ok(None),
                Next::Transmission(export) => return Ok(Some(self.chosen(export, &agreed))),
            }
        }
        Err(Error::TooManyOptions(self.config.options_max))
    }

    /// Reads an option and answers it.
    fn one_option(
        &mut self,
        deadline: &Deadline,
        agreed: &mut Agreed,
        out: &mut Vec<u8>,
    ) -> Result<Next, Error> {
        if !self.await_bytes(deadline, OptionHeader::LEN)? {
            return Ok(Next::End);
        }
        let Decoded::Item {
            value: header,
            consumed,
        } = OptionHeader::decode(self.receiver.arrived())?
        else {
            return Err(Error::Incomplete { what: "an option" });
        };
        self.receiver.consume(consumed);
        out.clear();
        let len_max = self.config.option_bytes_max.min(128 << 10);
        if header.len > len_max {
            if header.len / SKIP_FACTOR > len_max {
                let (len, max) = (u64::from(header.len), u64::from(len_max));
                return Err(WireError::TooLong {
                    what: "an option",
                    len,
                    max,
                }
                .into());
            }
            self.skip(deadline, header.len)?;
            refuse(
                header.code,
                ReplyCode::ERR_TOO_BIG,
                "the option is too long",
                out,
            );
            self.send(deadline, out)?;
            return Ok(Next::Option);
        }
        // At most 128 KiB.
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > 0 && !self.await_bytes(deadline, len)? {
            return Err(Error::Incomplete { what: "an option" });
        }
        let next = self.answer(header.code, len, agreed, out);
        self.receiver.consume(len);
        // EXPORT_NAME that cannot be granted has no answer but the end.
        let next = next?;
        self.send(deadline, out)?;
        Ok(next)
    }

    fn answer(
        &self,
        code: OptionCode,
        len: usize,
        agreed: &mut Agreed,
        out: &mut Vec<u8>,
    ) -> Result<Next, Error> {
        let payload = &self.receiver.arrived()[..len];
        let option = match OptionRequest::parse(code, payload) {
            Ok(option) => option,
            Err(error) if code == OptionCode::EXPORT_NAME => return Err(error.into()),
            Err(error) => {
                if code == OptionCode::SET_META_CONTEXT {
                    agreed.allocation_of = None;
                }
                refuse(code, ReplyCode::ERR_INVALID, &error.to_string(), out);
                return Ok(Next::Option);
            }
        };
        if code != OptionCode::ABORT
            && let Some(next) = self.refuse_all(code, out)
        {
            return next;
        }
        self.grant(code, &option, agreed, out)
    }

    /// Answers any option of a client that gets nothing. `None`: it may get what it asks for.
    fn refuse_all(&self, code: OptionCode, out: &mut Vec<u8>) -> Option<Result<Next, Error>> {
        let is_final = code == OptionCode::EXPORT_NAME;
        if self.registry.is_stopping() {
            if is_final {
                return Some(Err(Error::Stopping));
            }
            refuse(code, ReplyCode::ERR_SHUTDOWN, "the server is stopping", out);
            return Some(Ok(Next::Option));
        }
        let why = self.turned_away?;
        if is_final {
            return Some(Ok(Next::End));
        }
        refuse(code, ReplyCode::ERR_POLICY, why, out);
        Some(Ok(Next::Option))
    }

    /// Answers a well-formed option of a client that is welcome.
    fn grant(
        &self,
        code: OptionCode,
        option: &OptionRequest<'_>,
        agreed: &mut Agreed,
        out: &mut Vec<u8>,
    ) -> Result<Next, Error> {
        let ack = |out: &mut Vec<u8>| encode_option_reply(code, &OptionReply::Ack, out);
        match option {
            OptionRequest::ExportName(name) => return self.export_name(name, agreed, out),
            OptionRequest::Abort(_) => {
                ack(out);
                return Ok(Next::End);
            }
            OptionRequest::List => self.list(out),
            OptionRequest::StartTls => {
                refuse(
                    code,
                    ReplyCode::ERR_UNSUP,
                    "this server does not do TLS",
                    out,
                );
            }
            OptionRequest::Info(query) => {
                self.info(code, query, agreed, out);
            }
            OptionRequest::Go(query) => {
                if let Some(export) = self.info(code, query, agreed, out) {
                    return Ok(Next::Transmission(export));
                }
            }
            OptionRequest::StructuredReply if agreed.style == HeaderStyle::Extended => {
                let message = "extended headers are in force already";
                refuse(code, ReplyCode::ERR_EXT_HEADER_REQD, message, out);
            }
            OptionRequest::StructuredReply => {
                agreed.style = HeaderStyle::Structured;
                ack(out);
            }
            OptionRequest::ExtendedHeaders => {
                agreed.style = HeaderStyle::Extended;
                ack(out);
            }
            OptionRequest::ListMetaContext(query) => self.list_contexts(query, out),
            OptionRequest::SetMetaContext(query) => self.set_contexts(query, agreed, out),
            OptionRequest::Unknown { .. } => {
                refuse(
                    code,
                    ReplyCode::ERR_UNSUP,
                    "this server does not know the option",
                    out,
                );
            }
        }
        Ok(Next::Option)
    }

    /// The export of that name; the first one for no name.
    fn find(&self, name: &str) -> Option<usize> {
        let found = self.exports.iter().position(|export| export.name == name);
        found.or_else(|| (name.is_empty() && !self.exports.is_empty()).then_some(0))
    }

    fn export_name(&self, name: &str, agreed: &Agreed, out: &mut Vec<u8>) -> Result<Next, Error> {
        // The protocol forbids it with extended headers.
        let found = self
            .find(name)
            .filter(|_| agreed.style != HeaderStyle::Extended);
        let Some(index) = found else {
            return Err(Error::ExportRefused(name.to_owned()));
        };
        let export = &self.exports[index];
        let reply = ExportNameReply {
            size: export.node.size(),
            flags: flags_of(export, agreed.style),
        };
        out.extend_from_slice(&reply.encode()[..ExportNameReply::len(agreed.no_zeroes)]);
        Ok(Next::Transmission(index))
    }

    fn list(&self, out: &mut Vec<u8>) {
        for Export {
            name, description, ..
        } in self.exports
        {
            encode_option_reply(
                OptionCode::LIST,
                &OptionReply::Server { name, description },
                out,
            );
        }
        encode_option_reply(OptionCode::LIST, &OptionReply::Ack, out);
    }

    /// Answers INFO and GO; the export, if there is one.
    fn info(
        &self,
        code: OptionCode,
        query: &InfoQuery<'_>,
        agreed: &Agreed,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let Some(index) = self.find(query.name) else {
            refuse(
                code,
                ReplyCode::ERR_UNKNOWN,
                "there is no export of this name",
                out,
            );
            return None;
        };
        let export = &self.exports[index];
        let mut reply = |info| encode_option_reply(code, &OptionReply::Info(info), out);
        let (size, flags) = (export.node.size(), flags_of(export, agreed.style));
        reply(Info::Export { size, flags });
        if query.wanted.contains(InfoType::NAME) {
            reply(Info::Name(&export.name));
        }
        if query.wanted.contains(InfoType::DESCRIPTION) && !export.description.is_empty() {
            reply(Info::Description(&export.description));
        }
        if query.wanted.contains(InfoType::BLOCK_SIZE) {
            reply(Info::BlockSize(block_sizes(
                export,
                self.config.request_bytes_max,
            )));
        }
        encode_option_reply(code, &OptionReply::Ack, out);
        Some(index)
    }

    fn list_contexts(&self, query: &MetaQuery<'_>, out: &mut Vec<u8>) {
        let code = OptionCode::LIST_META_CONTEXT;
        if self.find(query.export).is_none() {
            return refuse(
                code,
                ReplyCode::ERR_UNKNOWN,
                "there is no export of this name",
                out,
            );
        }
        let wild = |query: &str| matches!(query, "" | "base:") || query == BASE_ALLOCATION;
        if query.queries.is_empty() || query.queries.iter().any(wild) {
            let context = OptionReply::MetaContext {
                id: ContextId(0),
                name: BASE_ALLOCATION,
            };
            encode_option_reply(code, &context, out);
        }
        encode_option_reply(code, &OptionReply::Ack, out);
    }

    fn set_contexts(&self, query: &MetaQuery<'_>, agreed: &mut Agreed, out: &mut Vec<u8>) {
        let code = OptionCode::SET_META_CONTEXT;
        agreed.allocation_of = None;
        if !agreed.style.has_chunks() {
            return refuse(
                code,
                ReplyCode::ERR_INVALID,
                "structured replies come first",
                out,
            );
        }
        let Some(export) = self.find(query.export) else {
            return refuse(
                code,
                ReplyCode::ERR_UNKNOWN,
                "there is no export of this name",
                out,
            );
        };
        if query.queries.iter().any(|query| query == BASE_ALLOCATION) {
            agreed.allocation_of = Some(export);
            let context = OptionReply::MetaContext {
                id: ALLOCATION_ID,
                name: BASE_ALLOCATION,
            };
            encode_option_reply(code, &context, out);
        }
        encode_option_reply(code, &OptionReply::Ack, out);
    }

    fn chosen(&self, index: usize, agreed: &Agreed) -> Chosen {
        let export = &self.exports[index];
        let terms = Terms {
            style: agreed.style,
            allocation: agreed.allocation_of == Some(index),
            read_only: export.refuses_writes(),
            size: export.node.size(),
            request_bytes_max: self.config.request_bytes_max,
        };
        Chosen {
            export: index,
            terms,
        }
    }

    /// Parks until `len` bytes have arrived; false if the client closed before the first of them.
    fn await_bytes(&mut self, deadline: &Deadline, len: usize) -> Result<bool, Error> {
        while self.receiver.arrived().len() < len {
            deadline.impose(self.stream)?;
            if self
                .receiver
                .fill(self.stream)
                .map_err(Error::io(READING))?
                == 0
            {
                if self.receiver.arrived().is_empty() {
                    return Ok(false);
                }
                return Err(Error::Incomplete {
                    what: "the handshake",
                });
            }
        }
        Ok(true)
    }

    fn skip(&mut self, deadline: &Deadline, len: u32) -> Result<(), Error> {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while left > 0 {
            if !self.await_bytes(deadline, 1)? {
                return Err(Error::Incomplete { what: "an option" });
            }
            let here = left.min(self.receiver.arrived().len());
            self.receiver.consume(here);
            left -= here;
        }
        Ok(())
    }

    fn send(&self, deadline: &Deadline, bytes: &[u8]) -> Result<(), Error> {
        deadline.impose(self.stream)?;
        write_all(self.stream, bytes).map_err(Error::io("writing to the client"))
    }
}

fn refuse(option: OptionCode, code: ReplyCode, message: &str, out: &mut Vec<u8>) {
    encode_option_reply(option, &OptionReply::Error { code, message }, out);
}

/// What an export offers a client that speaks in `style`.
fn flags_of(export: &Export, style: HeaderStyle) -> TransmissionFlags {
    let mut flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_CACHE
        // All connections share the node, whose flush covers what any of them wrote.
        | TransmissionFlags::CAN_MULTI_CONN;
    flags.set(TransmissionFlags::SEND_DF, style.has_chunks());
    flags |= if export.refuses_writes() {
        TransmissionFlags::READ_ONLY
    } else {
        TransmissionFlags::SEND_WRITE_ZEROES | TransmissionFlags::SEND_FAST_ZERO
    };
    flags.set(
        TransmissionFlags::SEND_TRIM,
        export.trim && !export.refuses_writes(),
    );
    flags
}

/// The sizes an export likes. Smaller and unaligned requests are served all the same.
///
/// An odd-sized disk is served to its last byte, so its minimum is 1: with a larger one clients
/// could not reach the end.
fn block_sizes(export: &Export, max: u32) -> BlockSizes {
    let limits = export.node.limits();
    let min = limits.request_alignment.clamp(1, MIN_BLOCK_MAX);
    let min = if export.node.size().is_multiple_of(u64::from(min)) {
        min
    } else {
        1
    };
    let preferred = limits.preferred.max(PREFERRED_BLOCK_MIN).max(min).min(max);
    BlockSizes {
        min,
        preferred,
        max,
    }
}

/// When the handshake must be over.
struct Deadline(Instant);

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// Lets the stream's next read or write wait no longer than what is left.
    fn impose(&self, stream: &impl Transport) -> Result<(), Error> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::io("waiting for the client")(
                std::io::ErrorKind::TimedOut.into(),
            ));
        }
        stream
            .set_timeout(Some(left))
            .map_err(Error::io("setting time-outs"))
    }
}
