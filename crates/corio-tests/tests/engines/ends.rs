//! Requests whose coroutine, neighbour or home ends meanwhile.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use corio::engine::{EngineKind, gather};
use corio::fs::AlignedBuf;
use corio::{AioContext, Coroutine};

use super::{Mode, PATIENCE, Scratch, buffer, in_each_mode, settle_here};

/// Tells when it is dropped.
struct Told(mpsc::Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Waits in a coroutine until what holds the other end has been dropped.
fn wait_for(ended: &mpsc::Receiver<()>) {
    let begin = Instant::now();
    while ended.try_recv().is_err() {
        assert!(begin.elapsed() < PATIENCE, "it does not end");
        corio::yield_now();
    }
}

/// The byte of which the file's first block is full.
fn first_byte(file: &Scratch) -> u8 {
    let mut block = buffer(4096, 0);
    file.read_exact_at(&mut block, 0).unwrap();
    assert!(block.iter().all(|byte| *byte == block[0]), "torn");
    block[0]
}

/// A file full of ones, and a coroutine that fills its first block with twos, once it is entered.
fn writer_of_twos(mode: Mode) -> (Rc<Scratch>, Coroutine, mpsc::Receiver<()>) {
    let file = Rc::new(mode.scratch());
    file.write_all_at(&buffer(4096, 1), 0).unwrap();
    let (told, ended) = mpsc::channel();
    let to = Rc::clone(&file);
    let writer = Coroutine::new(move || {
        let _told = Told(told);
        let twos = buffer(4096, 2);
        to.write_all_at(&twos, 0).unwrap();
    });
    (file, writer, ended)
}

// SPEC C12, E5: the first stage of a request at which its coroutine can be cancelled.
#[test]
fn who_is_cancelled_makes_no_request() {
    in_each_mode(|mode| {
        let file = Rc::new(mode.scratch());
        file.write_all_at(&buffer(4096, 1), 0).unwrap();
        let (told, ended) = mpsc::channel();
        let to = Rc::clone(&file);
        let writer = corio::spawn_local(move || {
            let _told = Told(told);
            let caught = std::panic::catch_unwind(corio::park);
            assert!(caught.is_err());
            // It goes on, and gets no further.
            let twos = buffer(4096, 2);
            let _ = to.write_all_at(&twos, 0);
        });
        settle_here();
        writer.cancel().unwrap();
        wait_for(&ended);
        assert_eq!(first_byte(&file), 1);
    });
}

// SPEC E5: the second: it waits to be handed over. Linux AIO's never reaches the kernel; a ring's
// is followed by its cancellation, and a worker may have begun.
#[test]
fn a_request_that_is_not_handed_over_is_taken_back() {
    in_each_mode(|mode| {
        let (file, writer, ended) = writer_of_twos(mode);
        gather(|| {
            writer.enter();
            drop(writer);
            corio::yield_now();
        });
        wait_for(&ended);
        let byte = first_byte(&file);
        match mode.kind {
            EngineKind::LinuxAio => assert_eq!(byte, 1, "it was handed over"),
            _ => assert!([1, 2].contains(&byte)),
        }
    });
}

// SPEC E5: the fourth: it has completed, which its home has not seen. The third, in the kernel, is
// among the faults.
#[test]
fn a_completion_that_is_not_taken_yet_is_waited_for() {
    in_each_mode(|mode| {
        let (file, writer, ended) = writer_of_twos(mode);
        gather(|| writer.enter());
        // Outside the loop, which takes nothing meanwhile; a worker's call is seen by its data.
        let begin = Instant::now();
        let path = file.named.path();
        while std::fs::read(path).unwrap()[0] != 2 {
            assert!(begin.elapsed() < PATIENCE, "it is not handed over");
        }
        // A worker may have been done with it before there was anything to wait for.
        if mode.kind == EngineKind::Threads && writer.is_done() {
            return;
        }
        assert!(ended.try_recv().is_err(), "nobody has looked");
        drop(writer);
        wait_for(&ended);
        assert_eq!(first_byte(&file), 2);
    });
}

/// What memory is full of once nobody uses it any more.
const CANARY: u8 = 0xee;

/// A buffer that is kept when it is dropped, full of canaries: the kernel's use of it after that is
/// seen, in the buffer or in the file.
struct Kept {
    buf: Option<AlignedBuf>,
    graves: Rc<RefCell<Vec<AlignedBuf>>>,
}

impl Deref for Kept {
    type Target = AlignedBuf;

    fn deref(&self) -> &AlignedBuf {
        self.buf.as_ref().unwrap()
    }
}

impl DerefMut for Kept {
    fn deref_mut(&mut self) -> &mut AlignedBuf {
        self.buf.as_mut().unwrap()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut buf = self.buf.take().unwrap();
        buf.fill(CANARY);
        self.graves.borrow_mut().push(buf);
    }
}

// SPEC E5: at any stage, in any order. Each writer has a block of its own behind what is read.
#[test]
fn a_storm_of_cancelled_and_dropped_requests_touches_no_buffer_but_its_own() {
    const STARTED: usize = 300;
    in_each_mode(|mode| {
        let file = Rc::new(mode.scratch());
        let blocks = 16u64;
        for at in 0..blocks {
            let byte = u8::try_from(at).unwrap();
            file.write_all_at(&buffer(4096, byte), 4096 * at).unwrap();
        }
        let mut random = 0x2545_f491_4f6c_dd1du64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let (told, ended) = mpsc::channel();
        let graves = Rc::<RefCell<Vec<_>>>::default();
        let written = Rc::<RefCell<Vec<usize>>>::default();
        let mut living = Vec::new();
        for number in 0..STARTED {
            let (file, told) = (Rc::clone(&file), Told(told.clone()));
            let mut own = Kept {
                buf: Some(buffer(4096, 0xff)),
                graves: Rc::clone(&graves),
            };
            let coroutine = if next(2) == 0 {
                let at = next(blocks);
                Coroutine::new(move || {
                    let _told = told;
                    file.read_exact_at(&mut own, 4096 * at).unwrap();
                    assert!(own.iter().all(|byte| u64::from(*byte) == at), "another's");
                })
            } else {
                let written = Rc::clone(&written);
                own.fill(byte_of(number));
                Coroutine::new(move || {
                    let _told = told;
                    let at = 4096 * (blocks + number as u64);
                    file.write_all_at(&own, at).unwrap();
                    written.borrow_mut().push(number);
                })
            };
            coroutine.enter();
            living.push(coroutine);
            match next(4) {
                0 => corio::yield_now(),
                1 => drop(living.swap_remove(usize::try_from(next(living.len() as u64)).unwrap())),
                _ => {}
            }
        }
        drop(living);
        for _ in 0..STARTED {
            wait_for(&ended);
        }
        settle_here();
        file.sync_data().unwrap();
        let graves = graves.borrow();
        assert_eq!(graves.len(), STARTED);
        let is_full = |buf: &AlignedBuf| buf.iter().all(|byte| *byte == CANARY);
        assert!(graves.iter().all(is_full), "{mode:?}: used after its end");
        let back = std::fs::read(file.named.path()).unwrap();
        let (read, others) = back.split_at(4096 * 16);
        for (block, at) in read.chunks(4096).zip(0..) {
            assert!(block.iter().all(|byte| *byte == at), "{mode:?}");
        }
        for (number, block) in others.chunks(4096).enumerate() {
            let asked = byte_of(number);
            let is_asked = |byte: &u8| *byte == asked || *byte == 0;
            assert!(block.iter().all(is_asked), "{mode:?}: what was never asked");
            let is_whole = block.iter().all(|byte| *byte == asked);
            let is_due = written.borrow().contains(&number);
            assert!(is_whole || !is_due, "{mode:?}: {number} is not whole");
        }
    });
}

/// What a writer's block is full of: no canary, and not what is there without it.
fn byte_of(number: usize) -> u8 {
    u8::try_from(1 + number % 100).unwrap()
}

// SPEC E5: a home that ends takes back or waits for all that is in flight, and unwinds.
#[test]
fn a_home_ends_with_requests_in_flight() {
    for mode in Mode::all() {
        for round in 0..5u64 {
            let (told, ended) = mpsc::channel();
            let io = mode.spawn();
            let (begun, begin) = mpsc::channel();
            let all = io.context().spawn(move || {
                let file = Rc::new(mode.scratch());
                file.write_all_at(&buffer(65_536, 1), 0).unwrap();
                for at in 0..100 {
                    let (file, told) = (Rc::clone(&file), Told(told.clone()));
                    let _detached = corio::spawn_local(move || {
                        let _told = told;
                        loop {
                            let mut own = buffer(4096, 0);
                            file.read_exact_at(&mut own, 4096 * (at % 16)).unwrap();
                        }
                    });
                }
                begun.send(()).unwrap();
                loop {
                    corio::park();
                }
            });
            begin.recv().unwrap();
            std::thread::sleep(Duration::from_micros(100 * round)); // At another point each time.
            let begin = Instant::now();
            mode.check(&io);
            io.join();
            assert!(begin.elapsed() < Duration::from_secs(4), "{mode:?}");
            assert_eq!(ended.try_iter().count(), 100, "{mode:?}: frames are left");
            all.join().unwrap_err();
        }
    }
}

// SPEC E5, C9
#[test]
fn a_panic_next_to_requests_in_flight_leaves_them_alone() {
    in_each_mode(|mode| {
        let file = Rc::new(mode.scratch());
        file.write_all_at(&buffer(65_536, 3), 0).unwrap();
        let reader = |at: u64, panics: bool| {
            let file = Rc::clone(&file);
            corio::spawn_local(move || {
                let mut own = buffer(4096, 0);
                file.read_exact_at(&mut own, 4096 * (at % 16)).unwrap();
                assert!(!panics, "expected by the test");
                file.read_exact_at(&mut own, 4096 * (at % 16)).unwrap();
                own.iter().all(|byte| *byte == 3)
            })
        };
        let readers: Vec<_> = (0..60).map(|at| (at, reader(at, at % 3 == 0))).collect();
        for (at, reader) in readers {
            match reader.join() {
                Ok(right) => assert!(right && at % 3 != 0, "{at}"),
                Err(_) => assert_eq!(at % 3, 0, "{at}"),
            }
        }
    });
}

// SPEC E1, A1: a callback that polls gets what an outer turn asked for, and what came with it.
#[test]
fn a_nested_poll_hands_over_and_takes_completions() {
    for mode in Mode::all() {
        let context = AioContext::builder().monitor(mode.monitor).build().unwrap();
        context.set_engine(mode.choice);
        let scratch = mode.scratch();
        std::fs::write(&scratch.named, [4; 65_536]).unwrap();
        let read = Arc::new(AtomicUsize::new(0));
        let (file, count) = (Arc::new(scratch.file), Arc::clone(&read));
        let readers = move || {
            for at in 0..16 {
                let (file, count) = (Arc::clone(&file), Arc::clone(&count));
                let _detached = corio::spawn_local(move || {
                    let mut own = buffer(4096, 0);
                    file.read_exact_at(&mut own, 4096 * at).unwrap();
                    assert!(own.iter().all(|byte| *byte == 4));
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }
        };
        let (own, ran) = (context.clone(), Arc::clone(&read));
        let polls = move || {
            let begin = Instant::now();
            while ran.load(Ordering::Relaxed) < 16 {
                own.poll(false).unwrap();
                assert!(begin.elapsed() < PATIENCE, "{mode:?}: it is not seen");
            }
        };
        let home = || {
            let all = context.spawn(readers);
            context.schedule_oneshot("polls", polls);
            context.poll(true).unwrap(); // One turn of the outer loop.
            assert_eq!(read.load(Ordering::Relaxed), 16, "{mode:?}");
            while !all.is_finished() {
                context.poll(true).unwrap();
            }
            all.join().unwrap();
        };
        context.enter_home(home).unwrap();
    }
}
