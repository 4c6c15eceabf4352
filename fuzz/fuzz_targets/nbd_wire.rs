//! Feeds bytes to the NBD codec as a client would, then as a server would.
//!
//! Checked on the way: nothing panics; a decoder claims no byte it was not given; what decoded
//! encodes to the bytes it came from (invariants I1 and I3 of `corio_nbd::wire`).
#![no_main]

use corio_nbd::wire::{
    Chunk, ClientHello, Decoded, ExportNameReply, Greeting, HeaderStyle, OptionHeader, OptionReply,
    OptionReplyHeader, OptionRequest, ReplyHeader, Request, SimpleReply, WireError,
    encode_option_reply,
};
use libfuzzer_sys::fuzz_target;

/// What the receiver here would make room for.
const PAYLOAD_MAX: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, input)) = data.split_first() else {
        return;
    };
    let style = match choice >> 1 & 3 {
        0 => HeaderStyle::Simple,
        1 => HeaderStyle::Structured,
        _ => HeaderStyle::Extended,
    };
    if choice & 1 == 0 {
        from_client(input, style);
    } else {
        from_server(input, choice & 8 != 0);
    }
});

/// The decoded item and the input after it, after checking what a decoder may claim.
fn step<T>(input: &[u8], decoded: Result<Decoded<T>, WireError>) -> Option<(T, &[u8], &[u8])> {
    match decoded {
        Ok(Decoded::Item { value, consumed }) => {
            assert!(
                consumed > 0 && consumed <= input.len(),
                "{consumed} of {}",
                input.len()
            );
            let (taken, rest) = input.split_at(consumed);
            Some((value, taken, rest))
        }
        Ok(Decoded::NeedMore(n)) => {
            assert!(n > input.len(), "{n} of {}", input.len());
            None
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// A payload whose length a header gave, if it is short enough and there.
fn payload(input: &[u8], len: u64) -> Option<(&[u8], &[u8])> {
    if len > PAYLOAD_MAX {
        return None;
    }
    input.split_at_checked(usize::try_from(len).ok()?)
}

fn from_client(input: &[u8], style: HeaderStyle) {
    let Some((hello, taken, mut rest)) = step(input, ClientHello::decode(input)) else {
        return;
    };
    assert_eq!(hello.encode(), taken);
    while let Some((header, taken, after)) = step(rest, OptionHeader::decode(rest)) {
        assert_eq!(header.encode(), taken);
        let whole = rest;
        let Some((data, after)) = payload(after, u64::from(header.len)) else {
            break;
        };
        rest = after;
        if let Ok(option) = OptionRequest::parse(header.code, data) {
            assert_eq!(option.code(), header.code);
            let mut again = Vec::new();
            option.encode(&mut again);
            assert_eq!(again, whole[..taken.len() + data.len()], "{option:?}");
            use_up(&option);
        }
    }
    while let Some((request, taken, after)) = step(rest, Request::decode(rest, style)) {
        let mut again = Vec::new();
        request
            .encode(style, &mut again)
            .expect("decoded from this style");
        assert_eq!(again, taken);
        let Some((_, after)) = payload(after, request.payload_len(style)) else {
            break;
        };
        rest = after;
    }
}

/// Walks what is parsed only when it is asked for.
fn use_up(option: &OptionRequest<'_>) {
    match option {
        OptionRequest::Info(query) | OptionRequest::Go(query) => {
            assert!(
                query
                    .wanted
                    .iter()
                    .all(|wanted| query.wanted.contains(wanted))
            );
        }
        OptionRequest::ListMetaContext(query) | OptionRequest::SetMetaContext(query) => {
            assert_eq!(
                u32::try_from(query.queries.iter().count()),
                Ok(query.queries.len())
            );
        }
        _ => {}
    }
}

fn from_server(input: &[u8], export_name: bool) {
    let Some((greeting, taken, mut rest)) = step(input, Greeting::decode(input)) else {
        from_server_transmission(input);
        return;
    };
    assert_eq!(greeting.encode(), taken);
    while let Some((header, taken, after)) = step(rest, OptionReplyHeader::decode(rest)) {
        assert_eq!(header.encode(), taken);
        let whole = rest;
        let Some((data, after)) = payload(after, u64::from(header.len)) else {
            break;
        };
        rest = after;
        if let Ok(reply) = OptionReply::parse(header.code, data) {
            let mut again = Vec::new();
            encode_option_reply(header.option, &reply, &mut again);
            assert_eq!(again, whole[..taken.len() + data.len()], "{reply:?}");
        }
    }
    if export_name
        && let Some((reply, taken, after)) = step(rest, Ok(ExportNameReply::decode(rest, true)))
    {
        assert_eq!(&reply.encode()[..ExportNameReply::LEN_MIN], taken);
        rest = after;
    }
    from_server_transmission(rest);
}

fn from_server_transmission(mut rest: &[u8]) {
    while let Some((header, taken, after)) = step(rest, ReplyHeader::decode(rest, PAYLOAD_MAX)) {
        let whole = rest;
        rest = after;
        match header {
            ReplyHeader::Simple(reply) => {
                assert_eq!(SimpleReply::encode(reply), taken);
            }
            ReplyHeader::Chunk(header) => {
                assert_eq!(header.encode().as_slice(), taken);
                let Some((data, after)) = payload(rest, header.len) else {
                    break;
                };
                rest = after;
                check_chunk(
                    &Chunk::parse(&header, data),
                    &header,
                    whole,
                    taken.len() + data.len(),
                );
            }
        }
    }
}

fn check_chunk(
    chunk: &Result<Chunk<'_>, WireError>,
    header: &corio_nbd::wire::ChunkHeader,
    whole: &[u8],
    len: usize,
) {
    let Ok(chunk) = chunk else { return };
    assert_eq!(chunk.kind(), header.kind);
    let mut again = Vec::new();
    chunk.encode(header.flags, header.cookie, header.offset, &mut again);
    assert_eq!(again.len(), len, "{chunk:?}");
    if let Chunk::BlockStatus { extents, .. } = chunk {
        // A count of zero stands for the number of extents, which is what it is encoded as.
        assert_eq!(extents.iter().count(), extents.len());
        assert!(!extents.is_empty());
    } else {
        assert_eq!(again, whole[..len], "{chunk:?}");
    }
}
