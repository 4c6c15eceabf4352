//! What devices do wrong, and what never answers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use corio::AioContext;
use corio::fs::File;

use super::faulty::{self, Faulty};
use super::log::logged;
use super::{Mode, buffer, errno, in_modes, settle};

/// Past the page cache, which has errors and retries of its own.
fn modes() -> impl Iterator<Item = Mode> {
    Mode::all().filter(|mode| mode.direct)
}

fn on_faulty(name: &'static str, path: &str, test: impl Fn(&File) + Clone + Send + 'static) {
    let Some(faulty) = Faulty::start(name) else {
        return;
    };
    let path = faulty.path(path);
    in_modes(modes(), move |mode| test(&mode.open(&path).unwrap()));
}

// SPEC E1, E2
#[test]
fn an_error_of_the_device_is_the_requests_own() {
    on_faulty(
        "faults::an_error_of_the_device_is_the_requests_own",
        faulty::FILE,
        |file| {
            let mut buf = buffer(8192, 0);
            assert_eq!(errno(file.read_exact_at(&mut buf, faulty::BAD)), libc::EIO);
            assert_eq!(errno(file.write_all_at(&buf, faulty::BAD)), libc::EIO);
            assert_eq!(
                errno(file.write_all_at_durable(&buf, faulty::BAD)),
                libc::EIO
            );
            file.read_exact_at(&mut buf, faulty::GOOD).unwrap();
            assert!(buf.iter().all(|byte| *byte == faulty::BYTE));
            file.write_all_at(&buf, faulty::GOOD).unwrap();
            file.sync_data().unwrap();
        },
    );
}

// SPEC E1: the device would say that all is well the next time; what was lost stays lost.
#[test]
fn a_failed_sync_fails_all_later_ones_until_the_file_is_reopened() {
    let name = "faults::a_failed_sync_fails_all_later_ones_until_the_file_is_reopened";
    let Some(faulty) = Faulty::start(name) else {
        return;
    };
    let path = faulty.path(faulty::LOSSY);
    in_modes(Mode::all(), move |mode| {
        let file = mode.open(&path).unwrap();
        file.write_all_at(&buffer(4096, 1), faulty::GOOD).unwrap();
        for _ in 0..4 {
            assert_eq!(errno(file.sync_data()), libc::EIO);
        }
        let reopened = mode.open(&path).unwrap();
        reopened.sync_data().unwrap();
        assert_eq!(errno(file.sync_data()), libc::EIO, "not reopened");
    });
}

// SPEC E1: a durable write may have been told of what others have lost.
#[test]
fn a_failed_durable_write_to_the_page_cache_fails_all_later_syncs() {
    let name = "faults::a_failed_durable_write_to_the_page_cache_fails_all_later_syncs";
    let Some(faulty) = Faulty::start(name) else {
        return;
    };
    let path = faulty.path(faulty::LOSSY);
    let cached = Mode::all().filter(|mode| !mode.direct);
    in_modes(cached, move |mode| {
        let file = mode.open(&path).unwrap();
        let block = buffer(4096, 1);
        let durable = file.write_all_at_durable(&block, faulty::GOOD);
        assert_eq!(errno(durable), libc::EIO);
        assert_eq!(errno(file.sync_data()), libc::EIO);
        let reopened = mode.open(&path).unwrap();
        reopened.write_all_at_durable(&block, faulty::GOOD).unwrap();
    });
}

// SPEC E1, E2: the caller does not see them.
#[test]
fn what_is_busy_or_interrupted_is_asked_again() {
    on_faulty(
        "faults::what_is_busy_or_interrupted_is_asked_again",
        faulty::FILE,
        |file| {
            for fault in [faulty::BUSY, faulty::INTERRUPTED] {
                for _ in 0..3 {
                    let mut buf = buffer(4096, 0);
                    file.read_exact_at(&mut buf, fault).unwrap();
                    assert!(buf.iter().all(|byte| *byte == faulty::BYTE));
                    file.write_all_at(&buf, fault).unwrap();
                }
            }
        },
    );
}

/// Tells when it is dropped.
struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

// SPEC E5: one that the kernel cannot take back is waited for; its buffer stays until then.
#[test]
fn a_cancelled_request_is_waited_for() {
    let Some(mut faulty) = Faulty::start("faults::a_cancelled_request_is_waited_for") else {
        return;
    };
    let path = faulty.path(faulty::FILE);
    let waiting: Vec<_> = modes()
        .map(|mode| {
            let (told, ended) = mpsc::channel();
            let (path, io) = (path.clone(), mode.spawn());
            let reader = io.context().spawn(move || {
                let file = mode.open(path).unwrap();
                let mut buf = buffer(4096, 7);
                let _told = Told(told);
                let result = file.read_at(&mut buf, faulty::HELD);
                panic!("it unwinds instead of {result:?}");
            });
            (mode, io, reader, ended)
        })
        .collect();
    faulty.wait_for_held(waiting.len());
    for (mode, io, reader, ended) in &waiting {
        reader.cancel().unwrap();
        settle(io);
        assert!(ended.try_recv().is_err(), "{mode:?}: the buffer is gone");
    }
    faulty.abort();
    for (mode, io, reader, ended) in waiting {
        ended.recv_timeout(super::PATIENCE).unwrap();
        reader.join().unwrap_err();
        mode.check(&io);
    }
}

/// Leaves a home in which a request never ends; what is logged.
fn leave_one_behind(mode: Mode, path: PathBuf, is_held: &AtomicBool) -> Vec<String> {
    logged(|| {
        let context = AioContext::builder().monitor(mode.monitor).build().unwrap();
        context.set_engine(mode.choice);
        let home = || {
            let named = corio::Builder::new().name("the one that waits");
            let _reader = named.spawn_on(&context, move || {
                let file = mode.open(path).unwrap();
                let mut on_stack = buffer(4096, 0);
                let _ = file.read_at(&mut on_stack, faulty::HELD);
            });
            while !is_held.load(Ordering::Acquire) {
                context.poll(false).unwrap();
                std::thread::yield_now();
            }
        };
        context.enter_home(home).unwrap();
    })
}

// SPEC E5: it is leaked, stack and buffer and all, and named; when it ends after all, nobody minds.
#[test]
fn a_request_that_never_ends_is_leaked_with_its_home_and_named() {
    let name = "faults::a_request_that_never_ends_is_leaked_with_its_home_and_named";
    let Some(mut faulty) = Faulty::start(name) else {
        return;
    };
    let path = faulty.path(faulty::FILE);
    let is_held = Arc::new(AtomicBool::new(false));
    let leavers: Vec<_> = modes()
        .map(|mode| {
            let (path, is_held) = (path.clone(), Arc::clone(&is_held));
            let leave = move || leave_one_behind(mode, path, &is_held);
            (mode, std::thread::spawn(leave))
        })
        .collect();
    faulty.wait_for_held(leavers.len());
    is_held.store(true, Ordering::Release);
    for (mode, leaver) in leavers {
        let said = leaver.join().unwrap();
        let [line] = &said[..] else {
            panic!("{mode:?}: {said:?}");
        };
        assert!(
            line.contains("did not end with its home and is leaked"),
            "{line}"
        );
        assert!(
            line.contains("something it started is still in flight"),
            "{line}"
        );
        assert!(line.contains("the one that waits"), "it is named: {line}");
    }
    faulty.abort();
    drop(faulty);
    in_modes(modes(), |mode| mode.scratch().sync_data().unwrap());
}
