//! Unix stream sockets.

use core::time::Duration;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::readiness::Direction;
use super::socket::{Socket, refuse_on_loop, refuse_unwinding};
use super::stream::{descriptor_impls, stream_impls};
use super::tcp::accept;

/// How long a connect first waits for a place in a listener's full queue, and at most.
const CONNECT_RETRY: Duration = Duration::from_micros(100);
const CONNECT_RETRY_MAX: Duration = Duration::from_millis(10);

/// A Unix stream socket whose reads and writes park the coroutine. In everything else like
/// [`TcpStream`](super::TcpStream).
///
/// ```
/// use corio::net::UnixStream;
/// use std::io::{Read, Write};
/// let io = corio::IoThread::builder().spawn()?;
/// io.context().spawn(|| {
///     let (mut ours, mut theirs) = UnixStream::pair()?;
///     let reader = corio::spawn(move || {
///         let mut buf = [0; 5];
///         theirs.read_exact(&mut buf).map(|()| buf)
///     });
///     ours.write_all(b"hello")?;
///     assert_eq!(&reader.join().unwrap()?, b"hello");
///     Ok::<_, std::io::Error>(())
/// }).join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct UnixStream {
    socket: Socket,
}

stream_impls!(UnixStream, std::os::unix::net::UnixStream);

impl UnixStream {
    /// Connects to the socket at `path`. Parks while the listener's queue is full.
    ///
    /// # Errors
    /// Nobody listens there, or the path cannot be reached.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::connect_to(&SocketAddrUnix::new(path.as_ref())?)
    }

    /// Connects to an address, which may be an abstract name.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_addr(address: &SocketAddr) -> io::Result<Self> {
        let address = match (address.as_pathname(), address.as_abstract_name()) {
            (Some(path), _) => SocketAddrUnix::new(path)?,
            (_, Some(name)) => SocketAddrUnix::new_abstract_name(name)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Self::connect_to(&address)
    }

    fn connect_to(address: &SocketAddrUnix) -> io::Result<Self> {
        refuse_on_loop();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let mut pause = CONNECT_RETRY;
        loop {
            match rustix::net::connect(&fd, address) {
                Ok(()) => {
                    return Ok(Self {
                        socket: Socket::new(fd),
                    });
                }
                Err(Errno::INTR) => {}
                // The listener's queue is full, and no poll tells when it is not.
                Err(Errno::AGAIN) => {
                    refuse_unwinding()?;
                    crate::time::sleep(pause);
                    pause = (pause * 2).min(CONNECT_RETRY_MAX);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Two connected sockets.
    ///
    /// # Errors
    /// No descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((
            Self {
                socket: Socket::new(a),
            },
            Self {
                socket: Socket::new(b),
            },
        ))
    }

    /// The peer's address, which is unnamed for a client's.
    ///
    /// # Errors
    /// It is not connected.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        ask(&self.socket, std::os::unix::net::UnixStream::peer_addr)
    }

    /// This end's address.
    ///
    /// # Errors
    /// The socket's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        ask(&self.socket, std::os::unix::net::UnixStream::local_addr)
    }
}

/// A Unix socket that accepts connections; waiting for one parks the coroutine.
///
/// Dropping it leaves the file in place, as std does.
///
/// ```
/// use corio::net::{UnixListener, UnixStream};
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("socket");
/// let io = corio::IoThread::builder().spawn()?;
/// let listener = UnixListener::bind(&path)?;
/// let accepted = io.context().spawn(move || listener.accept().map(drop));
/// let _client = UnixStream::connect(&path)?; // Not a loop's thread: it blocks.
/// accepted.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct UnixListener {
    socket: Socket,
}

descriptor_impls!(UnixListener);

impl UnixListener {
    /// Makes a socket at `path` and listens there.
    ///
    /// # Errors
    /// There is something at the path, or it cannot be made.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::try_from_std(std::os::unix::net::UnixListener::bind(path)?)
    }

    /// Takes over a listening socket and makes it non-blocking.
    ///
    /// # Errors
    /// The socket refuses, and is closed.
    pub fn try_from_std(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::try_new(listener.into())?,
        })
    }

    /// Gives the socket up; it stays non-blocking.
    ///
    /// # Errors
    /// As [`UnixStream::into_std`].
    pub fn into_std(self) -> io::Result<std::os::unix::net::UnixListener> {
        self.socket.into_fd().map(Into::into)
    }

    /// Another handle to the same socket, over a duplicate of the descriptor.
    ///
    /// # Errors
    /// No descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
        })
    }

    /// Waits for a connection. Parks; a cancellation point.
    ///
    /// # Errors
    /// No descriptor (EMFILE, ENFILE): the connection stays in the queue, so that trying again at
    /// once fails at once.
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (fd, _) = accept(&self.socket)?;
        let stream = std::os::unix::net::UnixStream::from(fd);
        let address = stream.peer_addr()?;
        let socket = Socket::new(stream.into());
        Ok((UnixStream { socket }, address))
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// The socket's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        ask(&self.socket, std::os::unix::net::UnixStream::local_addr)
    }
}

/// An address as std decodes it, from a duplicate of the descriptor. rustix's own decoding panics
/// on the longest path, 108 bytes, which a client may bind to.
fn ask<R>(
    socket: &Socket,
    question: impl FnOnce(&std::os::unix::net::UnixStream) -> io::Result<R>,
) -> io::Result<R> {
    question(&socket.as_fd().try_clone_to_owned()?.into())
}
