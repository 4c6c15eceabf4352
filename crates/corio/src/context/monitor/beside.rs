//! The ring beside a monitor that does not wait in it at present: its descriptor is watched while
//! disk requests are in flight, and its completions are taken after each wait.

use std::io;

use super::super::local::Local;
use super::super::ring::ContextRing;

/// How long the loop waits before it submits again what a busy kernel has not taken.
pub(super) const BUSY_RETRY_NS: u64 = 1_000_000;

/// The ring, if a wait has to watch it.
pub(super) fn in_flight(local: &Local) -> Option<&ContextRing> {
    local.ring_if_made().filter(|ring| ring.in_flight() > 0)
}

/// Hands over what is queued; how long the wait may last then.
pub(super) fn before_wait(ring: &ContextRing, timeout_ns: Option<u64>) -> io::Result<Option<u64>> {
    ring.submit()?;
    Ok(if ring.has_arrived() {
        Some(0)
    } else if ring.pending() > 0 {
        // The kernel was too busy for all of them: nothing but the time tells when it is not.
        Some(timeout_ns.unwrap_or(BUSY_RETRY_NS).min(BUSY_RETRY_NS))
    } else {
        timeout_ns
    })
}

/// Takes what has completed, whatever became of the wait; `watched` is the ring if that wait looked
/// at it. What else a ring has told of goes to `told`: a poll that was left in it may tell of
/// something when no request is in flight.
pub(super) fn after_wait(
    local: &Local,
    watched: Option<&ContextRing>,
    waited: io::Result<()>,
    told: impl FnMut(u64, i32),
) -> io::Result<()> {
    let flushed = watched.map_or(Ok(()), |ring| ring.ring().flush_completions());
    if let Some(ring) = local.ring_if_made() {
        ring.reap(told);
    }
    // Task work for the ring interrupts the wait: look at the completions, which has just been done.
    unless_interrupted(waited).and(flushed)
}

/// A wait that a signal or task work has ended is over.
#[inline]
pub(super) fn unless_interrupted(waited: io::Result<()>) -> io::Result<()> {
    match waited {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        result => result,
    }
}
