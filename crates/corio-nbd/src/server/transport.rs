//! What a connection runs over.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use corio::net::{TcpStream, UnixStream};

/// A stream of bytes that the coroutines of one thread share.
///
/// All methods may park the calling coroutine, except [`shutdown`](Self::shutdown).
pub trait Transport: 'static {
    /// Reads what is there, at least one byte; zero at the end.
    ///
    /// # Errors
    /// The socket's; `TimedOut` after the time set.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes as much of the buffer as the socket takes, at least one byte.
    ///
    /// # Errors
    /// The socket's; `TimedOut` after the time set.
    fn write(&self, buf: &[u8]) -> io::Result<usize>;

    /// Writes as much of the buffers as the socket takes, at least one byte.
    ///
    /// # Errors
    /// The socket's; `TimedOut` after the time set.
    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// How long reads and writes may wait from now on; `None`: as long as it takes.
    ///
    /// # Errors
    /// The time is zero.
    fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()>;

    /// Waits for a client that has many replies to read still, for `limit` at most, where the stream
    /// can tell.
    ///
    /// # Errors
    /// The socket's.
    fn pace(&self, _limit: Duration) -> io::Result<()> {
        Ok(())
    }

    /// Ends one or both directions; who waits for one is woken. Never parks.
    ///
    /// # Errors
    /// The socket's, such as that the peer is gone already.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;

    /// Says goodbye, where the stream has a way to; nothing is written any more.
    fn finish(&self) {}
}

macro_rules! transport {
    ($stream:ty $(, $more:item)?) => {
        impl Transport for $stream {
            #[inline]
            fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
                let mut stream = self;
                Read::read(&mut stream, buf)
            }

            #[inline]
            fn write(&self, buf: &[u8]) -> io::Result<usize> {
                let mut stream = self;
                Write::write(&mut stream, buf)
            }

            #[inline]
            fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
                let mut stream = self;
                Write::write_vectored(&mut stream, bufs)
            }

            fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
                self.set_read_timeout(limit)?;
                self.set_write_timeout(limit)
            }

            fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                <$stream>::shutdown(self, how)
            }

            $($more)?
        }
    };
}

transport!(TcpStream);
transport!(
    UnixStream,
    fn pace(&self, limit: Duration) -> io::Result<()> {
        self.wait_writable(limit).map(drop)
    }
);

/// Writes all of `buf`, however many writes it takes.
#[inline]
pub(super) fn write_all(stream: &impl Transport, mut buf: &[u8]) -> io::Result<()> {
    while !buf.is_empty() {
        match stream.write(buf) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => buf = buf.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `bufs`, however many writes it takes.
pub(super) fn write_all_vectored(
    stream: &impl Transport,
    mut bufs: &mut [IoSlice<'_>],
) -> io::Result<()> {
    // Drops empty ones, so that what is left of nothing is nothing.
    IoSlice::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        match stream.write_vectored(bufs) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut bufs, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
