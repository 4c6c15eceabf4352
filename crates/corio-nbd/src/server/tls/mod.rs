//! TLS: what the server shows and asks of clients, and the stream that a connection becomes by
//! STARTTLS (NBD protocol, section "TLS support").
//!
//! ```text
//!   config    certificate, key and CA, checked when the server starts
//!   session   the state of one TLS connection: bytes in, bytes out, no I/O
//!   stream    a Transport over another: moves the ciphertext, never under a borrow of the session
//!   peer      what messages call a client that has shown a certificate
//! ```
//!
//! All arithmetic and all of TLS itself is rustls's, with ring under it.

mod config;
mod peer;
mod session;
mod stream;

#[cfg(test)]
mod tests;

pub use config::{TlsConfig, TlsConfigError, TlsPolicy};

pub(super) use stream::accept;
