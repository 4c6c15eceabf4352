//! What is written is what is read.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use corio::AioContext;
use corio::context::MonitorChoice;
use corio::engine::EngineKind;
use corio::fs::{ExtentKind, File, ZeroFlags};

use super::{Mode, buffer, in_each_mode, in_modes};

// SPEC E1, E2, E3
#[test]
fn what_is_written_is_read_back_at_every_size() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        let unit = file.unit();
        let at = 12_345usize.next_multiple_of(unit) as u64;
        for len in [1usize, 511, 512, 4096, 65_537, 8 << 20] {
            let len = len.next_multiple_of(unit);
            let mut data = buffer(len, 0);
            for (byte, value) in data.iter_mut().zip((0..=250u8).cycle()) {
                *byte = value;
            }
            file.write_all_at(&data, at).unwrap();
            let mut back = buffer(len, 1);
            file.read_exact_at(&mut back, at).unwrap();
            assert!(*back == *data, "{len} bytes");
        }
        file.sync_data().unwrap();
    });
}

// SPEC E1, E2: where a file ends in the middle of a block, too.
#[test]
fn a_read_ends_with_the_file() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        let end = 3 * 4096 + 100;
        std::fs::write(&file.named, vec![7; end]).unwrap();
        let mut buf = buffer(4 * 4096, 1);
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), end);
        assert!(buf[..end].iter().all(|byte| *byte == 7));
        assert_eq!(file.read_at(&mut buf, 3 * 4096).unwrap(), 100);
        assert_eq!(file.read_at(&mut buf, 4 * 4096).unwrap(), 0);
        assert_eq!(file.read_at(&mut buf, 1 << 40).unwrap(), 0);
        let short = file.read_exact_at(&mut buf, 0).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    });
}

// SPEC E1, E2
#[test]
fn vectored_and_durable_writes_arrive_whole() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        let unit = file.unit();
        let at = 10usize.next_multiple_of(unit) as u64;
        let parts =
            [1, 0, 3, 1].map(|units| buffer(units * unit, b'0' + u8::try_from(units).unwrap()));
        let slices = parts.each_ref().map(|part| io::IoSlice::new(part));
        file.write_all_vectored_at(&slices, at, true).unwrap();
        let mut back = buffer(5 * unit, 0);
        file.read_exact_at(&mut back, at).unwrap();
        let expected: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        assert!(*back == *expected);
        let (mut a, mut b) = (buffer(2 * unit, 0), buffer(3 * unit, 0));
        let mut bufs = [io::IoSliceMut::new(&mut a), io::IoSliceMut::new(&mut b)];
        assert_eq!(file.read_vectored_at(&mut bufs, at).unwrap(), 5 * unit);
        assert!(*a == expected[..2 * unit] && *b == expected[2 * unit..]);
    });
}

// SPEC E1: more vectors than one call takes (IOV_MAX).
#[test]
fn thousands_of_vectors_arrive_whole() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        let unit = file.unit();
        let mut parts: Vec<_> = (0..2500u32)
            .map(|part| buffer(unit, u8::try_from(part % 251).unwrap()))
            .collect();
        let slices: Vec<_> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
        file.write_all_vectored_at(&slices, 0, false).unwrap();
        let mut back = buffer(2500 * unit, 0);
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back.chunks(unit).eq(parts.iter().map(|part| &**part)));
        parts.iter_mut().for_each(|part| part.fill(0));
        let mut bufs: Vec<_> = parts
            .iter_mut()
            .map(|part| io::IoSliceMut::new(part))
            .collect();
        assert_eq!(file.read_vectored_at(&mut bufs, 0).unwrap(), 2500 * unit);
        assert!(back.chunks(unit).eq(parts.iter().map(|part| &**part)));
    });
}

// SPEC E1, E2
#[test]
fn zeroes_and_discard_read_as_zeroes_and_leave_holes() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        file.write_all_at(&buffer(1 << 20, 0xa5), 0).unwrap();
        file.write_zeroes(4096, 8192, ZeroFlags::empty()).unwrap();
        file.write_zeroes(65_536, 65_536, ZeroFlags::MAY_UNMAP)
            .unwrap();
        file.discard(1 << 19, 65_536).unwrap();
        let mut back = buffer(1 << 20, 1);
        file.read_exact_at(&mut back, 0).unwrap();
        for (i, byte) in back.iter().enumerate() {
            let zero = (4096..12_288).contains(&i)
                || (65_536..131_072).contains(&i)
                || (1 << 19..(1 << 19) + 65_536).contains(&i);
            assert_eq!(*byte, if zero { 0 } else { 0xa5 }, "byte {i}");
        }
        let hole = file.extent_at(1 << 19).unwrap();
        assert_eq!((hole.kind, hole.len), (ExtentKind::Hole, 65_536));
        assert_eq!(file.extent_at(0).unwrap().kind, ExtentKind::Data);
        assert!(file.extent_at(1 << 20).is_err());
        // What was never written is a hole, too, before the end of the file and past it.
        file.write_all_at(&buffer(4096, 1), 4 << 20).unwrap();
        file.read_exact_at(&mut back[..4096], 2 << 20).unwrap();
        assert!(back[..4096].iter().all(|byte| *byte == 0));
    });
}

// SPEC Q4: somebody else may cut the file off.
#[test]
fn an_extent_ends_where_the_file_does_now() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        std::fs::write(&file.named, vec![1; 1 << 20]).unwrap();
        let found = file.extent_at(0).unwrap();
        assert_eq!((found.kind, found.len), (ExtentKind::Data, 1 << 20));
        file.named.as_file().set_len(8192).unwrap();
        let past = file.extent_at(65_536).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(file.read_at(&mut buffer(4096, 0), 65_536).unwrap(), 0);
        assert_eq!(file.extent_at(4096).unwrap().len, 4096);
    });
}

// SPEC E1: what the page cache has is read without waiting, and never what is past it.
#[test]
fn only_cached_files_are_read_without_waiting() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        let unit = file.unit().max(512);
        file.write_all_at(&buffer(unit, 9), 0).unwrap();
        let mut back = buffer(unit, 0);
        let read = file.try_read_at(&mut back, 0).unwrap();
        assert_eq!(read, (!mode.direct).then_some(unit));
        assert_eq!(file.read_at(&mut back, 0).unwrap(), unit);
        assert!(back.iter().all(|byte| *byte == 9));
    });
}

/// Whether the page cache has none of `len` bytes at `at`, having been told to let go of them.
fn evict(file: &std::fs::File, at: usize, len: usize) -> bool {
    file.sync_all().unwrap();
    let mut pages = vec![1u8; len / 4096];
    let (offset, size) = (at.try_into().unwrap(), len.try_into().unwrap());
    let fd = file.as_raw_fd();
    // SAFETY: nobody uses the mapping, which is of these pages; `pages` has a byte for each.
    unsafe {
        let advised = libc::posix_fadvise(fd, offset, size, libc::POSIX_FADV_DONTNEED);
        assert_eq!(advised, 0);
        let none = std::ptr::null_mut();
        let map = libc::mmap(none, len, libc::PROT_READ, libc::MAP_SHARED, fd, offset);
        assert_ne!(map, libc::MAP_FAILED);
        assert_eq!(libc::mincore(map, len, pages.as_mut_ptr()), 0);
        libc::munmap(map, len);
    }
    pages.iter().all(|page| page & 1 == 0)
}

// SPEC E1
#[test]
fn what_the_page_cache_does_not_have_is_read_by_the_engine() {
    in_each_mode(|mode| {
        let context = AioContext::current().unwrap();
        context.set_cached_read_max(1 << 20).unwrap();
        let file = mode.scratch();
        let len = 65_536;
        let mut data = buffer(len, 0);
        for (byte, value) in data.iter_mut().zip((0..=250u8).cycle()) {
            *byte = value;
        }
        file.write_all_at(&data, 0).unwrap();
        // All of it, a part of it, none of it.
        for cold in [len, len / 2, 0] {
            let mut back = buffer(len, 0);
            // The first read of all goes to the engine.
            file.read_exact_at(&mut back[..4096], 0).unwrap();
            if cold > 0 && !evict(file.named.as_file(), len - cold, cold) {
                return println!("SKIPPED: reads of what is not cached: the pages stay");
            }
            file.read_exact_at(&mut back, 0).unwrap();
            assert!(*back == *data, "{mode:?}, {cold} are not cached");
        }
    });
}

// SPEC E1: small writes to the page cache are made on the spot, all others are an engine's.
#[test]
fn only_small_writes_to_cached_files_are_made_on_the_spot() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        let unit = file.unit().max(512);
        let block = buffer(unit, 9);
        let written = file.try_write_at(&block, 0).unwrap();
        assert_eq!(written, (!mode.direct).then_some(unit), "{mode:?}");
        assert_eq!(file.try_write_at(&buffer(65_537, 1), 0).unwrap(), None);
        let mut back = buffer(unit, 0);
        let read = file.read_at(&mut back, 0).unwrap();
        assert_eq!(read, written.unwrap_or(0), "{mode:?}");
        assert!(mode.direct || back[..] == block[..], "{mode:?}");
    });
    let named = tempfile::NamedTempFile::new().unwrap();
    let open = |flags| {
        let fd = rustix::fs::open(named.path(), flags, rustix::fs::Mode::empty()).unwrap();
        File::from(fd)
    };
    use rustix::fs::OFlags;
    for flag in [OFlags::SYNC, OFlags::DSYNC] {
        let file = open(OFlags::WRONLY | flag);
        assert_eq!(file.try_write_at(b"x", 0).unwrap(), None, "{flag:?}");
    }
    let error = open(OFlags::RDONLY).try_write_at(b"x", 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    let (_reader, pipe) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    assert_eq!(pipe.try_write_at(b"x", 0).unwrap(), None);
}

// SPEC E1, E2: more than fit in any queue, or in the kernel at once.
#[test]
fn ten_thousand_requests_in_flight_all_complete() {
    // Workers are the same whatever the loop waits with, and take their time.
    let modes = Mode::all()
        .filter(|mode| mode.kind != EngineKind::Threads || mode.monitor == MonitorChoice::Epoll);
    in_modes(modes, |mode| {
        let file = Rc::new(mode.scratch());
        let unit = file.unit().max(64);
        let mut data = buffer(256 * unit, 0);
        for (byte, block) in data.chunks_mut(unit).zip(0..=255) {
            byte.fill(block);
        }
        file.write_all_at(&data, 0).unwrap();
        // One worker, which is held: else it could be done before who asked has parked.
        let context = AioContext::current().unwrap();
        context.set_worker_limits(0, 1).unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let held = corio::spawn_local(|| corio::engine::unblock(move || wait.recv()).unwrap());
        let counts: Rc<[Cell<u32>; 3]> = Rc::default();
        let read_one = |at: u32| {
            let (file, counts) = (Rc::clone(&file), Rc::clone(&counts));
            corio::spawn_local(move || {
                let block = u8::try_from(at % 256).unwrap();
                let mut buf = buffer(unit, 0);
                let offset = usize::from(block) * unit;
                let [begun, ended, peak] = &*counts;
                begun.set(begun.get() + 1);
                peak.set(peak.get().max(begun.get() - ended.get()));
                file.read_exact_at(&mut buf, offset as u64).unwrap();
                ended.set(ended.get() + 1);
                buf.iter().all(|byte| *byte == block)
            })
        };
        let handles: Vec<_> = (0..10_000).map(read_one).collect();
        let [begun, _, peak] = &*counts;
        while begun.get() < 10_000 {
            corio::yield_now();
        }
        assert_eq!(peak.get(), 10_000, "{mode:?}: not at once");
        context.set_worker_limits(0, 64).unwrap();
        go.send(()).unwrap();
        assert!(handles.into_iter().all(|handle| handle.join().unwrap()));
        held.join().unwrap().unwrap();
    });
}

// SPEC E1: a gather holds requests back until its end, and nested ones until the outermost one's.
#[test]
fn gathered_requests_all_complete() {
    in_each_mode(|mode| {
        let file = Rc::new(mode.scratch());
        let write = |at: u8| {
            let file = Rc::clone(&file);
            corio::spawn_local(move || {
                let data = buffer(4096, at);
                file.write_all_at(&data, 4096 * u64::from(at)).unwrap();
            })
        };
        let handles = corio::engine::gather(|| {
            let mut handles: Vec<_> = (0..100).map(write).collect();
            corio::engine::gather(|| handles.extend((100..200).map(write)));
            corio::yield_now(); // The loop turns: they do not wait for the end.
            let last = handles.pop().unwrap();
            last.join().unwrap();
            handles
        });
        assert!(handles.into_iter().all(|handle| handle.join().is_ok()));
        let mut back = buffer(200 * 4096, 0);
        file.read_exact_at(&mut back, 0).unwrap();
        for (block, at) in back.chunks(4096).zip(0..) {
            assert!(block.iter().all(|byte| *byte == at));
        }
    });
}

// SPEC E1: coroutines of different loops, one file.
#[test]
fn loops_share_a_file() {
    let modes: Vec<_> = Mode::on(MonitorChoice::Epoll).collect();
    in_modes(modes.into_iter(), |mode| {
        let scratch = mode.scratch();
        let file = std::sync::Arc::new(mode.open(scratch.named.path()).unwrap());
        let others: Vec<_> = (1..=4u8).map(|other| (other, mode.spawn())).collect();
        let writers: Vec<_> = others
            .iter()
            .map(|(other, io)| {
                let (file, other): (std::sync::Arc<File>, _) = (file.clone(), *other);
                io.context().spawn(move || {
                    for at in 0..64 {
                        let at = 4096 * (4 * at + u64::from(other) - 1);
                        file.write_all_at(&buffer(4096, other), at).unwrap();
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        let mut back = buffer(256 * 4096, 0);
        file.read_exact_at(&mut back, 0).unwrap();
        for (block, at) in back.chunks(4096).zip((1..=4u8).cycle()) {
            assert!(block.iter().all(|byte| *byte == at));
        }
    });
}
