//! The state of one TLS connection, without I/O: ciphertext that has arrived goes in, plaintext
//! comes out; plaintext goes in, ciphertext to be sent comes out.
//!
//! ```text
//!            supply                 read
//!   socket ---------> incoming --+--------> caller's buffer
//!                        |       +--------> ready ---> the next read
//!                        v
//!                      rustls
//!                        |
//!                        +--> control (alerts, the handshake's) --+
//!            seal        |                                        v
//!   caller -----------> records -----------------------------> out, and on to the socket
//! ```
//!
//! Invariants:
//! - I1 rustls is always shown the bytes that it has not let go of, all of them and from the first:
//!   it may keep positions in them.
//! - I2 After [`Session::read`] no whole record is left in `incoming`, so `seal`, which has to ask
//!   rustls as well, comes upon none.
//! - I3 Ciphertext leaves in the order in which it was made: `control` is put before records that
//!   are sealed later.
//! - I4 Nothing grows without bound: `incoming` is of a fixed size, `ready` holds no more than was
//!   in it, `control` at most [`CONTROL_BYTES_MAX`].

use std::io::{self, IoSlice};
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};

use super::peer;
use crate::server::buffers::Buffer;

/// Plaintext of a full record (RFC 8446, section 5.1).
pub(super) const RECORD_PLAIN_BYTES: usize = 16 << 10;
/// A record on the wire at most: header, plaintext, and the 2048 that TLS 1.2 lets ciphers add.
pub(super) const RECORD_WIRE_BYTES: usize = 5 + RECORD_PLAIN_BYTES + 2048;
/// What sealing may add to a record, in any suite of TLS 1.2 and 1.3: header, explicit nonce, tag
/// and content type are 38 bytes at most.
const RECORD_OVERHEAD: usize = 64;
/// Room kept for a key update before a record.
const CONTROL_ROOM: usize = 256;
/// Alerts and handshake messages that wait to be sent. The largest is the server's certificates.
const CONTROL_BYTES_MAX: usize = 128 << 10;

/// Smallest buffer that [`Session::seal`] makes progress with.
pub(super) const SEALED_BYTES_MIN: usize = RECORD_PLAIN_BYTES + RECORD_OVERHEAD + CONTROL_ROOM;

/// One side of a TLS connection: the server's.
pub(super) struct Session {
    rustls: UnbufferedServerConnection,
    incoming: Buffer,
    start: usize,
    end: usize,
    /// Plaintext that did not fit into the caller's buffer.
    ready: Vec<u8>,
    ready_start: usize,
    control: Vec<u8>,
    peer_has_closed: bool,
    /// Why nothing more can be read or sealed.
    failed: Option<rustls::Error>,
}

/// What [`Session::seal`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sealed {
    /// Bytes of plaintext that were taken.
    pub(super) taken: usize,
    /// Bytes of ciphertext that were put into the buffer.
    pub(super) made: usize,
}

/// What is left over of a pass over what has arrived.
enum Step {
    Again,
    Done,
}

impl Session {
    /// `incoming` holds at least two records.
    pub(super) fn new(
        config: Arc<rustls::ServerConfig>,
        incoming: Buffer,
    ) -> Result<Self, rustls::Error> {
        debug_assert!(incoming.len() >= 2 * RECORD_WIRE_BYTES);
        Ok(Self {
            rustls: UnbufferedServerConnection::new(config)?,
            incoming,
            start: 0,
            end: 0,
            ready: Vec::new(),
            ready_start: 0,
            control: Vec::new(),
            peer_has_closed: false,
            failed: None,
        })
    }

    /// Whether the handshake goes on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.rustls.is_handshaking()
    }

    /// Whether the peer has said that it sends nothing more.
    pub(super) fn peer_has_closed(&self) -> bool {
        self.peer_has_closed
    }

    /// Version, cipher suite and the client's subject, once the handshake is over.
    pub(super) fn description(&self) -> String {
        let version = self.rustls.protocol_version();
        let version = version
            .and_then(|version| version.as_str())
            .unwrap_or("TLS");
        let suite = self.rustls.negotiated_cipher_suite();
        let suite = suite
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("?");
        let shown = self.rustls.peer_certificates();
        match shown.and_then(|chain| chain.first()) {
            None => format!("{version}, {suite}, no client certificate"),
            Some(own) => format!("{version}, {suite}, client {:?}", peer::subject(own)),
        }
    }

    /// Takes `len` bytes that have arrived in `fresh` at `room`, before which there is room for
    /// the leftover, and gives the buffer used up to now in exchange.
    ///
    /// # Errors
    /// There is no room for the leftover: no message that a client sends is that long.
    pub(super) fn supply(&mut self, fresh: &mut Buffer, room: usize, len: usize) -> io::Result<()> {
        let leftover = self.start..self.end;
        let Some(start) = room.checked_sub(leftover.len()) else {
            return Err(self.fail(rustls::Error::InvalidMessage(
                rustls::InvalidMessage::MessageTooLarge,
            )));
        };
        fresh[start..room].copy_from_slice(&self.incoming[leftover]);
        std::mem::swap(&mut self.incoming, fresh);
        (self.start, self.end) = (start, room + len);
        Ok(())
    }

    /// Opens every record that has arrived: into `out` what fits, the rest is kept for the next
    /// call. Zero: nothing more has arrived, or the peer has closed.
    ///
    /// # Errors
    /// The peer broke the protocol; also on every later call. There may be an alert to be sent.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ready_start < self.ready.len() {
            let kept = &self.ready[self.ready_start..];
            let len = out.len().min(kept.len());
            out[..len].copy_from_slice(&kept[..len]);
            self.ready_start += len;
            return Ok(len);
        }
        self.ready.clear();
        self.ready_start = 0;
        let mut here = 0;
        self.pass(
            |payload, ready| {
                let fits = payload.len().min(out.len() - here);
                let (now, later) = payload.split_at(fits);
                out[here..here + fits].copy_from_slice(now);
                here += fits;
                ready.extend_from_slice(later);
            },
            |_, _| Ok(()),
        )?;
        Ok(here)
    }

    /// Moves what is to be sent besides records into `out`; zero: nothing.
    pub(super) fn take_control(&mut self, out: &mut [u8]) -> usize {
        let len = self.control.len().min(out.len());
        out[..len].copy_from_slice(&self.control[..len]);
        self.control.drain(..len);
        len
    }

    /// Makes records of as much of `bufs` as fits into `out`, which is at least of
    /// [`SEALED_BYTES_MIN`], behind what is to be sent anyway. `stage` is of [`RECORD_PLAIN_BYTES`]
    /// and gathers short pieces into full records.
    ///
    /// # Errors
    /// The connection has failed, or its keys are used up.
    pub(super) fn seal(
        &mut self,
        bufs: &[IoSlice<'_>],
        stage: &mut [u8],
        out: &mut [u8],
    ) -> io::Result<Sealed> {
        debug_assert!(out.len() >= SEALED_BYTES_MIN && stage.len() == RECORD_PLAIN_BYTES);
        let mut sealed = Sealed::default();
        let mut pieces = Pieces::new(bufs);
        let mut is_open = false;
        self.pass(
            |payload, ready| ready.extend_from_slice(payload),
            |traffic, control| {
                is_open = true;
                let len = control.len().min(out.len());
                out[..len].copy_from_slice(&control[..len]);
                control.drain(..len);
                sealed.made = len;
                while out.len() - sealed.made >= SEALED_BYTES_MIN {
                    let Some(plain) = pieces.next(stage) else {
                        break;
                    };
                    sealed.made += traffic.encrypt(plain, &mut out[sealed.made..])?;
                    sealed.taken += plain.len();
                }
                Ok(())
            },
        )?;
        if is_open {
            Ok(sealed)
        } else {
            // Records before the handshake's end, or behind our own close.
            Err(io::ErrorKind::NotConnected.into())
        }
    }

    /// Says that nothing more will be sent, behind what is to be sent anyway. Returns the bytes put
    /// into `out`, which is at least of [`SEALED_BYTES_MIN`].
    pub(super) fn close(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut made = 0;
        self.pass(
            |_, _| (),
            |traffic, control| {
                let len = control.len().min(out.len());
                out[..len].copy_from_slice(&control[..len]);
                control.drain(..len);
                made = len + traffic.queue_close_notify(&mut out[len..])?;
                Ok(())
            },
        )?;
        Ok(made)
    }

    /// Shows rustls what has arrived until it wants more: `open` gets each record's payload, and
    /// `ready` for what it has no room for; `write` is called once if records may be sealed, with
    /// what has to be sent before them.
    fn pass(
        &mut self,
        mut open: impl FnMut(&[u8], &mut Vec<u8>),
        mut write: impl FnMut(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut Vec<u8>,
        ) -> Result<(), EncryptError>,
    ) -> io::Result<()> {
        if let Some(error) = &self.failed {
            return Err(failure(error));
        }
        loop {
            let shown = &mut self.incoming[self.start..self.end];
            let UnbufferedStatus { mut discard, state } = self.rustls.process_tls_records(shown);
            let step = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut step = Ok(Step::Again);
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                open(record.payload, &mut self.ready);
                            }
                            Err(error) => step = Err(error),
                        }
                    }
                    step
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.control, |room| data.encode(room))
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // They are kept in `control`, which is as good as sent (I3).
                    data.done();
                    Ok(Step::Again)
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_has_closed = true;
                    Ok(Step::Again)
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    match write(&mut traffic, &mut self.control) {
                        Ok(()) => Ok(Step::Done),
                        Err(EncryptError::EncryptExhausted) => Err(rustls::Error::EncryptError),
                        // Sizes are ours to get right.
                        Err(error) => Err(rustls::Error::General(error.to_string())),
                    }
                }
                Ok(ConnectionState::BlockedHandshake) => Ok(Step::Done),
                Ok(ConnectionState::Closed) => {
                    self.peer_has_closed = true;
                    Ok(Step::Done)
                }
                // Early data is not offered, and whatever else there may be was not asked for.
                Ok(other) => Err(rustls::Error::General(format!("unexpected {other:?}"))),
                Err(error) => Err(error),
            };
            self.start += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Done) => return Ok(()),
                Err(error) => {
                    self.collect_alert();
                    return Err(self.fail(error));
                }
            }
        }
    }

    /// The alert that tells the peer what it did wrong, if there is one.
    fn collect_alert(&mut self) {
        let shown = &mut self.incoming[self.start..self.end];
        let UnbufferedStatus { discard, state } = self.rustls.process_tls_records(shown);
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = state {
            let _ = encode(&mut self.control, |room| data.encode(room));
        }
        self.start += discard;
    }

    /// Nothing goes on from here.
    fn fail(&mut self, error: rustls::Error) -> io::Error {
        let seen = failure(&error);
        self.failed = Some(error);
        seen
    }
}

/// Appends what `put` encodes, which says how much room it needs.
fn encode(
    control: &mut Vec<u8>,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<Step, rustls::Error> {
    let before = control.len();
    let wanted = match put(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            required_size
        }
        _ => 0,
    };
    if before + wanted > CONTROL_BYTES_MAX {
        let why = "the peer does not take what TLS has to tell it";
        return Err(rustls::Error::General(why.to_owned()));
    }
    control.resize(before + wanted, 0);
    if wanted > 0 {
        put(&mut control[before..]).map_err(|error| rustls::Error::General(error.to_string()))?;
    }
    Ok(Step::Again)
}

/// What a caller gets to see.
fn failure(error: &rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Failure(error.clone()))
}

/// A failure of TLS itself, in words for people.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {}", explain(.0))]
pub(super) struct Failure(pub(super) rustls::Error);

/// What went wrong, for people.
pub(super) fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError, Error};
    match error {
        Error::NoCertificatesPresented => "the client showed no certificate".to_owned(),
        // The second: its CA has the name of one that is trusted, and is not that one.
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "the client's certificate is not signed by a CA that is trusted here".to_owned(),
        Error::InvalidCertificate(why) => format!("the client's certificate is refused: {why}"),
        Error::AlertReceived(Alert::UnknownCA | Alert::BadCertificate) => {
            "the client does not trust the server's certificate".to_owned()
        }
        Error::AlertReceived(Alert::CertificateExpired) => {
            "the client finds the server's certificate expired".to_owned()
        }
        Error::AlertReceived(alert) => format!("the client gave up: {alert:?}"),
        Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "the client sent what is not TLS where TLS must begin, or was interfered with"
                .to_owned()
        }
        other => other.to_string(),
    }
}

/// Cuts slices into the plaintexts of records.
struct Pieces<'a, 'b> {
    bufs: &'a [IoSlice<'b>],
    /// Of the first of them.
    used: usize,
}

impl<'a, 'b> Pieces<'a, 'b> {
    fn new(bufs: &'a [IoSlice<'b>]) -> Self {
        Self { bufs, used: 0 }
    }

    /// The next one: a part of a slice if that fills a record or is all there is, else what fits of
    /// several, put together in `stage`.
    fn next<'s>(&mut self, stage: &'s mut [u8]) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        self.pass_empty();
        let (first, others) = self.bufs.split_first()?;
        let rest = &first[self.used..];
        if rest.len() >= RECORD_PLAIN_BYTES || others.iter().all(|buf| buf.is_empty()) {
            let len = rest.len().min(RECORD_PLAIN_BYTES);
            self.used += len;
            return Some(&rest[..len]);
        }
        let mut filled = 0;
        while filled < stage.len() {
            self.pass_empty();
            let Some(first) = self.bufs.first() else {
                break;
            };
            let rest = &first[self.used..];
            let len = rest.len().min(stage.len() - filled);
            stage[filled..filled + len].copy_from_slice(&rest[..len]);
            filled += len;
            self.used += len;
        }
        Some(&stage[..filled])
    }

    fn pass_empty(&mut self) {
        while let Some((first, others)) = self.bufs.split_first() {
            if self.used < first.len() {
                return;
            }
            (self.bufs, self.used) = (others, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(lens: &[usize]) -> Vec<usize> {
        let bytes: Vec<Vec<u8>> = (0..).zip(lens).map(|(i, &len)| vec![i; len]).collect();
        let bufs: Vec<_> = bytes.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let mut stage = vec![0; RECORD_PLAIN_BYTES];
        let mut pieces = Pieces::new(&bufs);
        let mut all = Vec::new();
        let mut sizes = Vec::new();
        while let Some(piece) = pieces.next(&mut stage) {
            sizes.push(piece.len());
            all.extend_from_slice(piece);
        }
        assert!(
            all == bytes.concat(),
            "{lens:?}: nothing lost, nothing twice"
        );
        sizes
    }

    #[test]
    fn pieces_are_full_records_but_for_the_last() {
        const FULL: usize = RECORD_PLAIN_BYTES;
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[0, 0]), []);
        assert_eq!(cut(&[1]), [1]);
        assert_eq!(cut(&[FULL]), [FULL]);
        assert_eq!(cut(&[FULL + 1, 0]), [FULL, 1]);
        assert_eq!(cut(&[20, 4096, 20, 4096]), [8232]);
        assert_eq!(cut(&[20, 3 * FULL]), [FULL, FULL, FULL, 20]);
        assert_eq!(cut(&[0, FULL - 1, 0, 2]), [FULL, 1]);
    }
}
