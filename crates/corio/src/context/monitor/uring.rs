//! The io_uring monitor: one-shot polls in the context's ring, armed again after each event, which
//! keeps them level-triggered (a multishot poll reports edges only).

use std::io;

use super::super::handler::{ALWAYS, Entry};
use super::super::local::Local;
use super::super::ring::ContextRing;
use crate::error::Error;
use crate::sys::uring::{Kind, Ring};

/// Fails where a ring cannot be made; the context makes its own afterwards.
pub(super) fn try_out() -> Result<(), Error> {
    Ring::new(Kind::Deferred).map(drop)
}

pub(super) fn update(ring: &ContextRing, entry: &Entry) -> io::Result<()> {
    let wanted = entry.events();
    let armed = entry.armed.get();
    if armed == wanted {
        return Ok(());
    }
    if armed != 0 {
        // Its own completion (ECANCELED, or an event that was faster) arms what is wanted by
        // then.
        if armed & WITHDRAWN == 0 {
            ring.poll_remove(entry.token)?;
            entry.armed.set(armed | WITHDRAWN);
        }
        return Ok(());
    }
    ring.poll_add(entry.fd, wanted, entry.token)?;
    entry.armed.set(wanted);
    Ok(())
}

#[inline(never)] // Out of the way of the others.
pub(super) fn wait(local: &Local, timeout_ns: Option<u64>) -> io::Result<()> {
    let ring = local.ring()?;
    let has_room = ring.push_backlog()?;
    let timeout_ns = if ring.has_arrived() || !has_room {
        Some(0)
    } else {
        timeout_ns
    };
    ring.ring().submit_and_wait(timeout_ns)?;
    let mut failed = Ok(());
    ring.reap(|token, result| {
        let Some(entry) = local.handler(token) else {
            return;
        };
        entry.armed.set(0); // One shot: it is spent.
        match u32::try_from(result) {
            Ok(revents) => local.ready.note(token, revents),
            Err(_) if result == -libc::ECANCELED => local.note_rearm(token),
            Err(_) if result == -libc::EBADF => local.note_closed(token),
            // No memory and the like: the handler finds out by itself.
            Err(_) => local.ready.note(token, ALWAYS),
        }
    });
    local.rearm_noted(&mut failed);
    failed
}

/// Has the removals that are queued done. Each cancels its poll, which holds a share of the
/// descriptor until then.
pub(super) fn finish(ring: &ContextRing) {
    // A refusal leaves it to the ring's own end.
    let _ = ring
        .push_backlog()
        .and_then(|_| ring.ring().submit_and_wait(Some(0)));
    ring.reap(|_, _| ());
}

/// In `Entry::armed`: a removal of the poll is on its way.
const WITHDRAWN: u32 = 1 << 31;
