//! The context and its ring on this kernel.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::*;
use crate::sys::eventfd::EventFd;

fn header() -> Header {
    Header {
        id: 7,
        events: 128,
        head: AtomicU32::new(0),
        tail: AtomicU32::new(0),
        magic: MAGIC,
        compat_features: 1,
        incompat_features: 0,
        header_length: 32,
    }
}

// SPEC E2
#[test]
fn a_ring_is_read_only_if_its_header_is_understood() {
    assert!(header().is_understood());
    let mut other = [header(), header(), header(), header()];
    other[0].magic = 0;
    other[1].incompat_features = 1;
    other[2].header_length = 64;
    other[3].events = 0;
    assert!(other.iter().all(|header| !header.is_understood()));
}

// SPEC E2: so many that the ring's ends pass its end, a few at a time.
#[test]
fn each_completion_is_taken_once_and_in_order_from_either_source() {
    for source in [Source::Ring, Source::Calls] {
        let context = match Context::new(4, source) {
            Ok(context) => context,
            Err(error) => return println!("SKIPPED: completions of Linux AIO: {error}"),
        };
        if source == Source::Ring && Source::preferred() == source {
            assert!(
                context.is_seen_from_user_space(),
                "this kernel's is understood"
            );
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let eventfd = EventFd::new().unwrap();
        for round in 0..5000u64 {
            let mut bytes = [[0u8; 1]; 3];
            let mut batch: [Iocb; 3] = core::array::from_fn(|at| {
                let buf = bytes[at].as_mut_ptr().cast_const().cast();
                let mut iocb = Iocb::new(Command::Read, file.as_fd(), buf, 1, at as u64);
                Context::address(&mut iocb, 3 * round + at as u64, eventfd.as_fd());
                iocb
            });
            let batch = batch.each_mut().map(core::ptr::from_mut);
            // SAFETY: what the requests point to stays until all have been taken below.
            assert_eq!(unsafe { context.submit(&batch) }.unwrap(), 3);
            for (at, left) in [(0, 3), (1, 2), (2, 1)] {
                if context.is_seen_from_user_space() {
                    assert_eq!(context.completions(), left);
                }
                // A file of the page cache has been read when io_submit returns.
                let event = context.take().unwrap().expect("it has completed");
                let expected = Event {
                    name: 3 * round + at,
                    result: 1,
                };
                assert_eq!(event, expected, "{source:?}");
            }
            assert_eq!(context.take().unwrap(), None);
            assert!(!context.has_completion());
            assert_eq!(bytes, [*b"a", *b"b", *b"c"]);
            assert!(eventfd.clear());
        }
    }
}

// SPEC E2
#[test]
fn what_the_kernel_does_not_take_is_an_error_of_the_first() {
    let context = match Context::new(4, Source::preferred()) {
        Ok(context) => context,
        Err(error) => return println!("SKIPPED: refused requests of Linux AIO: {error}"),
    };
    let file = tempfile::tempfile().unwrap();
    let mut byte = 0u8;
    let buf = (&raw mut byte).cast_const().cast();
    let mut good = Iocb::new(Command::Read, file.as_fd(), buf, 1, 0);
    // SAFETY: only io_submit sees it, to which a number above the limit is EBADF.
    let nobodys = unsafe { BorrowedFd::borrow_raw(i32::MAX) };
    let mut bad = Iocb::new(Command::Read, nobodys, buf, 1, 0);
    let (good, bad) = (&raw mut good, &raw mut bad);
    // SAFETY: as above; what is taken is waited for below.
    unsafe {
        assert_eq!(context.submit(&[good, bad]).unwrap(), 1);
        let refused = context.submit(&[bad, good]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
    }
    assert_eq!(context.take().unwrap().expect("of the good one").result, 0);
}
