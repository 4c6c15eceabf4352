//! The handshake alone, over bytes in memory and on a plain thread: what the fuzz target
//! `nbd_handshake` feeds. Behind the feature `fuzzing`, and no part of the interface.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::time::Duration;

use super::buffers::BufferPool;
use super::config::{Export, ServerConfig};
use super::handshake::{Handshake, Outcome, Security};
use super::receive::{RECEIVE_BYTES, Receiver};
use super::registry::Registry;
use super::tls::TlsPolicy;
use super::transport::Transport;

/// Whom the handshake is with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// One of a server without TLS.
    Plain,
    /// One that TLS is offered to.
    Offered(TlsPolicy),
    /// One that is turned away.
    TurnedAway,
}

/// How the handshake ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client left.
    Left,
    /// The client got the export of that index.
    Export(usize),
    /// It was given up, for this reason.
    GivenUp(String),
}

/// What came of it.
#[derive(Debug)]
pub struct Session {
    /// What was sent to the client.
    pub sent: Vec<u8>,
    /// Where in it TLS begins, if it does. What is behind would be encrypted.
    pub secured_from: Option<usize>,
    /// How it ended.
    pub ending: Ending,
}

/// Runs a handshake with a client that sends `flights`, each once the one before has been read as a
/// whole, and then no more. What comes after STARTTLS is taken to have come through TLS.
pub fn handshake<'a>(
    client: Client,
    exports: &[Export],
    flights: impl Iterator<Item = &'a [u8]>,
) -> Session {
    let stream = Memory {
        flights: flights.map(<[u8]>::to_vec).collect(),
        at: Cell::new((0, 0)),
        sent: RefCell::default(),
    };
    let buffer = BufferPool::new(0).get(RECEIVE_BYTES);
    let mut receiver = Receiver::new(buffer.expect("memory for a buffer"));
    let (config, registry) = (ServerConfig::default(), Registry::default());
    // A macro, as one after the other has the receiver.
    macro_rules! handshake {
        ($security:expr) => {
            Handshake {
                stream: &stream,
                receiver: &mut receiver,
                config: &config,
                exports,
                registry: &registry,
                security: $security,
                turned_away: (client == Client::TurnedAway).then_some("there are too many"),
            }
        };
    }
    let security = match client {
        Client::Offered(policy) => Security::Offered(policy),
        Client::Plain | Client::TurnedAway => Security::Plain,
    };
    let mut secured_from = None;
    let mut result = handshake!(security).run();
    if let Ok(Outcome::StartTls(progress)) = result {
        secured_from = Some(stream.sent.borrow().len());
        result = handshake!(Security::Secured).resume(progress);
    }
    let ending = match result {
        Ok(Outcome::Left) => Ending::Left,
        Ok(Outcome::Chosen(chosen)) => Ending::Export(chosen.export),
        Ok(Outcome::StartTls(_)) => Ending::GivenUp("TLS in TLS was begun".into()),
        Err(error) => Ending::GivenUp(error.to_string()),
    };
    Session {
        sent: stream.sent.into_inner(),
        secured_from,
        ending,
    }
}

/// The client.
struct Memory {
    flights: Vec<Vec<u8>>,
    /// Which flight, and which byte of it, is next.
    at: Cell<(usize, usize)>,
    sent: RefCell<Vec<u8>>,
}

impl Transport for Memory {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let (mut flight, mut byte) = self.at.get();
        while let Some(bytes) = self.flights.get(flight) {
            let rest = &bytes[byte..];
            if rest.is_empty() {
                (flight, byte) = (flight + 1, 0);
                continue;
            }
            let count = rest.len().min(buf.len());
            buf[..count].copy_from_slice(&rest[..count]);
            self.at.set((flight, byte + count));
            return Ok(count);
        }
        Ok(0)
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.sent.borrow_mut().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        bufs.iter().map(|buf| self.write(buf)).sum()
    }

    fn set_timeout(&self, _limit: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, _how: Shutdown) -> io::Result<()> {
        Ok(())
    }
}
