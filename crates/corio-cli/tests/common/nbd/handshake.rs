//! From the greeting to the first request.

use std::io::{self, Write};
use std::sync::Arc;

use rustls::ClientConfig;

use super::{
    Client, FIXED_NEWSTYLE, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC, Stream, invalid, len32,
    opt, rep, take, take_bytes, take_u16, take_u32, take_u64,
};
use crate::common::serve::Addr;
use crate::common::tls::{self, PKI};

/// The kinds of headers a client may speak after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Headers {
    Simple,
    Structured,
    Extended,
}

/// What the server tells about an export.
#[derive(Clone, Debug, Default)]
pub(crate) struct Export {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    /// Smallest, preferred and largest request.
    pub(crate) block_sizes: Option<(u32, u32, u32)>,
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
}

impl Export {
    pub(crate) fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Reads the replies to INFO or GO.
    fn from_replies(replies: &[(u32, Vec<u8>)]) -> io::Result<Export> {
        let mut export = Export::default();
        let mut told_size = false;
        for (_, data) in replies.iter().filter(|(kind, _)| *kind == rep::INFO) {
            let mut data = &data[..];
            match take_u16(&mut data)? {
                0 => {
                    export.size = take_u64(&mut data)?;
                    export.flags = take_u16(&mut data)?;
                    told_size = true;
                }
                1 => export.name = Some(String::from_utf8_lossy(data).into_owned()),
                2 => export.description = Some(String::from_utf8_lossy(data).into_owned()),
                3 => {
                    let smallest = take_u32(&mut data)?;
                    let preferred = take_u32(&mut data)?;
                    export.block_sizes = Some((smallest, preferred, take_u32(&mut data)?));
                }
                other => return Err(invalid(format!("information {other} was not asked for"))),
            }
        }
        if told_size {
            Ok(export)
        } else {
            Err(invalid("no NBD_INFO_EXPORT"))
        }
    }
}

/// A connection that still negotiates.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) stream: Stream,
    pub(crate) flags: u16,
    pub(super) headers: Headers,
    pub(super) context: Option<u32>,
}

impl Handshake {
    /// Connects, reads the greeting and answers it as a current client does.
    pub(crate) fn start(addr: &Addr) -> io::Result<Handshake> {
        Handshake::start_with(addr, FIXED_NEWSTYLE | NO_ZEROES)
    }

    /// Connects, reads the greeting and answers with those client flags; then, at a server with
    /// TLS, changes over to that.
    pub(crate) fn start_with(addr: &Addr, client_flags: u16) -> io::Result<Handshake> {
        Handshake::start_on(Stream::connect(addr)?, addr, client_flags)
    }

    /// The same on a stream that is connected to that address.
    pub(crate) fn start_on(
        stream: Stream,
        addr: &Addr,
        client_flags: u16,
    ) -> io::Result<Handshake> {
        let mut handshake = Handshake::greeted(stream)?;
        handshake
            .stream
            .write_all(&u32::from(client_flags).to_be_bytes())?;
        handshake.flags &= client_flags;
        if let Addr::Tls(_) = addr {
            handshake = handshake.secured(&PKI.client_config(true))?;
        }
        Ok(handshake)
    }

    /// Sends STARTTLS and goes on in TLS.
    pub(crate) fn secured(mut self, config: &Arc<ClientConfig>) -> io::Result<Handshake> {
        let replies = self.option(opt::STARTTLS, &[])?;
        if replies != [(rep::ACK, Vec::new())] {
            let texts = replies
                .iter()
                .map(|(_, text)| String::from_utf8_lossy(text));
            let texts: Vec<_> = texts.collect();
            return Err(invalid(format!(
                "STARTTLS was answered with {replies:x?}: {texts:?}"
            )));
        }
        let stream = tls::secured(self.stream, config)?;
        Ok(Handshake { stream, ..self })
    }

    /// Reads the greeting and answers nothing yet.
    pub(crate) fn greeted(mut stream: Stream) -> io::Result<Handshake> {
        if take(&mut stream)? != *b"NBDMAGIC" {
            return Err(invalid("greeting"));
        }
        if take_u64(&mut stream)? != OPTION_MAGIC {
            return Err(invalid("not the newstyle handshake"));
        }
        let flags = take_u16(&mut stream)?;
        if flags & FIXED_NEWSTYLE == 0 {
            return Err(invalid("not the fixed newstyle handshake"));
        }
        Ok(Handshake {
            stream,
            flags,
            headers: Headers::Simple,
            context: None,
        })
    }

    /// Sends an option and does not wait for the answer.
    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend(len32(data.len()));
        message.extend(data);
        self.stream.write_all(&message)
    }

    /// One reply to an option: its kind and its data.
    pub(crate) fn reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        let stream = &mut self.stream;
        if take_u64(stream)? != OPTION_REPLY_MAGIC {
            return Err(invalid("magic of an option's reply"));
        }
        let about = take_u32(stream)?;
        if about != option {
            return Err(invalid(format!("reply to option {about}, not {option}")));
        }
        let kind = take_u32(stream)?;
        let len = take_u32(stream)?;
        Ok((kind, take_bytes(stream, u64::from(len))?))
    }

    /// Sends an option and reads all replies to it: the last is an acknowledgement or an error.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<(u32, Vec<u8>)>> {
        self.send_option(option, data)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.reply(option)?;
            let last = reply.0 == rep::ACK || reply.0 & rep::ERROR != 0;
            replies.push(reply);
            if last {
                return Ok(replies);
            }
        }
    }

    /// An option whose only interesting answer is the last: true if it was acknowledged.
    fn agreed(&mut self, option: u32, data: &[u8]) -> io::Result<bool> {
        let replies = self.option(option, data)?;
        Ok(replies.last().is_some_and(|(kind, _)| *kind == rep::ACK))
    }

    /// Asks for the kind of headers.
    pub(crate) fn ask_for(&mut self, headers: Headers) -> io::Result<()> {
        let agreed = match headers {
            Headers::Simple => true,
            Headers::Structured => self.agreed(opt::STRUCTURED_REPLY, &[])?,
            Headers::Extended => self.agreed(opt::EXTENDED_HEADERS, &[])?,
        };
        self.headers = headers;
        if agreed {
            Ok(())
        } else {
            Err(invalid(format!("no {headers:?} headers")))
        }
    }

    /// The names of all exports.
    pub(crate) fn list(&mut self) -> io::Result<Vec<String>> {
        let replies = self.option(opt::LIST, &[])?;
        let mut names = Vec::new();
        for (_, data) in replies.iter().filter(|(kind, _)| *kind == rep::SERVER) {
            let mut data = &data[..];
            let len = take_u32(&mut data)?;
            let name = take_bytes(&mut data, u64::from(len))?;
            names.push(String::from_utf8_lossy(&name).into_owned());
        }
        Ok(names)
    }

    /// The data of INFO and GO: a name and the kinds of information asked for.
    pub(crate) fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
        let mut data = len32(name.len()).to_vec();
        data.extend(name.as_bytes());
        data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
        wanted
            .iter()
            .for_each(|kind| data.extend(kind.to_be_bytes()));
        data
    }

    /// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
    pub(crate) fn context_data(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = len32(name.len()).to_vec();
        data.extend(name.as_bytes());
        data.extend(len32(queries.len()));
        for query in queries {
            data.extend(len32(query.len()));
            data.extend(query.as_bytes());
        }
        data
    }

    /// Asks about an export. The inner error is the one the server answered with.
    pub(crate) fn info(&mut self, name: &str) -> io::Result<Result<Export, u32>> {
        let replies = self.option(opt::INFO, &Handshake::info_data(name, &[1, 2, 3]))?;
        match replies.last() {
            Some((kind, _)) if kind & rep::ERROR != 0 => Ok(Err(*kind)),
            _ => Export::from_replies(&replies).map(Ok),
        }
    }

    /// Selects base:allocation, whose number is then known to the client made by GO.
    pub(crate) fn select_allocation(&mut self, name: &str) -> io::Result<()> {
        let data = Handshake::context_data(name, &["base:allocation"]);
        let replies = self.option(opt::SET_META_CONTEXT, &data)?;
        let found = replies.iter().find(|(kind, _)| *kind == rep::META_CONTEXT);
        let (_, data) = found.ok_or_else(|| invalid("base:allocation was not selected"))?;
        let mut data = &data[..];
        self.context = Some(take_u32(&mut data)?);
        if data == b"base:allocation" {
            Ok(())
        } else {
            Err(invalid("another context"))
        }
    }

    /// Begins the transmission with GO.
    pub(crate) fn go(mut self, name: &str) -> io::Result<Client> {
        let replies = self.option(opt::GO, &Handshake::info_data(name, &[3]))?;
        match replies.last() {
            Some((rep::ACK, _)) => {}
            Some((kind, text)) => {
                let text = String::from_utf8_lossy(text);
                let what = format!("GO was answered with {kind:x}: {text}");
                return Err(io::Error::other(what));
            }
            other => return Err(io::Error::other(format!("GO was answered with {other:x?}"))),
        }
        let export = Export::from_replies(&replies)?;
        Client::new(self, export)
    }

    /// Begins the transmission with EXPORT_NAME, as old clients do.
    pub(crate) fn export_name(mut self, name: &str) -> io::Result<Client> {
        self.send_option(opt::EXPORT_NAME, name.as_bytes())?;
        let size = take_u64(&mut self.stream)?;
        let flags = take_u16(&mut self.stream)?;
        if self.flags & NO_ZEROES == 0 && take::<124>(&mut self.stream)?.iter().any(|&b| b != 0) {
            return Err(invalid("the reserved bytes after EXPORT_NAME are not zero"));
        }
        Client::new(
            self,
            Export {
                size,
                flags,
                ..Export::default()
            },
        )
    }
}
