//! Negotiation byte by byte, through the small client of `crate::common::nbd`: what no finished client
//! sends, or shows.

use crate::common::data::{self, MIB, assert_same};
use crate::common::nbd::{self, Handshake, Headers, cmd, flag, opt, rep};
use crate::common::serve::{Serve, image_dir};
use crate::common::{Combo, again_through_tls, matrix, need};

matrix!(
    handshake_offers_what_the_protocol_names,
    list_and_info_describe_the_export,
    unknown_option_is_answered,
    unknown_export_is_refused_and_the_client_may_go_on,
    old_client_is_served_by_export_name,
    contexts_are_listed_by_query,
);
// All but the old client, which has no options and so no STARTTLS.
again_through_tls!(
    handshake_offers_what_the_protocol_names,
    list_and_info_describe_the_export,
    unknown_option_is_answered,
    unknown_export_is_refused_and_the_client_may_go_on,
    contexts_are_listed_by_query,
);

fn handshake_offers_what_the_protocol_names(combo: Combo) {
    need!(combo);
    let server = Serve::new(combo).memory("1M").tcp().unix().start();
    for at in server.listening() {
        let handshake = Handshake::start(&at.addr).unwrap();
        assert_eq!(
            handshake.flags,
            nbd::FIXED_NEWSTYLE | nbd::NO_ZEROES,
            "{at}"
        );
        let client = handshake.go("").unwrap();
        assert!(client.export.has(
            flag::HAS_FLAGS
                | flag::SEND_FLUSH
                | flag::SEND_FUA
                | flag::SEND_TRIM
                | flag::SEND_WRITE_ZEROES
                | flag::CAN_MULTI_CONN
                | flag::SEND_CACHE
                | flag::SEND_FAST_ZERO
        ));
        assert!(!client.export.has(flag::READ_ONLY), "{at}");
        client.disconnect().unwrap();
    }
}

fn list_and_info_describe_the_export(combo: Combo) {
    need!(combo);
    let server = Serve::new(combo)
        .memory("3M")
        .args(["--name", "näme", "--description", "some text"])
        .unix()
        .start();
    let mut handshake = Handshake::start(&server.first().addr).unwrap();
    assert_eq!(handshake.list().unwrap(), ["näme"]);
    handshake.ask_for(Headers::Structured).unwrap();
    let export = handshake.info("näme").unwrap().unwrap();
    assert_eq!(export.size, 3 * MIB);
    assert_eq!(export.name.as_deref(), Some("näme"));
    assert_eq!(export.description.as_deref(), Some("some text"));
    let (smallest, preferred, largest) = export.block_sizes.unwrap();
    assert_eq!((smallest, largest), (1, 32 << 20));
    assert!(preferred.is_power_of_two() && preferred >= 512);
    assert!(
        export.has(flag::SEND_DF),
        "DF belongs to structured replies"
    );
    // Having asked, the client may still go, or leave in peace.
    let mut client = handshake.go("näme").unwrap();
    assert_eq!(client.export.size, 3 * MIB);
    client.write(MIB, b"x").unwrap();

    let mut leaving = Handshake::start(&server.first().addr).unwrap();
    assert_eq!(
        leaving.option(opt::ABORT, &[]).unwrap(),
        [(rep::ACK, Vec::new())]
    );
    assert!(nbd::is_closed(&mut leaving.stream));
}

fn unknown_option_is_answered(combo: Combo) {
    need!(combo);
    let server = Serve::new(combo).memory("1M").unix().start();
    let mut handshake = Handshake::start(&server.first().addr).unwrap();
    for (option, data) in [(0, &[][..]), (0x7777, &[7; 1000]), (u32::MAX, &[1])] {
        let replies = handshake.option(option, data).unwrap();
        let kinds: Vec<u32> = replies.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [rep::ERR_UNSUP], "option {option}");
    }
    // TLS is known by name, and cannot be had.
    let replies = handshake.option(opt::STARTTLS, &[]).unwrap();
    assert!(replies[0].0 & rep::ERROR != 0, "{replies:x?}");
    // Data where none belongs, and less than there must be.
    for (option, data) in [
        (opt::STRUCTURED_REPLY, &b"data"[..]),
        (opt::GO, b"\0\0"),
        (opt::INFO, b""),
    ] {
        let replies = handshake.option(option, data).unwrap();
        assert_eq!(
            replies[0].0,
            rep::ERR_INVALID,
            "option {option}: {replies:x?}"
        );
    }
    // A name that claims to be longer than its option.
    let mut claim = Handshake::info_data("abc", &[]);
    claim[0] = 0x7f;
    let replies = handshake.option(opt::GO, &claim).unwrap();
    assert_eq!(replies[0].0, rep::ERR_INVALID, "{replies:x?}");
    handshake.go("").unwrap().write(0, b"still here").unwrap();
}

fn unknown_export_is_refused_and_the_client_may_go_on(combo: Combo) {
    need!(combo);
    let server = Serve::new(combo)
        .memory("1M")
        .args(["--name", "right"])
        .unix()
        .start();
    let addr = &server.first().addr;
    let mut handshake = Handshake::start(addr).unwrap();
    for name in ["wrong", "righ", "right/", "Right", &"long".repeat(1000)] {
        assert_eq!(
            handshake.info(name).unwrap().unwrap_err(),
            rep::ERR_UNKNOWN,
            "{name}"
        );
        let go = handshake
            .option(opt::GO, &Handshake::info_data(name, &[]))
            .unwrap();
        assert_eq!(go.last().unwrap().0, rep::ERR_UNKNOWN, "{name}");
    }
    handshake
        .go("right")
        .unwrap()
        .write(0, b"still here")
        .unwrap();
    // EXPORT_NAME has no error reply: the connection ends.
    let error = Handshake::start(addr)
        .unwrap()
        .export_name("wrong")
        .err()
        .unwrap();
    assert!(crate::common::ledger::is_gone(&error), "{error}");
    Handshake::start(addr)
        .unwrap()
        .export_name("right")
        .unwrap();
}

fn old_client_is_served_by_export_name(combo: Combo) {
    need!(combo);
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    data::random_file(&image, MIB, data::fresh_seed());
    let mut bytes = std::fs::read(&image).unwrap();
    let server = Serve::new(combo).image(&image).unix().start();
    for client_flags in [nbd::FIXED_NEWSTYLE, nbd::FIXED_NEWSTYLE | nbd::NO_ZEROES] {
        let handshake = Handshake::start_with(&server.first().addr, client_flags).unwrap();
        let mut client = handshake.export_name("").unwrap();
        assert_eq!(client.export.size, MIB);
        assert!(
            client
                .export
                .has(flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_TRIM)
        );
        assert!(
            !client.export.has(flag::SEND_DF),
            "DF belongs to structured replies"
        );
        assert_same("all of it", &client.read(0, MIB).unwrap(), &bytes);
        client
            .write(4000, &[u8::try_from(client_flags).unwrap(); 200])
            .unwrap();
        bytes[4000..4200].fill(u8::try_from(client_flags).unwrap());
        client.flush().unwrap();
        assert_same("read again", &client.read(0, MIB).unwrap(), &bytes);
        client.disconnect().unwrap();
    }
    // One that does not even know of options after the first.
    let mut client = Handshake::start_with(&server.first().addr, 0)
        .unwrap()
        .export_name("")
        .unwrap();
    assert_same("and again", &client.read(0, MIB).unwrap(), &bytes);
}

fn contexts_are_listed_by_query(combo: Combo) {
    need!(combo);
    let server = Serve::new(combo).memory("1M").unix().start();
    let mut handshake = Handshake::start(&server.first().addr).unwrap();
    // Without structured replies there is nothing that could carry extents.
    let set = Handshake::context_data("", &["base:allocation"]);
    let replies = handshake.option(opt::SET_META_CONTEXT, &set).unwrap();
    assert!(replies.last().unwrap().0 & rep::ERROR != 0, "{replies:x?}");
    handshake.ask_for(Headers::Structured).unwrap();
    let mut names = |option, export: &str, queries: &[&str]| -> Vec<String> {
        let replies = handshake
            .option(option, &Handshake::context_data(export, queries))
            .unwrap();
        let (last, contexts) = replies.split_last().unwrap();
        assert_eq!(last.0, rep::ACK, "{queries:?}");
        assert!(contexts.iter().all(|(kind, _)| *kind == rep::META_CONTEXT));
        contexts
            .iter()
            .map(|(_, data)| String::from_utf8(data[4..].to_vec()).unwrap())
            .collect()
    };
    let known = ["base:allocation"];
    assert_eq!(names(opt::LIST_META_CONTEXT, "", &[]), known);
    assert_eq!(names(opt::LIST_META_CONTEXT, "", &["base:"]), known);
    assert_eq!(
        names(opt::LIST_META_CONTEXT, "", &["qemu:", "base:allocation"]),
        known
    );
    assert!(names(opt::LIST_META_CONTEXT, "", &["nobody:knows"]).is_empty());
    assert_eq!(
        names(opt::SET_META_CONTEXT, "", &["base:allocation", "x-y:z"]),
        known
    );
    assert!(names(opt::SET_META_CONTEXT, "", &["x-y:z"]).is_empty());
    let wrong = Handshake::context_data("wrong", &["base:allocation"]);
    let replies = handshake.option(opt::LIST_META_CONTEXT, &wrong).unwrap();
    assert_eq!(replies.last().unwrap().0, rep::ERR_UNKNOWN);
    // The last SET selected nothing.
    let mut client = handshake.go("").unwrap();
    let reply = client.call(cmd::BLOCK_STATUS, 0, 0, MIB, &[]).unwrap();
    assert_eq!(reply.error, nbd::EINVAL);
    client.write(0, b"still here").unwrap();
}
