//! Pipes: one direction, two ends.

use core::fmt;
use core::time::Duration;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::pipe::PipeFlags;

use super::readiness::Direction;
use super::socket::Socket;
use super::stream::IOV_MAX;

/// A pipe whose ends park the coroutine: what is written to the one is read from the other.
///
/// # Errors
/// No descriptors (EMFILE, ENFILE), or more pages in pipes than this user may have.
///
/// ```
/// use std::io::{Read, Write};
/// let io = corio::IoThread::builder().spawn()?;
/// io.context().spawn(|| {
///     let (mut reader, mut writer) = corio::net::pipe()?;
///     let text = corio::spawn(move || {
///         let mut text = String::new();
///         reader.read_to_string(&mut text).map(|_| text)
///     });
///     writer.write_all(b"through the pipe")?;
///     drop(writer); // The end of it, for the reader.
///     assert_eq!(text.join().unwrap()?, "through the pipe");
///     Ok::<_, std::io::Error>(())
/// }).join().unwrap()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let (reader, writer) = (Socket::new(reader), Socket::new(writer));
    Ok((PipeReader { end: reader }, PipeWriter { end: writer }))
}

/// The end of a pipe that is read from; reading parks the coroutine.
///
/// Several coroutines of one thread may read; they are served in the order in which they came.
/// Outside a coroutine reading blocks the thread; on a loop's thread outside a coroutine it panics.
///
/// ```
/// use std::io::Read;
/// use std::process::{Command, Stdio};
/// use corio::net::PipeReader;
///
/// let mut child = Command::new("echo").arg("hello").stdout(Stdio::piped()).spawn()?;
/// let stdout = PipeReader::try_from_fd(child.stdout.take().expect("it is piped"))?;
/// let io = corio::IoThread::builder().spawn()?;
/// let said = io.context().spawn(move || {
///     let mut text = String::new();
///     (&stdout).read_to_string(&mut text).map(|_| text) // parks until the child says something
/// });
/// assert_eq!(said.join().unwrap()?, "hello\n");
/// child.wait()?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PipeReader {
    end: Socket,
}

/// The end of a pipe that is written to; writing parks the coroutine while the pipe is full.
///
/// As for [`PipeReader`]. A write when nobody can read any more is an error of kind `BrokenPipe`;
/// the kernel sends SIGPIPE with it, which a pipe, unlike a socket, cannot be told to leave out.
/// Rust's programs ignore that signal unless they ask for it; where `main` is not Rust's, ignore it.
///
/// ```
/// use std::io::Write;
/// let io = corio::IoThread::builder().spawn()?;
/// let refused = io.context().spawn(|| {
///     let (reader, mut writer) = corio::net::pipe()?;
///     drop(reader);
///     writer.write(b"for nobody")
/// });
/// let refused = refused.join().unwrap().unwrap_err();
/// assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PipeWriter {
    end: Socket,
}

macro_rules! end_impls {
    ($end:ident, $direction:expr) => {
        impl $end {
            /// Takes over this end of a pipe or FIFO, such as a child's standard output or input,
            /// and makes it non-blocking, for all duplicates too.
            ///
            /// # Errors
            /// It is no pipe (InvalidInput), or cannot be made non-blocking. It is closed then.
            pub fn try_from_fd(end: impl Into<OwnedFd>) -> io::Result<Self> {
                let end = end.into();
                let stat = rustix::fs::fstat(&end)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
                    let why = "it is no pipe: take corio::fs::File or a socket's type for others";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                }
                Ok(Self {
                    end: Socket::try_new(end)?,
                })
            }

            /// Gives the descriptor up, which stays non-blocking.
            ///
            /// # Errors
            /// As for [`TcpStream::into_std`](super::TcpStream::into_std).
            pub fn into_fd(self) -> io::Result<OwnedFd> {
                self.end.into_fd()
            }

            /// Another handle to the same end, over a duplicate of the descriptor.
            ///
            /// # Errors
            /// No descriptor.
            pub fn try_clone(&self) -> io::Result<Self> {
                Ok(Self {
                    end: self.end.try_clone()?,
                })
            }

            /// How long one call may wait; None: as long as it takes. The time counts from the
            /// call, and one that is late fails with `TimedOut`.
            ///
            /// # Errors
            /// The time is zero.
            pub fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
                self.end.set_timeout($direction, limit)
            }

            /// What [`set_timeout`](Self::set_timeout) has set.
            #[must_use]
            pub fn timeout(&self) -> Option<Duration> {
                self.end.timeout($direction)
            }
        }

        impl AsFd for $end {
            #[inline]
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.end.as_fd()
            }
        }

        impl fmt::Debug for $end {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($end))
                    .field("fd", &self.end.as_fd())
                    .finish()
            }
        }
    };
}

end_impls!(PipeReader, Direction::Read);
end_impls!(PipeWriter, Direction::Write);

impl PipeReader {
    /// Reads what is there now, at least one byte, zero at the end; None if it would wait, or if
    /// others wait already. Never waits, so it may be called anywhere.
    ///
    /// # Errors
    /// The pipe's.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        self.end
            .try_call(Direction::Read, |fd| rustix::io::read(fd, &mut *buf))
    }
}

impl Read for &PipeReader {
    #[inline]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.end.transfer(Direction::Read, buf.len(), |fd| {
            rustix::io::read(fd, &mut *buf)
        })
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let count = bufs.len().min(IOV_MAX);
        let bufs = &mut bufs[..count];
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        self.end
            .transfer(Direction::Read, wanted, |fd| rustix::io::readv(fd, bufs))
    }
}

impl Read for PipeReader {
    #[inline]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(bufs)
    }
}

impl Write for &PipeWriter {
    #[inline]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.end
            .transfer(Direction::Write, buf.len(), |fd| rustix::io::write(fd, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let bufs = &bufs[..bufs.len().min(IOV_MAX)];
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        self.end
            .transfer(Direction::Write, wanted, |fd| rustix::io::writev(fd, bufs))
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for PipeWriter {
    #[inline]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(bufs)
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
