//! Sockets that park the coroutine instead of blocking the thread (SPEC E6).
//!
//! The types have std's names and std's traits, so that synchronous code (codecs, TLS, protocol libraries) runs unchanged in
//! a coroutine. Outside a coroutine their calls block; on a loop's thread outside a coroutine they panic.
//!
//! Files: `readiness` how a call waits, `stream` what both kinds of streams share, `tcp` and `unix` the types.

mod readiness;
mod stream;
mod tcp;
mod unix;

pub use stream::Stream;
pub use tcp::{TcpListener, TcpStream};
pub use unix::{UnixListener, UnixStream};

/// ECANCELED while the running coroutine unwinds: it must not wait for others then (SPEC C12).
fn refuse_unwinding() -> std::io::Result<()> {
    if crate::coroutine::current().is_some_and(crate::coroutine::CoRef::is_unwinding) {
        return Err(rustix::io::Errno::CANCELED.into());
    }
    Ok(())
}
