//! Files from coroutines and from plain threads, on each engine and monitor (SPEC E1, E3, E5).

use std::io;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corio::IoThread;
use corio::context::MonitorChoice;
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::{AlignedBuf, ExtentKind, File, OpenOptions, ZeroFlags};

/// Runs a test in a coroutine, on each engine and each monitor.
fn on_each_engine(test: impl Fn() + Clone + Send + 'static) {
    for monitor in MonitorChoice::ALL {
        for (choice, kind) in [
            (EngineChoice::IoUring, EngineKind::IoUring),
            (EngineChoice::Threads, EngineKind::Threads),
        ] {
            let io = IoThread::builder()
                .monitor(monitor)
                .engine(choice)
                .spawn()
                .unwrap();
            let outcome = io.context().spawn(test.clone()).join();
            if let Err(error) = outcome {
                panic!("{monitor:?} {kind:?}: {}", error.resume_panic());
            }
            assert_eq!(io.context().engine().unwrap().kind, kind);
            io.join();
        }
    }
}

fn scratch() -> File {
    let file = tempfile::tempfile().unwrap();
    File::from(std::os::fd::OwnedFd::from(file))
}

// SPEC E1, E3
#[test]
fn what_is_written_is_read_back_at_every_size() {
    on_each_engine(|| {
        let file = scratch();
        for len in [1usize, 511, 512, 4096, 65_537, 8 << 20] {
            let data: Vec<u8> = (0..=250u8).cycle().take(len).collect();
            file.write_all_at(&data, 12_345).unwrap();
            let mut back = vec![0u8; len];
            file.read_exact_at(&mut back, 12_345).unwrap();
            assert!(back == data, "{len} bytes");
            file.sync_data().unwrap();
        }
        let end = file.size().unwrap();
        let mut past = [1u8; 16];
        assert_eq!(
            file.read_at(&mut past, end - 4).unwrap(),
            4,
            "short at the end"
        );
        assert_eq!(file.read_at(&mut past, end + 4).unwrap(), 0);
    });
}

// SPEC E1
#[test]
fn vectored_and_durable_writes_arrive_whole() {
    on_each_engine(|| {
        let file = scratch();
        let parts = [b"one".as_slice(), b"", b"three", b"4"].map(io::IoSlice::new);
        file.write_all_vectored_at(&parts, 10, true).unwrap();
        let mut back = [0u8; 9];
        file.read_exact_at(&mut back, 10).unwrap();
        assert_eq!(&back, b"onethree4");
        let (mut a, mut b) = ([0u8; 4], [0u8; 5]);
        let mut bufs = [io::IoSliceMut::new(&mut a), io::IoSliceMut::new(&mut b)];
        assert_eq!(file.read_vectored_at(&mut bufs, 10).unwrap(), 9);
        assert_eq!((&a, &b), (b"onet", b"hree4"));
    });
}

// SPEC E1
#[test]
fn zeroes_and_discard_read_as_zeroes_and_leave_holes() {
    on_each_engine(|| {
        let file = scratch();
        file.write_all_at(&[0xa5; 1 << 20], 0).unwrap();
        file.write_zeroes(4096, 8192, ZeroFlags::empty()).unwrap();
        file.write_zeroes(65_536, 65_536, ZeroFlags::MAY_UNMAP)
            .unwrap();
        file.discard(1 << 19, 65_536).unwrap();
        let mut back = vec![0u8; 1 << 20];
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
    });
}

#[test]
fn errors_keep_their_errno() {
    on_each_engine(|| {
        let missing = File::open("/nonexistent/disk").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(2));
        let file = File::open("/proc/self/exe").unwrap();
        let refused = file.write_all_at(b"x", 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(9), "{refused}");
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(
            full.write_all_at(b"x", 0).unwrap_err().raw_os_error(),
            Some(28)
        );
    });
}

// SPEC E1: many in flight on one ring, more than its entries.
#[test]
fn thousands_of_requests_at_once_all_complete() {
    on_each_engine(|| {
        let file = Rc::new(scratch());
        file.write_all_at(&vec![7u8; 4 << 20], 0).unwrap();
        let handles: Vec<_> = (0..3000u64)
            .map(|i| {
                let file = Rc::clone(&file);
                corio::spawn_local(move || {
                    let mut block = [0u8; 1024];
                    file.read_exact_at(&mut block, i * 1024).unwrap();
                    block == [7u8; 1024]
                })
            })
            .collect();
        assert!(handles.into_iter().all(|handle| handle.join().unwrap()));
    });
}

// SPEC E1
#[test]
fn direct_files_are_read_and_written_in_aligned_blocks() {
    on_each_engine(|| {
        let dir = std::env::temp_dir().join(format!("corio-direct-{}", std::process::id()));
        let path = dir.with_extension(format!("{:?}", std::thread::current().id()));
        let options = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .direct(true);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(error) => return println!("SKIPPED: direct files: {error}"),
        };
        let align = usize::try_from(file.direct_alignment().unwrap()).unwrap();
        let mut buf = AlignedBuf::zeroed(16 * align, align).unwrap();
        buf.fill(0x5a);
        file.write_all_at(&buf, 0).unwrap();
        let mut back = AlignedBuf::zeroed(32 * align, align).unwrap();
        assert_eq!(file.read_at(&mut back, 0).unwrap(), 16 * align);
        assert_eq!(back[..16 * align], buf[..]);
        assert_eq!(
            file.try_read_at(&mut back, 0).unwrap(),
            None,
            "direct reads always wait"
        );
        std::fs::remove_file(path).unwrap();
    });
}

// SPEC E1: asked for by a flag that std has no name for, too.
#[test]
fn direct_io_asked_for_by_flag_ends_at_the_end_of_the_file() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&named, [7; 1000]).unwrap();
    let mut options = OpenOptions::new().read(true);
    options = options.custom_flags(libc::O_DIRECT);
    let file = match options.open(&named) {
        Ok(file) => file,
        Err(error) => return println!("SKIPPED: direct files by flag: {error}"),
    };
    let mut buf = AlignedBuf::zeroed(8192, 4096).unwrap();
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 1000);
    assert!(file.direct_alignment().is_some());
}

#[test]
fn what_is_not_opened_for_writing_is_not_truncated() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&named, b"precious").unwrap();
    let refused = OpenOptions::new().read(true).truncate(true).open(&named);
    assert_eq!(
        refused.unwrap_err().kind(),
        io::ErrorKind::InvalidInput,
        "as by std"
    );
    assert_eq!(std::fs::read(&named).unwrap(), b"precious");
}

// SPEC Q4: somebody else may cut the file off.
#[test]
fn an_extent_ends_where_the_file_does_now() {
    on_each_engine(|| {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = File::open(&named).unwrap();
        std::fs::write(&named, vec![1; 1 << 20]).unwrap();
        let found = file.extent_at(0).unwrap();
        assert_eq!((found.kind, found.len), (ExtentKind::Data, 1 << 20));
        named.as_file().set_len(8192).unwrap();
        let past = file.extent_at(65_536).unwrap_err();
        assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(file.read_at(&mut [0; 16], 65_536).unwrap(), 0);
        assert_eq!(file.extent_at(4096).unwrap().len, 4096);
    });
}

/// A block device whose bytes are a file's, until dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn new(backing: &std::path::Path) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(backing)
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(Self(text(&output.stdout))),
            false => Err(text(&output.stderr)),
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

// SPEC Q4: zero bytes are never written where only fast zeroing will do.
#[test]
fn a_block_device_is_zeroed_fast_or_not_at_all() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(1 << 20).unwrap();
    let device = match LoopDevice::new(named.path()) {
        Ok(device) => Arc::new(device),
        Err(error) => return println!("SKIPPED: zeroes on a block device: {error}"),
    };
    on_each_engine(move || {
        let options = OpenOptions::new().read(true).write(true);
        let file = options.open(&device.0).unwrap();
        let reads_as = |byte| {
            let mut back = [0u8; 4096];
            file.read_exact_at(&mut back, 8192).unwrap();
            back == [byte; 4096]
        };
        file.write_all_at(&[7; 65_536], 0).unwrap();
        let kept = file.write_zeroes(8192, 4096, ZeroFlags::FAST_ONLY);
        assert_eq!(kept.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(reads_as(7));
        let fast = ZeroFlags::FAST_ONLY | ZeroFlags::MAY_UNMAP;
        match file.write_zeroes(8192, 4096, fast) {
            Ok(()) => assert!(reads_as(0)),
            // What the device lies on knows no holes.
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
                assert!(reads_as(7));
            }
        }
        file.write_zeroes(8192, 4096, ZeroFlags::empty()).unwrap();
        assert!(reads_as(0));
    });
}

// SPEC E3
#[test]
fn unblock_keeps_the_loop_turning_and_passes_panics_on() {
    let io = IoThread::builder().spawn().unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    let blocked = io.context().spawn(move || {
        corio::engine::unblock(move || rx.recv_timeout(Duration::from_secs(10))).unwrap()
    });
    let other = io.context().spawn(move || tx.send(5).unwrap());
    other.join().unwrap();
    assert_eq!(blocked.join().unwrap(), Ok(5));
    let panics = io
        .context()
        .spawn(|| corio::engine::unblock(|| panic!("expected by the test")));
    assert!(panics.join().is_err());
}

// SPEC E5: the home ends while a worker still uses the coroutine's buffer.
#[test]
fn ending_a_home_waits_for_what_is_in_flight() {
    let io = IoThread::builder()
        .engine(EngineChoice::Threads)
        .spawn()
        .unwrap();
    let (begun, begin) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let handle = io.context().spawn(move || {
        let mut buffer = [0u8; 64];
        let borrowed = &mut buffer;
        corio::engine::unblock(move || {
            begun.send(()).unwrap();
            wait.recv().unwrap();
            borrowed.fill(1);
        })
        .unwrap();
        buffer
    });
    begin.recv().unwrap();
    io.stop();
    go.send(()).unwrap();
    io.join();
    assert_eq!(handle.join().unwrap(), [1u8; 64], "it goes on to its end");
}

#[test]
fn a_plain_thread_blocks_and_a_loop_thread_refuses() {
    let file = scratch();
    file.write_all_at(b"plain", 0).unwrap();
    let context = corio::AioContext::new().unwrap();
    context
        .enter_home(|| {
            let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _ = file.write_all_at(b"loop", 0);
            }));
            let message = *refused.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("outside a coroutine"), "{message}");
        })
        .unwrap();
}
