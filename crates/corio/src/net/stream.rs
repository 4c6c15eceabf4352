//! What streams of both families have in common: reading and writing.

use core::time::Duration;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};

use super::readiness::Direction;
use super::socket::Socket;

/// Buffers that one system call takes (UIO_MAXIOV).
pub(super) const IOV_MAX: usize = 1024;

/// A stream socket of either family.
///
/// ```
/// use corio::net::{Stream, UnixStream};
/// use std::io::{self, Read, Write};
///
/// fn echo_once(stream: &mut impl Stream) -> io::Result<()> {
///     let mut buf = [0; 64];
///     let n = match stream.try_read(&mut buf)? {
///         Some(n) => n,
///         None => stream.read(&mut buf)?,
///     };
///     stream.write_all(&buf[..n])
/// }
///
/// let io = corio::IoThread::builder().spawn()?;
/// io.context().spawn(|| {
///     let (mut ours, mut theirs) = UnixStream::pair()?;
///     ours.write_all(b"hello")?;
///     echo_once(&mut theirs)?;
///     ours.read_exact(&mut [0; 5])
/// }).join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Stream: Read + Write + AsFd + Send + 'static {
    /// Reads what is there now, at least one byte, zero at the end; None if it would wait, or if
    /// others wait already.
    ///
    /// Never waits, so it may be called anywhere.
    ///
    /// # Errors
    /// The socket's.
    fn try_read(&self, buf: &mut [u8]) -> io::Result<Option<usize>>;

    /// Ends one or both directions, for the peer and for all duplicates. Never waits.
    ///
    /// Who waits in this handle is woken. Who waits in a duplicate is where the kernel reports it,
    /// which it does but for one case: a writer to a full Unix stream sleeps on after
    /// `Shutdown::Write`, until the peer reads or ends.
    ///
    /// # Errors
    /// The socket's, such as that the peer is gone already.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;

    /// How long one read may wait; None: as long as it takes.
    ///
    /// # Errors
    /// The time is zero.
    fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()>;

    /// How long one write may wait; None: as long as it takes.
    ///
    /// # Errors
    /// The time is zero.
    fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()>;
}

fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> rustix::io::Result<usize> {
    rustix::net::recv(fd, buf, RecvFlags::DONTWAIT).map(|(received, _)| received)
}

impl Socket {
    #[inline]
    pub(super) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0); // The kernel would wait for a byte.
        }
        self.transfer(Direction::Read, buf.len(), |fd| recv(fd, buf))
    }

    #[inline]
    pub(super) fn try_read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        if buf.is_empty() {
            return Ok(Some(0));
        }
        self.try_call(Direction::Read, |fd| recv(fd, buf))
    }

    pub(super) fn read_vectored(&self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let count = bufs.len().min(IOV_MAX);
        let bufs = &mut bufs[..count];
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Ok(0);
        }
        self.transfer(Direction::Read, wanted, |fd| {
            let mut control = RecvAncillaryBuffer::default();
            rustix::net::recvmsg(fd, bufs, &mut control, RecvFlags::DONTWAIT)
                .map(|message| message.bytes)
        })
    }

    #[inline]
    pub(super) fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.transfer(Direction::Write, buf.len(), |fd| {
            rustix::net::send(fd, buf, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        })
    }

    #[inline]
    pub(super) fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let bufs = &bufs[..bufs.len().min(IOV_MAX)];
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        self.transfer(Direction::Write, wanted, |fd| {
            let mut control = SendAncillaryBuffer::default();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            rustix::net::sendmsg(fd, bufs, &mut control, flags)
        })
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let (how, directions): (_, &[Direction]) = match how {
            Shutdown::Read => (rustix::net::Shutdown::Read, &[Direction::Read]),
            Shutdown::Write => (rustix::net::Shutdown::Write, &[Direction::Write]),
            Shutdown::Both => (
                rustix::net::Shutdown::Both,
                &[Direction::Read, Direction::Write],
            ),
        };
        let result = rustix::net::shutdown(self.as_fd(), how);
        for &direction in directions {
            self.wake_waiters(direction);
        }
        result.map_err(Into::into)
    }
}

/// Everything that is the same for both stream types, which are a struct with a `socket`.
macro_rules! stream_impls {
    ($stream:ident, $std:ty) => {
        impl $stream {
            /// Takes over a connected socket and makes it non-blocking. Time-outs set on it do not
            /// count here.
            ///
            /// # Errors
            /// The socket refuses, and is closed.
            pub fn try_from_std(stream: $std) -> std::io::Result<Self> {
                Ok(Self {
                    socket: Socket::try_new(stream.into())?,
                })
            }

            /// Gives the socket up. It stays non-blocking: `set_nonblocking(false)` makes it what
            /// std expects.
            ///
            /// This is the way to another context; so is moving the stream itself, which costs the
            /// old context a little work at some later time, until when a duplicate of the
            /// descriptor stays open there.
            ///
            /// # Errors
            /// No descriptor for a duplicate, which is needed where another context has not
            /// forgotten the socket yet.
            pub fn into_std(self) -> std::io::Result<$std> {
                self.socket.into_fd().map(Into::into)
            }

            /// Another handle to the same stream, over a duplicate of the descriptor. Bytes read by
            /// one are gone for the other. To share a stream between coroutines of one thread, an
            /// `Rc` costs less.
            ///
            /// # Errors
            /// No descriptor.
            pub fn try_clone(&self) -> std::io::Result<Self> {
                Ok(Self {
                    socket: self.socket.try_clone()?,
                })
            }

            /// Ends one or both directions, for the peer and for all duplicates; see
            /// [`Stream::shutdown`](super::Stream::shutdown) for who is woken. Never waits.
            ///
            /// # Errors
            /// The socket's, such as that the peer is gone already.
            pub fn shutdown(&self, how: std::net::Shutdown) -> std::io::Result<()> {
                self.socket.shutdown(how)
            }

            /// Reads what is there now; see [`Stream::try_read`](super::Stream::try_read).
            ///
            /// # Errors
            /// The socket's.
            #[inline]
            pub fn try_read(&self, buf: &mut [u8]) -> std::io::Result<Option<usize>> {
                self.socket.try_read(buf)
            }

            /// Parks until the kernel calls the stream writable, which takes more than room for
            /// another byte: a Unix stream is once its peer has left no more than a quarter of the
            /// send buffer unread, a TCP stream once a third of it is free. For `limit` at most;
            /// true if it is writable. Writes of others queue behind it meanwhile.
            ///
            /// Who answers a peer that is slower to read than the answers are made can have it
            /// catch up by this, and then takes many of its requests at once.
            ///
            /// # Errors
            /// The socket's; ECANCELED in a coroutine that is cancelled.
            pub fn wait_writable(&self, limit: core::time::Duration) -> std::io::Result<bool> {
                self.socket.wait_writable(limit)
            }

            /// How much may be sent and not be read yet, in bytes (SO_SNDBUF, socket(7)). Linux
            /// doubles it for what it needs itself, and goes no further than net.core.wmem_max.
            ///
            /// # Errors
            /// The socket's.
            pub fn set_send_buffer(&self, bytes: usize) -> std::io::Result<()> {
                let set = rustix::net::sockopt::set_socket_send_buffer_size(&self.socket, bytes);
                set.map_err(Into::into)
            }

            /// How long one read may wait; None: as long as it takes. The time counts from the
            /// call, and a read that is late fails with `TimedOut`.
            ///
            /// # Errors
            /// The time is zero.
            pub fn set_read_timeout(
                &self,
                limit: Option<core::time::Duration>,
            ) -> std::io::Result<()> {
                self.socket.set_timeout(Direction::Read, limit)
            }

            /// How long one write may wait; None: as long as it takes. As for reads.
            ///
            /// # Errors
            /// The time is zero.
            pub fn set_write_timeout(
                &self,
                limit: Option<core::time::Duration>,
            ) -> std::io::Result<()> {
                self.socket.set_timeout(Direction::Write, limit)
            }

            /// What [`set_read_timeout`](Self::set_read_timeout) has set.
            #[must_use]
            pub fn read_timeout(&self) -> Option<core::time::Duration> {
                self.socket.timeout(Direction::Read)
            }

            /// What [`set_write_timeout`](Self::set_write_timeout) has set.
            #[must_use]
            pub fn write_timeout(&self) -> Option<core::time::Duration> {
                self.socket.timeout(Direction::Write)
            }

            /// The socket's pending error, taken.
            ///
            /// # Errors
            /// The socket cannot say.
            pub fn take_error(&self) -> std::io::Result<Option<std::io::Error>> {
                let pending = rustix::net::sockopt::socket_error(&self.socket)?;
                Ok(pending.err().map(Into::into))
            }
        }

        impl TryFrom<$std> for $stream {
            type Error = std::io::Error;

            fn try_from(stream: $std) -> std::io::Result<Self> {
                Self::try_from_std(stream)
            }
        }

        impl std::io::Read for &$stream {
            #[inline]
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                self.socket.read(buf)
            }

            fn read_vectored(
                &mut self,
                bufs: &mut [std::io::IoSliceMut<'_>],
            ) -> std::io::Result<usize> {
                self.socket.read_vectored(bufs)
            }
        }

        impl std::io::Write for &$stream {
            #[inline]
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.socket.write(buf)
            }

            #[inline]
            fn write_vectored(&mut self, bufs: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
                self.socket.write_vectored(bufs)
            }

            #[inline]
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        impl std::io::Read for $stream {
            #[inline]
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                self.socket.read(buf)
            }

            fn read_vectored(
                &mut self,
                bufs: &mut [std::io::IoSliceMut<'_>],
            ) -> std::io::Result<usize> {
                self.socket.read_vectored(bufs)
            }
        }

        impl std::io::Write for $stream {
            #[inline]
            fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
                self.socket.write(buf)
            }

            #[inline]
            fn write_vectored(&mut self, bufs: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
                self.socket.write_vectored(bufs)
            }

            #[inline]
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        impl super::Stream for $stream {
            #[inline]
            fn try_read(&self, buf: &mut [u8]) -> std::io::Result<Option<usize>> {
                self.socket.try_read(buf)
            }

            fn shutdown(&self, how: std::net::Shutdown) -> std::io::Result<()> {
                self.socket.shutdown(how)
            }

            fn set_read_timeout(&self, limit: Option<core::time::Duration>) -> std::io::Result<()> {
                self.socket.set_timeout(Direction::Read, limit)
            }

            fn set_write_timeout(
                &self,
                limit: Option<core::time::Duration>,
            ) -> std::io::Result<()> {
                self.socket.set_timeout(Direction::Write, limit)
            }
        }

        super::stream::descriptor_impls!($stream);
    };
}

/// What listeners have too.
macro_rules! descriptor_impls {
    ($socket:ident) => {
        impl std::os::fd::AsFd for $socket {
            #[inline]
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.socket.as_fd()
            }
        }

        impl core::fmt::Debug for $socket {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($socket))
                    .field("fd", &self.socket.as_fd())
                    .finish()
            }
        }
    };
}

pub(super) use {descriptor_impls, stream_impls};
