//! The NBD protocol on Corio: a codec and a server.
//!
//! ```text
//!   wire      bytes <-> messages, both directions. No I/O, no clock, no allocation from a length it
//!             has not checked, no panic.
//!   server    the handshake and the transmission phase of one connection, and what all connections
//!             of a process share (exports, budget, buffers, shutdown).
//! ```
//!
//! `server` imports `wire`, never the other way round. The protocol is the public text "The NBD
//! protocol" (`doc/proto.md` of NetworkBlockDevice/nbd) with its `EXTENDED_HEADERS` extension;
//! section names in the docs here are that text's.
#![forbid(unsafe_code)]

pub mod server;
pub mod wire;
