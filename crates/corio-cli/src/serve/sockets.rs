//! All the sockets to listen on: systemd's, `--listen`, `--unix`, or the default.

use std::path::Path;

use super::accept::Listener;
use super::address::{Address, socket_uri, tcp_uri, unix_uri};
use super::litter::Litter;
use super::{systemd, tcp, unix};
use crate::args::ServeArgs;
use crate::report::Failure;

/// Sockets that listen, and how clients reach them.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<Listener>,
    /// One for each address asked for, even where that took several sockets.
    pub(crate) uris: Vec<String>,
}

/// Opens what the command line and the service manager ask for.
///
/// # Errors
/// One of them cannot be listened on; those opened before it are closed and removed.
pub(crate) fn open(args: &ServeArgs, litter: &Litter) -> Result<Sockets, Failure> {
    let mut sockets = Sockets::default();
    for listener in systemd::inherited()? {
        sockets.uris.extend(inherited_uri(&listener, &args.name));
        sockets.listeners.push(listener);
    }
    for address in &args.listen {
        sockets.add_tcp(address, &args.name)?;
    }
    for path in &args.unix {
        let listener = unix::listen_at(path, args.unix_mode, litter)?;
        sockets.listeners.push(Listener::Unix(listener));
        sockets.uris.push(unix_uri(&absolute(path), &args.name));
    }
    if sockets.listeners.is_empty() {
        sockets.add_tcp(&Address::default_local(), &args.name)?;
    }
    Ok(sockets)
}

impl Sockets {
    fn add_tcp(&mut self, address: &Address, export: &str) -> Result<(), Failure> {
        let (listeners, port) = tcp::listen_on(address)?;
        self.listeners
            .extend(listeners.into_iter().map(Listener::Tcp));
        self.uris.push(tcp_uri(&address.host, port, export));
        Ok(())
    }
}

/// `None` for an abstract Unix address, which no NBD URI can express.
fn inherited_uri(listener: &Listener, export: &str) -> Option<String> {
    match listener {
        Listener::Tcp(listener) => Some(socket_uri(listener.local_addr().ok()?, export)),
        Listener::Unix(listener) => {
            let address = listener.local_addr().ok()?;
            Some(unix_uri(&absolute(address.as_pathname()?), export))
        }
    }
}

/// For clients with another working directory; unless that makes the path longer than a socket's
/// address can be.
fn absolute(path: &Path) -> std::path::PathBuf {
    match std::path::absolute(path) {
        Ok(absolute) if rustix::net::SocketAddrUnix::new(&absolute).is_ok() => absolute,
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    fn args(words: &[&str]) -> ServeArgs {
        let Command::Serve(args) = Cli::try_parse_from(["corio", "serve"].iter().chain(words))
            .unwrap()
            .command;
        *args
    }

    fn port(uri: &str) -> u16 {
        uri.rsplit_once(':')
            .unwrap()
            .1
            .split('/')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    #[test]
    fn every_address_is_opened_and_has_one_uri() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let litter = Litter::default();
        let words = [
            "--listen=localhost:0",
            "--listen=127.0.0.1:0",
            "--name=x y",
            "--unix",
        ];
        let words: Vec<&str> = words.into_iter().chain([path.to_str().unwrap()]).collect();
        let sockets = open(&args(&words), &litter).unwrap();
        let [localhost, literal, unix] = &sockets.uris[..] else {
            panic!("{:?}", sockets.uris)
        };
        assert!(localhost.starts_with("nbd://localhost:") && localhost.ends_with("/x%20y"));
        assert!(literal.starts_with("nbd://127.0.0.1:"), "{literal}");
        assert_eq!(
            *unix,
            format!("nbd+unix:///x%20y?socket={}", path.display())
        );
        TcpStream::connect(("127.0.0.1", port(localhost))).unwrap();
        TcpStream::connect(("127.0.0.1", port(literal))).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_failure_removes_what_was_opened_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("s");
        let words = [
            "--unix",
            first.to_str().unwrap(),
            "--unix",
            "/no/such/dir/s",
        ];
        let litter = Litter::default();
        let error = open(&args(&words), &litter).unwrap_err().to_string();
        assert!(error.contains("/no/such/dir/s"), "{error}");
        drop(litter);
        assert!(!first.exists());
    }

    #[test]
    fn inherited_sockets_have_the_uri_of_their_address() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let uri = inherited_uri(&Listener::Tcp(tcp), "e").unwrap();
        assert_eq!(uri, format!("nbd://127.0.0.1:{port}/e"));
        let any = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = any.local_addr().unwrap().port();
        let uri = inherited_uri(&Listener::Tcp(any), "").unwrap();
        assert_eq!(uri, format!("nbd://localhost:{port}/"));
    }

    #[test]
    fn relative_paths_become_absolute_where_that_fits() {
        assert_eq!(absolute(Path::new("/run/s")), Path::new("/run/s"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("s")), here.join("s"));
        let long = "x".repeat(107);
        assert_eq!(absolute(Path::new(&long)), Path::new(&long));
    }
}
