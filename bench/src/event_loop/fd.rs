//! Exercises `fd_ready_N`: an eventfd among N idle ones is written, and one blocking turn finds it,
//! reads it and calls its handler. A round is one write and one turn.
//!
//! mio's loop does the same: a wait, and for its event a read of the eventfd that the token names.
//! Both watch for what comes and not for what is there: ours as event notifiers, mio's by what mio is.
//!
//! With `_reads`, a file is read meanwhile by the same thread, 4 KiB at a time past the page cache
//! where the file system can: ours by a coroutine of the same context, whose completions come in the
//! same turns; mio watches the descriptor of an io_uring beside the eventfds, and its program takes
//! the completion and submits the next read. There is a read for [`ROUNDS_A_READ`] rounds at most,
//! and a round is over when the eventfd's handler has run.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use corio::AioContext;
use corio::context::EventNotifier;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::event::{EventfdFlags, eventfd};

use super::reads::{self, Reader, RingReader};
use crate::contest::{Lap, Stopwatch};
use crate::tally::Tally;

/// The next one to be written is this far on, so that none is written twice in a row.
const STRIDE: usize = 7;
/// Rounds for each read, of which there are no more: both sides do the same work then, and the one
/// with the faster loop does not read more meanwhile, which takes longer than the rounds. About as
/// many as pass while a disk reads a block.
const ROUNDS_A_READ: u32 = 16;

#[inline(always)]
fn write(fd: impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("an eventfd takes a write");
}

#[inline(always)]
fn read(fd: &OwnedFd) {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).expect("it was readable");
}

/// Raises this process's limit, as far as it may.
fn allow_descriptors(count: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(count).ok();
    if limit.current < wanted {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        // Refused, making the descriptors will say so.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// `rounds` more of them.
#[inline(always)]
fn measure(rounds: u32, fds: &[BorrowedFd<'_>], tally: &Tally, mut turn: impl FnMut()) -> Lap {
    let before = tally.count();
    let mut at = before as usize * STRIDE % fds.len();
    let watch = Stopwatch::start();
    for round in before..before + rounds {
        at = (at + STRIDE) % fds.len();
        write(fds[at]);
        while tally.count() == round {
            turn();
        }
    }
    let lap = watch.stop();
    assert_eq!(tally.count(), before + rounds);
    lap
}

/// Each eventfd once, so that none is met for the first time since it was made.
fn warm_up(fds: &[BorrowedFd<'_>], tally: &Tally, turn: impl FnMut()) {
    let rounds = u32::try_from(fds.len()).expect("they are few");
    measure(rounds, fds, tally, turn);
}

pub(crate) fn ours<const IDLE: usize>(rounds: u32) -> Lap {
    ours_in::<IDLE>(rounds, || None)
}

pub(super) fn ours_beside_reads<const IDLE: usize>(rounds: u32) -> Lap {
    let file = reads::open();
    ours_in::<IDLE>(rounds, || {
        Some(reads::by_coroutine(file, rounds / ROUNDS_A_READ))
    })
}

fn ours_in<const IDLE: usize>(rounds: u32, beside: impl FnOnce() -> Option<Reader>) -> Lap {
    let context = AioContext::new().expect("no descriptors for a context");
    let exercise = || {
        let tally = Tally::leak();
        allow_descriptors(IDLE + 100);
        let local = context.local().expect("this thread is its home");
        let add = |_| {
            let notifier = EventNotifier::new().expect("no descriptor for an eventfd");
            local
                .add_notifier(notifier, move || tally.work())
                .expect("an eventfd can be watched")
        };
        let handlers: Vec<_> = (0..=IDLE).map(add).collect();
        let fds = handlers.iter().map(|handler| handler.get_ref().as_fd());
        let fds: Vec<_> = fds.collect();
        let turn = || _ = context.poll(true).expect("the loop's wait failed");
        warm_up(&fds, tally, turn);
        let beside = beside();
        if let Some(reader) = &beside {
            reader.begin(turn);
        }
        let lap = measure(rounds, &fds, tally, turn);
        if let Some(reader) = beside {
            reader.end(turn);
        }
        drop(handlers);
        lap
    };
    context.enter_home(exercise).expect("no monitor")
}

pub(super) fn mio<const IDLE: usize>(rounds: u32) -> Lap {
    mio_in::<IDLE>(rounds, || None)
}

pub(super) fn mio_beside_reads<const IDLE: usize>(rounds: u32) -> Lap {
    mio_in::<IDLE>(rounds, || Some(RingReader::new(rounds / ROUNDS_A_READ)))
}

const RING: Token = Token(usize::MAX - 1);

fn mio_in<const IDLE: usize>(rounds: u32, make_beside: impl FnOnce() -> Option<RingReader>) -> Lap {
    let tally = Tally::leak();
    allow_descriptors(IDLE + 100);
    let make = |_| {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        eventfd(0, flags).expect("no descriptor for an eventfd")
    };
    let fds: Vec<OwnedFd> = (0..=IDLE).map(make).collect();
    let mut poll = Poll::new().expect("no descriptor for an epoll set");
    let mut events = Events::with_capacity(128);
    let registry = poll.registry().try_clone().expect("as above");
    let watch = |fd: i32, token| {
        registry
            .register(&mut SourceFd(&fd), token, Interest::READABLE)
            .expect("a descriptor can be watched");
    };
    for (number, fd) in fds.iter().enumerate() {
        watch(fd.as_raw_fd(), Token(number));
    }
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut beside = None;
    let mut turn = |beside: &mut Option<RingReader>| {
        poll.poll(&mut events, None)
            .expect("the peer's wait failed");
        for event in &events {
            if event.token() == RING {
                beside.as_mut().expect("it is watched").turn();
            } else if event.is_readable() {
                read(&fds[event.token().0]);
                tally.work();
            }
        }
    };
    warm_up(&borrowed, tally, || turn(&mut beside));
    beside = make_beside();
    if let Some(reader) = &beside {
        watch(reader.fd(), RING);
    }
    let lap = measure(rounds, &borrowed, tally, || turn(&mut beside));
    if let Some(reader) = beside {
        reader.end();
    }
    lap
}
