//! TLS for the tests: a CA with what it has signed, and a bridge that the small client talks
//! through.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tempfile::TempDir;

use super::nbd::Stream;
use super::serve::{Addr, Listening};
use super::tool::{Output, command, is_root};

/// A CA, a server's certificate for the loopback, and a client's, as PEM.
pub(crate) struct Pki {
    pub(crate) ca: String,
    pub(crate) server: Identity,
    pub(crate) client: Identity,
}

pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// What every server with TLS of these tests has, and every client of them knows.
pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::new("Corio's test CA"));

impl Pki {
    /// Another CA.
    pub(crate) fn new(name: &str) -> Pki {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let sign = |name: &str, addresses: &[&str]| {
            let addresses: Vec<String> = addresses.iter().map(|&it| it.to_owned()).collect();
            let mut params = CertificateParams::new(addresses).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            Identity {
                certificate: params.signed_by(&key, &ca).unwrap().pem(),
                key: key.serialize_pem(),
            }
        };
        Pki {
            ca: ca.pem(),
            server: sign("server", &["localhost", "127.0.0.1", "::1"]),
            client: sign("client", &[]),
        }
    }

    /// Writes it all, under the names that libnbd and qemu look for.
    pub(crate) fn write_to(&self, dir: &Path) {
        self.write_client_to(dir);
        self.server.write_to(dir, "server");
    }

    /// Writes what a client has.
    pub(crate) fn write_client_to(&self, dir: &Path) {
        std::fs::write(dir.join("ca-cert.pem"), &self.ca).unwrap();
        self.client.write_to(dir, "client");
    }

    /// A client's configuration that knows this CA, and shows its certificate if `shows`.
    pub(crate) fn client_config(&self, shows: bool) -> Arc<ClientConfig> {
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der(&self.ca)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let Identity { certificate, key } = &self.client;
        Arc::new(match shows {
            false => config.with_no_client_auth(),
            true => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config
                    .with_client_auth_cert(vec![der(certificate)], key)
                    .unwrap()
            }
        })
    }
}

impl Identity {
    fn write_to(&self, dir: &Path, name: &str) {
        std::fs::write(dir.join(format!("{name}-cert.pem")), &self.certificate).unwrap();
        let key = dir.join(format!("{name}-key.pem"));
        std::fs::write(&key, &self.key).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    }
}

/// Who a program is run as that root's certificates are not for.
const NOBODY: u32 = 65_534;

/// A home where libnbd finds a client's certificates by itself: for programs that do not let a URI
/// name them. For root it looks in /etc, so that such a program is run as somebody else then.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Home {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(".pki/libnbd");
        std::fs::create_dir_all(&dir).unwrap();
        PKI.write_client_to(&dir);
        let home = Home(home);
        home.hand_over(home.0.path());
        for entry in std::fs::read_dir(&dir).unwrap() {
            home.hand_over(&entry.unwrap().path());
        }
        home
    }

    /// A command that is run at home, by whose home it is.
    pub(crate) fn command(&self, line: &str) -> Command {
        let nobody = format!("setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups {line}");
        let mut command = command(if is_root() { &nobody } else { line });
        command
            .env("HOME", self.0.path())
            .current_dir(self.0.path());
        command
    }

    /// The URI by which whose home it is reaches a server.
    pub(crate) fn uri(&self, at: &Listening) -> String {
        if let Addr::Unix(path) = at.addr.below() {
            self.hand_over(path);
            self.hand_over(path.parent().unwrap());
        }
        without_certificates(&at.uri).to_owned()
    }

    fn hand_over(&self, path: &Path) {
        if is_root() {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

/// A URI that does not say where the certificates are.
pub(crate) fn without_certificates(uri: &str) -> &str {
    let bare = uri.split("tls-certificates").next().unwrap();
    bare.trim_end_matches(['?', '&'])
}

/// A client's state before its first message.
pub(crate) fn connection(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::clone(config), name).unwrap()
}

/// Speaks TLS over a stream whose STARTTLS was acknowledged, and returns one whose bytes go through
/// it.
pub(crate) fn secured(mut stream: Stream, config: &Arc<ClientConfig>) -> io::Result<Stream> {
    let mut tls = connection(config);
    while tls.is_handshaking() || tls.wants_write() {
        if let Err(error) = tls.complete_io(&mut stream) {
            // The server is to hear why.
            while tls.wants_write() && tls.write_tls(&mut stream).is_ok() {}
            return Err(error);
        }
    }
    let (near, far) = UnixStream::pair()?;
    let tls = Arc::new(Mutex::new(tls));
    // Patience is had at the near end.
    stream.set_forever()?;
    let (there, back) = (stream.try_clone()?, far.try_clone()?);
    let opened = Arc::clone(&tls);
    std::thread::spawn(move || bring(&opened, stream, back));
    std::thread::spawn(move || take(&tls, there, far));
    let near = Stream::Unix(near);
    near.set_patience(super::nbd::PATIENCE)?;
    Ok(near)
}

/// What the server sends, until it ends.
fn bring(tls: &Mutex<ClientConnection>, mut server: Stream, mut far: UnixStream) {
    let mut buf = vec![0; 1 << 16];
    let mut plain = Vec::new();
    while let Ok(n @ 1..) = server.read(&mut buf) {
        plain.clear();
        if open(&mut tls.lock().unwrap(), &buf[..n], &mut plain).is_err()
            || far.write_all(&plain).is_err()
        {
            break;
        }
    }
    // The client learns of it, and so does `take`.
    let _ = far.shutdown(Shutdown::Both);
}

fn open(tls: &mut ClientConnection, mut bytes: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let at = plain.len();
        plain.resize(at + state.plaintext_bytes_to_read(), 0);
        tls.reader().read_exact(&mut plain[at..])?;
    }
    Ok(())
}

/// What the client sends, until it ends.
fn take(tls: &Mutex<ClientConnection>, mut server: Stream, mut far: UnixStream) {
    let mut buf = vec![0; 1 << 15];
    let mut sealed = Vec::new();
    while let Ok(n @ 1..) = far.read(&mut buf) {
        sealed.clear();
        let mut tls = tls.lock().unwrap();
        // Less than what rustls keeps, which is made into records at once.
        tls.writer().write_all(&buf[..n]).unwrap();
        while tls.wants_write() {
            tls.write_tls(&mut sealed).unwrap();
        }
        drop(tls);
        if server.write_all(&sealed).is_err() {
            break;
        }
    }
    let mut tls = tls.lock().unwrap();
    tls.send_close_notify();
    sealed.clear();
    let _ = tls.write_tls(&mut sealed);
    let _ = server.write_all(&sealed);
    let _ = server.shutdown(Shutdown::Write);
}

/// The object and the image by which qemu's tools reach a server with TLS.
pub(crate) fn qemu_words(at: &Listening) -> (String, String) {
    let (_, dir) = at.uri.split_once("tls-certificates=").unwrap();
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={dir}");
    let server = match &at.addr {
        Addr::Tls(below) => match &**below {
            Addr::Tcp(addr) => format!(
                "file.server.type=inet,file.server.host={},file.server.port={}",
                addr.ip(),
                addr.port()
            ),
            Addr::Unix(path) => format!(
                "file.server.type=unix,file.server.path={},file.tls-hostname=localhost",
                path.display()
            ),
            Addr::Tls(_) => panic!("TLS in TLS"),
        },
        other => panic!("no TLS: {other:?}"),
    };
    let image = format!("driver=raw,file.driver=nbd,{server},file.tls-creds=tls0");
    (object, image)
}

/// Asserts that a program failed, and that what it said about it holds one of the texts.
#[track_caller]
pub(crate) fn assert_refused(output: Output, texts: &[&str]) {
    let output = output.fails();
    let said = &output.stderr;
    assert!(texts.iter().any(|text| said.contains(text)), "{said}");
}
