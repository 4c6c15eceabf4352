//! An NBD server: what a connection does from its greeting to its end, and what all of them share.
//!
//! ```text
//!   Server (Send + Sync + Clone)
//!     exports      names and disks
//!     budget       requests and bytes that all clients together may hold
//!     buffers      memory that outlives a request
//!     registry     who is connected, and whether it is time to stop
//!        |
//!   serve(stream)  in a coroutine on the connection's context, from greeting to end
//!     handshake -> connection: a reader and its workers, all on that thread
//! ```
//!
//! The caller accepts clients, makes their sockets streams on the context that is to serve them,
//! and calls [`Server::serve`] there in a coroutine. How many clients there may be is the caller's
//! to limit, who has [`Server::turn_away`] for those that are too many.
//!
//! Holes: what is nothing but zeroes is sent as a hole chunk, unless the client set DF or has not
//! agreed on structured replies. A READ of 64 KiB or more that the cache could not serve is asked
//! for holes first, so that they need not be read. Asking costs a system call that may have to
//! wait, so it is kept off the path of a cached READ: that is read, and is a hole if it is zero.
//!
//! A client that misbehaves hurts itself only: it is refused what makes no sense, is not read from
//! while it does not take its replies, and cannot hold more than its limits. See [`ServerConfig`].

mod batch;
mod budget;
mod buffers;
mod config;
mod connection;
mod deadline;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod receive;
mod registry;
mod request;
mod sender;
mod signal;
mod tls;
mod transport;
mod turn;
mod vigil;
mod work;
mod zeroes;

#[cfg(test)]
mod tests;

use std::net::Shutdown;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corio::net::{TcpStream, UnixStream};

pub use config::{Export, ServerConfig};
pub use error::Error;
pub use registry::Busy;
pub use tls::{TlsConfig, TlsConfigError, TlsPolicy};
pub use transport::Transport;

use budget::Budget;
use buffers::BufferPool;
use connection::Connection;
use handshake::{Chosen, Handshake, Outcome, Progress, Security};
use receive::{RECEIVE_BYTES, Receiver};
use registry::{Presence, Registry};
use vigil::Vigil;

/// How long a client that is turned away may take to hear it.
pub const TURN_AWAY_TIME: Duration = Duration::from_secs(1);
/// Options of such a client that are answered; clients send some five up to GO.
const TURN_AWAY_OPTIONS_MAX: u32 = 16;

/// Serves exports to NBD clients. Cheap to clone; every clone is the same server.
///
/// ```
/// use std::time::Duration;
/// use corio_block::{Length, memory};
/// use corio_nbd::server::{Export, Server, ServerConfig};
///
/// let disk = memory::Options::new(Length(1 << 20)).open()?;
/// let server = Server::new(ServerConfig::default(), vec![Export::new("", disk)]);
/// server.shutdown();
/// assert!(server.wait_idle(Duration::from_secs(1)).is_empty());
/// # Ok::<(), corio_block::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    shared: Arc<Shared>,
}

/// What the connections of all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: ServerConfig,
    exports: Vec<Export>,
    budget: Arc<Budget>,
    buffers: Arc<BufferPool>,
    registry: Arc<Registry>,
}

/// The send buffer of a Unix socket. Twice that is what the kernel makes of it, and a quarter of
/// twice that is what a client has to read still when it counts as caught up: a dozen replies of
/// 4 KiB, as they are counted there.
const UNIX_SEND_BYTES: usize = 208 << 10;

impl Server {
    /// A server of these exports. The first one is also the one that clients get who name none.
    pub fn new(config: ServerConfig, exports: Vec<Export>) -> Self {
        let shared = Shared {
            budget: Arc::new(Budget::new(
                config.server_requests_max,
                config.server_bytes_max,
            )),
            buffers: BufferPool::new(config.idle_bytes_max),
            registry: Arc::default(),
            config,
            exports,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves a client over TCP until it leaves; see [`serve`](Self::serve). The socket's user
    /// time-out is set and kept, see [`ServerConfig::silence_max`]; keepalive, which finds dead
    /// peers that nothing is sent to, is the caller's to set.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub fn serve_tcp(&self, stream: TcpStream, peer: String) -> Result<(), Error> {
        // Replies are gathered here; the kernel must not wait for more. A socket that refuses is
        // slower, not wrong.
        let _ = stream.set_nodelay(true);
        let stream = Rc::new(stream);
        let _vigil = Vigil::keep(&stream, self.shared.config.silence_max);
        self.serve_shared(&stream, &peer)
    }

    /// Serves a client over a Unix socket until it leaves; see [`serve`](Self::serve).
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub fn serve_unix(&self, stream: UnixStream, peer: String) -> Result<(), Error> {
        // With the usual one a client that is waited for would run out of replies. A socket that
        // refuses is slower, not wrong.
        let _ = stream.set_send_buffer(UNIX_SEND_BYTES);
        self.serve(stream, peer)
    }

    /// Serves a client until it leaves, is given up, or the server stops. `peer` names it in
    /// messages.
    ///
    /// Call it in a coroutine of the context that the stream is used from. Parks; starts further
    /// coroutines on the context, none of which outlives the call. What goes wrong is logged here.
    ///
    /// # Errors
    /// Why the connection did not end in good order.
    pub fn serve<S: Transport>(&self, stream: S, peer: String) -> Result<(), Error> {
        self.serve_shared(&Rc::new(stream), &peer)
    }

    fn serve_shared<S: Transport>(&self, stream: &Rc<S>, peer: &str) -> Result<(), Error> {
        let presence = self.shared.registry.enter(peer, stream)?;
        let result = self.session(stream, presence, peer);
        if let Err(error) = &result {
            // Replies that are still on their way are of no use to a client that broke the
            // protocol.
            let _ = stream.shutdown(Shutdown::Both);
            tracing::info!(%peer, "connection ended: {error}");
        } else {
            tracing::debug!(%peer, "connection ended");
        }
        result
    }

    /// Refuses a client in words: greets it, and answers whatever it asks for with ERR_POLICY and
    /// `why`, until it leaves or [`TURN_AWAY_TIME`] is over. EXPORT_NAME, which has no answer that
    /// says no, closes the connection.
    ///
    /// The first option is not the last that is answered: clients take an error there to mean that
    /// the server does not know the option, and only give up when GO is refused.
    ///
    /// Called like [`serve`](Self::serve), and like a client that is served this one counts as a
    /// connection, and ends when the server stops. How many there may be at a time is the caller's
    /// to limit.
    ///
    /// # Errors
    /// Why the connection did not end in good order.
    pub fn turn_away<S: Transport>(&self, stream: S, peer: &str, why: &str) -> Result<(), Error> {
        let shared = &self.shared;
        let stream = Rc::new(stream);
        let _presence = shared.registry.enter(peer, &stream)?;
        let config = ServerConfig {
            handshake_timeout: TURN_AWAY_TIME,
            options_max: TURN_AWAY_OPTIONS_MAX,
            ..shared.config.clone()
        };
        let buffer = shared.buffers.get(RECEIVE_BYTES);
        let mut receiver = Receiver::new(buffer.map_err(Error::io("getting memory"))?);
        let handshake = Handshake {
            stream: &*stream,
            receiver: &mut receiver,
            config: &config,
            exports: &shared.exports,
            registry: &shared.registry,
            // There is nothing to protect in what such a client is told.
            security: Security::Plain,
            turned_away: Some(why),
        };
        let result = handshake.run().map(drop);
        tracing::debug!(%peer, "turned away: {result:?}");
        result
    }

    fn session<S: Transport>(
        &self,
        stream: &Rc<S>,
        presence: Presence,
        peer: &str,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let buffer = shared.buffers.get(RECEIVE_BYTES);
        let mut receiver = Receiver::new(buffer.map_err(Error::io("getting memory"))?);
        let offered = shared.config.tls.as_ref().map(|tls| tls.policy);
        let security = offered.map_or(Security::Plain, Security::Offered);
        let handshake = self.handshake(stream, &mut receiver, security);
        match handshake.run()? {
            Outcome::Left => Ok(()),
            Outcome::Chosen(chosen) => self.transmit(stream, &chosen, presence, peer, receiver),
            Outcome::StartTls(progress) => {
                self.secure_session(stream, progress, presence, peer, receiver)
            }
        }
    }

    /// The session from STARTTLS on. Of its own, so that it takes no stack of those without TLS.
    #[inline(never)]
    fn secure_session<S: Transport>(
        &self,
        stream: &Rc<S>,
        progress: Progress,
        presence: Presence,
        peer: &str,
        mut receiver: Receiver,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        let Some(config) = &shared.config.tls else {
            return Ok(()); // Not offered, so not begun.
        };
        let deadline = &progress.deadline;
        let secured = tls::accept(stream, &config.rustls, &shared.buffers, deadline)
            .map_err(|error| error.in_handshake(deadline))?;
        tracing::debug!(%peer, "TLS: {}", secured.description());
        let secured = Rc::new(secured);
        presence.reach_by(&secured);
        // A stop that came during TLS's handshake has reached the stream below.
        let handshake = self.handshake(&secured, &mut receiver, Security::Secured);
        let result = match handshake.resume(progress) {
            Ok(Outcome::Chosen(chosen)) => {
                self.transmit(&secured, &chosen, presence, peer, receiver)
            }
            Ok(Outcome::Left | Outcome::StartTls(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if result.is_ok() {
            secured.finish();
        }
        result
    }

    fn handshake<'a, S: Transport>(
        &'a self,
        stream: &'a Rc<S>,
        receiver: &'a mut Receiver,
        security: Security,
    ) -> Handshake<'a, S> {
        let shared = &self.shared;
        Handshake {
            stream: &**stream,
            receiver,
            config: &shared.config,
            exports: &shared.exports,
            registry: &shared.registry,
            security,
            turned_away: None,
        }
    }

    fn transmit<S: Transport>(
        &self,
        stream: &Rc<S>,
        chosen: &Chosen,
        presence: Presence,
        peer: &str,
        receiver: Receiver,
    ) -> Result<(), Error> {
        let shared = &self.shared;
        tracing::debug!(
            %peer,
            export = %shared.exports[chosen.export].name,
            style = ?chosen.terms.style,
            "transmission"
        );
        let stream = Rc::clone(stream);
        Connection::new(shared, stream, chosen, presence, peer.to_owned()).serve(receiver)
    }

    /// Takes no new connection and no new request: they are answered with ESHUTDOWN. Requests that
    /// are being served finish, and their connections end then. From any thread; does not wait.
    pub fn shutdown(&self) {
        self.shared.registry.stop();
    }

    /// Waits until no connection is left; after `timeout`, those that are. Parks a coroutine,
    /// blocks a plain thread; not for a loop's thread outside a coroutine.
    #[must_use]
    pub fn wait_idle(&self, timeout: Duration) -> Vec<Busy> {
        self.shared.registry.wait_idle(timeout)
    }

    /// How many connections there are now, those in the handshake included. From any thread.
    pub fn connections(&self) -> usize {
        self.shared.registry.len()
    }

    /// Requests, and bytes of their data, that clients hold now: waiting for the disk, or for the
    /// client to take the reply. From any thread; what the cache serves at once is not in it.
    pub fn in_flight(&self) -> (usize, usize) {
        self.shared.budget.held()
    }
}
