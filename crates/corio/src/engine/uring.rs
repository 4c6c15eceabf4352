//! The io_uring engine: requests on the context's ring.
//!
//! Invariants
//! - I1 A request's record lies in the frame of the coroutine that made it, which parks
//!   uninterruptibly until `result` is there: record and buffers outlive the kernel's use of them.
//!   A home that ends earlier leaks stack and ring.
//! - I2 A coroutine that is cancelled meanwhile asks the kernel to cancel the request, and waits
//!   for its completion all the same. Requests and cancellations reach the kernel in the order in
//!   which they are queued: one that comes too late finds nothing, never the next request of that
//!   address.

#![allow(unsafe_code)] // Requests point into the coroutine's frame.

use core::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::request::{is_cancelled, settle, trace_completed, trace_submitted};
use super::{BATCH_LIMIT, Request};
use crate::context::{Completion, Local};
use crate::schedule::{self, CoWaker};
use crate::sys::uring::{self, opcode, squeue, types};
use crate::track;

/// How many requests gather before they are submitted where the kernel has none, unless something
/// else is set; the rest goes when the loop turns. More would leave a fast device idle.
const SUBMIT_BATCH: usize = 2;

/// I1. `completion` comes first: the ring knows the record by its address.
#[repr(C)]
struct Record {
    completion: Completion,
    result: Cell<Option<i32>>,
    waker: CoWaker,
}

/// # Safety
/// `completion` is the first field of a living `Record` of this thread.
unsafe fn complete(completion: *const Completion, result: i32) {
    // SAFETY: the caller's promise; `Record` is repr(C).
    let record = unsafe { &*completion.cast::<Record>() };
    let waker = record.waker;
    record.result.set(Some(result));
    // The coroutine may return from its frame in here: `record` is not touched again.
    waker.wake_here();
}

/// Runs a request on the ring; the caller has checked that there is a coroutine to park. While
/// somebody gathers the ring is filled, unless less is asked for.
pub(super) fn run(
    local: &Local,
    fd: BorrowedFd<'_>,
    request: &mut Request<'_, '_>,
    batch_max: usize,
    gathers: bool,
) -> io::Result<usize> {
    let batch_max = match batch_max {
        0 if gathers => BATCH_LIMIT,
        0 => batch_beside(local.ring()?.in_kernel()),
        set => set,
    };
    loop {
        let result = run_once(local, fd, request, batch_max)?;
        if let Some(outcome) = settle(result.into()) {
            return outcome;
        }
    }
}

/// How many requests gather while the kernel has so many: as many again, which come from a loop
/// that is faster than the device before that is done with the others.
pub(super) fn batch_beside(in_kernel: usize) -> usize {
    in_kernel.clamp(SUBMIT_BATCH, BATCH_LIMIT)
}

fn run_once(
    local: &Local,
    fd: BorrowedFd<'_>,
    request: &mut Request<'_, '_>,
    batch_max: usize,
) -> io::Result<i32> {
    let ring = local.ring()?;
    let Some(waker) = CoWaker::current() else {
        return Err(io::Error::other("a disk request outside a coroutine"));
    };
    let record = Record {
        // SAFETY: `complete` may be called once with the address of a Record, whose first field
        // this is.
        completion: unsafe { Completion::new(complete) },
        result: Cell::new(None),
        waker,
    };
    let completion = core::ptr::from_ref(&record).cast::<Completion>();
    loop {
        // SAFETY: I1: this frame, with the record, and the buffers that `request` borrows stay
        // until the loop below has seen the result.
        match unsafe { ring.push(entry(fd, request), completion) } {
            Ok(()) => break,
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => schedule::yield_now(),
            Err(error) => return Err(error),
        }
    }
    let id = completion.addr() as u64;
    if track::is_enabled() {
        trace_submitted(id, fd);
    }
    if ring.pending() >= batch_max {
        // A failure is met again, and reported, by the loop's own submission; the request stays
        // queued meanwhile.
        let _ = ring.submit();
    }
    local.hurry();
    let mut asked = false;
    loop {
        if let Some(result) = record.result.get() {
            if track::is_enabled() {
                trace_completed(id, i64::from(result));
            }
            return Ok(result);
        }
        if !asked && is_cancelled() {
            // Where the queue is full it is asked again at the next wake; a home that ends gives
            // one every few milliseconds.
            asked = ring.cancel(completion).is_ok();
        }
        schedule::park_uninterruptible();
    }
}

fn entry(fd: BorrowedFd<'_>, request: &mut Request<'_, '_>) -> squeue::Entry {
    let file = types::Fd(fd.as_raw_fd());
    // The kernel takes at most IOV_MAX vectors and 2 GiB: the rest is continued by the caller.
    let vectors = |count: usize| u32::try_from(count.min(1024)).unwrap_or(1024);
    match request {
        Request::Read { bufs, offset } => match &mut **bufs {
            [one] => opcode::Read::new(file, one.as_mut_ptr(), bytes(one.len()))
                .offset(*offset)
                .build(),
            many => {
                let count = vectors(many.len());
                opcode::Readv::new(file, many.as_mut_ptr().cast(), count)
                    .offset(*offset)
                    .build()
            }
        },
        Request::Write {
            bufs,
            offset,
            durable,
        } => {
            if *durable {
                uring::before_durable_write(fd, bufs, *offset);
            }
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            match &**bufs {
                [one] => opcode::Write::new(file, one.as_ptr(), bytes(one.len()))
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
                many => opcode::Writev::new(file, many.as_ptr().cast(), vectors(many.len()))
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Request::SyncData => {
            uring::before_sync(fd);
            opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build()
        }
        Request::Allocate { mode, offset, len } => opcode::Fallocate::new(file, *len)
            .offset(*offset)
            .mode(mode.bits().cast_signed())
            .build(),
    }
}

/// Read and write take at most 2 GiB less a page at a time.
fn bytes(len: usize) -> u32 {
    const MAX: u32 = 0x7fff_f000;
    u32::try_from(len).unwrap_or(MAX).min(MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // SPEC E1
    #[test]
    fn a_batch_grows_with_what_the_kernel_has() {
        let beside = |in_kernel| batch_beside(in_kernel);
        assert_eq!([beside(0), beside(2), beside(3)], [SUBMIT_BATCH, 2, 3]);
        assert_eq!([beside(32), beside(10_000)], [32, BATCH_LIMIT]);
    }
}
