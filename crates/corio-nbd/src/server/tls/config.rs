//! Certificates and keys, from PEM.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{InconsistentKeys, RootCertStore, crypto};

/// Whether clients may do without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// Every option but STARTTLS and ABORT is refused before it (the protocol's FORCEDTLS).
    #[default]
    Required,
    /// The client decides (SELECTIVETLS without an export that is for TLS only).
    Allowed,
}

/// What a server needs to speak TLS. Cheap to clone.
///
/// TLS 1.2 and 1.3 are spoken, with the cipher suites rustls thinks safe. Sessions are not resumed:
/// NBD connections are few and long.
///
/// ```
/// use corio_nbd::server::{TlsConfig, TlsConfigError};
///
/// let refused = TlsConfig::from_pem(b"no PEM", b"no PEM", None).unwrap_err();
/// assert!(matches!(refused, TlsConfigError::NoCertificate));
/// ```
#[derive(Clone)]
pub struct TlsConfig {
    /// Whether clients may do without.
    pub policy: TlsPolicy,
    pub(in crate::server) rustls: Arc<rustls::ServerConfig>,
    asks_for_certificates: bool,
}

/// Why certificates and keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// There is none where the server's should be.
    #[error("it holds no certificate in PEM form")]
    NoCertificate,
    /// The server's certificate cannot be used.
    #[error("the certificate cannot be used: {0}")]
    BadCertificate(String),
    /// There is none where the server's should be.
    #[error("it holds no private key in PEM form that is not encrypted")]
    NoKey,
    /// The server's key cannot be used.
    #[error("the private key cannot be used: {0}")]
    BadKey(String),
    /// The key is not the certificate's.
    #[error("the private key is not that of the certificate")]
    KeyMismatch,
    /// There is no CA where the clients' should be.
    #[error("it holds no CA certificate in PEM form")]
    NoClientCa,
    /// The clients' CA cannot be used.
    #[error("the CA certificate cannot be used: {0}")]
    BadClientCa(String),
}

impl TlsConfig {
    /// A server that shows `certificate` (PEM; its own first, then those that lead to the CA's) and
    /// proves it with `key` (PEM; PKCS#8, PKCS#1 or SEC1, not encrypted). With `client_ca` (PEM, one
    /// or more), clients must show a certificate that one of these has signed.
    ///
    /// TLS is then [required](TlsPolicy::Required). Pure computation; from any thread.
    ///
    /// # Errors
    /// What of the three cannot be used, and why.
    pub fn from_pem(
        certificate: &[u8],
        key: &[u8],
        client_ca: Option<&[u8]>,
    ) -> Result<Self, TlsConfigError> {
        let chain = certificates(certificate).map_err(TlsConfigError::BadCertificate)?;
        if chain.is_empty() {
            return Err(TlsConfigError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsConfigError::NoKey,
            error => TlsConfigError::BadKey(error.to_string()),
        })?;
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsConfigError::BadCertificate(error.to_string()))?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(roots(ca)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| TlsConfigError::BadClientCa(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut rustls = builder.with_single_cert(chain, key).map_err(unusable)?;
        rustls.session_storage = Arc::new(NoServerSessionStorage {});
        rustls.send_tls13_tickets = 0;
        Ok(Self {
            policy: TlsPolicy::Required,
            rustls: Arc::new(rustls),
            asks_for_certificates: client_ca.is_some(),
        })
    }

    /// The same with another policy.
    #[must_use]
    pub fn with_policy(self, policy: TlsPolicy) -> Self {
        Self { policy, ..self }
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("policy", &self.policy)
            .field("asks_for_certificates", &self.asks_for_certificates)
            .finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem).map_err(TlsConfigError::BadClientCa)? {
        roots
            .add(certificate)
            .map_err(|error| TlsConfigError::BadClientCa(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsConfigError::NoClientCa);
    }
    Ok(roots)
}

/// What rustls has against a pair of certificate and key.
fn unusable(error: rustls::Error) -> TlsConfigError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsConfigError::KeyMismatch
        }
        rustls::Error::InvalidCertificate(why) => TlsConfigError::BadCertificate(why.to_string()),
        rustls::Error::General(why) => TlsConfigError::BadKey(why),
        other => TlsConfigError::BadCertificate(other.to_string()),
    }
}
