//! A client's side of TLS: certificates made for the test, and a bridge that lets the plain client
//! of these tests talk through it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::Client;
use crate::server::TlsConfig;
use crate::wire::OptionCode;

/// A CA, and what it has signed.
pub(in crate::server) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key.
pub(in crate::server) struct Identity {
    pub(in crate::server) certificate: Certificate,
    pub(in crate::server) key: KeyPair,
}

impl Authority {
    pub(in crate::server) fn new() -> Self {
        Self::named("test CA")
    }

    pub(in crate::server) fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(in crate::server) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(in crate::server) fn sign(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate, key }
    }

    /// A server's configuration with a certificate for `localhost`.
    pub(in crate::server) fn server(&self, client_ca: Option<&Authority>) -> TlsConfig {
        let own = self.sign("localhost");
        let ca = client_ca.map(Authority::pem);
        TlsConfig::from_pem(
            own.certificate.pem().as_bytes(),
            own.key.serialize_pem().as_bytes(),
            ca.as_ref().map(String::as_bytes),
        )
        .unwrap()
    }

    /// A client's configuration that trusts this CA, and shows who it is if it is somebody.
    pub(in crate::server) fn client(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        self.client_of(identity, &[&TLS12, &TLS13])
    }

    pub(in crate::server) fn client_of(
        &self,
        identity: Option<&Identity>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
                config
                    .with_client_auth_cert(vec![certificate.der().clone()], key)
                    .unwrap()
            }
        })
    }
}

pub(in crate::server) fn connection(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::clone(config), name).unwrap()
}

/// The handle to the far side of a bridge.
#[derive(Clone)]
pub(in crate::server) struct Far {
    tls: Arc<Mutex<ClientConnection>>,
    real: Arc<UnixStream>,
}

impl Far {
    /// Ends the connection as somebody who cuts the wire would.
    pub(in crate::server) fn cut(&self) {
        self.real.shutdown(Shutdown::Write).unwrap();
    }

    /// Changes the keys in both directions.
    pub(in crate::server) fn refresh_keys(&self) {
        let mut tls = self.tls.lock().unwrap();
        tls.refresh_traffic_keys().unwrap();
        flush(&mut tls, &self.real).unwrap();
    }

    /// Ends the client's direction with close_notify, and leaves the other open.
    pub(in crate::server) fn say_goodbye(&self) {
        let mut tls = self.tls.lock().unwrap();
        tls.send_close_notify();
        flush(&mut tls, &self.real).unwrap();
    }
}

/// STARTTLS and TLS's handshake; from then on the client talks through TLS and does not see it.
pub(super) fn upgrade(client: &mut Client, config: &Arc<ClientConfig>) -> io::Result<Far> {
    let answer = client.option(OptionCode::STARTTLS, &[]);
    assert_eq!(answer.error, None);
    assert_eq!(client.input, [], "nothing in plain text behind the answer");
    let mut tls = connection(config);
    while tls.is_handshaking() || tls.wants_write() {
        tls.complete_io(&mut client.stream)?;
    }
    let (near, inner) = UnixStream::pair().unwrap();
    near.set_read_timeout(client.stream.read_timeout().unwrap())
        .unwrap();
    let far = Far {
        tls: Arc::new(Mutex::new(tls)),
        real: Arc::new(std::mem::replace(&mut client.stream, near)),
    };
    let inner = Arc::new(inner);
    let (far_in, inner_in) = (far.clone(), Arc::clone(&inner));
    std::thread::spawn(move || bring(&far_in, &inner_in));
    let far_out = far.clone();
    std::thread::spawn(move || take(&far_out, &inner));
    Ok(far)
}

fn flush(tls: &mut ClientConnection, mut real: &UnixStream) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut real)?;
    }
    Ok(())
}

/// What the server sends, until it ends.
fn bring(far: &Far, mut inner: &UnixStream) {
    let mut buf = vec![0; 1 << 16];
    let mut real = &*far.real;
    let mut plain = Vec::new();
    while let Ok(n @ 1..) = real.read(&mut buf) {
        plain.clear();
        let opened = open(&mut far.tls.lock().unwrap(), &buf[..n], &mut plain);
        if opened.is_err() || inner.write_all(&plain).is_err() {
            break;
        }
    }
    let _ = inner.shutdown(Shutdown::Both);
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
fn take(far: &Far, mut inner: &UnixStream) {
    let mut buf = vec![0; 1 << 16];
    while let Ok(n @ 1..) = inner.read(&mut buf) {
        let mut rest = &buf[..n];
        let mut tls = far.tls.lock().unwrap();
        while !rest.is_empty() {
            let taken = tls.writer().write(rest).unwrap();
            rest = &rest[taken..];
            if flush(&mut tls, &far.real).is_err() {
                return;
            }
        }
    }
    let mut tls = far.tls.lock().unwrap();
    tls.send_close_notify();
    let _ = flush(&mut tls, &far.real);
    let _ = far.real.shutdown(Shutdown::Write);
}
