//! READs and WRITEs that are served through the connection's own buffer, piece by piece, because
//! the server has no room for their data as a whole.
//!
//! Slower, and holding up the client's other requests, but sure to make progress whatever others
//! hold.

use corio_block::{Length, Offset};

use super::{Error, Reader, Tag, WRITING};
use crate::server::batch::BATCH_BYTES;
use crate::server::request::Refusal;
use crate::server::transport::Transport;
use crate::server::work::write_flags;
use crate::server::zeroes::only_zeroes;
use crate::wire::{HeaderStyle, PREFIX_MAX, Prefix};

/// Data in one piece; what is left of the buffer holds the header.
const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES + PREFIX_MAX <= BATCH_BYTES);

impl<S: Transport> Reader<'_, S> {
    /// Serves a READ: in a chunk a piece, a hole if it is zero, where the client takes that; else
    /// (simple replies, DF) all pieces follow one header. What fails behind such a header ends the
    /// connection if the reply is simple, as the protocol demands, and is filled up with zeroes and
    /// followed by an error chunk if it is not.
    pub(super) fn read_here(
        &mut self,
        tag: Tag,
        offset: Offset,
        len: usize,
        whole: bool,
    ) -> Result<(), Error> {
        self.flush()?;
        let connection = self.connection;
        let style = connection.terms.style;
        let one_header = whole || style == HeaderStyle::Simple;
        // Nothing may come between the pieces behind one header.
        let held = connection.sender.hold();
        let mut failed: Option<Refusal> = None;
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(PIECE_BYTES);
            let start = Offset(offset.0.saturating_add(bytes(at)));
            let size = if one_header { len } else { piece };
            // A READ is at most 32 bits long.
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            let last = !one_header && at + piece == len;
            let prefix = if one_header && at > 0 {
                Prefix::default()
            } else {
                Prefix::data(style, tag.cookie, tag.offset, start.0, size, last)
            };
            let header = prefix.as_slice();
            let buffer = &mut self.batch.scratch()[..header.len() + piece];
            let (head, data) = buffer.split_at_mut(header.len());
            head.copy_from_slice(header);
            if failed.is_some() {
                data.fill(0);
            } else if let Err(error) = connection.node.read_at(data, start) {
                if at == 0 || !one_header {
                    failed = Some(connection.failed(&error));
                    break;
                }
                if style == HeaderStyle::Simple {
                    connection.sender.give_up();
                    return Err(Error::BrokenReply(error));
                }
                failed = Some(connection.failed(&error));
                data.fill(0);
            }
            let sent = if !one_header && only_zeroes(data) {
                let hole = Prefix::hole(style, tag.cookie, tag.offset, start.0, size, last);
                held.send_alone(hole.as_slice())
            } else {
                held.send_alone(buffer)
            };
            sent.map_err(Error::io(WRITING))?;
            at += piece;
        }
        held.send(&[]).map_err(Error::io(WRITING))?;
        drop(held);
        match failed {
            Some(refusal) => self.refuse_reply(tag, refusal),
            None if whole => self.reply(Prefix::done(style, tag.cookie, tag.offset).as_slice()),
            None => Ok(()),
        }
    }

    /// Serves a WRITE. What comes after a piece that failed is read and dropped.
    pub(super) fn write_here(
        &mut self,
        tag: Tag,
        offset: Offset,
        len: usize,
        fua: bool,
    ) -> Result<(), Error> {
        self.flush()?;
        let connection = self.connection;
        let mut failed: Option<Refusal> = None;
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(PIECE_BYTES);
            let data = &mut self.batch.scratch()[..piece];
            self.receiver.read_exact(&*connection.stream, data)?;
            if failed.is_none() {
                let start = Offset(offset.0.saturating_add(bytes(at)));
                let written = connection.node.write_at(data, start, write_flags(fua));
                failed = written.err().map(|error| connection.failed(&error));
            }
            at += piece;
        }
        match failed {
            Some(refusal) => self.refuse_reply(tag, refusal),
            None => {
                let style = connection.terms.style;
                self.reply(Prefix::done(style, tag.cookie, tag.offset).as_slice())
            }
        }
    }
}

/// A size in memory as a number of bytes on the disk.
fn bytes(len: usize) -> u64 {
    Length(u64::try_from(len).unwrap_or(u64::MAX)).0
}
