//! TCP.

use core::time::Duration;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, sockopt};

use super::readiness::Direction;
use super::socket::{Socket, refuse_on_loop};
use super::stream::{descriptor_impls, stream_impls};
use crate::sys;

/// A TCP connection whose reads and writes park the coroutine.
///
/// Reads and writes need only `&TcpStream`, so that one coroutine can read while another writes.
/// Waiters of one direction are served in the order in which they came. On a thread that is no
/// loop's, calls block the thread.
///
/// Can be moved to another thread, not shared with one:
///
/// ```compile_fail
/// fn shared<T: Sync>() {}
/// shared::<corio::net::TcpStream>();
/// ```
///
/// # Panics
/// Reading and writing on a loop's thread outside a coroutine, which would stop the loop.
///
/// ```
/// use corio::net::{TcpListener, TcpStream};
/// use std::io::{Read, Write};
/// let io = corio::IoThread::builder().spawn()?;
/// io.context().spawn(|| {
///     let listener = TcpListener::bind("127.0.0.1:0")?;
///     let address = listener.local_addr()?;
///     let client = corio::spawn(move || TcpStream::connect(address)?.write_all(b"hello"));
///     let (mut stream, _) = listener.accept()?;
///     let mut text = String::new();
///     stream.read_to_string(&mut text)?;
///     assert_eq!(text, "hello");
///     client.join().unwrap()
/// }).join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias("qemu_co_recv", "qemu_co_recvv", "qemu_co_send", "qemu_co_sendv"))]
pub struct TcpStream {
    socket: Socket,
}

stream_impls!(TcpStream, std::net::TcpStream);

impl TcpStream {
    /// Connects to the first of the addresses that accepts.
    ///
    /// Parks while it waits for the peer. A name, other than an address, is looked up in the
    /// calling thread, which blocks it: on a loop, give a `SocketAddr`.
    ///
    /// # Errors
    /// The last address's refusal; InvalidInput if there is no address.
    pub fn connect(addr: impl ToSocketAddrs) -> io::Result<Self> {
        let mut refused = None;
        for addr in addr.to_socket_addrs()? {
            match Self::connect_one(&addr, None) {
                Ok(stream) => return Ok(stream),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the name has no address")
        }))
    }

    /// Connects, and gives up with `TimedOut` after `limit`.
    ///
    /// # Errors
    /// The peer's refusal, or that it is late; InvalidInput if `limit` is zero.
    pub fn connect_timeout(addr: &SocketAddr, limit: Duration) -> io::Result<Self> {
        Self::connect_one(addr, Some(limit))
    }

    fn connect_one(addr: &SocketAddr, limit: Option<Duration>) -> io::Result<Self> {
        refuse_on_loop();
        let family = match addr {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let socket = Socket::new(fd);
        socket.set_timeout(Direction::Write, limit)?;
        match rustix::net::connect(&socket, addr) {
            // An interrupted connect goes on by itself, as one in progress does.
            Err(Errno::INPROGRESS | Errno::INTR) => {
                socket.wait_and_call(Direction::Write, &mut |fd| {
                    sockopt::socket_error(fd)??;
                    match rustix::net::getpeername(fd) {
                        Err(Errno::NOTCONN) => Err(Errno::AGAIN),
                        result => result.map(drop),
                    }
                })?;
            }
            result => result?,
        }
        socket.set_timeout(Direction::Write, None)?;
        Ok(Self { socket })
    }

    /// The peer's address.
    ///
    /// # Errors
    /// It is not connected any more.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        let address = rustix::net::getpeername(&self.socket)?;
        address.ok_or(Errno::NOTCONN.into()).and_then(ip)
    }

    /// This end's address.
    ///
    /// # Errors
    /// The socket's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        ip(rustix::net::getsockname(&self.socket)?)
    }

    /// Whether small writes are sent at once (TCP_NODELAY), rather than gathered.
    ///
    /// # Errors
    /// The socket's.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        sockopt::set_tcp_nodelay(&self.socket, nodelay).map_err(Into::into)
    }

    /// What [`set_nodelay`](Self::set_nodelay) has set.
    ///
    /// # Errors
    /// The socket's.
    pub fn nodelay(&self) -> io::Result<bool> {
        sockopt::tcp_nodelay(&self.socket).map_err(Into::into)
    }

    /// How long what was sent may go unacknowledged before the kernel ends the connection with
    /// `TimedOut` (TCP_USER_TIMEOUT, tcp(7)); None: as long as the kernel's own limit on
    /// retransmissions lets it, some 15 minutes. Counted in milliseconds.
    ///
    /// Linux also counts the time for which the peer's window leaves no room, though the peer
    /// answers each probe: a peer that is alive and does not read is ended like a dead one. Whoever
    /// wants to spare it asks [`send_state`](Self::send_state) well before the time is over.
    ///
    /// # Errors
    /// The socket's; InvalidInput if the time is zero.
    pub fn set_user_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        if limit == Some(Duration::ZERO) {
            return Err(io::ErrorKind::InvalidInput.into()); // To the kernel it means none.
        }
        // The kernel takes no more than an `int`.
        let max = u32::MAX / 2;
        let limit_ms = limit.map_or(0, |limit| {
            u32::try_from(limit.as_millis().max(1)).map_or(max, |limit_ms| limit_ms.min(max))
        });
        sockopt::set_tcp_user_timeout(&self.socket, limit_ms).map_err(Into::into)
    }

    /// What [`set_user_timeout`](Self::set_user_timeout) has set.
    ///
    /// # Errors
    /// The socket's.
    pub fn user_timeout(&self) -> io::Result<Option<Duration>> {
        let limit_ms = sockopt::tcp_user_timeout(&self.socket)?;
        Ok((limit_ms != 0).then(|| Duration::from_millis(limit_ms.into())))
    }

    /// How sending gets on (TCP_INFO, tcp(7)). Never waits.
    ///
    /// # Errors
    /// The socket's.
    pub fn send_state(&self) -> io::Result<SendState> {
        let info = sys::tcp::info(self.socket.as_fd())?;
        let nothing_under_way = info.unacked_segments == 0;
        // A peer that has taken its window back, as Linux does when it runs out of memory, has
        // segments sent to it again and again instead of probes.
        let held_back = if nothing_under_way {
            info.unsent_bytes > 0
        } else {
            info.window_bytes == Some(0)
        };
        Ok(SendState {
            held_back,
            probes_unanswered: info.probes_unanswered.into(),
        })
    }
}

/// How sending on a [`TcpStream`] gets on, as the kernel sees it at one moment.
///
/// ```
/// use corio::net::TcpStream;
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let stream = TcpStream::connect(listener.local_addr()?)?; // No loop's thread: it blocks.
/// let state = stream.send_state()?;
/// assert!(!state.held_back && state.probes_unanswered == 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendState {
    /// There is data to send, and the peer's window leaves no room for it: the peer does not read.
    /// Also true for a moment between a write and the first of its segments.
    pub held_back: bool,
    /// Probes of the closed window in a row that the peer has not answered. A live peer answers
    /// them, but may leave one out while they follow each other within half a second.
    pub probes_unanswered: u32,
}

/// A TCP socket that accepts connections; waiting for one parks the coroutine.
///
/// Several coroutines of one thread may accept; they are served in the order in which they came.
/// See [`TcpStream`] for an example.
///
/// ```
/// use std::io::{Read, Write};
/// use corio::net::{TcpListener, TcpStream};
/// let io = corio::IoThread::builder().spawn()?;
/// io.context().spawn(|| {
///     let listener = TcpListener::bind("127.0.0.1:0")?;
///     let mut client = TcpStream::connect(listener.local_addr()?)?;
///     let (mut server, address) = listener.accept()?;
///     assert_eq!(address, client.local_addr()?);
///     server.write_all(b"hello")?;
///     let mut word = [0; 5];
///     client.read_exact(&mut word)?;
///     assert_eq!(&word, b"hello");
///     Ok::<_, std::io::Error>(())
/// }).join().expect("it does not panic")?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct TcpListener {
    socket: Socket,
}

descriptor_impls!(TcpListener);

impl TcpListener {
    /// Listens on the first of the addresses that can be had; port 0 picks a free one. A name is
    /// looked up in the calling thread, which blocks it.
    ///
    /// # Errors
    /// The last address's refusal.
    pub fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::try_from_std(std::net::TcpListener::bind(addr)?)
    }

    /// Takes over a listening socket and makes it non-blocking.
    ///
    /// # Errors
    /// The socket refuses, and is closed.
    pub fn try_from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::try_new(listener.into())?,
        })
    }

    /// Gives the socket up; it stays non-blocking.
    ///
    /// # Errors
    /// As [`TcpStream::into_std`].
    pub fn into_std(self) -> io::Result<std::net::TcpListener> {
        self.socket.into_fd().map(Into::into)
    }

    /// Another handle to the same socket, over a duplicate of the descriptor: for accepting on
    /// another context too.
    ///
    /// # Errors
    /// No descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
        })
    }

    /// Waits for a connection. Parks; a cancellation point. One that the peer has given up
    /// meanwhile is passed over.
    ///
    /// # Errors
    /// No descriptor (EMFILE, ENFILE): the connection stays in the queue, so that trying again at
    /// once fails at once.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (fd, address) = accept(&self.socket)?;
        let stream = TcpStream {
            socket: Socket::new(fd),
        };
        let address = match address {
            Some(address) => ip(address)?,
            None => stream.peer_addr()?,
        };
        Ok((stream, address))
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// The socket's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        ip(rustix::net::getsockname(&self.socket)?)
    }
}

/// accept4(2), for both families.
pub(super) fn accept(socket: &Socket) -> io::Result<(OwnedFd, Option<SocketAddrAny>)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket.call(Direction::Read, |fd| {
        loop {
            match rustix::net::acceptfrom_with(fd, flags) {
                Err(Errno::CONNABORTED) => {}
                result => return result,
            }
        }
    })
}

fn ip(address: SocketAddrAny) -> io::Result<SocketAddr> {
    SocketAddr::try_from(address).map_err(Into::into)
}
