//! The engine at home, on the ring and on its stand-in.

use std::os::fd::AsFd;

use super::*;
use crate::context::AioContext;
use crate::fs::{AlignedBuf, File, OpenOptions};

// SPEC E2, E5: the ring's stand-in has the same contract; more than fit in the kernel, some of
// them taken back.
#[test]
fn requests_complete_or_are_taken_back_from_either_source() {
    let named = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&named, [7; 4096]).unwrap();
    let options = OpenOptions::new().read(true).direct(true);
    let file = match options.open(&named) {
        Ok(file) => Rc::new(file),
        Err(error) => return println!("SKIPPED: requests of Linux AIO: O_DIRECT: {error}"),
    };
    for source in [Source::Ring, Source::Calls] {
        let context = AioContext::new().unwrap();
        let test = || check(&context, source, &file);
        context.enter_home(test).unwrap();
    }
}

// SPEC E2: fdatasync is a worker's where the kernel has no command for it, and fallocate always.
#[test]
fn what_there_is_no_command_for_is_left_to_workers() {
    let context = AioContext::new().unwrap();
    let home = || {
        let aio = match LinuxAio::new(Local::current().unwrap()) {
            Ok(aio) => Rc::new(aio),
            Err(error) => {
                return println!("SKIPPED: a kernel without IOCB_CMD_FDSYNC: {error}");
            }
        };
        let child = context.local().unwrap().spawn(move || {
            let file = tempfile::tempfile().unwrap();
            let local = Local::current().unwrap();
            let is_left = |mut request: Request<'_, '_>| {
                let carried = run(local, &aio, file.as_fd(), &mut request, 0);
                matches!(carried, Carried::Not)
            };
            assert!(!is_left(Request::SyncData));
            aio.core.no_sync.set(true);
            assert!(is_left(Request::SyncData));
            assert!(is_left(Request::Allocate {
                mode: rustix::fs::FallocateFlags::empty(),
                offset: 0,
                len: 4096,
            }));
        });
        while !child.is_finished() {
            context.poll(true).unwrap();
        }
        child.join().unwrap();
    };
    context.enter_home(home).unwrap();
}

/// At home, a context of Linux AIO's, and readers that make `reads` reads each of a file of the page
/// cache, where what is handed over has completed at once; how many reads there have been.
fn with_readers(
    readers: usize,
    reads: usize,
    batch_max: usize,
    test: impl Fn(&LinuxAio, &Cell<usize>),
) {
    let context = AioContext::new().unwrap();
    let home = || {
        let aio = match LinuxAio::new(Local::current().unwrap()) {
            Ok(aio) if aio.core.context.is_seen_from_user_space() => Rc::new(aio),
            Ok(_) => return println!("SKIPPED: readers of Linux AIO: its ring is not known"),
            Err(error) => return println!("SKIPPED: readers of Linux AIO: {error}"),
        };
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (file, done) = (Rc::new(file), Rc::new(Cell::new(0)));
        let reader = |_| {
            let (aio, file, done) = (Rc::clone(&aio), Rc::clone(&file), Rc::clone(&done));
            context.local().unwrap().spawn(move || {
                for _ in 0..reads {
                    let mut block = [0; 512];
                    let mut request = Request::Read {
                        bufs: &mut [io::IoSliceMut::new(&mut block)],
                        offset: 0,
                    };
                    let local = Local::current().unwrap();
                    let carried = run(local, &aio, file.as_fd(), &mut request, batch_max);
                    let Carried::Done(result) = carried else {
                        panic!("there is a command for it");
                    };
                    assert_eq!(result.unwrap(), 512);
                    done.set(done.get() + 1);
                }
            })
        };
        let all: Vec<_> = (0..readers).map(reader).collect();
        context.poll(false).unwrap(); // Their first requests are made.
        aio.submit();
        assert_eq!(aio.core.context.completions(), readers);
        test(&aio, &done);
        while all.iter().any(|reader| !reader.is_finished()) {
            context.poll(true).unwrap();
        }
        assert_eq!(done.get(), readers * reads);
    };
    context.enter_home(home).unwrap();
}

// SPEC E2: the device has something to do while completions are taken.
#[test]
fn what_is_asked_for_meanwhile_is_handed_over_before_all_completions_are_taken() {
    with_readers(8, 2, 0, |aio, _| {
        aio.core.reap();
        assert_eq!(aio.queued(), 0, "the second ones wait for the turn's end");
    });
    with_readers(8, 2, 256, |aio, _| {
        aio.core.reap();
        assert_eq!(aio.queued(), 8, "so many were to go at once");
    });
}

// SPEC E2: descriptors and timers have their turn.
#[test]
fn requests_that_complete_at_once_do_not_keep_the_loop_from_turning() {
    with_readers(2, 200, 0, |aio, done| {
        aio.core.reap();
        assert!(done.get() <= 3, "{} reads in one turn", done.get());
    });
}

fn check(context: &AioContext, source: Source, file: &Rc<File>) {
    let local = Local::current().unwrap();
    let aio = match LinuxAio::with_source(local, source) {
        Ok(aio) => Rc::new(aio),
        Err(error) => return println!("SKIPPED: requests of Linux AIO: {error}"),
    };
    let read = Rc::new(Cell::new(0));
    let children: Vec<_> = (0..3 * ENTRIES)
        .map(|_| {
            let (aio, file, read) = (Rc::clone(&aio), Rc::clone(file), Rc::clone(&read));
            context.local().unwrap().spawn(move || {
                let mut block = AlignedBuf::zeroed(4096, 4096).unwrap();
                let mut request = Request::Read {
                    bufs: &mut [io::IoSliceMut::new(&mut block)],
                    offset: 0,
                };
                let local = Local::current().unwrap();
                let Carried::Done(done) = run(local, &aio, file.as_fd(), &mut request, 0) else {
                    panic!("there is a command for it");
                };
                assert_eq!((done.unwrap(), block[4095]), (4096, 7));
                read.set(read.get() + 1);
            })
        })
        .collect();
    context.poll(false).unwrap(); // Their requests are made.
    assert!(aio.core.in_kernel.get() <= ENTRIES);
    let queued = aio.queued();
    assert!(queued > ENTRIES, "{queued} wait for room");
    let mut kept = 0;
    for (at, child) in children.iter().enumerate() {
        if at % 2 == 0 {
            child.cancel().unwrap();
        }
        kept += at % 2;
    }
    while Rc::strong_count(&aio) > 1 {
        context.poll(true).unwrap();
    }
    assert!(read.get() >= kept, "{} of {kept}", read.get());
    assert!(read.get() < 3 * ENTRIES, "none was taken back");
    assert_eq!(aio.core.in_kernel.get(), 0);
    assert_eq!(aio.queued(), 0);
}
