//! Every message there and back, cut short, and from garbage.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn item<T>(decoded: Decoded<T>) -> (T, usize) {
    match decoded {
        Decoded::Item { value, consumed } => (value, consumed),
        Decoded::NeedMore(n) => panic!("whole message, yet {n} bytes are asked for"),
    }
}

/// Every proper prefix asks for more than it has, and never for more than the message.
fn asks_for_more<T>(whole: &[u8], decode: impl Fn(&[u8]) -> Result<Decoded<T>, WireError>) {
    for len in 0..whole.len() {
        match decode(&whole[..len]).expect("a prefix of a good message is no error") {
            Decoded::NeedMore(n) => assert!(n > len && n <= whole.len(), "{n} for {len}"),
            Decoded::Item { .. } => panic!("a message out of {len} of {} bytes", whole.len()),
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,40}"
}

fn style() -> impl Strategy<Value = HeaderStyle> {
    prop_oneof![
        Just(HeaderStyle::Simple),
        Just(HeaderStyle::Structured),
        Just(HeaderStyle::Extended)
    ]
}

/// Takes one option, header and payload, off the front of `input`.
fn read_option(input: &[u8]) -> (OptionRequest<'_>, usize) {
    let (header, start) = item(OptionHeader::decode(input).unwrap());
    let end = start + usize::try_from(header.len).unwrap();
    (
        OptionRequest::parse(header.code, &input[start..end]).unwrap(),
        end,
    )
}

fn read_option_reply(input: &[u8]) -> (OptionCode, OptionReply<'_>, usize) {
    let (header, start) = item(OptionReplyHeader::decode(input).unwrap());
    let end = start + usize::try_from(header.len).unwrap();
    (
        header.option,
        OptionReply::parse(header.code, &input[start..end]).unwrap(),
        end,
    )
}

fn read_chunk(input: &[u8]) -> (ChunkHeader, Chunk<'_>, usize) {
    match item(ReplyHeader::decode(input, 1 << 26).unwrap()) {
        (ReplyHeader::Chunk(header), start) => {
            let end = start + usize::try_from(header.len).unwrap();
            (
                header,
                Chunk::parse(&header, &input[start..end]).unwrap(),
                end,
            )
        }
        (ReplyHeader::Simple(reply), _) => panic!("a simple reply {reply:?}"),
    }
}

proptest! {
    #[test]
    fn greeting_and_hello_round_trip(server: u16, client in 0u32..4) {
        let greeting = Greeting { flags: HandshakeFlags::from_bits_retain(server) };
        prop_assert_eq!(item(Greeting::decode(&greeting.encode()).unwrap()), (greeting, 18));
        asks_for_more(&greeting.encode(), Greeting::decode);

        let hello = ClientHello { flags: ClientFlags::from_bits_retain(client) };
        prop_assert_eq!(item(ClientHello::decode(&hello.encode()).unwrap()), (hello, 4));
        asks_for_more(&hello.encode(), ClientHello::decode);
    }

    #[test]
    fn unknown_client_flags_are_refused(bits in 4u32..) {
        prop_assert_eq!(
            ClientHello::decode(&bits.to_be_bytes()),
            Err(WireError::UnknownFlags(bits))
        );
    }

    #[test]
    fn export_name_reply_round_trips(size: u64, flags: u16, no_zeroes: bool) {
        let reply = ExportNameReply { size, flags: TransmissionFlags::from_bits_retain(flags) };
        let bytes = &reply.encode()[..ExportNameReply::len(no_zeroes)];
        prop_assert_eq!(item(ExportNameReply::decode(bytes, no_zeroes)), (reply, bytes.len()));
        asks_for_more(bytes, |input| Ok(ExportNameReply::decode(input, no_zeroes)));
    }

    #[test]
    fn info_options_round_trip(name in text(), wanted in vec(any::<u16>(), 0..9), go: bool) {
        let code = if go { OptionCode::GO } else { OptionCode::INFO };
        let wanted: Vec<_> = wanted.into_iter().map(InfoType).collect();
        let mut bytes = Vec::new();
        encode_info_option(code, &name, &wanted, &mut bytes);
        let (option, consumed) = read_option(&bytes);
        prop_assert_eq!((option.code(), consumed), (code, bytes.len()));
        let (OptionRequest::Info(query) | OptionRequest::Go(query)) = option else {
            panic!("{option:?}")
        };
        prop_assert_eq!(query.name, &name);
        prop_assert_eq!(query.wanted.iter().collect::<Vec<_>>(), wanted);
        let mut again = Vec::new();
        option.encode(&mut again);
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn meta_context_options_round_trip(
        export in text(), queries in vec(text(), 0..9), set: bool
    ) {
        let code =
            if set { OptionCode::SET_META_CONTEXT } else { OptionCode::LIST_META_CONTEXT };
        let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
        let mut bytes = Vec::new();
        encode_meta_option(code, &export, &queries, &mut bytes);
        let (option, consumed) = read_option(&bytes);
        prop_assert_eq!((option.code(), consumed), (code, bytes.len()));
        let (OptionRequest::ListMetaContext(query) | OptionRequest::SetMetaContext(query)) = option
        else {
            panic!("{option:?}")
        };
        prop_assert_eq!(query.export, &export);
        prop_assert_eq!(query.queries.iter().collect::<Vec<_>>(), queries);
        let mut again = Vec::new();
        option.encode(&mut again);
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn plain_options_round_trip(
        name in text(), data in vec(any::<u8>(), 0..64), unknown in 100u32..
    ) {
        for option in [
            OptionRequest::ExportName(&name),
            OptionRequest::Abort(&data),
            OptionRequest::List,
            OptionRequest::StartTls,
            OptionRequest::StructuredReply,
            OptionRequest::ExtendedHeaders,
            OptionRequest::Unknown { code: OptionCode(unknown), data: &data },
            OptionRequest::Unknown { code: OptionCode::PEEK_EXPORT, data: &data },
        ] {
            let mut bytes = Vec::new();
            option.encode(&mut bytes);
            prop_assert_eq!(read_option(&bytes), (option, bytes.len()));
            asks_for_more(&bytes[..OptionHeader::LEN], OptionHeader::decode);
        }
    }

    #[test]
    fn option_replies_round_trip(
        option: u32, name in text(), other in text(), id: u32, size: u64, bits: u16,
        sizes: [u32; 3], data in vec(any::<u8>(), 0..64), error: u32
    ) {
        let flags = TransmissionFlags::from_bits_retain(bits);
        let [min, preferred, max] = sizes;
        for reply in [
            OptionReply::Ack,
            OptionReply::Server { name: &name, description: &other },
            OptionReply::Info(Info::Export { size, flags }),
            OptionReply::Info(Info::Name(&name)),
            OptionReply::Info(Info::Description(&other)),
            OptionReply::Info(Info::BlockSize(BlockSizes { min, preferred, max })),
            OptionReply::Info(Info::Unknown { info: InfoType(bits | 4), data: &data }),
            OptionReply::MetaContext { id: ContextId(id), name: &name },
            OptionReply::Error { code: ReplyCode(error | 0x8000_0000), message: &other },
            OptionReply::Unknown { code: ReplyCode(error & 0x7fff_fff0 | 8), data: &data },
        ] {
            let mut bytes = Vec::new();
            encode_option_reply(OptionCode(option), &reply, &mut bytes);
            prop_assert_eq!(read_option_reply(&bytes), (OptionCode(option), reply, bytes.len()));
            asks_for_more(&bytes[..OptionReplyHeader::LEN], OptionReplyHeader::decode);
        }
    }

    #[test]
    fn requests_round_trip(
        style in style(), flags: u16, command: u16, cookie: u64, offset: u64, long: u64,
        rest in vec(any::<u8>(), 0..9)
    ) {
        let length = match style {
            HeaderStyle::Extended => long,
            HeaderStyle::Simple | HeaderStyle::Structured => long & 0xffff_ffff,
        };
        let request = Request {
            flags: CommandFlags::from_bits_retain(flags),
            command: Command(command),
            cookie: Cookie(cookie),
            offset,
            length,
        };
        let mut bytes = Vec::new();
        request.encode(style, &mut bytes).unwrap();
        prop_assert_eq!(bytes.len(), style.request_len());
        asks_for_more(&bytes, |input| Request::decode(input, style));
        bytes.extend_from_slice(&rest);
        let found = item(Request::decode(&bytes, style).unwrap());
        prop_assert_eq!(found, (request, style.request_len()));
    }

    #[test]
    fn data_and_hole_prefixes_are_what_clients_read(
        style in style(), cookie: u64, request_offset: u64, at: u64,
        data in vec(any::<u8>(), 1..64), len in 1u32.., last: bool
    ) {
        let cookie = Cookie(cookie);
        let size = u32::try_from(data.len()).unwrap();
        let mut bytes =
            Prefix::data(style, cookie, request_offset, at, size, last).as_slice().to_vec();
        bytes.extend_from_slice(&data);
        if style == HeaderStyle::Simple {
            let ok = SimpleReply { error: Errno::OK, cookie };
            let found = item(ReplyHeader::decode(&bytes, 0).unwrap());
            prop_assert_eq!(found, (ReplyHeader::Simple(ok), SimpleReply::LEN));
            prop_assert_eq!(&bytes[SimpleReply::LEN..], &data[..]);
            return Ok(());
        }
        let extended = (style == HeaderStyle::Extended).then_some(request_offset);
        let (header, chunk, end) = read_chunk(&bytes);
        prop_assert_eq!(chunk, Chunk::OffsetData { offset: at, data: &data });
        prop_assert_eq!((header.cookie, header.offset, end), (cookie, extended, bytes.len()));
        prop_assert_eq!(header.flags.contains(ReplyFlags::DONE), last);

        let bytes = Prefix::hole(style, cookie, request_offset, at, len, last);
        let (header, chunk, end) = read_chunk(bytes.as_slice());
        prop_assert_eq!(chunk, Chunk::OffsetHole { offset: at, len });
        prop_assert_eq!((header.offset, end), (extended, bytes.as_slice().len()));
        prop_assert_eq!(header.flags.contains(ReplyFlags::DONE), last);
    }

    #[test]
    fn replies_without_data_round_trip(style in style(), cookie: u64, offset: u64, error in 1u32..) {
        let cookie = Cookie(cookie);
        let done = Prefix::done(style, cookie, offset);
        let mut failed = Vec::new();
        encode_error(style, cookie, offset, Errno(error), "no such luck", &mut failed);
        if style == HeaderStyle::Simple {
            for (bytes, error) in [(done.as_slice(), Errno::OK), (&failed, Errno(error))] {
                let reply = ReplyHeader::Simple(SimpleReply { error, cookie });
                prop_assert_eq!(item(ReplyHeader::decode(bytes, 0).unwrap()), (reply, 16));
                asks_for_more(bytes, |input| ReplyHeader::decode(input, 0));
            }
            return Ok(());
        }
        let (header, chunk, _) = read_chunk(done.as_slice());
        prop_assert_eq!((header.flags, chunk), (ReplyFlags::DONE, Chunk::None));
        let (header, chunk, _) = read_chunk(&failed);
        let error = Errno(error);
        prop_assert_eq!(header.cookie, cookie);
        prop_assert_eq!(chunk, Chunk::Error { error, message: "no such luck" });
        failed.clear();
        encode_error_offset(style, cookie, offset, error, 77, &mut failed);
        let (header, chunk, end) = read_chunk(&failed);
        prop_assert_eq!(chunk, Chunk::ErrorOffset { error, message: "", offset: 77 });
        prop_assert_eq!((header.flags, end), (ReplyFlags::DONE, failed.len()));
    }

    #[test]
    fn chunks_round_trip(
        extended: bool, done: bool, cookie: u64, offset: u64, len in 1u32.., error in 1u32..,
        data in vec(any::<u8>(), 1..64), message in text()
    ) {
        let flags = if done { ReplyFlags::DONE } else { ReplyFlags::empty() };
        let error = Errno(error);
        for chunk in [
            Chunk::OffsetData { offset, data: &data },
            Chunk::OffsetHole { offset, len },
            Chunk::Error { error, message: &message },
            Chunk::ErrorOffset { error, message: &message, offset },
            Chunk::UnknownError { kind: ChunkType(0x9001), error, message: &message, rest: &data },
        ] {
            let mut bytes = Vec::new();
            chunk.encode(flags, Cookie(cookie), extended.then_some(7), &mut bytes);
            let (header, found, end) = read_chunk(&bytes);
            prop_assert_eq!(found, chunk);
            prop_assert_eq!((header.flags, header.cookie), (flags, Cookie(cookie)));
            prop_assert_eq!((header.offset, end), (extended.then_some(7), bytes.len()));
        }
    }

    #[test]
    fn block_status_round_trips(
        extended: bool, cookie: u64, id: u32, extents in vec((1u32..0xffff_0000, 0u32..4), 1..20)
    ) {
        let extents: Vec<_> = extents
            .into_iter()
            .map(|(len, status)| Descriptor { len: u64::from(len), status: u64::from(status) })
            .collect();
        let mut bytes = Vec::new();
        if extended {
            encode_block_status_ext(Cookie(cookie), 5, ContextId(id), &extents, &mut bytes);
        } else {
            encode_block_status(Cookie(cookie), None, ContextId(id), &extents, &mut bytes);
        }
        let (header, chunk, end) = read_chunk(&bytes);
        prop_assert_eq!((header.offset, end), (extended.then_some(5), bytes.len()));
        let Chunk::BlockStatus { context, extents: found } = chunk else { panic!("{chunk:?}") };
        prop_assert_eq!(context, ContextId(id));
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), extents);
        let mut again = Vec::new();
        chunk.encode(header.flags, header.cookie, header.offset, &mut again);
        prop_assert_eq!(again, bytes);
    }

    /// I1: whatever comes in, an answer comes out, and it never claims bytes that are not there.
    #[test]
    fn garbage_is_answered(input in vec(any::<u8>(), 0..200), code: u32, kind: u16, flags: u16) {
        fn check<T>(input: &[u8], decoded: Result<Decoded<T>, WireError>) {
            match decoded {
                Ok(Decoded::Item { consumed, .. }) => assert!(consumed <= input.len()),
                Ok(Decoded::NeedMore(n)) => assert!(n > input.len()),
                Err(_) => {}
            }
        }
        check(&input, Greeting::decode(&input));
        check(&input, ClientHello::decode(&input));
        check(&input, OptionHeader::decode(&input));
        check(&input, OptionReplyHeader::decode(&input));
        check(&input, Request::decode_compact(&input));
        check(&input, Request::decode_extended(&input));
        check(&input, ReplyHeader::decode(&input, 64));
        for code in [code, code % 16] {
            let _ = OptionRequest::parse(OptionCode(code), &input);
            let _ = OptionReply::parse(ReplyCode(code), &input);
        }
        let flags = ReplyFlags::from_bits_retain(flags);
        for kind in [kind, kind % 8, (kind % 4) | 0x8000] {
            for offset in [None, Some(1)] {
                let header = ChunkHeader {
                    flags, kind: ChunkType(kind), cookie: Cookie(0), offset, len: 0,
                };
                let _ = Chunk::parse(&header, &input);
            }
        }
    }
}

#[test]
fn payload_length_is_read_as_the_style_says() {
    let request = |command, flags| Request {
        flags,
        command,
        cookie: Cookie(1),
        offset: 0,
        length: 4096,
    };
    let none = CommandFlags::empty();
    for style in [HeaderStyle::Simple, HeaderStyle::Structured] {
        assert_eq!(request(Command::WRITE, none).payload_len(style), 4096);
        assert_eq!(request(Command::READ, none).payload_len(style), 0);
        assert_eq!(
            request(Command::READ, CommandFlags::PAYLOAD_LEN).payload_len(style),
            0
        );
    }
    let style = HeaderStyle::Extended;
    assert_eq!(
        request(Command::WRITE, none).payload_len(style),
        4096,
        "though it must not"
    );
    assert_eq!(request(Command::TRIM, none).payload_len(style), 0);
    assert_eq!(
        request(Command::WRITE, CommandFlags::PAYLOAD_LEN).payload_len(style),
        4096
    );
    assert_eq!(
        request(Command::TRIM, CommandFlags::PAYLOAD_LEN).payload_len(style),
        4096
    );
}

#[test]
fn long_length_does_not_fit_a_compact_request() {
    let request = Request {
        flags: CommandFlags::empty(),
        command: Command::TRIM,
        cookie: Cookie(1),
        offset: 0,
        length: 1 << 32,
    };
    let mut out = Vec::new();
    assert!(matches!(
        request.encode(HeaderStyle::Structured, &mut out),
        Err(WireError::TooLong { .. })
    ));
    assert!(out.is_empty());
    request.encode(HeaderStyle::Extended, &mut out).unwrap();
}

#[test]
fn wrong_magic_is_an_error() {
    let zeroes = [0u8; 64];
    assert!(matches!(
        Greeting::decode(&zeroes),
        Err(WireError::BadMagic { .. })
    ));
    assert!(matches!(
        OptionHeader::decode(&zeroes),
        Err(WireError::BadMagic { .. })
    ));
    assert!(matches!(
        OptionReplyHeader::decode(&zeroes),
        Err(WireError::BadMagic { .. })
    ));
    assert!(matches!(
        Request::decode_compact(&zeroes),
        Err(WireError::BadMagic { .. })
    ));
    assert!(matches!(
        Request::decode_extended(&zeroes),
        Err(WireError::BadMagic { .. })
    ));
    assert!(matches!(
        ReplyHeader::decode(&zeroes, 0),
        Err(WireError::BadMagic { .. })
    ));
    // A compact header where extended ones were agreed on, and the other way round.
    for (sent, expected) in [
        (HeaderStyle::Simple, HeaderStyle::Extended),
        (HeaderStyle::Extended, HeaderStyle::Structured),
    ] {
        let request = Request {
            flags: CommandFlags::empty(),
            command: Command::READ,
            cookie: Cookie(1),
            offset: 0,
            length: 1,
        };
        let mut out = Vec::new();
        request.encode(sent, &mut out).unwrap();
        out.extend_from_slice(&zeroes);
        assert!(matches!(
            Request::decode(&out, expected),
            Err(WireError::BadMagic { .. })
        ));
    }
}

#[test]
fn malformed_option_payloads_are_refused() {
    use OptionCode as O;
    let long = vec![b'a'; STRING_MAX + 1];
    let count_lies = [&0u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
    for (code, payload) in [
        (O::LIST, &b"x"[..]),
        (O::STARTTLS, b"x"),
        (O::STRUCTURED_REPLY, b"x"),
        (O::EXTENDED_HEADERS, b"x"),
        (O::EXPORT_NAME, b"a\0b"),
        (O::EXPORT_NAME, b"\xff"),
        (O::EXPORT_NAME, &long),
        (O::GO, b""),
        (O::GO, b"\0\0\0\x05abc\0\0"),
        (O::GO, b"\0\0\0\x01a\0\x02\0\x01"),
        (O::GO, b"\0\0\0\x01a\0\0\0"),
        (O::INFO, b"\xff\xff\xff\xff\0\0"),
        (O::SET_META_CONTEXT, &count_lies),
        (O::LIST_META_CONTEXT, b"\0\0\0\0\0\0\0\0x"),
        (O::LIST_META_CONTEXT, b"\0\0\0\0\0\0\0\x01\xff\xff\xff\xff"),
    ] {
        assert!(
            OptionRequest::parse(code, payload).is_err(),
            "{code:?} {payload:?}"
        );
    }
    assert!(OptionRequest::parse(O::EXPORT_NAME, &long[1..]).is_ok());
}

#[test]
fn malformed_chunks_are_refused() {
    let parse = |kind, flags, extended: bool, payload: &[u8]| {
        let header = ChunkHeader {
            flags,
            kind,
            cookie: Cookie(0),
            offset: extended.then_some(0),
            len: 0,
        };
        Chunk::parse(&header, payload).is_err()
    };
    let (done, more) = (ReplyFlags::DONE, ReplyFlags::empty());
    assert!(
        parse(ChunkType::NONE, more, false, b""),
        "NONE must be the last"
    );
    assert!(parse(ChunkType::NONE, done, false, b"x"));
    assert!(
        parse(ChunkType::OFFSET_DATA, done, false, &[0; 8]),
        "no data"
    );
    assert!(
        parse(ChunkType::OFFSET_HOLE, done, false, &[0; 12]),
        "no bytes"
    );
    assert!(
        parse(ChunkType::BLOCK_STATUS, done, false, &[1; 4]),
        "no extents"
    );
    assert!(parse(ChunkType::BLOCK_STATUS, done, false, &[1; 13]));
    assert!(
        parse(ChunkType::BLOCK_STATUS, done, false, &[0; 12]),
        "extent of no bytes"
    );
    assert!(
        parse(ChunkType::BLOCK_STATUS_EXT, done, false, &[1; 24]),
        "compact header"
    );
    assert!(
        parse(ChunkType::BLOCK_STATUS_EXT, done, true, &[1; 24]),
        "count lies"
    );
    assert!(
        parse(ChunkType::ERROR, done, false, &[0; 6]),
        "error of zero"
    );
    assert!(parse(
        ChunkType::ERROR,
        done,
        false,
        &[0, 0, 0, 5, 0, 9, b'x']
    ));
    assert!(
        parse(ChunkType(77), done, false, b""),
        "unknown, and no error"
    );
    assert!(!parse(
        ChunkType(0x8077),
        done,
        false,
        &[0, 0, 0, 5, 0, 1, b'x']
    ));
}

#[test]
fn chunk_longer_than_the_client_allows_is_refused() {
    let cookie = Cookie(3);
    for style in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let prefix = Prefix::data(style, cookie, 0, 0, 4096, true);
        assert!(ReplyHeader::decode(prefix.as_slice(), 4104).is_ok());
        assert!(matches!(
            ReplyHeader::decode(prefix.as_slice(), 4103),
            Err(WireError::TooLong {
                len: 4104,
                max: 4103,
                ..
            })
        ));
    }
}

#[test]
fn extent_too_long_for_its_chunk_is_cut_and_ends_it() {
    let extents = [
        Descriptor {
            len: 4096,
            status: 0,
        },
        Descriptor {
            len: 1 << 40,
            status: 3,
        },
        Descriptor {
            len: 4096,
            status: 0,
        },
    ];
    let mut bytes = Vec::new();
    encode_block_status(Cookie(1), None, ContextId(1), &extents, &mut bytes);
    let (_, chunk, _) = read_chunk(&bytes);
    let Chunk::BlockStatus { extents, .. } = chunk else {
        panic!("{chunk:?}")
    };
    let found: Vec<_> = extents.iter().collect();
    assert_eq!(
        found,
        [
            Descriptor {
                len: 4096,
                status: 0
            },
            Descriptor {
                len: 0xffff_0000,
                status: 3
            }
        ]
    );
}

#[test]
fn strings_are_cut_between_characters() {
    let name = "é".repeat(STRING_MAX);
    let mut bytes = Vec::new();
    let reply = OptionReply::MetaContext {
        id: ContextId(0),
        name: &name,
    };
    encode_option_reply(OptionCode::LIST_META_CONTEXT, &reply, &mut bytes);
    let (_, found, _) = read_option_reply(&bytes);
    let name = "é".repeat(STRING_MAX / 2);
    assert_eq!(
        found,
        OptionReply::MetaContext {
            id: ContextId(0),
            name: &name
        }
    );
}

#[test]
fn errno_goes_there_and_back() {
    for (os, wire) in [
        (libc::EPERM, Errno::EPERM),
        (libc::EIO, Errno::EIO),
        (libc::ENOMEM, Errno::ENOMEM),
        (libc::EINVAL, Errno::EINVAL),
        (libc::ENOSPC, Errno::ENOSPC),
        (libc::EOVERFLOW, Errno::EOVERFLOW),
        (libc::EOPNOTSUPP, Errno::ENOTSUP),
        (libc::ESHUTDOWN, Errno::ESHUTDOWN),
    ] {
        assert_eq!(Errno::from_os(os), wire);
        assert_eq!(wire.to_os(), os);
    }
    for os in [libc::EDQUOT, libc::EFBIG] {
        assert_eq!(Errno::from_os(os), Errno::ENOSPC);
    }
    for os in [libc::EROFS, libc::EACCES] {
        assert_eq!(Errno::from_os(os), Errno::EPERM);
    }
    for os in [0, -5, libc::ENODEV, i32::MAX] {
        assert_eq!(Errno::from_os(os), Errno::EIO);
    }
    assert_eq!(Errno(4711).to_os(), libc::EINVAL);
    assert_eq!(Errno::OK.to_os(), 0);
}
