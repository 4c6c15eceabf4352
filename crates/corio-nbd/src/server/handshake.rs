//! The handshake: from the greeting to an export that was chosen.
//!
//! ```text
//!   Greeting -> ClientHello -> option* -> EXPORT_NAME | GO | ABORT
//!                                |                        ^
//!                            STARTTLS ---> TLS ---> option*
//! ```
//!
//! Everything here is bounded: the time as a whole, the number of options, the length of each. An
//! option that is refused leaves what was agreed on before as it was, except that SET_META_CONTEXT
//! always replaces the selection.
//!
//! STARTTLS: what was said before it, or came with it, may be another's word. So nothing is kept of
//! it but that the zeroes after EXPORT_NAME can be left out, which the protocol gives no second
//! chance to say; and a client that has sent more by the time its STARTTLS is read ends there, as
//! one that waits for the answer cannot have.

use super::Error;
use super::config::{Export, ServerConfig};
use super::deadline::Deadline;
use super::receive::{READING, Receiver};
use super::registry::Registry;
use super::request::Terms;
use super::tls::TlsPolicy;
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

/// How the option phase ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The client left in good order.
    Left,
    /// The client chose.
    Chosen(Chosen),
    /// The client waits for TLS, in which the handshake goes on.
    StartTls(Progress),
}

/// What TLS means to the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// There is none to be had.
    Plain,
    /// It can be had, or must.
    Offered(TlsPolicy),
    /// It is in force.
    Secured,
}

/// What a handshake brings over into TLS.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) deadline: Deadline,
    options_left: u32,
    no_zeroes: bool,
}

/// A handshake going on.
pub(super) struct Handshake<'a, S: Transport> {
    pub(super) stream: &'a S,
    pub(super) receiver: &'a mut Receiver,
    pub(super) config: &'a ServerConfig,
    pub(super) exports: &'a [Export],
    pub(super) registry: &'a Registry,
    pub(super) security: Security,
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
    StartTls,
    End,
}

impl<S: Transport> Handshake<'_, S> {
    /// From the greeting on. Parks the coroutine while it waits for the client.
    ///
    /// # Errors
    /// The client broke the protocol, took too long, or is gone.
    pub(super) fn run(mut self) -> Result<Outcome, Error> {
        let deadline = Deadline::after(self.config.handshake_timeout);
        let result = self.greet(&deadline);
        let result = match result {
            Ok(Some(progress)) => self.haggle(progress),
            Ok(None) => Ok(Outcome::Left),
            Err(error) => Err(error),
        };
        self.end(deadline, result)
    }

    /// From behind TLS on.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn resume(mut self, progress: Progress) -> Result<Outcome, Error> {
        let result = self.haggle(progress);
        self.end(progress.deadline, result)
    }

    fn end(&self, deadline: Deadline, result: Result<Outcome, Error>) -> Result<Outcome, Error> {
        let outcome = result.map_err(|error| error.in_handshake(&deadline))?;
        if let Outcome::Chosen(_) = outcome {
            self.stream
                .set_timeout(None)
                .map_err(Error::io("setting time-outs"))?;
        }
        Ok(outcome)
    }

    /// `None`: the client left without a word.
    fn greet(&mut self, deadline: &Deadline) -> Result<Option<Progress>, Error> {
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
        if !hello.flags.contains(ClientFlags::FIXED_NEWSTYLE) {
            // The protocol has no TLS for such a client.
            if self.security == Security::Offered(TlsPolicy::Required) {
                return Err(Error::TlsRequired);
            }
            self.security = Security::Plain;
        }
        Ok(Some(Progress {
            deadline: *deadline,
            options_left: self.config.options_max,
            no_zeroes: hello.flags.contains(ClientFlags::NO_ZEROES),
        }))
    }

    fn haggle(&mut self, progress: Progress) -> Result<Outcome, Error> {
        let mut agreed = Agreed {
            no_zeroes: progress.no_zeroes,
            style: HeaderStyle::Simple,
            allocation_of: None,
        };
        let mut out = Vec::new();
        for options in 1..=progress.options_left {
            match self.one_option(&progress.deadline, &mut agreed, &mut out)? {
                Next::Option => {}
                Next::End => return Ok(Outcome::Left),
                Next::Transmission(export) => {
                    return Ok(Outcome::Chosen(self.chosen(export, &agreed)));
                }
                Next::StartTls => {
                    return Ok(Outcome::StartTls(Progress {
                        options_left: progress.options_left - options,
                        ..progress
                    }));
                }
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
            if !self.refuse_without_tls(header.code, out)? {
                let message = "the option is too long";
                refuse(header.code, ReplyCode::ERR_TOO_BIG, message, out);
            }
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
        if let Next::StartTls = next {
            self.refuse_early_bytes()?;
        }
        self.send(deadline, out)?;
        Ok(next)
    }

    /// Nothing may have come behind STARTTLS: a client waits for the answer before it begins with
    /// TLS, so that what is there already is not the client's, or not to be trusted.
    fn refuse_early_bytes(&self) -> Result<(), Error> {
        match self.receiver.arrived().len() {
            0 => Ok(()),
            len => Err(Error::PlaintextBehindStartTls(len)),
        }
    }

    fn answer(
        &self,
        code: OptionCode,
        len: usize,
        agreed: &mut Agreed,
        out: &mut Vec<u8>,
    ) -> Result<Next, Error> {
        if self.refuse_without_tls(code, out)? {
            return Ok(Next::Option);
        }
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

    /// Answers an option that has to wait for TLS, whatever is in it. False: it need not.
    ///
    /// # Errors
    /// EXPORT_NAME, which has no answer that says no.
    fn refuse_without_tls(&self, code: OptionCode, out: &mut Vec<u8>) -> Result<bool, Error> {
        let waits = self.security == Security::Offered(TlsPolicy::Required)
            && self.turned_away.is_none()
            && !matches!(code, OptionCode::STARTTLS | OptionCode::ABORT);
        if !waits {
            return Ok(false);
        }
        if code == OptionCode::EXPORT_NAME {
            return Err(Error::TlsRequired);
        }
        let message = "this server speaks TLS only: STARTTLS comes first";
        refuse(code, ReplyCode::ERR_TLS_REQD, message, out);
        Ok(true)
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
            OptionRequest::StartTls => match self.security {
                Security::Offered(_) => {
                    ack(out);
                    return Ok(Next::StartTls);
                }
                Security::Secured => {
                    let message = "TLS is in force already";
                    refuse(code, ReplyCode::ERR_INVALID, message, out);
                }
                Security::Plain => {
                    let message = "this server was set up without TLS";
                    refuse(code, ReplyCode::ERR_POLICY, message, out);
                }
            },
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
