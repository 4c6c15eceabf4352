//! Files and blocking calls, whatever the engine.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use corio::IoThread;
use corio::context::MonitorChoice;
use corio::engine::{EngineChoice, EngineInfo, EngineKind};
use corio::fs::{AlignedBuf, File, OpenOptions};

use super::{buffer, has_direct};

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

/// What a loop uses for a cached file, and for a direct one where there are any.
fn engines_of(monitor: MonitorChoice, choice: EngineChoice) -> [Option<EngineInfo>; 2] {
    let builder = IoThread::builder().monitor(monitor).engine(choice);
    let io = builder.spawn().unwrap();
    let write = io.context().spawn(|| {
        for direct in [false, true] {
            let named = tempfile::NamedTempFile::new().unwrap();
            let options = OpenOptions::new().write(true);
            if !direct || has_direct() {
                let file = options.direct(direct).open(&named).unwrap();
                file.write_all_at(&buffer(4096, 1), 0).unwrap();
            }
        }
    });
    write.join().unwrap();
    [io.context().engine(), io.context().direct_engine()]
}

// SPEC E4: what there is without a ring is in corio's `fallbacks`.
#[test]
fn a_ring_that_works_is_what_auto_takes_for_all_files() {
    for monitor in MonitorChoice::ALL {
        let [asked, _] = engines_of(monitor, EngineChoice::IoUring);
        let asked = asked.unwrap();
        if asked.kind != EngineKind::IoUring {
            return println!("SKIPPED: auto with a ring: {}", asked.reason);
        }
        for engine in engines_of(monitor, EngineChoice::Auto) {
            let engine = engine.unwrap();
            assert_eq!(engine.kind, EngineKind::IoUring, "{monitor:?}: {engine:?}");
            assert_eq!(engine.reason, "io_uring works and is best", "{monitor:?}");
        }
    }
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
    let file = File::from(OwnedFd::from(tempfile::tempfile().unwrap()));
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
