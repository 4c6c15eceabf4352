//! `--tls-cert` and what goes with it: the files, read and checked before anybody can connect.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use corio_nbd::server::{TlsConfig, TlsConfigError, TlsPolicy};

use super::address::{secure_uri, shell_word, uri_with_certificates};
use crate::args::{ServeArgs, TlsMode};
use crate::report::Failure;

/// Longest file that is read: certificates of a whole chain take a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What clients need besides an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Whether they must show a certificate.
    pub(crate) client_certificate: bool,
    /// A directory that has it all, under the names that libnbd knows.
    pub(crate) directory: Option<PathBuf>,
}

/// Reads what `--tls-cert`, `--tls-key` and `--tls-client-ca` name. `None`: no TLS is asked for.
///
/// # Errors
/// A file cannot be read, or does not hold what it must.
pub(crate) fn load(args: &ServeArgs) -> Result<Option<TlsConfig>, Failure> {
    // The command line has both or none.
    let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(None);
    };
    let certificate = read("certificate", cert)?;
    let private = read("private key", key)?;
    let ca = args.tls_client_ca.as_ref();
    let client_ca = ca.map(|path| read("CA certificate", path)).transpose()?;
    let config =
        TlsConfig::from_pem(&certificate, &private, client_ca.as_deref()).map_err(|error| {
            explain(
                &error,
                cert,
                key,
                ca.map_or(Path::new(""), PathBuf::as_path),
            )
        })?;
    warn_of_open_key(key);
    let policy = match args.tls.unwrap_or(TlsMode::Required) {
        TlsMode::Required => TlsPolicy::Required,
        TlsMode::Allowed => TlsPolicy::Allowed,
    };
    Ok(Some(config.with_policy(policy)))
}

/// What clients need. `None`: no TLS.
pub(crate) fn needs(args: &ServeArgs) -> Option<Needs> {
    let cert = args.tls_cert.as_ref()?;
    let client_certificate = args.tls_client_ca.is_some();
    let directory = std::path::absolute(cert).ok();
    let directory = directory.and_then(|path| path.parent().map(Path::to_owned));
    let has = |directory: &PathBuf| {
        let client = ["client-cert.pem", "client-key.pem"];
        let client = client.iter().filter(|_| client_certificate);
        let mut files = ["ca-cert.pem"].iter().chain(client);
        files.all(|name| directory.join(name).is_file())
    };
    Some(Needs {
        client_certificate,
        directory: directory.filter(has),
    })
}

impl Needs {
    /// The URI for a client of this machine; with a place to fill in where it is not known what
    /// the client has.
    pub(crate) fn client_uri(&self, uri: &str) -> String {
        let directory = self.directory.as_deref().unwrap_or(Path::new("DIR"));
        uri_with_certificates(&secure_uri(uri), directory)
    }

    /// What DIR in [`client_uri`](Self::client_uri) is.
    pub(crate) fn explain_directory(&self) -> Option<&'static str> {
        match (&self.directory, self.client_certificate) {
            (Some(_), _) => None,
            (None, false) => Some("DIR: a directory with ca-cert.pem, the server certificate's CA"),
            (None, true) => Some(
                "DIR: a directory with ca-cert.pem, the server certificate's CA, client-cert.pem \
                 and client-key.pem",
            ),
        }
    }
}

fn cannot_use(what: &str, path: &Path) -> Failure {
    Failure::new(format!("cannot use TLS {what} {}", path.display()))
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let result =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    if let Err(error) = result {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => "run as its owner or change its permissions",
            io::ErrorKind::IsADirectory => "give the file, not its directory",
            _ => "check the path",
        };
        return Err(cannot_use(what, path).io(&error).advice(advice));
    }
    if bytes.len() > usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX) {
        return Err(cannot_use(what, path)
            .why("it is longer than 1 MiB")
            .advice("give a PEM file with what is needed and no more"));
    }
    Ok(bytes)
}

/// Says so if anybody of the machine can read the key.
fn warn_of_open_key(path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o004 != 0 {
        let word = shell_word(path.as_os_str());
        tracing::warn!("the TLS key {word} can be read by everybody; chmod o-r {word}");
    }
}

/// The server's words for what is wrong with which file.
fn explain(error: &TlsConfigError, cert: &Path, key: &Path, ca: &Path) -> Failure {
    use TlsConfigError as Error;
    let (failure, advice) = match error {
        Error::NoCertificate | Error::BadCertificate(_) => (
            cannot_use("certificate", cert),
            "give a PEM file with the server's certificate, and behind it those up to its CA"
                .to_owned(),
        ),
        Error::KeyMismatch => (
            cannot_use("private key", key),
            format!("give the key that {} was made with", cert.display()),
        ),
        Error::NoClientCa | Error::BadClientCa(_) => (
            cannot_use("CA certificate", ca),
            "give a PEM file with the CA certificates that sign clients' certificates".to_owned(),
        ),
        _ => (
            cannot_use("private key", key),
            "give a PEM file with an RSA, ECDSA or Ed25519 key that is not encrypted (openssl pkey \
             decrypts one)"
                .to_owned(),
        ),
    };
    failure.why(error.to_string()).advice(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_what_they_need() {
        let needs = |client_certificate, directory: Option<&str>| Needs {
            client_certificate,
            directory: directory.map(PathBuf::from),
        };
        let known = needs(true, Some("/etc/a b"));
        assert_eq!(
            known.client_uri("nbd://localhost:1/x"),
            "nbds://localhost:1/x?tls-certificates=/etc/a%20b"
        );
        assert_eq!(known.explain_directory(), None);
        let unknown = needs(false, None);
        assert_eq!(
            unknown.client_uri("nbd+unix:///?socket=/a"),
            "nbds+unix:///?socket=/a&tls-certificates=DIR"
        );
        let text = unknown.explain_directory().unwrap();
        assert!(
            text.contains("ca-cert.pem") && !text.contains("client"),
            "{text}"
        );
        let text = needs(true, None).explain_directory().unwrap();
        assert!(text.contains("client-key.pem"), "{text}");
    }

    #[test]
    fn endless_files_are_not_read_to_their_end() {
        let error = read("certificate", Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("longer than 1 MiB"), "{error}");
    }
}
