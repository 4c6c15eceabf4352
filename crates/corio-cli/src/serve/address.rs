//! Addresses as the user writes them, and the URIs under which clients find them. No I/O.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

/// The port that IANA registered for NBD.
pub(crate) const PORT_DEFAULT: u16 = 10809;

/// One `--listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: Host,
    /// 0 asks for a free one.
    pub(crate) port: u16,
}

/// The part before the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// `*`: every address of the machine, both families.
    Any,
    /// Both loopback addresses, without asking a resolver.
    Localhost,
    Ip(IpAddr),
    /// To be looked up.
    Name(String),
}

/// What is wrong with a `--listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadAddress {
    Port,
    Host,
    Shape,
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "bad port: give a number from 0 to 65535",
            Self::Host => "bad host: give a name, an address, [IPv6 address] or *",
            Self::Shape => "bad address: give HOST:PORT, as localhost:10809, [::1]:0 or *:10809",
        })
    }
}

impl std::error::Error for BadAddress {}

impl Address {
    /// Where corio listens when nobody says where.
    pub(crate) fn default_local() -> Self {
        Self {
            host: Host::Localhost,
            port: PORT_DEFAULT,
        }
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let (host, port) = text.rsplit_once(':').ok_or(BadAddress::Shape)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(BadAddress::Shape)?;
                let ip: Ipv6Addr = inner.parse().map_err(|_| BadAddress::Host)?;
                Host::Ip(IpAddr::V6(ip))
            }
            // An IPv6 address without brackets: where it ends and the port begins is a guess.
            None if host.contains(':') => return Err(BadAddress::Shape),
            None => parse_host(host)?,
        };
        // `u16::from_str` would take a sign.
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadAddress::Port);
        }
        let port = port.parse().map_err(|_| BadAddress::Port)?;
        Ok(Self { host, port })
    }
}

fn parse_host(host: &str) -> Result<Host, BadAddress> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host == "*" {
        Ok(Host::Any)
    } else if host.eq_ignore_ascii_case("localhost") {
        Ok(Host::Localhost)
    } else if let Ok(ip) = host.parse::<Ipv4Addr>() {
        Ok(Host::Ip(IpAddr::V4(ip)))
    } else if host.is_empty() || !host.chars().all(allowed) {
        Err(BadAddress::Host)
    } else {
        Ok(Host::Name(host.to_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Localhost => f.write_str("localhost"),
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// `nbd://HOST:PORT/EXPORT`, with a host that clients on this machine can use.
pub(crate) fn tcp_uri(host: &Host, port: u16, export: &str) -> String {
    let mut uri = match host {
        Host::Any => format!("nbd://localhost:{port}/"),
        host => format!("nbd://{host}:{port}/"),
    };
    percent_encode(&mut uri, export.as_bytes());
    uri
}

/// The same for a socket whose address is all that is known.
pub(crate) fn socket_uri(address: SocketAddr, export: &str) -> String {
    let host = match address.ip() {
        ip if ip.is_unspecified() => Host::Any,
        ip => Host::Ip(ip),
    };
    tcp_uri(&host, address.port(), export)
}

/// `nbd+unix:///EXPORT?socket=PATH`.
pub(crate) fn unix_uri(path: &Path, export: &str) -> String {
    let mut uri = String::from("nbd+unix:///");
    percent_encode(&mut uri, export.as_bytes());
    uri.push_str("?socket=");
    percent_encode(&mut uri, path.as_os_str().as_bytes());
    uri
}

/// The same address for clients that speak TLS.
pub(crate) fn secure_uri(uri: &str) -> String {
    uri.replacen("nbd", "nbds", 1)
}

/// The URI with the directory in which libnbd finds the certificates.
pub(crate) fn uri_with_certificates(uri: &str, directory: &Path) -> String {
    let separator = if uri.contains('?') { '&' } else { '?' };
    let mut uri = format!("{uri}{separator}tls-certificates=");
    percent_encode(&mut uri, directory.as_os_str().as_bytes());
    uri
}

/// Appends `bytes`, all but RFC 3986's unreserved characters and `/` as `%XX`.
fn percent_encode(uri: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            uri.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
}

/// `word` so that a shell reads it as one word.
pub(crate) fn shell_word(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/:@%+=,[]".contains(c);
    // A bracket is a glob only where a file matches it, but zsh makes an error of it.
    if !word.is_empty() && word.chars().all(plain) && !word.contains('[') {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<Address, BadAddress> {
        text.parse()
    }

    #[test]
    fn every_kind_of_host() {
        let v4 = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(
            address("*:1"),
            Ok(Address {
                host: Host::Any,
                port: 1
            })
        );
        assert_eq!(
            address("LocalHost:0"),
            Ok(Address {
                host: Host::Localhost,
                port: 0
            })
        );
        assert_eq!(
            address("192.0.2.1:65535"),
            Ok(Address {
                host: Host::Ip(v4),
                port: 65535
            })
        );
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(
            address("[::1]:9"),
            Ok(Address {
                host: Host::Ip(v6),
                port: 9
            })
        );
        let name = Host::Name("disk-1.example".to_owned());
        assert_eq!(
            address("disk-1.example:10809"),
            Ok(Address {
                host: name,
                port: 10809
            })
        );
    }

    #[test]
    fn malformed_addresses_say_which_part() {
        for text in ["", "localhost", "[::1]", "::1:10809", "[::1:10809", "a:b:1"] {
            assert_eq!(address(text), Err(BadAddress::Shape), "{text}");
        }
        for text in [
            "[::1]:", "a:", "a:65536", "a:-1", "a:+1", "a:nbd", "a: 1", "a:1 ",
        ] {
            let got = address(text);
            assert!(matches!(got, Err(BadAddress::Port)), "{text}: {got:?}");
        }
        for text in [
            ":1",
            "a b:1",
            "[1.2.3.4]:1",
            "[]:1",
            "a/b:1",
            "**:1",
            "$x:1",
        ] {
            assert_eq!(address(text), Err(BadAddress::Host), "{text}");
        }
    }

    #[test]
    fn addresses_print_as_they_are_read() {
        for text in [
            "*:0",
            "localhost:10809",
            "192.0.2.1:1",
            "[2001:db8::1]:2",
            "name:3",
        ] {
            assert_eq!(address(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn uris_for_tcp() {
        assert_eq!(
            tcp_uri(&Host::Localhost, 10809, ""),
            "nbd://localhost:10809/"
        );
        assert_eq!(tcp_uri(&Host::Any, 1, "a b"), "nbd://localhost:1/a%20b");
        let v6 = Host::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(tcp_uri(&v6, 2, "x/é?"), "nbd://[::1]:2/x/%C3%A9%3F");
        let any: SocketAddr = "0.0.0.0:3".parse().unwrap();
        assert_eq!(socket_uri(any, ""), "nbd://localhost:3/");
    }

    #[test]
    fn uris_for_unix_sockets() {
        assert_eq!(
            unix_uri(Path::new("/run/a.sock"), ""),
            "nbd+unix:///?socket=/run/a.sock"
        );
        assert_eq!(
            unix_uri(Path::new("/tmp/a&b c"), "disk 1"),
            "nbd+unix:///disk%201?socket=/tmp/a%26b%20c"
        );
        let odd = Path::new(OsStr::from_bytes(b"/tmp/\xff"));
        assert_eq!(unix_uri(odd, ""), "nbd+unix:///?socket=/tmp/%FF");
    }

    #[test]
    fn words_for_the_shell() {
        let word = |text: &str| shell_word(OsStr::new(text));
        assert_eq!(word("nbd://localhost:10809/"), "nbd://localhost:10809/");
        assert_eq!(word("nbd+unix:///?socket=/a"), "'nbd+unix:///?socket=/a'");
        assert_eq!(word("nbd://[::1]:1/"), "'nbd://[::1]:1/'");
        assert_eq!(word("it's"), r"'it'\''s'");
        assert_eq!(word(""), "''");
    }
}
