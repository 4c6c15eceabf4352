//! Telling people and programs where the disk is.

use std::ffi::OsStr;
use std::io::{self, Write};

use corio_block::Node;

use super::address::{secure_uri, shell_word};
use super::tls::Needs;
use crate::size;

/// Where the client to try comes from, and another one: whoever tries the first time may have none.
const CLIENTS: &str = "(Debian package libnbd-bin; or qemu-img info, from qemu-utils)";
/// The same where TLS is spoken, for which qemu-img has no URI.
const TLS_CLIENTS: &str = "(Debian package libnbd-bin)";

/// Prints `listening URI` for each address, then a client command to try.
///
/// With `--run` standard output belongs to the command, so these lines go to standard error. Nobody
/// reading them is no reason to fail.
pub(crate) fn addresses(uris: &[String], tls: Option<&Needs>, stdout_is_taken: bool) {
    let text = lines(uris, tls);
    let _ = if stdout_is_taken {
        io::stderr().write_all(text.as_bytes())
    } else {
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
    };
}

fn lines(uris: &[String], tls: Option<&Needs>) -> String {
    let shown = |uri: &String| match tls {
        None => uri.clone(),
        Some(_) => secure_uri(uri),
    };
    let mut text: String = uris
        .iter()
        .map(|uri| format!("listening {}\n", shown(uri)))
        .collect();
    if let Some(uri) = uris.first() {
        let (uri, clients) = match tls {
            None => (uri.clone(), CLIENTS.to_owned()),
            Some(tls) => {
                let clients = match tls.explain_directory() {
                    None => TLS_CLIENTS.to_owned(),
                    Some(text) => format!("{TLS_CLIENTS}\n     {text}"),
                };
                (tls.client_uri(uri), clients)
            }
        };
        let word = shell_word(OsStr::new(&uri));
        text.push_str(&format!("try: nbdinfo {word}   {clients}\n"));
    }
    text
}

/// One line for the service manager's status display.
pub(crate) fn status(node: &Node, uris: &[String]) -> String {
    describe(&size::human(node.size()), node.read_only(), uris)
}

fn describe(size: &str, read_only: bool, uris: &[String]) -> String {
    let access = if read_only { ", read-only" } else { "" };
    match uris {
        [] => format!("serving {size}{access}"),
        [uri] => format!("serving {size}{access} at {uri}"),
        [uri, rest @ ..] => format!("serving {size}{access} at {uri} and {} more", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uris(uris: &[&str]) -> Vec<String> {
        uris.iter().map(|&uri| uri.to_owned()).collect()
    }

    #[test]
    fn one_line_for_each_address_and_one_to_try() {
        assert_eq!(
            lines(
                &uris(&["nbd://localhost:10809/", "nbd+unix:///?socket=/a"]),
                None
            ),
            format!(
                "listening nbd://localhost:10809/\nlistening nbd+unix:///?socket=/a\n\
                 try: nbdinfo nbd://localhost:10809/   {CLIENTS}\n"
            )
        );
        assert_eq!(
            lines(&uris(&["nbd+unix:///?socket=/a"]), None),
            format!(
                "listening nbd+unix:///?socket=/a\n\
                 try: nbdinfo 'nbd+unix:///?socket=/a'   {CLIENTS}\n"
            )
        );
        assert_eq!(lines(&[], None), "");
    }

    #[test]
    fn with_tls_the_command_has_what_the_client_needs() {
        let mut tls = Needs {
            client_certificate: false,
            directory: Some("/c".into()),
        };
        let uris = uris(&["nbd://localhost:10809/"]);
        assert_eq!(
            lines(&uris, Some(&tls)),
            format!(
                "listening nbds://localhost:10809/\n\
                 try: nbdinfo 'nbds://localhost:10809/?tls-certificates=/c'   {TLS_CLIENTS}\n"
            )
        );
        tls.directory = None;
        let text = lines(&uris, Some(&tls));
        assert!(
            text.contains("tls-certificates=DIR") && text.contains("DIR: a"),
            "{text}"
        );
    }

    #[test]
    fn the_status_says_what_is_served_where() {
        assert_eq!(describe("1 GiB", false, &[]), "serving 1 GiB");
        assert_eq!(
            describe("1 GiB", true, &uris(&["a"])),
            "serving 1 GiB, read-only at a"
        );
        assert_eq!(
            describe("1 GiB", false, &uris(&["a", "b"])),
            "serving 1 GiB at a and 1 more"
        );
    }
}
