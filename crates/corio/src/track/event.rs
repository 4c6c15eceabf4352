//! What is recorded: the kinds, the words they are packed in, and the typed event they are read
//! back as.
//!
//! A record is four words: `(time - origin) << 8 | kind`, and three arguments whose meaning the
//! kind gives. 56 bits of nanoseconds are 2.2 years from the first `enable()`.
//!
//! Invariants
//! - I1. The third argument of a record of kind `SCHEDULED` is 0 or the exposed address of a
//!   `&'static Location`. `Kind`, all that `emit` takes, cannot name that kind; only
//!   `scheduled_words` makes it.
//! - I2. The third argument of a record of kind `BOTTOM_HALF_RUN` is 0, or the exposed address of a
//!   `&'static str`'s bytes below its length in the upper 16 bits. Only `bottom_half_words` makes
//!   it, as above.

// Turning a recorded address back into a location (I1) or a name (I2).
#![allow(unsafe_code)]

use core::panic::Location;

/// Words in a record.
pub(super) const WORDS: usize = 4;

/// A record as it lies in the ring.
pub(super) type Words = [u64; WORDS];

/// The kind of `Event::Scheduled`, apart from `Kind` so that I1 holds.
const SCHEDULED: u8 = 0;
/// The kind of `Event::BottomHalfRun`, apart from `Kind` so that I2 holds.
const BOTTOM_HALF_RUN: u8 = u8::MAX;

/// Bits of a name's word that hold its address. What a program may use has no more, unless it asks
/// for them: such a name is left out.
const ADDRESS_BITS: u32 = 48;

/// Bits of the first word that hold the kind.
const KIND_BITS: u32 = 8;

/// What happened, for [`super::emit`]: the comment gives the three arguments, unused ones are 0. A
/// coroutine, context, lock, handler, bottom half or request is named by a number of its maker's
/// choice which is not 0; 0 says "none" (a thread outside any coroutine, or of no context).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// coroutine, by whom, bytes of stack
    Created = 1,
    /// from, to; the thread's context is added
    Entered,
    /// coroutine, to whom
    Yielded,
    /// coroutine, to whom
    Ended,
    /// coroutine, by whom, context
    Woken,
    /// context, limit in ns
    PollBegin,
    /// handler, old ns, new ns
    PollGrow,
    /// handler, old ns, new ns
    PollShrink,
    /// handler, context
    PollAdd,
    /// handler, context
    PollRemove,
    /// request, coroutine, descriptor
    RequestSubmitted,
    /// request, coroutine, result as an `i64`
    RequestCompleted,
    /// lock, coroutine
    LockWait,
    /// lock, from, to
    LockHandOff,
}

impl Kind {
    const ALL: [Kind; 14] = [
        Kind::Created,
        Kind::Entered,
        Kind::Yielded,
        Kind::Ended,
        Kind::Woken,
        Kind::PollBegin,
        Kind::PollGrow,
        Kind::PollShrink,
        Kind::PollAdd,
        Kind::PollRemove,
        Kind::RequestSubmitted,
        Kind::RequestCompleted,
        Kind::LockWait,
        Kind::LockHandOff,
    ];

    fn from_u8(number: u8) -> Option<Kind> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// Something that the runtime did (SPEC K1).
///
/// Coroutines, contexts, locks and the like are named by numbers that are unique while the thing
/// lives; 0 is "none": a thread outside any coroutine, or one that is no context's home. Those of
/// coroutines, contexts and bottom halves are not used again.
///
/// ```
/// use corio::track::{self, Event};
/// track::enable();
/// let id = corio::home(|| {
///     let co = corio::Coroutine::new(|| ());
///     co.enter();
///     co.id().as_u64()
/// });
/// track::disable();
/// let mut records = track::snapshot().into_iter().flat_map(|thread| thread.records);
/// let is_end = |event| matches!(event, Event::Ended { coroutine, .. } if coroutine == id);
/// assert!(records.any(|record| is_end(record.event)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A coroutine was made.
    Created {
        /// The new coroutine.
        coroutine: u64,
        /// Who made it.
        by: u64,
        /// The size of its stack.
        stack_bytes: u64,
    },
    /// A coroutine was entered.
    Entered {
        /// Who entered it.
        from: u64,
        /// The coroutine that runs from now on.
        to: u64,
        /// The context whose home this thread is.
        context: u64,
    },
    /// A coroutine suspended itself.
    Yielded {
        /// The coroutine.
        coroutine: u64,
        /// Who runs from now on.
        to: u64,
    },
    /// A coroutine came to its end.
    Ended {
        /// The coroutine.
        coroutine: u64,
        /// Who runs from now on.
        to: u64,
    },
    /// A coroutine was queued on a context.
    Scheduled {
        /// The coroutine.
        coroutine: u64,
        /// Who queued it.
        by: u64,
        /// The line that did.
        at: Option<&'static Location<'static>>,
    },
    /// A wake token was fired and found its coroutine parked.
    Woken {
        /// The coroutine.
        coroutine: u64,
        /// Who woke it.
        by: u64,
        /// The context on which it will run.
        context: u64,
    },
    /// A bottom half was run.
    BottomHalfRun {
        /// The bottom half.
        bottom_half: u64,
        /// Its context.
        context: u64,
        /// The name that it was given.
        name: &'static str,
    },
    /// A turn began to busy-poll.
    PollBegin {
        /// The context.
        context: u64,
        /// For how long at most.
        limit_ns: u64,
    },
    /// A handler's polling time grew, or that for which the kernel is asked.
    PollGrow {
        /// The handler; the context's id where it is the kernel.
        handler: u64,
        /// The time before.
        old_ns: u64,
        /// The time from now on.
        new_ns: u64,
    },
    /// A handler's polling time shrank, or that for which the kernel is asked.
    PollShrink {
        /// The handler; the context's id where it is the kernel.
        handler: u64,
        /// The time before.
        old_ns: u64,
        /// The time from now on.
        new_ns: u64,
    },
    /// A handler joined busy polling.
    PollAdd {
        /// The handler.
        handler: u64,
        /// Its context.
        context: u64,
    },
    /// A handler left busy polling.
    PollRemove {
        /// The handler.
        handler: u64,
        /// Its context.
        context: u64,
    },
    /// A file's request was handed to the kernel or to a worker thread.
    RequestSubmitted {
        /// The request.
        request: u64,
        /// Who waits for it.
        coroutine: u64,
        /// The descriptor it is for.
        descriptor: u64,
    },
    /// A request's completion was seen.
    RequestCompleted {
        /// The request.
        request: u64,
        /// Who waits for it.
        coroutine: u64,
        /// What it gave: a count, or an errno negated.
        result: i64,
    },
    /// A coroutine began to wait for a mutex, a reader-writer lock, a semaphore's permits, at a
    /// barrier or in a queue. The last two hand nothing on when they end the wait: what tells of
    /// that is `Woken`.
    LockWait {
        /// What it waits for.
        lock: u64,
        /// The waiter.
        coroutine: u64,
    },
    /// A mutex, a reader-writer lock, or as many of a semaphore's permits as were wanted, passed to
    /// the oldest waiter.
    LockHandOff {
        /// What passed.
        lock: u64,
        /// Who gave it up, or gave up waiting before the one that has it now.
        from: u64,
        /// Who has it now.
        to: u64,
    },
}

/// Packs a record.
pub(super) fn words(kind: Kind, since_origin_ns: u64, a: u64, b: u64, c: u64) -> Words {
    [
        (since_origin_ns << KIND_BITS) | u64::from(kind as u8),
        a,
        b,
        c,
    ]
}

/// Packs the record of a scheduling. Keeps I1.
pub(super) fn scheduled_words(
    since_origin_ns: u64,
    coroutine: u64,
    by: u64,
    at: Option<&'static Location<'static>>,
) -> Words {
    let address = at.map_or(0, |at| core::ptr::from_ref(at).expose_provenance());
    let first = (since_origin_ns << KIND_BITS) | u64::from(SCHEDULED);
    [first, coroutine, by, address as u64]
}

/// Packs the record of a bottom half's run. Keeps I2.
pub(super) fn bottom_half_words(
    since_origin_ns: u64,
    bottom_half: u64,
    context: u64,
    name: &'static str,
) -> Words {
    let address = name.as_ptr().expose_provenance() as u64;
    let word = match u16::try_from(name.len()) {
        Ok(len) if address >> ADDRESS_BITS == 0 => u64::from(len) << ADDRESS_BITS | address,
        _ => 0,
    };
    let first = (since_origin_ns << KIND_BITS) | u64::from(BOTTOM_HALF_RUN);
    [first, bottom_half, context, word]
}

/// The name that a word stands for.
///
/// # Safety
/// `word` is the last that `bottom_half_words` made.
unsafe fn name(word: u64) -> &'static str {
    let len = usize::try_from(word >> ADDRESS_BITS).unwrap_or(0);
    let address = usize::try_from(word & ((1 << ADDRESS_BITS) - 1)).unwrap_or(0);
    if len == 0 || address == 0 {
        return "";
    }
    // SAFETY: by I2 these are the address and the length of a str that lives for ever.
    unsafe {
        let bytes = core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address), len);
        core::str::from_utf8_unchecked(bytes)
    }
}

/// Reads a record back: nanoseconds since the origin, and the event. `None` for a kind that nobody
/// records.
///
/// # Safety
/// `words` must be the result of `words`, `scheduled_words` or `bottom_half_words`, whole: no
/// mixture of two.
pub(super) unsafe fn decode(words: Words) -> Option<(u64, Event)> {
    let [first, a, b, c] = words;
    let [number, ..] = first.to_le_bytes();
    let event = if number == SCHEDULED {
        let address: *const Location<'static> =
            core::ptr::with_exposed_provenance(usize::try_from(c).ok()?);
        // SAFETY: by I1 the address is null or that of a location which lives for ever; the caller
        // says that these words are one whole record.
        let at = unsafe { address.as_ref() };
        Event::Scheduled {
            coroutine: a,
            by: b,
            at,
        }
    } else if number == BOTTOM_HALF_RUN {
        Event::BottomHalfRun {
            bottom_half: a,
            context: b,
            // SAFETY: the caller says that these words are one whole record.
            name: unsafe { name(c) },
        }
    } else {
        typed(Kind::from_u8(number)?, a, b, c)
    };
    Some((first >> KIND_BITS, event))
}

fn typed(kind: Kind, a: u64, b: u64, c: u64) -> Event {
    match kind {
        Kind::Created => Event::Created {
            coroutine: a,
            by: b,
            stack_bytes: c,
        },
        Kind::Entered => Event::Entered {
            from: a,
            to: b,
            context: c,
        },
        Kind::Yielded => Event::Yielded {
            coroutine: a,
            to: b,
        },
        Kind::Ended => Event::Ended {
            coroutine: a,
            to: b,
        },
        Kind::Woken => Event::Woken {
            coroutine: a,
            by: b,
            context: c,
        },
        Kind::PollBegin => Event::PollBegin {
            context: a,
            limit_ns: b,
        },
        Kind::PollGrow => Event::PollGrow {
            handler: a,
            old_ns: b,
            new_ns: c,
        },
        Kind::PollShrink => Event::PollShrink {
            handler: a,
            old_ns: b,
            new_ns: c,
        },
        Kind::PollAdd => Event::PollAdd {
            handler: a,
            context: b,
        },
        Kind::PollRemove => Event::PollRemove {
            handler: a,
            context: b,
        },
        Kind::RequestSubmitted => Event::RequestSubmitted {
            request: a,
            coroutine: b,
            descriptor: c,
        },
        Kind::RequestCompleted => Event::RequestCompleted {
            request: a,
            coroutine: b,
            result: c.cast_signed(),
        },
        Kind::LockWait => Event::LockWait {
            lock: a,
            coroutine: b,
        },
        Kind::LockHandOff => Event::LockHandOff {
            lock: a,
            from: b,
            to: c,
        },
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_back_as_itself() {
        // SPEC K1
        for kind in Kind::ALL {
            assert_eq!(Kind::from_u8(kind as u8), Some(kind));
            // SAFETY: whole, from `words`.
            let (time_ns, event) = unsafe { decode(words(kind, 77, 1, 2, 3)) }.unwrap();
            assert_eq!(time_ns, 77);
            assert!(format!("{event:?}").starts_with(&format!("{kind:?}")));
        }
        assert_eq!(Kind::from_u8(SCHEDULED), None);
        assert_eq!(Kind::from_u8(BOTTOM_HALF_RUN), None);
        assert_eq!(Kind::from_u8(15), None);
    }

    #[test]
    fn scheduling_keeps_its_location() {
        // SPEC K1
        let here = Location::caller();
        // SAFETY: whole, from `scheduled_words`.
        let (_, event) = unsafe { decode(scheduled_words(5, 1, 2, Some(here))) }.unwrap();
        assert_eq!(
            event,
            Event::Scheduled {
                coroutine: 1,
                by: 2,
                at: Some(here)
            }
        );
        // SAFETY: as above.
        let (_, event) = unsafe { decode(scheduled_words(5, 1, 2, None)) }.unwrap();
        assert_eq!(
            event,
            Event::Scheduled {
                coroutine: 1,
                by: 2,
                at: None
            }
        );
    }

    #[test]
    fn a_bottom_halfs_run_keeps_its_name() {
        // SPEC B8, K1
        let long = "x".repeat(70_000).leak();
        for (given, kept) in [
            ("flush", "flush"),
            ("größer", "größer"),
            ("", ""),
            (long, ""),
        ] {
            // SAFETY: whole, from `bottom_half_words`.
            let decoded = unsafe { decode(bottom_half_words(5, 1, 2, given)) };
            let event = Event::BottomHalfRun {
                bottom_half: 1,
                context: 2,
                name: kept,
            };
            assert_eq!(decoded, Some((5, event)));
        }
    }

    #[test]
    fn result_keeps_its_sign() {
        let c = (-5i64).cast_unsigned();
        // SAFETY: whole, from `words`.
        let (_, event) = unsafe { decode(words(Kind::RequestCompleted, 0, 1, 2, c)) }.unwrap();
        assert_eq!(
            event,
            Event::RequestCompleted {
                request: 1,
                coroutine: 2,
                result: -5
            }
        );
    }
}
