//! The subject of a client's certificate, for messages.

use rustls::pki_types::CertificateDer;

/// Longest subject that is shown.
const SUBJECT_LEN_MAX: usize = 256;
/// DER tags (X.690, section 8).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// Attributes of names (RFC 5280, appendix A.1), after the two bytes that all of them begin with.
const ATTRIBUTES: [(u8, &str); 4] = [(3, "CN"), (6, "C"), (10, "O"), (11, "OU")];

/// `CN=name,O=organisation`: what the certificate, which was verified, says of its owner. Other
/// attributes than the common ones are left out, and control characters escaped.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> String {
    let parsed = webpki::EndEntityCert::try_from(certificate);
    parsed.map_or_else(|_| String::new(), |parsed| text(parsed.subject()))
}

/// The name whose relative distinguished names these are.
fn text(mut names: &[u8]) -> String {
    let mut text = String::new();
    while let Some((SET, mut set, rest)) = element(names) {
        names = rest;
        while let Some((SEQUENCE, pair, rest)) = element(set) {
            set = rest;
            if let Some((label, value)) = attribute(pair) {
                if !text.is_empty() {
                    text.push(',');
                }
                text.push_str(label);
                text.push('=');
                text.extend(String::from_utf8_lossy(value).escape_debug());
            }
        }
    }
    let end = text.floor_char_boundary(SUBJECT_LEN_MAX);
    text.truncate(end);
    text
}

/// The attribute's short name and its value, if it is one of [`ATTRIBUTES`].
fn attribute(pair: &[u8]) -> Option<(&'static str, &[u8])> {
    let (tag, id, rest) = element(pair)?;
    let &[0x55, 0x04, number] = id else {
        return None;
    };
    let (_, value, _) = element(rest)?;
    let found = ATTRIBUTES.iter().find(|(known, _)| *known == number)?;
    (tag == OBJECT_ID).then_some((found.1, value))
}

/// Tag, content and what follows of the DER element at the front.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => {
            let (&len, rest) = rest.split_first()?;
            (usize::from(len), rest)
        }
        0x82 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        // Names of 64 KiB and more are nobody's.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(names: &[(DnType, &str)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn subject_names_the_common_attributes() {
        let certificate = certificate(&[
            (DnType::OrganizationName, "A & B"),
            (DnType::StateOrProvinceName, "left out"),
            (DnType::CommonName, "client\n1"),
        ]);
        assert_eq!(subject(&certificate), "O=A & B,CN=client\\n1");
    }

    #[test]
    fn long_subject_is_cut() {
        let certificate = certificate(&[(DnType::CommonName, &"\u{e4}".repeat(400))]);
        let subject = subject(&certificate);
        assert!(subject.starts_with("CN=\u{e4}"), "{subject}");
        assert!((SUBJECT_LEN_MAX - 1..=SUBJECT_LEN_MAX).contains(&subject.len()));
    }

    #[test]
    fn what_is_no_certificate_has_no_subject() {
        assert_eq!(subject(&CertificateDer::from(vec![0x30, 0x82, 0xff])), "");
    }

    #[test]
    fn broken_names_end_where_they_break() {
        for broken in [
            &b""[..],
            b"\x31",
            b"\x31\x82\x01",
            b"\x31\x83\x00\x00\x01\x00",
            b"\x31\x05\x30\x03\x06\x01\x55",
            b"\x31\x09\x30\x07\x06\x03\x55\x04\x03\x0c\x7f",
        ] {
            assert_eq!(text(broken), "", "{broken:?}");
        }
        assert_eq!(
            text(b"\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01x\x99"),
            "CN=x"
        );
    }
}
