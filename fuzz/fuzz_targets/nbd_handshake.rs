//! Feeds bytes to the handshake of an NBD server as a client would, in flights of any length, with
//! and without TLS.
//!
//! Checked on the way, by a reading of the protocol that knows nothing of the server's: nothing
//! panics; all that is sent is well formed; each option is answered, in order, by replies of its
//! own that end with an acknowledgement or an error; TLS begins where STARTTLS was acknowledged and
//! nowhere else, and where it is required nobody gets an export, or hears of one, without.
#![no_main]

use std::sync::LazyLock;

use corio_block::{Length, memory};
use corio_nbd::server::fuzzing::{Client, Ending, Session, handshake};
use corio_nbd::server::{Export, TlsPolicy};
use corio_nbd::wire::{
    ClientFlags, ClientHello, Decoded, ExportNameReply, Greeting, OptionCode, OptionHeader,
    OptionReply, OptionReplyHeader, ReplyCode,
};
use libfuzzer_sys::fuzz_target;

static EXPORTS: LazyLock<Vec<Export>> = LazyLock::new(|| {
    ["", "disk"]
        .map(|name| {
            let disk = memory::Options::new(Length(1 << 20)).open();
            Export::new(name, disk.expect("a small memory disk"))
        })
        .into()
});

fuzz_target!(|data: &[u8]| {
    let Some((&choice, input)) = data.split_first() else {
        return;
    };
    let client = match choice & 3 {
        0 => Client::Plain,
        1 => Client::Offered(TlsPolicy::Allowed),
        2 => Client::Offered(TlsPolicy::Required),
        _ => Client::TurnedAway,
    };
    // Each flight begins with its length.
    let mut rest = input;
    let flights: Vec<&[u8]> = std::iter::from_fn(|| {
        let (&len, after) = rest.split_first()?;
        let (flight, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        Some(flight)
    })
    .collect();
    let session = handshake(client, &EXPORTS, flights.iter().copied());
    check(client, &flights.concat(), &session);
});

/// The codes of the options that were sent as a whole, and whether each might end the handshake.
fn options(mut sent: &[u8]) -> Option<(ClientFlags, Vec<OptionCode>)> {
    let Ok(Decoded::Item { value, consumed }) = ClientHello::decode(sent) else {
        return None;
    };
    sent = &sent[consumed..];
    let mut codes = Vec::new();
    while let Ok(Decoded::Item { value, consumed }) = OptionHeader::decode(sent) {
        let len = usize::try_from(value.len).unwrap_or(usize::MAX);
        let Some(after) = sent[consumed..].get(len..) else {
            break;
        };
        codes.push(value.code);
        sent = after;
    }
    Some((value.flags, codes))
}

fn check(client: Client, from_client: &[u8], session: &Session) {
    let Ok(Decoded::Item { value, consumed }) = Greeting::decode(&session.sent) else {
        panic!("no greeting: {session:?}");
    };
    assert_eq!(value.encode(), session.sent[..consumed]);
    let mut rest = &session.sent[consumed..];
    let Some((flags, codes)) = options(from_client) else {
        assert!(rest.is_empty(), "an answer to nothing: {session:?}");
        assert!(!matches!(session.ending, Ending::Export(_)));
        return;
    };
    let mut secured = false;
    let mut answered = codes.iter().copied();
    while let Some(code) = answered.next().filter(|_| !rest.is_empty()) {
        if code == OptionCode::EXPORT_NAME {
            let no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
            assert_eq!(rest.len(), ExportNameReply::len(no_zeroes), "{session:?}");
            assert!(matches!(session.ending, Ending::Export(_)), "{session:?}");
            assert!(may_have_export(client, secured), "{session:?}");
            return;
        }
        let last = one_answer(code, &mut rest, client, secured);
        match code {
            OptionCode::STARTTLS if last == ReplyCode::ACK => {
                let at = session.sent.len() - rest.len();
                assert_eq!(session.secured_from, Some(at), "{session:?}");
                assert!(!secured && matches!(client, Client::Offered(_)));
                secured = true;
            }
            OptionCode::ABORT => {
                assert!(rest.is_empty(), "words after the end: {session:?}");
                assert_eq!(session.ending, Ending::Left);
            }
            OptionCode::GO if last == ReplyCode::ACK => {
                assert!(rest.is_empty(), "words after the end: {session:?}");
                assert!(matches!(session.ending, Ending::Export(_)), "{session:?}");
                assert!(may_have_export(client, secured), "{session:?}");
                return;
            }
            _ => {}
        }
    }
    assert!(rest.is_empty(), "an answer to nothing: {session:?}");
    assert_eq!(session.secured_from.is_some(), secured, "{session:?}");
    assert!(!matches!(session.ending, Ending::Export(_)), "{session:?}");
}

fn may_have_export(client: Client, secured: bool) -> bool {
    match client {
        Client::Plain | Client::Offered(TlsPolicy::Allowed) => true,
        Client::Offered(TlsPolicy::Required) => secured,
        Client::TurnedAway => false,
    }
}

/// Takes the replies to one option; the last one's code.
fn one_answer(code: OptionCode, rest: &mut &[u8], client: Client, secured: bool) -> ReplyCode {
    loop {
        let Ok(Decoded::Item { value, consumed }) = OptionReplyHeader::decode(rest) else {
            panic!("no reply to {code:?}: {rest:?}");
        };
        assert_eq!(value.option, code, "replies in order");
        let len = usize::try_from(value.len).unwrap_or(usize::MAX);
        let whole = &rest[consumed..];
        assert!(len <= whole.len(), "half a reply to {code:?}");
        let (payload, after) = whole.split_at(len);
        let reply = OptionReply::parse(value.code, payload);
        assert!(reply.is_ok(), "{code:?}: {reply:?}");
        *rest = after;
        let is_open = matches!(code, OptionCode::STARTTLS | OptionCode::ABORT);
        if client == Client::Offered(TlsPolicy::Required) && !secured && !is_open {
            assert_eq!(value.code, ReplyCode::ERR_TLS_REQD, "{code:?}");
        }
        if client == Client::TurnedAway && code != OptionCode::ABORT {
            assert!(value.code.is_error(), "{code:?}: {:?}", value.code);
        }
        if value.code == ReplyCode::ACK || value.code.is_error() {
            return value.code;
        }
    }
}
