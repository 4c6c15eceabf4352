//! A disk that does as the test says: waits, fails, panics, serves at once or not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use corio::sync::{Place, Queue};
use corio_block::{
    Driver, Extent, ExtentFlags, Length, Limits, Node, Offset, WriteFlags, ZeroFlags,
};
use parking_lot::Mutex;

/// The state, which the test keeps while the node owns a driver that refers to it.
#[derive(Debug)]
pub(super) struct TestDisk {
    bytes: Mutex<Vec<u8>>,
    /// Whether `try_read_at` and `try_write_at` serve.
    pub(super) fast: AtomicBool,
    /// Whether requests take a permit of the gate before they go on.
    pub(super) gated: AtomicBool,
    /// How many requests the gate lets through.
    gate: Mutex<usize>,
    line: Queue,
    /// Requests that have come to the gate.
    pub(super) arrived: AtomicUsize,
    /// Offset at and beyond which reads and writes fail with EIO.
    pub(super) broken_from: AtomicU64,
    /// Whether reads panic.
    pub(super) panics: AtomicBool,
    /// What block status says, from offset 0; empty: all data.
    pub(super) extents: Mutex<Vec<Extent>>,
    /// What was asked of the disk, in order.
    pub(super) log: Mutex<Vec<String>>,
    pub(super) flushes: AtomicUsize,
    pub(super) fast_zeroes: AtomicBool,
    /// The tick at each fast read, and the tick itself, which a test's coroutine moves.
    pub(super) tick: AtomicUsize,
    pub(super) ticks_seen: Mutex<Vec<usize>>,
}

impl TestDisk {
    /// A disk that serves at once and holds [`pattern`](super::pattern).
    pub(super) fn new(len: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(super::pattern(0, len)),
            fast: AtomicBool::new(true),
            gated: AtomicBool::new(false),
            gate: Mutex::new(0),
            line: Queue::new(),
            arrived: AtomicUsize::new(0),
            broken_from: AtomicU64::new(u64::MAX),
            panics: AtomicBool::new(false),
            extents: Mutex::default(),
            log: Mutex::default(),
            flushes: AtomicUsize::new(0),
            fast_zeroes: AtomicBool::new(false),
            tick: AtomicUsize::new(0),
            ticks_seen: Mutex::default(),
        })
    }

    /// The same, but no request is served before [`open_gate`](Self::open_gate).
    pub(super) fn gated(len: usize) -> Arc<Self> {
        let disk = Self::new(len);
        disk.fast.store(false, Ordering::SeqCst);
        disk.gated.store(true, Ordering::SeqCst);
        disk
    }

    /// A node on it.
    pub(super) fn node(self: &Arc<Self>) -> Arc<Node> {
        Node::new("test", Box::new(Handle(Arc::clone(self))), false).unwrap()
    }

    /// Lets `n` requests through.
    pub(super) fn open_gate(&self, n: usize) {
        *self.gate.lock() += n;
        self.line.wake_all();
    }

    /// Waits until `n` requests in all have come to the gate.
    pub(super) fn await_arrived(&self, n: usize) {
        super::await_that("requests at the disk", || {
            self.arrived.load(Ordering::SeqCst) >= n
        });
    }

    pub(super) fn contents(&self, at: usize, len: usize) -> Vec<u8> {
        self.bytes.lock()[at..at + len].to_vec()
    }

    pub(super) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock())
    }

    fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        if self.gated.load(Ordering::SeqCst) {
            self.await_gate();
        }
        assert!(
            !self.panics.load(Ordering::SeqCst),
            "the test told the disk to panic"
        );
    }

    fn await_gate(&self) {
        loop {
            let mut open_for = self.gate.lock();
            if *open_for > 0 {
                *open_for -= 1;
                return;
            }
            // In line before the lock is given up, so that `open_gate` cannot be missed.
            self.line.wait_after(Place::Back, || drop(open_for));
        }
    }

    fn check(&self, offset: Offset, len: usize) -> io::Result<()> {
        let end = offset.0 + u64::try_from(len).unwrap();
        if end > self.broken_from.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }

    fn note(&self, what: String) {
        self.log.lock().push(what);
    }
}

fn index(offset: Offset) -> usize {
    usize::try_from(offset.0).unwrap()
}

/// What the node owns.
#[derive(Debug)]
struct Handle(Arc<TestDisk>);

impl Driver for Handle {
    fn name(&self) -> &'static str {
        "test"
    }

    fn size(&self) -> Length {
        Length(u64::try_from(self.0.bytes.lock().len()).unwrap())
    }

    fn limits(&self) -> Limits {
        Limits::bytes()
    }

    fn write_flags(&self) -> WriteFlags {
        WriteFlags::FUA
    }

    fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()> {
        self.0.pass();
        self.0.check(offset, buf.len())?;
        self.0.note(format!("read {} {}", offset.0, buf.len()));
        buf.copy_from_slice(&self.0.bytes.lock()[index(offset)..][..buf.len()]);
        Ok(())
    }

    fn try_read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<bool> {
        if !self.0.fast.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.0.check(offset, buf.len())?;
        self.0
            .ticks_seen
            .lock()
            .push(self.0.tick.load(Ordering::SeqCst));
        buf.copy_from_slice(&self.0.bytes.lock()[index(offset)..][..buf.len()]);
        Ok(true)
    }

    fn try_write_at(&self, buf: &[u8], offset: Offset) -> io::Result<bool> {
        if !self.0.fast.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.0.check(offset, buf.len())?;
        self.0
            .note(format!("write {} {} on the spot", offset.0, buf.len()));
        self.0.bytes.lock()[index(offset)..][..buf.len()].copy_from_slice(buf);
        Ok(true)
    }

    fn write_at(&self, buf: &[u8], offset: Offset, flags: WriteFlags) -> io::Result<()> {
        self.0.pass();
        self.0.check(offset, buf.len())?;
        let fua = if flags.contains(WriteFlags::FUA) {
            " fua"
        } else {
            ""
        };
        self.0
            .note(format!("write {} {}{fua}", offset.0, buf.len()));
        self.0.bytes.lock()[index(offset)..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.0.pass();
        self.0.note("flush".to_owned());
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, offset: Offset, len: Length) -> io::Result<()> {
        self.0.pass();
        self.0.note(format!("discard {} {}", offset.0, len.0));
        Ok(())
    }

    fn write_zeroes(&self, offset: Offset, len: Length, flags: ZeroFlags) -> io::Result<()> {
        self.0.pass();
        let unmap = if flags.contains(ZeroFlags::MAY_UNMAP) {
            " unmap"
        } else {
            ""
        };
        let fast = flags.contains(ZeroFlags::NO_FALLBACK);
        if fast && !self.0.fast_zeroes.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let fast = if fast { " fast" } else { "" };
        self.0
            .note(format!("zero {} {}{unmap}{fast}", offset.0, len.0));
        let len = usize::try_from(len.0).unwrap();
        self.0.bytes.lock()[index(offset)..][..len].fill(0);
        Ok(())
    }

    fn block_status(&self, offset: Offset, len: Length) -> io::Result<Extent> {
        let mut start = 0;
        for extent in self.0.extents.lock().iter() {
            if offset.0 < start + extent.len {
                return Ok(Extent {
                    len: start + extent.len - offset.0,
                    flags: extent.flags,
                });
            }
            start += extent.len;
        }
        Ok(Extent {
            len: len.0,
            flags: ExtentFlags::empty(),
        })
    }

    fn cache(&self, offset: Offset, len: Length) -> io::Result<()> {
        self.0.pass();
        self.0.note(format!("cache {} {}", offset.0, len.0));
        Ok(())
    }
}
