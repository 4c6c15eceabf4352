//! How a node treats requests: bounds, refusals, and what it makes up for that a driver lacks.

mod common;

use std::{
    io,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use common::{Disk, KINDS, Kind, contents};
use corio::fs::AlignedBuf;
use corio_block::{
    Driver, Error, Extent, ExtentFlags, Length, Limits, Node, Offset, WriteFlags, ZeroFlags,
    memory, raw,
};
use rustix::io::Errno;

const SIZE: u64 = 10_001;

// SPEC Q4
#[test]
fn requests_past_the_end_are_refused_before_anything_is_done() {
    for kind in KINDS {
        let Some(disk) = Disk::new(kind, SIZE) else {
            continue;
        };
        let node = &disk.node;
        for (at, len) in [
            (SIZE, 1),
            (SIZE - 1, 2),
            (0, SIZE + 1),
            (u64::MAX, 1),
            (u64::MAX - 1, 9),
        ] {
            let mut buf = vec![1; usize::try_from(len).unwrap()];
            let (at, len) = (Offset(at), Length(len));
            let write = node.write_at(&buf, at, WriteFlags::empty()).unwrap_err();
            let zero = node
                .write_zeroes(at, len, ZeroFlags::MAY_UNMAP)
                .unwrap_err();
            let read = node.read_at(&mut buf, at).unwrap_err();
            let attempt = node.try_read_at(&mut buf, at).unwrap_err();
            let discard = node.discard(at, len).unwrap_err();
            let status = node.block_status(at, len, 1, &mut Vec::new()).unwrap_err();
            let cache = node.cache(at, len).unwrap_err();
            for error in [&write, &zero] {
                assert_eq!(
                    error.errno(),
                    Errno::NOSPC.raw_os_error(),
                    "{kind:?}: {error}"
                );
            }
            for error in [&read, &attempt, &discard, &status, &cache] {
                assert_eq!(
                    error.errno(),
                    Errno::INVAL.raw_os_error(),
                    "{kind:?}: {error}"
                );
            }
        }
        assert!(contents(node).iter().all(|&b| b == 0));
        if let Some(path) = &disk.path {
            assert_eq!(std::fs::metadata(path).unwrap().len(), SIZE);
        }
    }
}

#[test]
fn empty_requests_do_nothing_up_to_the_very_end() {
    for kind in KINDS {
        let Some(disk) = Disk::new(kind, SIZE) else {
            continue;
        };
        for at in [0, 5, SIZE] {
            let (at, none) = (Offset(at), Length::ZERO);
            disk.node.read_at(&mut [], at).unwrap();
            disk.node.try_read_at(&mut [], at).unwrap();
            disk.node.write_at(&[], at, WriteFlags::FUA).unwrap();
            disk.node.write_zeroes(at, none, ZeroFlags::FUA).unwrap();
            disk.node.discard(at, none).unwrap();
            disk.node.cache(at, none).unwrap();
            let mut map = Vec::new();
            disk.node.block_status(at, none, 4, &mut map).unwrap();
            assert!(map.is_empty());
        }
    }
}

#[test]
fn a_read_only_node_refuses_what_modifies() {
    let node = memory::Options::new(Length(SIZE))
        .read_only(true)
        .open()
        .unwrap();
    assert!(node.read_only());
    let (at, len) = (Offset(0), Length(1));
    for error in [
        node.write_at(&[1], at, WriteFlags::empty()).unwrap_err(),
        node.try_write_at(&[1], at).unwrap_err(),
        node.write_zeroes(at, len, ZeroFlags::empty()).unwrap_err(),
        node.discard(at, len).unwrap_err(),
    ] {
        assert_eq!(error.errno(), Errno::PERM.raw_os_error(), "{error}");
    }
    node.read_at(&mut [0], at).unwrap();
    node.flush().unwrap();
}

/// Counts what it is asked and can be told what to answer.
#[derive(Debug)]
struct Recorder {
    log: Arc<Mutex<Vec<String>>>,
    limits: Limits,
    flush_errno: Arc<AtomicU32>,
    zeroes: bool,
}

impl Recorder {
    /// Whether it may be handed such a buffer.
    fn is_for_it(&self, buf: &[u8]) -> bool {
        assert!(buf.len() as u64 <= u64::from(self.limits.max_transfer));
        let alignment = u64::from(self.limits.memory_alignment);
        assert!((buf.as_ptr().addr() as u64).is_multiple_of(alignment));
        true
    }
}

impl Driver for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }
    fn size(&self) -> Length {
        Length(1 << 20)
    }
    fn limits(&self) -> Limits {
        self.limits
    }
    fn read_at(&self, buf: &mut [u8], offset: Offset) -> io::Result<()> {
        self.log
            .lock()
            .unwrap()
            .push(format!("read {offset}+{}", buf.len()));
        Ok(())
    }
    fn try_read_at(&self, buf: &mut [u8], _: Offset) -> io::Result<bool> {
        Ok(self.is_for_it(buf))
    }
    fn try_write_at(&self, buf: &[u8], _: Offset) -> io::Result<bool> {
        Ok(self.is_for_it(buf))
    }
    fn write_at(&self, buf: &[u8], offset: Offset, flags: WriteFlags) -> io::Result<()> {
        assert!(flags.is_empty());
        self.log
            .lock()
            .unwrap()
            .push(format!("write {offset}+{}", buf.len()));
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.log.lock().unwrap().push("flush".into());
        match self.flush_errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno.cast_signed())),
        }
    }
    fn write_zeroes(&self, offset: Offset, len: Length, _: ZeroFlags) -> io::Result<()> {
        if !self.zeroes {
            return Err(Errno::OPNOTSUPP.into());
        }
        self.log
            .lock()
            .unwrap()
            .push(format!("zero {offset}+{len}"));
        Ok(())
    }
    fn discard(&self, _: Offset, _: Length) -> io::Result<()> {
        Err(Errno::OPNOTSUPP.into())
    }
    fn block_status(&self, offset: Offset, _: Length) -> io::Result<Extent> {
        // Holes of 600 bytes at odd places in blocks of 512.
        let hole = (offset.0 / 600).is_multiple_of(2);
        let flags = if hole {
            ExtentFlags::HOLE | ExtentFlags::ZERO
        } else {
            ExtentFlags::empty()
        };
        Ok(Extent {
            len: 600 - offset.0 % 600,
            flags,
        })
    }
}

struct Recorded {
    node: Arc<Node>,
    log: Arc<Mutex<Vec<String>>>,
    flush_errno: Arc<AtomicU32>,
}

fn recorder(limits: Limits, zeroes: bool) -> Recorded {
    let (log, flush_errno) = (Arc::default(), Arc::<AtomicU32>::default());
    let (to, errno) = (Arc::clone(&log), Arc::clone(&flush_errno));
    let driver = Recorder {
        log: to,
        limits,
        flush_errno: errno,
        zeroes,
    };
    Recorded {
        node: Node::new("recorder", Box::new(driver), false).unwrap(),
        log,
        flush_errno,
    }
}

impl Recorded {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

// SPEC Q4
#[test]
fn fua_is_a_flush_where_the_driver_has_none() {
    let disk = recorder(Limits::bytes(), true);
    disk.node
        .write_at(&[1; 3], Offset(5), WriteFlags::FUA)
        .unwrap();
    assert_eq!(disk.take(), ["write 5+3", "flush"]);
    disk.node
        .write_zeroes(Offset(5), Length(3), ZeroFlags::FUA)
        .unwrap();
    assert_eq!(disk.take(), ["zero 5+3", "flush"]);
    disk.node
        .write_at(&[1; 3], Offset(5), WriteFlags::empty())
        .unwrap();
    assert_eq!(disk.take(), ["write 5+3"]);
}

#[test]
fn a_failed_flush_stays_failed() {
    let disk = recorder(Limits::bytes(), true);
    disk.node.flush().unwrap();
    disk.flush_errno
        .store(Errno::IO.raw_os_error().unsigned_abs(), Ordering::Relaxed);
    assert!(matches!(disk.node.flush(), Err(Error::Flush { .. })));
    disk.flush_errno.store(0, Ordering::Relaxed);
    disk.take();
    for _ in 0..2 {
        let error = disk.node.flush().unwrap_err();
        assert!(matches!(error, Error::FlushLost { .. }), "{error}");
        assert_eq!(error.errno(), Errno::IO.raw_os_error());
        assert!(
            error.to_string().contains("open the image again"),
            "{error}"
        );
    }
    // Neither does a write that must be durable succeed by such a flush.
    assert!(
        disk.node
            .write_at(&[1], Offset(0), WriteFlags::FUA)
            .is_err()
    );
    assert_eq!(disk.take(), ["write 0+1"]);
}

#[test]
fn zeroes_are_written_where_the_driver_cannot_zero_unless_it_must_be_fast() {
    let disk = recorder(Limits::blocks(512), false);
    let error = disk
        .node
        .write_zeroes(Offset(0), Length(1024), ZeroFlags::NO_FALLBACK);
    let error = error.unwrap_err();
    assert_eq!(error.errno(), Errno::OPNOTSUPP.raw_os_error(), "{error}");
    assert!(disk.take().is_empty(), "something was changed");
    disk.node
        .write_zeroes(Offset(0), Length(1024), ZeroFlags::empty())
        .unwrap();
    assert_eq!(disk.take(), ["write 0+1024"]);
}

#[test]
fn edges_of_zeroing_are_written_and_whole_blocks_zeroed() {
    let disk = recorder(Limits::blocks(512), true);
    disk.node
        .write_zeroes(Offset(500), Length(1100), ZeroFlags::MAY_UNMAP)
        .unwrap();
    assert_eq!(
        disk.take(),
        [
            "zero 512+1024",
            "read 0+512",
            "write 0+512",
            "read 1536+512",
            "write 1536+512"
        ]
    );
    // Within one block there is nothing to zero whole.
    disk.node
        .write_zeroes(Offset(1), Length(2), ZeroFlags::NO_FALLBACK)
        .unwrap();
    assert_eq!(disk.take(), ["read 0+512", "write 0+512"]);
}

#[test]
fn long_requests_are_split_at_the_drivers_limit() {
    let mut limits = Limits::bytes();
    limits.max_transfer = 64 << 10;
    let disk = recorder(limits, true);
    disk.node
        .write_at(&[0; 150_000], Offset(7), WriteFlags::empty())
        .unwrap();
    assert_eq!(
        disk.take(),
        ["write 7+65536", "write 65543+65536", "write 131079+18928"]
    );
    disk.node.read_at(&mut [0; 65_537], Offset(0)).unwrap();
    assert_eq!(disk.take(), ["read 0+65536", "read 65536+1"]);
}

#[test]
fn discards_that_a_driver_cannot_do_are_done() {
    let disk = recorder(Limits::bytes(), true);
    disk.node.discard(Offset(0), Length(512)).unwrap();
}

#[test]
fn blocks_that_are_holes_in_part_are_data() {
    let disk = recorder(Limits::blocks(512), true);
    let mut map = Vec::new();
    disk.node
        .block_status(Offset(0), Length(3072), 10, &mut map)
        .unwrap();
    // Holes at 0..600, 1200..1800 and 2400..3000; only 0..512 is a whole block of them.
    let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
    let data = ExtentFlags::empty();
    assert_eq!(
        map,
        [
            Extent {
                len: 512,
                flags: hole
            },
            Extent {
                len: 2560,
                flags: data
            }
        ]
    );
}

#[test]
#[should_panic(expected = "every limit is a power of two")]
fn a_driver_with_wrong_limits_is_a_bug() {
    let mut limits = Limits::bytes();
    limits.preferred = 1000;
    recorder(limits, true);
}

fn allocated(disk: &Disk) -> u64 {
    std::fs::metadata(disk.path.as_ref().unwrap())
        .unwrap()
        .blocks()
        * 512
}

#[test]
fn holes_are_reported_and_discards_make_them() {
    const MIB: u64 = 1 << 20;
    let hole = |len| Extent {
        len,
        flags: ExtentFlags::HOLE | ExtentFlags::ZERO,
    };
    let data = |len| Extent {
        len,
        flags: ExtentFlags::empty(),
    };
    for kind in [Kind::Memory, Kind::Writeback, Kind::Direct] {
        // The end is odd: a discard of the last block gives that back, too.
        let Some(disk) = Disk::new(kind, 4 * MIB + 5) else {
            continue;
        };
        let map = || {
            let mut map = Vec::new();
            let size = Length(disk.node.size());
            disk.node
                .block_status(Offset::ZERO, size, 10, &mut map)
                .unwrap();
            map
        };
        assert_eq!(map(), [hole(4 * MIB + 5)], "{kind:?}");
        disk.node
            .write_at(&vec![1; 1 << 20], Offset(MIB), WriteFlags::empty())
            .unwrap();
        disk.node
            .write_at(&[1; 5], Offset(4 * MIB), WriteFlags::empty())
            .unwrap();
        disk.node.flush().unwrap();
        let written = map();
        if kind != Kind::Memory && written.len() == 1 {
            common::skipped("holes of a file", "this filesystem does not report them");
            continue;
        }
        assert_eq!(
            written,
            [hole(MIB), data(MIB), hole(2 * MIB), data(5)],
            "{kind:?}"
        );
        disk.node.discard(Offset(MIB), Length(3 * MIB + 5)).unwrap();
        assert_eq!(map(), [hole(4 * MIB + 5)], "{kind:?}");
        if kind != Kind::Memory {
            assert_eq!(allocated(&disk), 0, "{kind:?}");
        }
    }
}

#[test]
fn discards_that_are_to_be_ignored_keep_the_space() {
    let directory = common::directory();
    let path = directory.path().join("disk.raw");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let options = raw::Options::new(&path).discard(raw::Discard::Ignore);
    let node = options.open().unwrap();
    node.discard(Offset(0), Length(1 << 20)).unwrap();
    assert!(contents(&node).iter().all(|&b| b == 7));
    node.write_zeroes(Offset(0), Length(1 << 20), ZeroFlags::MAY_UNMAP)
        .unwrap();
    node.flush().unwrap();
    assert!(contents(&node).iter().all(|&b| b == 0));
    assert!(
        std::fs::metadata(&path).unwrap().blocks() >= (1 << 20) / 512,
        "space was given back"
    );
}

#[test]
fn a_huge_memory_disk_takes_only_what_is_written() {
    let node = memory::Options::new(Length((1 << 63) - 1)).open().unwrap();
    let far = Offset((1 << 62) + 12_345);
    node.write_at(b"far", far, WriteFlags::FUA).unwrap();
    let mut back = [0; 5];
    assert!(node.try_read_at(&mut back, Offset(far.0 - 1)).unwrap());
    assert_eq!(&back, b"\0far\0");
    node.discard(Offset::ZERO, Length(node.size())).unwrap();
    node.read_at(&mut back, Offset(far.0 - 1)).unwrap();
    assert_eq!(back, [0; 5]);
}

#[test]
fn cached_reads_are_served_without_waiting() {
    for kind in [Kind::Memory, Kind::Writeback] {
        let disk = Disk::new(kind, 1 << 20).unwrap();
        disk.node
            .write_at(&[9; 8192], Offset(100), WriteFlags::empty())
            .unwrap();
        let mut buf = [0; 8192];
        assert!(
            disk.node.try_read_at(&mut buf, Offset(100)).unwrap(),
            "{kind:?}"
        );
        assert!(buf.iter().all(|&b| b == 9));
    }
    // Past the page cache everything may wait.
    if let Some(disk) = Disk::new(Kind::Direct, 1 << 20) {
        assert!(!disk.node.try_read_at(&mut [0; 512], Offset(0)).unwrap());
    }
}

#[test]
fn small_writes_to_memory_and_to_the_page_cache_are_made_on_the_spot() {
    for kind in [Kind::Memory, Kind::Writeback] {
        let disk = Disk::new(kind, 1 << 20).unwrap();
        assert!(disk.node.try_write_at(&[9; 8192], Offset(100)).unwrap());
        let mut buf = [0; 8192];
        disk.node.read_at(&mut buf, Offset(100)).unwrap();
        assert!(buf.iter().all(|&b| b == 9), "{kind:?}");
        assert!(disk.node.try_write_at(&[], Offset(0)).unwrap());
        let error = disk.node.try_write_at(&[1; 2], Offset((1 << 20) - 1));
        assert_eq!(error.unwrap_err().errno(), 28, "{kind:?}");
    }
    // Past the page cache all may wait.
    if let Some(disk) = Disk::new(Kind::Direct, 1 << 20) {
        assert!(!disk.node.try_write_at(&[1; 512], Offset(0)).unwrap());
    }
}

// What is done without waiting keeps to the driver's limits, too.
#[test]
fn a_driver_that_is_asked_first_is_handed_what_it_takes() {
    let mut limits = Limits::bytes();
    (limits.memory_alignment, limits.max_transfer) = (512, 64 << 10);
    let node = recorder(limits, false).node;
    let mut memory = AlignedBuf::zeroed((64 << 10) + 1, 512).unwrap();
    for (range, expected) in [
        (0..64 << 10, true),
        (1..2, false),
        (0..(64 << 10) + 1, false),
        (1..1, true),
    ] {
        let buf = &mut memory[range.clone()];
        let written = node.try_write_at(buf, Offset(3)).unwrap();
        let read = node.try_read_at(buf, Offset(3)).unwrap();
        assert_eq!((written, read), (expected, expected), "{range:?}");
    }
}

// SPEC E1: not ours to prevent where nobody keeps to the locks; the disk keeps its size.
#[test]
fn a_file_that_is_cut_off_reads_as_zeroes_behind_its_end() {
    for kind in [Kind::Writeback, Kind::Direct] {
        let Some(disk) = Disk::new(kind, 10_001) else {
            continue;
        };
        disk.node
            .write_at(&[7; 10_001], Offset(0), WriteFlags::empty())
            .unwrap();
        disk.node.flush().unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(disk.path.as_ref().unwrap())
            .unwrap();
        file.set_len(5000).unwrap();
        let all = contents(&disk.node);
        assert!(all[..5000].iter().all(|&b| b == 7) && all[5000..].iter().all(|&b| b == 0));
        let mut map = Vec::new();
        disk.node
            .block_status(Offset(9000), Length(1001), 4, &mut map)
            .unwrap();
        let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
        assert_eq!(
            map,
            [Extent {
                len: 1001,
                flags: hole
            }],
            "{kind:?}"
        );
        assert!(!disk.node.try_read_at(&mut [0; 100], Offset(4950)).unwrap());
        disk.node
            .write_at(&[8; 1], Offset(10_000), WriteFlags::empty())
            .unwrap();
        assert_eq!(contents(&disk.node)[10_000], 8);
    }
}
