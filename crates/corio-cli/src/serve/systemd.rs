//! systemd: sockets it opened for us (`sd_listen_fds(3)`), and how we are (`sd_notify(3)`).
//!
//! An inherited descriptor is a bare number. Turning a number into an owned descriptor takes on
//! trust what `unsafe` would have to vouch for; instead pidfd_getfd asks the kernel for a new
//! descriptor of the same socket. The inherited one stays open, close-on-exec, unused, until exit.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

use super::accept::Listener;
use crate::report::Failure;

/// Environment variables that are for this process and no child of it.
pub(crate) const ENVIRONMENT: [&str; 4] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
];

const UNIT_ADVICE: &str =
    "use ListenStream= with a port or a path, and Accept=no, in the socket unit";

/// The listening sockets systemd has passed to this process, ready for use.
///
/// # Errors
/// The environment is malformed, or a descriptor is no listening stream socket.
pub(crate) fn inherited() -> Result<Vec<Listener>, Failure> {
    let numbers: Vec<RawFd> = sd_notify::listen_fds()
        .map_err(|error| {
            Failure::new("cannot use the sockets passed by systemd")
                .io(&error)
                .advice(UNIT_ADVICE)
        })?
        .collect();
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |number: RawFd, errno: Errno| {
        Failure::new(format!(
            "cannot use the socket passed as descriptor {number}"
        ))
        .io(&errno.into())
    };
    let this_process =
        pidfd_open(getpid(), PidfdFlags::empty()).map_err(|errno| failed(numbers[0], errno))?;
    let mut listeners = Vec::with_capacity(numbers.len());
    for number in numbers {
        let socket = pidfd_getfd(&this_process, number, PidfdGetfdFlags::empty())
            .map_err(|errno| failed(number, errno))?;
        listeners.push(adopt(socket, number)?);
    }
    Ok(listeners)
}

/// Checks that `socket` listens for streams, and makes it non-blocking.
fn adopt(socket: OwnedFd, number: RawFd) -> Result<Listener, Failure> {
    let unfit = |why: &str| {
        Failure::new(format!(
            "cannot use the socket passed as descriptor {number}"
        ))
        .why(why)
        .advice(UNIT_ADVICE)
    };
    match sockopt::socket_acceptconn(&socket) {
        Ok(true) => {}
        Ok(false) => return Err(unfit("it does not listen")),
        Err(Errno::NOTSOCK) => return Err(unfit("it is no socket")),
        Err(errno) => return Err(unfit(&io::Error::from(errno).to_string())),
    }
    if sockopt::socket_type(&socket) != Ok(SocketType::STREAM) {
        return Err(unfit("it is no stream socket"));
    }
    let blocking = rustix::io::ioctl_fionbio(socket.as_fd(), true);
    blocking.map_err(|errno| unfit(&io::Error::from(errno).to_string()))?;
    match sockopt::socket_domain(&socket) {
        Ok(AddressFamily::INET | AddressFamily::INET6) => {
            Ok(Listener::Tcp(TcpListener::from(socket)))
        }
        Ok(AddressFamily::UNIX) => Ok(Listener::Unix(UnixListener::from(socket))),
        _ => Err(unfit("it is neither TCP nor Unix")),
    }
}

/// Clients can connect.
pub(crate) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The end has begun.
pub(crate) fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells the service manager, if there is one. That it does not listen is no reason to fail.
fn notify(states: &[NotifyState<'_>]) {
    let Some(manager) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = match manager.to_str().and_then(|name| name.strip_prefix('@')) {
        Some(name) => notify_abstract(name, states),
        None => sd_notify::notify(states),
    };
    if let Err(error) = sent {
        tracing::warn!(
            "cannot notify the service manager at {}: {error}",
            manager.display()
        );
    }
}

/// sd-notify takes paths only; containers and old systemd use abstract addresses.
fn notify_abstract(name: &str, states: &[NotifyState<'_>]) -> io::Result<()> {
    let manager = SocketAddr::from_abstract_name(name)?;
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &manager)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    fn refusal(socket: OwnedFd) -> String {
        adopt(socket, 3).expect_err("not to be used").to_string()
    }

    #[test]
    fn listening_stream_sockets_are_adopted() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let Listener::Tcp(tcp) = adopt(tcp.into(), 3).unwrap() else {
            panic!("it is TCP")
        };
        assert_eq!(tcp.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        TcpStream::connect(address).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(matches!(adopt(unix.into(), 4).unwrap(), Listener::Unix(_)));
    }

    #[test]
    fn anything_else_is_refused_with_the_descriptor_and_advice() {
        let file = File::open("/dev/null").unwrap();
        assert_eq!(
            refusal(file.into()),
            format!("cannot use the socket passed as descriptor 3: it is no socket; {UNIT_ADVICE}")
        );
        let (connected, _peer) = UnixStream::pair().unwrap();
        assert!(refusal(connected.into()).contains("it does not listen"));
        let datagram = UnixDatagram::unbound().unwrap();
        assert!(refusal(datagram.into()).contains("it does not listen"));
    }

    #[test]
    fn notifications_reach_an_abstract_address() {
        let name = format!("corio-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        notify_abstract(&name, &[NotifyState::Ready, NotifyState::Status("x y")]).unwrap();
        let mut message = [0; 64];
        let len = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..len], b"READY=1\nSTATUS=x y\n");
    }
}
