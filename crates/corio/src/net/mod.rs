//! Sockets and pipes that park the coroutine instead of blocking the thread (SPEC E6).
//!
//! The types have std's names and std's traits, so that synchronous code (codecs, TLS, protocol
//! libraries) runs unchanged in a coroutine. Outside a coroutine their calls block; on a loop's
//! thread outside a coroutine they panic.
//!
//! Files: `socket` a call, `readiness` how it waits, `stream` what both kinds of streams share,
//! `tcp`, `unix` and `pipe` the types.

mod pipe;
mod readiness;
mod socket;
mod stream;
mod tcp;
mod unix;

pub use pipe::{PipeReader, PipeWriter, pipe};
pub use stream::Stream;
pub use tcp::{SendState, TcpListener, TcpStream};
pub use unix::{UnixListener, UnixStream};
