//! TLS as a transport over another one, for coroutines of one thread that read and write at once.
//!
//! ```text
//!   who reads has `arriving`:   socket --park--> arriving --\
//!                                                            session   (borrowed between parks only)
//!   who writes has `outgoing`:  socket <--park-- outgoing <-/
//! ```
//!
//! The session is borrowed while bytes are opened or sealed and never across a park; what is parked
//! on is a buffer that the session knows nothing of. So a reader that waits for the client and a
//! writer that waits for room do not hold each other up.
//!
//! The end: [`Transport::finish`] sends close_notify. A client that sends it has ended its
//! direction in order and gets its replies still. One whose connection ends without it may have
//! been cut off by somebody else (RFC 8446, section 6.1): reading fails then, unless this side has
//! ended the direction itself.
//!
//! Invariants:
//! - I1 Whoever seals has `outgoing` until the socket has taken all of it: records leave in the
//!   order in which they were sealed.
//! - I2 After a write that failed or unwound nothing is sealed any more.
//! - I3 A time-out is for a call as a whole, however many times it goes to the socket.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::{
    Failure, RECORD_PLAIN_BYTES, RECORD_WIRE_BYTES, SEALED_BYTES_MIN, Session, explain,
};
use crate::server::Error;
use crate::server::buffers::{Buffer, BufferPool};
use crate::server::deadline::Deadline;
use crate::server::signal::Signal;
use crate::server::transport::Transport;

/// Ciphertext that one read of the socket brings at most, and what it is put behind.
const INCOMING_BYTES: usize = 192 << 10;
/// Room before it for what is left over of the read before: part of a record, or of the longest
/// handshake message that rustls takes.
const LEFTOVER_BYTES: usize = 68 << 10;
/// Ciphertext that is sent at once, and the plaintext that is put together for a record of it.
const OUTGOING_BYTES: usize = 256 << 10;
/// Bytes that a client may send for its side of a TLS handshake: certificates, most of all.
const HANDSHAKE_BYTES_MAX: usize = 256 << 10;
/// How long a client may take to take an alert or a close_notify.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

const _: () = assert!(LEFTOVER_BYTES >= RECORD_WIRE_BYTES);
const _: () = assert!(INCOMING_BYTES - LEFTOVER_BYTES >= 2 * RECORD_WIRE_BYTES);
const _: () = assert!(OUTGOING_BYTES - RECORD_PLAIN_BYTES >= SEALED_BYTES_MIN);

/// A stream that speaks TLS over `S`, past the handshake.
pub(in crate::server) struct Tls<S: Transport> {
    stream: Rc<S>,
    session: RefCell<Session>,
    arriving: Slot<Buffer>,
    outgoing: Slot<Buffer>,
    /// What one call may take.
    limit: Cell<Option<Duration>>,
    /// Whether this side has ended the reading direction.
    reading_ended: Cell<bool>,
    /// Whether a write failed or unwound (I2).
    broken: Cell<bool>,
}

/// Speaks the server's side of the handshake, all of it before `deadline`. Parks.
///
/// # Errors
/// The client does not speak TLS, shows no certificate that it must show, takes too long, or is
/// gone. It has been told by an alert, where TLS has one.
pub(in crate::server) fn accept<S: Transport>(
    stream: &Rc<S>,
    config: &Arc<rustls::ServerConfig>,
    buffers: &Arc<BufferPool>,
    deadline: &Deadline,
) -> Result<Tls<S>, Error> {
    let memory = |len| buffers.get(len).map_err(Error::io("getting memory"));
    let session = Session::new(Arc::clone(config), memory(INCOMING_BYTES)?)
        .map_err(|error| Error::Tls(explain(&error)))?;
    let tls = Tls {
        stream: Rc::clone(stream),
        session: RefCell::new(session),
        arriving: Slot::new(memory(INCOMING_BYTES)?),
        outgoing: Slot::new(memory(OUTGOING_BYTES)?),
        limit: Cell::new(None),
        reading_ended: Cell::new(false),
        broken: Cell::new(false),
    };
    let mut received = 0;
    while tls.session.borrow().is_handshaking() {
        let until = Some(deadline.end());
        let n = tls.receive(INCOMING_BYTES, until).map_err(in_handshake)?;
        if n == 0 {
            return Err(Error::Incomplete {
                what: "the TLS handshake",
            });
        }
        received += n;
        if received > HANDSHAKE_BYTES_MAX {
            let why = format!("the client sent more than {HANDSHAKE_BYTES_MAX} bytes for it");
            return Err(Error::Tls(why));
        }
        // No record has data before the handshake's end, and what comes right behind it stays.
        let opened = tls.session.borrow_mut().read(&mut []);
        let told = tls.send_control(until);
        opened.map_err(in_handshake)?;
        told.map_err(in_handshake)?;
    }
    Ok(tls)
}

/// An error of the socket or of TLS in the handshake.
fn in_handshake(error: io::Error) -> Error {
    let failure = error.get_ref().and_then(|error| error.downcast_ref());
    match failure {
        Some(Failure(why)) => Error::Tls(explain(why)),
        None => Error::io("in the TLS handshake")(error),
    }
}

impl<S: Transport> Tls<S> {
    /// Version, cipher suite and the client's subject.
    pub(in crate::server) fn description(&self) -> String {
        self.session.borrow().description()
    }

    /// Reads the socket once, about as much as makes `wanted` bytes of plaintext; zero at its end.
    fn receive(&self, wanted: usize, until: Option<Instant>) -> io::Result<usize> {
        let mut arriving = self.arriving.take();
        let room = arriving.len() - LEFTOVER_BYTES;
        // A record's worth at least: less would cost a call for each part of it.
        let len = wanted.saturating_add(wanted / 64);
        let len = len.clamp(RECORD_WIRE_BYTES, room);
        self.impose(until)?;
        let n = self
            .stream
            .read(&mut arriving[LEFTOVER_BYTES..LEFTOVER_BYTES + len])?;
        if n > 0 {
            let mut session = self.session.borrow_mut();
            session.supply(&mut arriving, LEFTOVER_BYTES, n)?;
        }
        Ok(n)
    }

    /// Sends alerts and what else TLS itself has to say, unless somebody writes, who then takes it
    /// along.
    fn send_control(&self, until: Option<Instant>) -> io::Result<()> {
        while let Some(mut outgoing) = self.outgoing.try_take() {
            let made = self.session.borrow_mut().take_control(&mut outgoing);
            if made == 0 {
                break;
            }
            if self.broken.get() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.transmit(&outgoing[..made], until)?;
        }
        Ok(())
    }

    /// Tells a peer that broke the protocol so. What comes of it is of no interest.
    fn send_alert(&self) {
        let _ = self.send_control(Instant::now().checked_add(GOODBYE_TIME));
    }

    fn seal_and_send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let until = self.until();
        let mut outgoing = self.outgoing.take();
        if self.broken.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let (stage, out) = outgoing.split_at_mut(RECORD_PLAIN_BYTES);
        let sealed = self.session.borrow_mut().seal(bufs, stage, out)?;
        self.transmit(&out[..sealed.made], until)?;
        Ok(sealed.taken)
    }

    /// Writes all of it. Whoever calls has `outgoing` (I1).
    fn transmit(&self, mut bytes: &[u8], until: Option<Instant>) -> io::Result<()> {
        // Until all of it is gone: an error and an unwinding coroutine leave a record cut short.
        self.broken.set(true);
        while !bytes.is_empty() {
            self.impose(until)?;
            match self.stream.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.broken.set(false);
        Ok(())
    }

    /// When a call that begins now must be over.
    fn until(&self) -> Option<Instant> {
        let limit = self.limit.get()?;
        Instant::now().checked_add(limit)
    }

    /// Lets the socket's next read or write wait for no longer than until then (I3).
    fn impose(&self, until: Option<Instant>) -> io::Result<()> {
        let Some(until) = until else {
            return Ok(()); // The socket has no limit either.
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_timeout(Some(left))
    }
}

impl<S: Transport> Transport for Tls<S> {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let until = self.until();
        loop {
            let opened = self.session.borrow_mut().read(buf);
            match opened {
                Ok(0) if self.session.borrow().peer_has_closed() => return Ok(0),
                Ok(0) => {}
                Ok(n) => return Ok(n),
                Err(error) => {
                    self.send_alert();
                    return Err(error);
                }
            }
            self.send_control(until)?;
            if self.receive(buf.len(), until)? == 0 {
                if self.reading_ended.get() {
                    return Ok(0);
                }
                let why = "the connection ended without TLS's close_notify: the client does not \
                           send it, or was cut off";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
        }
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        self.seal_and_send(&[IoSlice::new(buf)])
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.seal_and_send(bufs)
    }

    fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        self.limit.set(limit);
        self.stream.set_timeout(limit)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Write {
            self.reading_ended.set(true);
        }
        self.stream.shutdown(how)
    }

    fn finish(&self) {
        // A client that takes nothing any more has no use for a goodbye.
        let Some(mut outgoing) = self.outgoing.try_take() else {
            return;
        };
        if self.broken.get() || self.set_timeout(Some(GOODBYE_TIME)).is_err() {
            return;
        }
        let closed = self.session.borrow_mut().close(&mut outgoing);
        if let Ok(made) = closed {
            let _ = self.transmit(&outgoing[..made], self.until());
        }
    }
}

/// Something that one coroutine at a time has.
struct Slot<T> {
    item: Cell<Option<T>>,
    free: Signal,
}

impl<T> Slot<T> {
    fn new(item: T) -> Self {
        Self {
            item: Cell::new(Some(item)),
            free: Signal::new(),
        }
    }

    /// Parks until nobody else has it.
    fn take(&self) -> Taken<'_, T> {
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            self.free.wait_until(|| {
                let item = self.item.take();
                let is_free = item.is_some();
                self.item.set(item);
                is_free
            });
        }
    }

    fn try_take(&self) -> Option<Taken<'_, T>> {
        let item = self.item.take()?;
        Some(Taken {
            slot: self,
            item: Some(item),
        })
    }
}

/// The item, which goes back when this is dropped.
struct Taken<'a, T> {
    slot: &'a Slot<T>,
    /// There until the drop.
    item: Option<T>,
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.item {
            Some(item) => item,
            None => unreachable!("it is given back by the drop alone"),
        }
    }
}

impl<T> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.item {
            Some(item) => item,
            None => unreachable!("it is given back by the drop alone"),
        }
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        self.slot.item.set(self.item.take());
        self.slot.free.fire();
    }
}
