//! The handshake, option by option.

use std::io::Write as _;
use std::time::{Duration, Instant};

use super::{Answer, Client, House, memory_disk};
use crate::server::{Export, ServerConfig};
use crate::wire::{
    BlockSizes, ClientFlags, ContextId, Decoded, ExportNameReply, Greeting, HandshakeFlags, Info,
    InfoType, OptionCode as Opt, ReplyCode, TransmissionFlags, encode_option,
};

const SIZE: u64 = 1 << 20;

fn house() -> House {
    house_with(ServerConfig::default())
}

fn house_with(config: ServerConfig) -> House {
    let first = Export {
        description: "the first".into(),
        ..Export::new("one", memory_disk(SIZE))
    };
    let second = Export {
        read_only: true,
        ..Export::new("two", memory_disk(2 * SIZE + 1))
    };
    House::new(config, vec![first, second])
}

fn refused(code: ReplyCode) -> Answer {
    Answer {
        error: Some(code),
        ..Answer::default()
    }
}

/// The connection still negotiates.
fn assert_alive(client: &mut Client) {
    assert_eq!(client.option(Opt::LIST, &[]).exports.len(), 2);
}

#[test]
fn greeting_offers_fixed_newstyle() {
    let house = house();
    let mut client = house.connect();
    let greeting = client.take(|input| Greeting::decode(input).unwrap());
    assert_eq!(
        greeting.flags,
        HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES
    );
}

#[test]
fn unknown_client_flags_close_the_connection() {
    let house = house();
    let mut client = house.connect();
    client.take(|input| Greeting::decode(input).unwrap());
    client.send(&4u32.to_be_bytes());
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn list_names_every_export() {
    let house = house();
    let answer = house.connect().hello().option(Opt::LIST, &[]);
    let exports = [("one", "the first"), ("two", "")];
    assert_eq!(
        answer.exports,
        exports.map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
    assert_eq!(answer.error, None);
}

#[test]
fn info_tells_what_is_asked_for_and_stays_in_the_handshake() {
    let house = house();
    let mut client = house.connect();
    client.hello();
    let all = [
        InfoType::NAME,
        InfoType::DESCRIPTION,
        InfoType::BLOCK_SIZE,
        InfoType(99),
        InfoType::EXPORT,
    ];
    let answer = client.info(Opt::INFO, "one", &all);
    assert_eq!(answer.error, None);
    let flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_TRIM
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_FAST_ZERO
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::CAN_MULTI_CONN;
    let sizes = BlockSizes {
        min: 1,
        preferred: 4096,
        max: 32 << 20,
    };
    let expected = [
        format!("export {SIZE} {flags:?}"),
        format!("{:?}", Info::Name("one")),
        format!("{:?}", Info::Description("the first")),
        format!("{:?}", Info::BlockSize(sizes)),
    ];
    assert_eq!(answer.infos, expected);
    let few = client.info(Opt::INFO, "two", &[]);
    assert_eq!(few.infos.len(), 1, "{few:?}");
    let flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::READ_ONLY
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::CAN_MULTI_CONN;
    assert_eq!(few.infos[0], format!("export {} {flags:?}", 2 * SIZE + 1));
    assert_alive(&mut client);
}

#[test]
fn structured_replies_and_extended_headers_bring_df() {
    for option in [Opt::STRUCTURED_REPLY, Opt::EXTENDED_HEADERS] {
        let house = house();
        let mut client = house.connect();
        client.hello();
        assert!(!client.info(Opt::INFO, "one", &[]).infos[0].contains("SEND_DF"));
        assert_eq!(client.option(option, &[]), Answer::default());
        assert_eq!(client.option(option, &[]), Answer::default(), "again");
        assert!(client.info(Opt::INFO, "one", &[]).infos[0].contains("SEND_DF"));
    }
}

#[test]
fn structured_replies_do_not_replace_extended_headers() {
    let house = house();
    let mut client = house.connect();
    client.hello().option(Opt::EXTENDED_HEADERS, &[]);
    let answer = client.option(Opt::STRUCTURED_REPLY, &[]);
    assert_eq!(answer, refused(ReplyCode::ERR_EXT_HEADER_REQD));
}

#[test]
fn unknown_export_is_refused_and_another_one_can_be_chosen() {
    let house = house();
    let mut client = house.connect();
    client.hello();
    for option in [Opt::INFO, Opt::GO] {
        assert_eq!(
            client.info(option, "three", &[]),
            refused(ReplyCode::ERR_UNKNOWN)
        );
    }
    assert_eq!(client.info(Opt::GO, "two", &[]).error, None);
    client.style = crate::wire::HeaderStyle::Simple;
    assert_eq!(client.read(2 * SIZE, 1), Ok(vec![0]));
}

#[test]
fn no_name_means_the_first_export() {
    let house = house();
    let mut client = house.connect();
    let answer = client.hello().info(Opt::GO, "", &[InfoType::NAME]);
    assert_eq!(answer.infos[1], format!("{:?}", Info::Name("one")));
}

#[test]
fn export_name_starts_with_or_without_zeroes() {
    for no_zeroes in [true, false] {
        let house = house();
        let mut client = house.connect();
        client.take(|input| Greeting::decode(input).unwrap());
        let flags = if no_zeroes {
            ClientFlags::NO_ZEROES
        } else {
            ClientFlags::empty()
        };
        client.send(&flags.bits().to_be_bytes());
        let mut bytes = Vec::new();
        encode_option(Opt::EXPORT_NAME, b"two", &mut bytes);
        // A request right behind it, as the client need not wait.
        client.send(&bytes);
        let reply = client.take(|input| ExportNameReply::decode(input, no_zeroes));
        assert_eq!(reply.size, 2 * SIZE + 1);
        assert!(reply.flags.contains(TransmissionFlags::READ_ONLY));
        assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
    }
}

#[test]
fn request_sent_together_with_export_name_is_served() {
    let house = house();
    let mut client = house.connect();
    client.hello();
    let mut bytes = Vec::new();
    encode_option(Opt::EXPORT_NAME, b"one", &mut bytes);
    let none = crate::wire::CommandFlags::empty();
    let (request, cookie) = client.request_bytes(crate::wire::Command::READ, none, 0, 8);
    bytes.extend_from_slice(&request);
    client.send(&bytes);
    client.take(|input| ExportNameReply::decode(input, true));
    assert_eq!(client.reply(8).cookie, cookie);
}

#[test]
fn export_name_that_cannot_be_granted_closes_the_connection() {
    let house = house();
    let mut client = house.connect();
    client.hello();
    let mut bytes = Vec::new();
    encode_option(Opt::EXPORT_NAME, b"three", &mut bytes);
    client.send(&bytes);
    client.assert_closed();

    let mut client = house.connect();
    client.hello().option(Opt::EXTENDED_HEADERS, &[]);
    let mut bytes = Vec::new();
    encode_option(Opt::EXPORT_NAME, b"one", &mut bytes);
    client.send(&bytes);
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    let house = house();
    let mut client = house.connect();
    assert_eq!(
        client.hello().option(Opt::ABORT, b"whatever"),
        Answer::default()
    );
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn unknown_options_are_answered() {
    let house = house();
    let mut client = house.connect();
    client.hello();
    for option in [Opt::PEEK_EXPORT, Opt(77), Opt(u32::MAX)] {
        assert_eq!(
            client.option(option, &[]),
            refused(ReplyCode::ERR_UNSUP),
            "{option:?}"
        );
    }
    assert_eq!(
        client.option(Opt(77), &[1; 1000]),
        refused(ReplyCode::ERR_UNSUP)
    );
    assert_alive(&mut client);
}

#[test]
fn malformed_options_are_answered() {
    let house = house();
    let mut client = house.connect();
    client.hello();
    for option in [
        Opt::LIST,
        Opt::STARTTLS,
        Opt::INFO,
        Opt::GO,
        Opt::STRUCTURED_REPLY,
        Opt::LIST_META_CONTEXT,
        Opt::SET_META_CONTEXT,
        Opt::EXTENDED_HEADERS,
    ] {
        assert_eq!(
            client.option(option, b"x"),
            refused(ReplyCode::ERR_INVALID),
            "{option:?}"
        );
    }
    assert_alive(&mut client);
}

#[test]
fn contexts_are_listed_by_every_form_of_query() {
    let house = house();
    let mut client = house.connect();
    client.hello().option(Opt::STRUCTURED_REPLY, &[]);
    let allocation = vec![(ContextId(0), "base:allocation".to_owned())];
    for queries in [
        &[][..],
        &["base:"],
        &["base:allocation"],
        &[""],
        &["x-y:", "base:"],
    ] {
        let answer = client.contexts(Opt::LIST_META_CONTEXT, "one", queries);
        assert_eq!(
            (&answer.contexts, answer.error),
            (&allocation, None),
            "{queries:?}"
        );
    }
    for queries in [&["base:dirty"][..], &["qemu:dirty-bitmap:x"], &["x-y:"]] {
        let answer = client.contexts(Opt::LIST_META_CONTEXT, "one", queries);
        assert_eq!(answer, Answer::default(), "{queries:?}");
    }
    let answer = client.contexts(Opt::LIST_META_CONTEXT, "three", &[]);
    assert_eq!(answer, refused(ReplyCode::ERR_UNKNOWN));
}

#[test]
fn contexts_are_selected_by_their_whole_name() {
    let house = house();
    let mut client = house.connect();
    client.hello();
    let answer = client.contexts(Opt::SET_META_CONTEXT, "one", &["base:allocation"]);
    assert_eq!(
        answer,
        refused(ReplyCode::ERR_INVALID),
        "structured replies come first"
    );
    client.option(Opt::STRUCTURED_REPLY, &[]);
    for queries in [
        &["base:allocation"][..],
        &["base:allocation", "x-y:z", "base:allocation"],
    ] {
        let answer = client.contexts(Opt::SET_META_CONTEXT, "one", queries);
        assert_eq!(answer.contexts.len(), 1, "{queries:?}");
        assert_ne!(answer.contexts[0].0, ContextId(0));
    }
    for queries in [
        &[][..],
        &["base:"],
        &[""],
        &["base:dirty"],
        &["qemu:allocation-depth"],
    ] {
        let answer = client.contexts(Opt::SET_META_CONTEXT, "one", queries);
        assert_eq!(answer, Answer::default(), "{queries:?}");
    }
    let answer = client.contexts(Opt::SET_META_CONTEXT, "three", &["base:allocation"]);
    assert_eq!(answer, refused(ReplyCode::ERR_UNKNOWN));
}

#[test]
fn option_too_long_is_skipped_and_one_far_too_long_closes() {
    let house = house_with(ServerConfig {
        option_bytes_max: 4096,
        ..ServerConfig::default()
    });
    let mut client = house.connect();
    client.hello();
    let answer = client.option(Opt::LIST, &[0; 65000]);
    assert_eq!(answer, refused(ReplyCode::ERR_TOO_BIG));
    assert_alive(&mut client);
    let mut header = Vec::new();
    encode_option(Opt::LIST, &[], &mut header);
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    client.send(&header);
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn garbage_closes_the_connection() {
    let house = house();
    let mut client = house.connect();
    client.hello().send(&[0x55; 64]);
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn too_many_options_close_the_connection() {
    let house = house_with(ServerConfig {
        options_max: 3,
        ..ServerConfig::default()
    });
    let mut client = house.connect();
    client.hello();
    for _ in 0..3 {
        assert_alive(&mut client);
    }
    client.assert_closed();
    house.assert_empty();
}

#[test]
fn handshake_as_a_whole_is_bounded_in_time() {
    let limit = Duration::from_millis(200);
    let house = house_with(ServerConfig {
        handshake_timeout: limit,
        ..ServerConfig::default()
    });
    let begin = Instant::now();
    let mut silent = house.connect();
    let mut half = house.connect();
    half.hello().send(&[0x49, 0x48]);
    // Never silent for long, and never done.
    let mut busy = house.connect();
    busy.hello();
    let mut bytes = Vec::new();
    encode_option(Opt::LIST, &[], &mut bytes);
    while begin.elapsed() < Duration::from_secs(10) && busy.stream.write_all(&bytes).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begin.elapsed() >= limit);
    silent.take(|input| Greeting::decode(input).unwrap());
    silent.assert_closed();
    half.assert_closed();
    house.assert_empty();
}

#[test]
fn time_limit_ends_with_the_handshake() {
    let limit = Duration::from_millis(100);
    let house = house_with(ServerConfig {
        handshake_timeout: limit,
        ..ServerConfig::default()
    });
    let mut client = house.connect();
    client.start(crate::wire::HeaderStyle::Simple, "one");
    // The time that must not matter has to pass.
    std::thread::sleep(3 * limit);
    assert_eq!(client.read(0, 1), Ok(vec![0]));
}

#[test]
fn handshake_byte_by_byte_works() {
    let house = house();
    let mut client = house.connect();
    let greeting =
        client.take(|input: &[u8]| -> Decoded<Greeting> { Greeting::decode(input).unwrap() });
    assert!(greeting.flags.contains(HandshakeFlags::FIXED_NEWSTYLE));
    let mut bytes = 3u32.to_be_bytes().to_vec();
    encode_option(Opt::LIST, &[], &mut bytes);
    for byte in bytes {
        client.send(&[byte]);
    }
    assert_eq!(client.answer(Opt::LIST).exports.len(), 2);
}
