//! What a server is told: its exports and its limits.

use std::sync::Arc;
use std::time::Duration;

use corio_block::Node;

use super::tls::TlsConfig;
use crate::wire::PAYLOAD_PORTABLE_MAX;

/// A disk under a name.
///
/// ```
/// use corio_block::{Length, memory};
/// use corio_nbd::server::Export;
///
/// let disk = memory::Options::new(Length(1 << 20)).open()?;
/// let export = Export { description: "scratch".into(), ..Export::new("", disk) };
/// assert!(!export.read_only);
/// # Ok::<(), corio_block::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Export {
    /// What clients ask for; empty for the default export. At most 4096 bytes, no NUL.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// The disk. Connections of all threads share it.
    pub node: Arc<Node>,
    /// Whether to refuse writes though the disk may take them.
    pub read_only: bool,
    /// Whether to offer TRIM. A client that sends one all the same is answered; what becomes of it
    /// is the disk's affair.
    pub trim: bool,
}

impl Export {
    /// A disk under a name, without a description, as writable as the disk is.
    pub fn new(name: impl Into<String>, node: Arc<Node>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            node,
            read_only: false,
            trim: true,
        }
    }

    /// Whether clients' writes are refused.
    pub(super) fn refuses_writes(&self) -> bool {
        self.read_only || self.node.read_only()
    }
}

/// The limits of a server, each with what happens at it.
///
/// ```
/// use corio_nbd::server::ServerConfig;
///
/// let modest = ServerConfig { server_bytes_max: 64 << 20, ..ServerConfig::default() };
/// assert_eq!(modest.client_requests_max, 128);
/// ```
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The handshake as a whole takes no longer, or the connection is closed.
    pub handshake_timeout: Duration,
    /// A TCP client that acknowledges nothing of what was sent to it for this long is given up; at
    /// least 1 ms. One that acknowledges and does not read is waited for, however long that takes.
    pub silence_max: Duration,
    /// Options a client may send; one more, and the connection is closed.
    pub options_max: u32,
    /// Bytes of an option's payload; a longer one is skipped and answered with ERR_TOO_BIG, one of
    /// more than 16 times as much closes the connection. At most 128 KiB.
    pub option_bytes_max: u32,
    /// Bytes of a READ or a WRITE, as advertised; a longer one is refused.
    pub request_bytes_max: u32,
    /// Requests of one client that wait for the disk, or for their replies to be taken. At this
    /// number nothing more is read from the client.
    pub client_requests_max: usize,
    /// Bytes of data that these hold. At this number nothing more is read from the client.
    pub client_bytes_max: usize,
    /// Requests of all clients. At this number a client may have 32 more, of 256 KiB together; a
    /// further one is served on its own, without overlapping others of its client, and holds nothing
    /// of this.
    pub server_requests_max: usize,
    /// Bytes of data that these hold. At this number, too, a client may have those of its own; a
    /// further READ or WRITE is served piece by piece through a buffer that its connection has
    /// anyway.
    pub server_bytes_max: usize,
    /// Bytes of idle buffers that are kept for reuse.
    pub idle_bytes_max: usize,
    /// Whether a loop that serves a single client makes this one's small WRITEs on the spot, where the
    /// disk can do with a copy into memory ([`Node::try_write_at`]). What they cost is halved then; but
    /// should the file system hold them up, then all that the loop does waits. For loops that do nothing
    /// but serve, of which a new client gets one that is free.
    pub lone_writes: bool,
    /// What TLS takes; `None`: there is none, and STARTTLS is refused.
    pub tls: Option<TlsConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            silence_max: Duration::from_secs(300),
            options_max: 1024,
            option_bytes_max: 64 << 10,
            request_bytes_max: PAYLOAD_PORTABLE_MAX,
            client_requests_max: 128,
            client_bytes_max: 64 << 20,
            server_requests_max: 4096,
            server_bytes_max: 512 << 20,
            idle_bytes_max: 64 << 20,
            lone_writes: false,
            tls: None,
        }
    }
}
