//! Exercises `fd_ready_N`: an eventfd among N idle ones is written, and one blocking turn finds it,
//! reads it and calls its handler. A round is one write and one turn.
//!
//! mio's loop does the same: a wait, and for its event a read of the eventfd that the token names.
//! Both watch for what comes and not for what is there: ours as event notifiers, mio's by what mio is.
//!
//! With `_reads`, a file is read meanwhile by the same thread, 4 KiB at a time past the page cache
//! where the file system can: ours by a coroutine of the same context, whose completions come in the
//! same turns; mio watches the descriptor of an io_uring beside the eventfds, and its program takes
//! the completion and submits the next read. There a round is over when the eventfd's handler has
//! run.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

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

fn eventfds(count: usize) -> Vec<OwnedFd> {
    let make = |_| {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        eventfd(0, flags).expect("no descriptor for an eventfd")
    };
    (0..count).map(make).collect()
}

#[inline(always)]
fn write(fd: impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("an eventfd takes a write");
}

#[inline(always)]
fn read(fd: &OwnedFd) {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).expect("it was readable");
}

/// Those of an exercise: `IDLE` idle ones, and the one that is written.
fn all<const IDLE: usize>() -> Vec<OwnedFd> {
    allow_descriptors(IDLE + 100);
    eventfds(IDLE + 1)
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

pub(crate) fn ours<const IDLE: usize>(rounds: u32) -> Lap {
    ours_in::<IDLE>(rounds, || None)
}

pub(super) fn ours_beside_reads<const IDLE: usize>(rounds: u32) -> Lap {
    ours_in::<IDLE>(rounds, || Some(reads::by_coroutine()))
}

fn ours_in<const IDLE: usize>(rounds: u32, beside: impl FnOnce() -> Option<Reader>) -> Lap {
    let context = AioContext::new().expect("no descriptors for a context");
    let exercise = || {
        let tally = Tally::leak();
        let fds = all::<IDLE>();
        let local = context.local().expect("this thread is its home");
        let notifier = |fd| Arc::new(EventNotifier::from_fd(fd).expect("it is an eventfd"));
        let fds: Vec<_> = fds.into_iter().map(notifier).collect();
        let handlers = fds.iter().map(|notifier| {
            local
                .add_notifier(Arc::clone(notifier), move || tally.work())
                .expect("an eventfd can be watched")
        });
        let handlers: Vec<_> = handlers.collect();
        let beside = beside();
        let turn = || _ = context.poll(true).expect("the loop's wait failed");
        if let Some(reader) = &beside {
            reader.begin(turn);
        }
        let mut at = 0;
        let watch = Stopwatch::start();
        for round in 0..rounds {
            at = (at + STRIDE) % fds.len();
            write(&fds[at]);
            while tally.count() == round {
                turn();
            }
        }
        let lap = watch.stop();
        assert_eq!(tally.count(), rounds);
        if let Some(reader) = beside {
            reader.end(turn);
        }
        drop(handlers);
        lap
    };
    context.enter_home(exercise).expect("no monitor")
}

pub(super) fn mio<const IDLE: usize>(rounds: u32) -> Lap {
    mio_in::<IDLE>(rounds, None)
}

pub(super) fn mio_beside_reads<const IDLE: usize>(rounds: u32) -> Lap {
    mio_in::<IDLE>(rounds, Some(RingReader::new()))
}

const RING: Token = Token(usize::MAX - 1);

fn mio_in<const IDLE: usize>(rounds: u32, mut beside: Option<RingReader>) -> Lap {
    let tally = Tally::leak();
    let fds = all::<IDLE>();
    let mut poll = Poll::new().expect("no descriptor for an epoll set");
    let mut events = Events::with_capacity(128);
    let watch_fd = |poll: &Poll, fd: i32, token| {
        poll.registry()
            .register(&mut SourceFd(&fd), token, Interest::READABLE)
            .expect("a descriptor can be watched");
    };
    for (number, fd) in fds.iter().enumerate() {
        watch_fd(&poll, fd.as_raw_fd(), Token(number));
    }
    if let Some(reader) = &beside {
        watch_fd(&poll, reader.fd(), RING);
    }
    let mut at = 0;
    let watch = Stopwatch::start();
    for round in 0..rounds {
        at = (at + STRIDE) % fds.len();
        write(&fds[at]);
        while tally.count() == round {
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
        }
    }
    let lap = watch.stop();
    assert_eq!(tally.count(), rounds);
    if let Some(reader) = beside {
        reader.end();
    }
    lap
}
