//! Reads of what the page cache holds, made on the spot (SPEC E1): one system call that does not
//! wait, where a ring would take a submission, a completion and two switches.
//!
//! A coroutine that reads on the spot does not park, so there is a budget of bytes: once it is used
//! up the next read goes to the engine, which parks, and the loop and all others have their turn.
//! And a read that finds nothing costs a system call for nothing: after one the next goes to the
//! engine unasked, after several in a row the next few, so that on cold data one read in
//! [`SKIPS_MAX`] asks.

use core::cell::Cell;
use core::sync::atomic::Ordering;
use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use super::Setting;
use crate::context::AioContext;
use crate::error::Error;
use crate::sys;

/// How many reads go to the engine unasked after a miss, at most.
const SKIPS_MAX: u32 = 32;
/// The most bytes that may be read on the spot in a row: more is a pause that others would notice.
const BUDGET_MAX: usize = 1 << 20;

/// What a home keeps of it.
#[derive(Default)]
pub(super) struct CachedReads {
    /// Bytes of the budget that are left.
    left: Cell<usize>,
    /// Reads that go to the engine unasked.
    skips: Cell<u32>,
    /// What `skips` was after the last miss; 0 after a hit.
    last_skips: Cell<u32>,
}

impl CachedReads {
    /// Reads what the page cache holds, within a budget of `max` bytes. None: the engine is to be
    /// asked.
    pub(super) fn read(
        &self,
        max: usize,
        fd: BorrowedFd<'_>,
        bufs: &mut [IoSliceMut<'_>],
        offset: u64,
    ) -> Option<usize> {
        if !self.may_read(max, bufs.iter().map(|buf| buf.len()).sum()) {
            return None;
        }
        // A file that cannot be read so, and one that has ended, is the engine's to tell of.
        match sys::file::readv_at_nowait(fd, bufs, offset) {
            Ok(count @ 1..) => {
                self.last_skips.set(0);
                Some(count)
            }
            Ok(0) | Err(_) => {
                self.missed();
                None
            }
        }
    }

    /// Whether so many bytes are to be asked for, which are then taken from the budget.
    fn may_read(&self, max: usize, wanted: usize) -> bool {
        let left = self.left.get().min(max);
        if wanted > left {
            self.left.set(max); // Whoever asked parks now.
            return false;
        }
        if let skips @ 1.. = self.skips.get() {
            self.skips.set(skips - 1);
            return false;
        }
        self.left.set(left - wanted);
        true
    }

    fn missed(&self) {
        let skips = (self.last_skips.get() * 2).clamp(1, SKIPS_MAX - 1);
        self.skips.set(skips);
        self.last_skips.set(skips);
    }
}

impl AioContext {
    /// Changes how many bytes the context's coroutines may read from the page cache in a row, on
    /// the spot and without parking, before a read goes through the engine again and the loop has
    /// its turn. 0, as at first: all go through the engine. What the page cache does not hold goes
    /// there in any case, and so does what is larger. Any thread, at any time.
    ///
    /// On cached files this is several times as fast, and 128 KiB, some 20 microseconds, is a good
    /// value where nothing else of the context is in more of a hurry.
    ///
    /// # Errors
    /// More than 1 MiB: nothing is changed.
    ///
    /// ```
    /// let io = corio::IoThread::builder().spawn()?;
    /// io.context().set_cached_read_max(128 << 10)?;
    /// let read = io.context().spawn(|| corio::fs::File::open("Cargo.toml")?.read_at(&mut [0; 16], 0));
    /// assert_eq!(read.join().expect("it does not panic")?, 16);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn set_cached_read_max(&self, bytes: usize) -> Result<(), Error> {
        if bytes > BUDGET_MAX {
            return Err(Error::Parameter {
                name: "cached_read_max",
                value: bytes.to_string(),
                expected: "0 to 1048576, a MiB",
            });
        }
        let setting = self.attachment(Setting::default);
        setting.cached_read_max.store(bytes, Ordering::Relaxed); // A number, which orders nothing.
        Ok(())
    }

    /// How many bytes may be read from the page cache on the spot; 0: none.
    #[must_use]
    pub fn cached_read_max(&self) -> usize {
        let setting = self.attachment(Setting::default);
        setting.cached_read_max.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::fs::File;
    use std::cell::RefCell;
    use std::os::fd::{AsFd, OwnedFd};
    use std::rc::Rc;

    fn file(text: &[u8]) -> File {
        let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
        file.write_all_at(text, 0).unwrap();
        file
    }

    // SPEC E1
    #[test]
    fn the_budget_is_spent_byte_by_byte_and_filled_by_who_parks() {
        let reads = CachedReads::default();
        assert!(!reads.may_read(10, 4)); // The first one fills it.
        assert!(reads.may_read(10, 4));
        assert!(reads.may_read(10, 6));
        assert!(!reads.may_read(10, 1));
        assert!(!reads.may_read(10, 11)); // Never on the spot, and parks.
        assert!(reads.may_read(10, 10));
        assert!(!reads.may_read(10, 10));
        assert!(!reads.may_read(4, 5), "the limit was lowered meanwhile");
    }

    // SPEC E1
    #[test]
    fn misses_in_a_row_are_asked_for_more_and_more_seldom() {
        let reads = CachedReads::default();
        reads.left.set(1000);
        let mut asked = Vec::new();
        for number in 0..200 {
            if reads.may_read(1000, 1) {
                asked.push(number);
                reads.missed();
            }
        }
        assert_eq!(asked, [0, 2, 5, 10, 19, 36, 68, 100, 132, 164, 196]);
    }

    // SPEC E1
    #[test]
    fn cached_bytes_are_read_and_an_end_is_left_to_the_engine() {
        let (reads, file) = (CachedReads::default(), file(b"cached"));
        let read = |max, buf: &mut [u8], offset| {
            let bufs = &mut [IoSliceMut::new(buf)];
            reads.read(max, file.as_fd(), bufs, offset)
        };
        let mut buf = [0; 6];
        assert_eq!(read(100, &mut buf, 0), None);
        assert_eq!(read(100, &mut buf, 0), Some(6));
        assert_eq!(&buf, b"cached");
        assert_eq!(read(100, &mut buf, 4), Some(2));
        assert_eq!(read(100, &mut buf, 6), None);
        assert_eq!(reads.skips.get(), 1);
    }

    // SPEC E1: who reads what is cached still lets others run, as often as is said.
    #[test]
    fn reading_cached_data_does_not_keep_the_loop() {
        let context = AioContext::new().unwrap();
        context.set_cached_read_max(4 * 512).unwrap();
        assert_eq!(context.cached_read_max(), 4 * 512);
        context.set_cached_read_max((1 << 20) + 1).unwrap_err();
        let order = context
            .enter_home(|| {
                let order = Rc::new(RefCell::new(Vec::new()));
                let reader = {
                    let order = Rc::clone(&order);
                    crate::schedule::spawn_local(move || {
                        let file = file(&[7; 512]);
                        for number in 0..20 {
                            let mut buf = [0; 512];
                            file.read_exact_at(&mut buf, 0).unwrap();
                            assert_eq!(buf, [7; 512]);
                            order.borrow_mut().push(Some(number));
                        }
                    })
                };
                let other = {
                    let order = Rc::clone(&order);
                    crate::schedule::spawn_local(move || {
                        loop {
                            order.borrow_mut().push(None);
                            crate::schedule::yield_now();
                        }
                    })
                };
                while !reader.is_finished() {
                    context.poll(true).unwrap();
                }
                other.cancel().unwrap();
                order.take()
            })
            .unwrap();
        let runs = order.split(Option::is_none).map(<[_]>::len);
        assert_eq!(runs.clone().sum::<usize>(), 20);
        // Four on the spot, after one of the engine's.
        assert_eq!(runs.max(), Some(5), "{order:?}");
    }
}
