//! Listening on TCP, and the options of accepted connections.
//!
//! A host may stand for several addresses (`localhost`, `*`, a name): each gets a socket of its own
//! with the same port, IPv6 ones for IPv6 only. Those whose family this machine lacks are skipped,
//! as long as one remains.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::net::{bind, listen, socket_with};

use super::BACKLOG;
use super::address::{Address, Host};
use crate::report::{Failure, errno_text};

/// Port 0 and several addresses: how often to look for a port that is free on all of them.
const FREE_PORT_TRIES_MAX: u32 = 16;

/// A peer that nothing is sent to is asked for a sign of life after this time of silence, ..
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// .. again each time this has passed, ..
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// .. so often, and is then given up: not before the server's limit on silence is over, which the
/// kernel applies to keepalive too.
const KEEPALIVE_PROBES: u32 = 6;

/// Listens on every address `address` stands for. Returns the sockets and their port.
///
/// # Errors
/// The name does not resolve, or an address is in use, not this machine's, or not allowed.
pub(crate) fn listen_on(address: &Address) -> Result<(Vec<TcpListener>, u16), Failure> {
    let ips = resolve(address)?;
    let mut tries = 0;
    loop {
        match bind_all(&ips, address.port) {
            Ok(bound) => return Ok(bound),
            Err((_, Errno::ADDRINUSE)) if address.port == 0 && tries < FREE_PORT_TRIES_MAX => {
                tries += 1;
            }
            Err((at, errno)) => return Err(cannot_listen(address, at, errno)),
        }
    }
}

/// The addresses to bind, without duplicates, in the order clients try them least surprisingly.
fn resolve(address: &Address) -> Result<Vec<IpAddr>, Failure> {
    let (v4, v6) = match &address.host {
        Host::Any => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        Host::Localhost => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        Host::Ip(ip) => return Ok(vec![*ip]),
        Host::Name(name) => return look_up(name, address),
    };
    Ok(vec![IpAddr::V4(v4), IpAddr::V6(v6)])
}

fn look_up(name: &str, address: &Address) -> Result<Vec<IpAddr>, Failure> {
    let unknown = |why: String| {
        Failure::new(format!("cannot listen on {address}"))
            .why(why)
            .advice("check the host name, or give an address")
    };
    let found = (name, address.port).to_socket_addrs().map_err(|error| {
        let text = errno_text(&error);
        let why = text.strip_prefix("failed to lookup address information: ");
        unknown(why.unwrap_or(&text).to_owned())
    })?;
    let mut ips = Vec::new();
    for ip in found.map(|found| found.ip()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    if ips.is_empty() {
        return Err(unknown("the name has no address".to_owned()));
    }
    Ok(ips)
}

/// Binds all of `ips` that exist here to one port, which is chosen by the first if it is 0.
fn bind_all(ips: &[IpAddr], port: u16) -> Result<(Vec<TcpListener>, u16), (SocketAddr, Errno)> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut port = port;
    let mut skipped = None;
    for &ip in ips {
        let at = SocketAddr::new(ip, port);
        match bind_one(at) {
            Ok((listener, bound)) => {
                listeners.push(listener);
                port = bound;
            }
            Err(errno @ (Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)) => {
                skipped = Some((at, errno));
            }
            Err(errno) => return Err((at, errno)),
        }
    }
    match skipped {
        Some(skipped) if listeners.is_empty() => Err(skipped),
        _ => Ok((listeners, port)),
    }
}

fn bind_one(at: SocketAddr) -> Result<(TcpListener, u16), Errno> {
    let family = if at.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of an earlier server that linger in TIME_WAIT must not keep this one from
    // starting.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    let listener = TcpListener::from(socket);
    let bound = listener.local_addr().map_err(|error| errno_of(&error))?;
    Ok((listener, bound.port()))
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn cannot_listen(address: &Address, at: SocketAddr, errno: Errno) -> Failure {
    // Name the socket too where it is one of several.
    let what = match &address.host {
        Host::Ip(_) => format!("cannot listen on {address}"),
        _ => format!("cannot listen on {address} ({at})"),
    };
    let advice = match errno {
        Errno::ADDRINUSE => {
            "stop the server that uses it, or choose another port with --listen (0 picks a free one)"
        }
        Errno::ACCESS | Errno::PERM => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one with --listen"
        }
        Errno::ADDRNOTAVAIL => "choose one of this machine's addresses, or * for all of them",
        Errno::AFNOSUPPORT => "this machine lacks that kind of address: choose another one",
        _ => "choose another address with --listen",
    };
    Failure::new(what).io(&errno.into()).advice(advice)
}

/// Makes an accepted connection prompt, and its end noticed also while nothing is sent. What is
/// sent and not acknowledged is the server's to watch: see `ServerConfig::silence_max`.
///
/// # Errors
/// The connection is already gone.
pub(crate) fn tune(stream: &TcpStream) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn has_ipv6() -> bool {
        TcpListener::bind("[::1]:0").is_ok()
    }

    #[test]
    fn port_zero_picks_one_port_for_all_addresses() {
        let (listeners, port) = listen_on(&address("localhost:0")).unwrap();
        assert_ne!(port, 0);
        assert_eq!(listeners.len(), if has_ipv6() { 2 } else { 1 });
        for listener in &listeners {
            assert_eq!(listener.local_addr().unwrap().port(), port);
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        }
    }

    #[test]
    fn any_listens_on_both_families_apart() {
        let (listeners, port) = listen_on(&address("*:0")).unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
        if has_ipv6() {
            assert_eq!(listeners.len(), 2);
            assert!(sockopt::ipv6_v6only(&listeners[1]).unwrap());
            assert!(TcpStream::connect(("::1", port)).is_ok());
        }
    }

    #[test]
    fn an_address_in_use_is_refused_with_advice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen_on(&address(&format!("127.0.0.1:{port}")))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!(
                "cannot listen on 127.0.0.1:{port}: Address already in use; stop the server that \
                 uses it, or choose another port with --listen (0 picks a free one)"
            )
        );
        let error = listen_on(&address(&format!("localhost:{port}")))
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!(
            "localhost:{port} (127.0.0.1:{port}): Address already"
        )));
    }

    #[test]
    fn a_port_can_be_used_again_right_after_its_server_has_ended() {
        let (listeners, port) = listen_on(&address("127.0.0.1:0")).unwrap();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        listeners[0].set_nonblocking(false).unwrap();
        drop(listeners[0].accept().unwrap()); // closes first: TIME_WAIT is on this side
        drop(listeners);
        listen_on(&address(&format!("127.0.0.1:{port}"))).unwrap();
    }

    #[test]
    fn a_foreign_address_is_refused_with_advice() {
        let error = listen_on(&address("192.0.2.1:0")).unwrap_err().to_string();
        assert!(error.contains("Cannot assign requested address; choose one of this machine's"));
    }

    #[test]
    fn an_unknown_name_is_refused_with_advice() {
        let error = listen_on(&address("no-such-host.invalid:1"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot listen on no-such-host.invalid:1: "),
            "{error}"
        );
        assert!(
            error.ends_with("; check the host name, or give an address"),
            "{error}"
        );
        assert!(!error.contains("lookup address information"), "{error}");
    }

    #[test]
    fn every_errno_of_listening_has_advice() {
        let at: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let cases = [
            (Errno::ACCESS, "Permission denied; ports below 1024"),
            (Errno::PERM, "Operation not permitted; ports below 1024"),
            (
                Errno::AFNOSUPPORT,
                "Address family not supported by protocol; this machine lacks",
            ),
            (Errno::NOMEM, "; choose another address"),
        ];
        for (errno, text) in cases {
            let error = cannot_listen(&address("localhost:1"), at, errno).to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn missing_families_are_skipped_only_while_one_remains() {
        let foreign = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (listeners, _) = bind_all(&[foreign, local], 0).unwrap();
        assert_eq!(listeners.len(), 1);
        assert_eq!(bind_all(&[foreign], 0).unwrap_err().1, Errno::ADDRNOTAVAIL);
    }

    #[test]
    fn accepted_connections_are_tuned() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        tune(&stream).unwrap();
        assert!(sockopt::tcp_nodelay(&stream).unwrap());
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), KEEPALIVE_PROBES);
    }
}
