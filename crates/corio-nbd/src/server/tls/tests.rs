//! A session fed by a real client's bytes, in whatever pieces and with whatever damage.

use std::io::{IoSlice, Read, Write};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, SupportedProtocolVersion};

use super::session::{RECORD_PLAIN_BYTES, RECORD_WIRE_BYTES, SEALED_BYTES_MIN, Session};
use crate::server::buffers::{Buffer, BufferPool};
use crate::server::tests::tls_peer::{Authority, connection};

/// As in the stream, but for the sizes.
const LEFTOVER: usize = 68 << 10;
const INCOMING: usize = LEFTOVER + 2 * RECORD_WIRE_BYTES;

/// A client and the server's session, with no wire between.
struct Pair {
    client: ClientConnection,
    session: Session,
    fresh: Buffer,
    out: Vec<u8>,
}

impl Pair {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let authority = Authority::new();
        let pool = BufferPool::new(1 << 20);
        let config = Arc::clone(&authority.server(None).rustls);
        Self {
            client: connection(&authority.client_of(None, &[version])),
            session: Session::new(config, pool.get(INCOMING).unwrap()).unwrap(),
            fresh: pool.get(INCOMING).unwrap(),
            out: vec![0; 2 * SEALED_BYTES_MIN],
        }
    }

    /// Past the handshake.
    fn shaken(version: &'static SupportedProtocolVersion) -> Self {
        let mut pair = Self::new(version);
        while pair.client.is_handshaking() || pair.session.is_handshaking() {
            let sent = pair.client_bytes();
            assert_eq!(pair.deliver(&sent, &mut []), Ok(0));
            pair.take_control();
        }
        pair
    }

    fn client_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// The session gets bytes; what it makes of them goes to `plain`.
    fn deliver(&mut self, bytes: &[u8], plain: &mut [u8]) -> Result<usize, String> {
        self.fresh[LEFTOVER..LEFTOVER + bytes.len()].copy_from_slice(bytes);
        let supplied = self.session.supply(&mut self.fresh, LEFTOVER, bytes.len());
        supplied
            .and_then(|()| self.session.read(plain))
            .map_err(|error| error.to_string())
    }

    /// What the session has to say besides records reaches the client.
    fn take_control(&mut self) -> usize {
        let mut all = Vec::new();
        loop {
            let len = self.session.take_control(&mut self.out);
            if len == 0 {
                break;
            }
            all.extend_from_slice(&self.out[..len]);
        }
        self.client_reads(&all).unwrap();
        all.len()
    }

    fn client_reads(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut plain = Vec::new();
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            let state = self.client.process_new_packets()?;
            let at = plain.len();
            plain.resize(at + state.plaintext_bytes_to_read(), 0);
            self.client.reader().read_exact(&mut plain[at..]).unwrap();
        }
        Ok(plain)
    }

    /// Seals the pieces, and returns what the client makes of it.
    fn seal(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let mut bufs: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut bufs = &mut bufs[..];
        let mut stage = vec![0; RECORD_PLAIN_BYTES];
        let mut plain = Vec::new();
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            let mut out = std::mem::take(&mut self.out);
            let sealed = self.session.seal(bufs, &mut stage, &mut out).unwrap();
            assert!(sealed.taken > 0 && sealed.made > sealed.taken);
            plain.extend(self.client_reads(&out[..sealed.made]).unwrap());
            self.out = out;
            IoSlice::advance_slices(&mut bufs, sealed.taken);
        }
        plain
    }
}

fn version(new: bool) -> &'static SupportedProtocolVersion {
    if new { &TLS13 } else { &TLS12 }
}

/// `bytes` in pieces of these sizes, in turns.
fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            return pieces;
        }
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the pieces it comes in and the buffers it goes to, and with replies in between.
    #[test]
    fn plaintext_arrives_whole_and_in_order(
        new in any::<bool>(),
        writes in vec(1..40_000_usize, 1..5),
        sizes in vec(1..30_000_usize, 1..6),
        room in 1..50_000_usize,
    ) {
        let mut pair = Pair::shaken(version(new));
        let mut sent = Vec::new();
        let mut wire = Vec::new();
        for (i, len) in (0u8..).zip(&writes) {
            let data: Vec<u8> = (0..*len).map(|at| i ^ at.to_le_bytes()[0]).collect();
            for part in data.chunks(10_000) {
                pair.client.writer().write_all(part).unwrap();
                wire.extend(pair.client_bytes());
            }
            sent.extend(data);
            if new {
                pair.client.refresh_traffic_keys().unwrap();
                wire.extend(pair.client_bytes());
            }
        }
        let mut received = Vec::new();
        let mut plain = vec![0; room];
        for piece in cut(&wire, &sizes) {
            let mut n = pair.deliver(piece, &mut plain).unwrap();
            // Part of a record is there, most of the time: sealing must not mind.
            prop_assert_eq!(pair.seal(&[b"re", b"", b"ply"]), b"reply");
            while n > 0 {
                received.extend_from_slice(&plain[..n]);
                n = pair.session.read(&mut plain).unwrap();
            }
        }
        prop_assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    }

    /// What is sealed in whatever pieces is what the client opens.
    #[test]
    fn sealed_pieces_are_opened_as_one(new in any::<bool>(), lens in vec(0..40_000_usize, 1..9)) {
        let mut pair = Pair::shaken(version(new));
        let data: Vec<Vec<u8>> = (0..).zip(&lens).map(|(i, &len)| vec![i; len]).collect();
        let pieces: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        prop_assert!(pair.seal(&pieces) == data.concat());
    }

    /// One bit, anywhere from the hello on: what is protected is not believed, and what is not (the
    /// version in the hello's record, say) changes nothing.
    #[test]
    fn damage_is_noticed(
        new in any::<bool>(),
        in_data in any::<bool>(),
        at in 0..5000_usize,
        bit in 0..8_u32,
    ) {
        let mut pair = Pair::new(version(new));
        let secret = [7; 5000];
        let (mut seen, mut data_sent, mut damaged) = (0, false, false);
        for _ in 0..8 {
            if !data_sent && !pair.client.is_handshaking() {
                pair.client.writer().write_all(&secret).unwrap();
                data_sent = true;
            }
            let mut bytes = pair.client_bytes();
            if bytes.is_empty() {
                // Each waits for the other, as where a length was damaged.
                prop_assert!(damaged);
                break;
            }
            // The data's record is the last that the client sends, and longer than the data.
            let target = match (in_data, data_sent) {
                (true, true) => Some(bytes.len() - 1 - at),
                (false, _) => at.checked_sub(seen),
                (true, false) => None,
            };
            if let Some(byte) = target.and_then(|target| bytes.get_mut(target)) {
                *byte ^= 1 << bit;
                damaged = true;
            }
            seen += bytes.len();
            let mut plain = [0; 6000];
            match pair.deliver(&bytes, &mut plain) {
                Err(_) => return Ok(()),
                Ok(0) => prop_assert!(!(in_data && data_sent), "damaged data was passed over"),
                Ok(n) => {
                    prop_assert!(!in_data && data_sent, "damaged data was taken");
                    prop_assert!(plain[..n] == secret[..n], "other data was taken");
                    return Ok(());
                }
            }
            let mut control = Vec::new();
            while let len @ 1.. = pair.session.take_control(&mut pair.out) {
                control.extend_from_slice(&pair.out[..len]);
            }
            if pair.client_reads(&control).is_err() {
                return Ok(());
            }
        }
    }

    /// Bytes that are no TLS, before and after the handshake.
    #[test]
    fn junk_never_panics_and_is_never_believed(
        shaken in any::<bool>(),
        new in any::<bool>(),
        head in vec(any::<u8>(), 0..8),
        kind in 0x13..0x19_u8,
        body in vec(any::<u8>(), 0..2000),
        sizes in vec(1..300_usize, 1..4),
    ) {
        let mut pair = if shaken { Pair::shaken(version(new)) } else { Pair::new(version(new)) };
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        // Sometimes framed as records are.
        let framed = [&[kind, 3, 3, len[0], len[1]][..], &body].concat();
        let junk = if head.len() < 4 { framed } else { [head, body].concat() };
        let mut plain = [0; 4096];
        for piece in cut(&junk, &sizes) {
            match pair.deliver(piece, &mut plain) {
                Ok(n) => prop_assert_eq!(n, 0),
                Err(_) => {
                    // It stays that way.
                    prop_assert!(pair.deliver(piece, &mut plain).is_err());
                    let mut stage = vec![0; RECORD_PLAIN_BYTES];
                    let bufs = [IoSlice::new(b"x")];
                    prop_assert!(pair.session.seal(&bufs, &mut stage, &mut pair.out).is_err());
                    break;
                }
            }
        }
        // An alert at most.
        prop_assert!(pair.session.take_control(&mut pair.out) < 64);
    }
}

#[test]
fn nothing_is_sealed_before_the_handshake() {
    let mut pair = Pair::new(&TLS13);
    let mut stage = vec![0; RECORD_PLAIN_BYTES];
    let bufs = [IoSlice::new(b"x")];
    let error = pair.session.seal(&bufs, &mut stage, &mut pair.out);
    assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::NotConnected);
}

#[test]
fn message_longer_than_any_may_be_is_refused() {
    let mut pair = Pair::new(&TLS13);
    // One handshake message of 16 MiB in records of 16 KiB.
    let mut record = vec![0x16, 3, 1, 0x40, 0];
    record.resize(5 + RECORD_PLAIN_BYTES, 0);
    record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
    let ended = (0..64).find(|_| pair.deliver(&record, &mut []).is_err());
    assert!(ended.is_some(), "a mebibyte was taken");
}

#[test]
fn close_is_said_once_and_heard() {
    for version in [&TLS12, &TLS13] {
        let mut pair = Pair::shaken(version);
        let mut out = vec![0; SEALED_BYTES_MIN];
        let made = pair.session.close(&mut out).unwrap();
        pair.client_reads(&out[..made]).unwrap();
        assert_eq!(pair.client.reader().read(&mut [0]).unwrap(), 0);
        pair.client.writer().write_all(b"the last").unwrap();
        pair.client.send_close_notify();
        let bytes = pair.client_bytes();
        let mut plain = [0; 16];
        assert_eq!(pair.deliver(&bytes, &mut plain), Ok(8));
        assert!(pair.session.peer_has_closed());
        assert_eq!(pair.session.read(&mut plain).unwrap(), 0);
    }
}
