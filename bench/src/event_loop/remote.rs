//! Exercises between two threads, each with a loop of its own: an IoThread, or a current_thread
//! runtime of tokio's.
//!
//! `hop`: a coroutine moves to the other thread and back; a round is one move. A task of tokio's
//! cannot move, so a message does: there a task on each side gives it back through an unbounded
//! channel.
//!
//! `remote_bh`: closures are given to the other thread, which runs each once. tokio's are boxed and
//! go through an unbounded channel to a task that runs them.
//!
//! `remote_wake`: a coroutine on each thread wakes the other and parks; a round is one wake. tokio's
//! tasks do the same by their wakers.
//!
//! `bare`: beside both, two threads that only write each other's eventfd and wait for their own in an
//! epoll set; a round is one wake. It is what the kernel takes of a round in which a thread that
//! waits for descriptors is woken, whoever's loop it is.
//!
//! Each thread has a processor of its own, on both sides alike: where the scheduler puts two threads
//! that wake each other is a matter of luck, and changes the times tenfold. A wake then has to get
//! an idle processor going. `_polled`: the IoThreads poll for up to [`POLL_MAX_NS`] before they
//! block, which tokio's loops cannot.

#![allow(unsafe_code)] // `move_to` asks for a promise.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};
use std::time::Instant;

use corio::context::PollParams;
use corio::{CoWaker, IoThread};
use rustix::event::{EventfdFlags, epoll, eventfd};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::contest::Lap;
use crate::place;

/// As long as it takes to get an idle processor going in a virtual machine, several times over.
const POLL_MAX_NS: u64 = 200_000;

/// An IoThread for side 0 or 1. It polls for `poll_max_ns` at most, 0: not at all.
fn io_thread(side: usize, poll_max_ns: u64) -> IoThread {
    let params = PollParams {
        max_ns: poll_max_ns,
        ..PollParams::IO_THREAD
    };
    IoThread::builder()
        .cpus([place::processors()[side]])
        .poll_params(params)
        .spawn()
        .expect("no loop for a side")
}

pub(super) fn ours_hop(rounds: u32) -> Lap {
    hop(rounds, 0)
}

pub(super) fn ours_hop_polled(rounds: u32) -> Lap {
    hop(rounds, POLL_MAX_NS)
}

fn hop(rounds: u32, poll_max_ns: u64) -> Lap {
    let (here, there) = (io_thread(0, poll_max_ns), io_thread(1, poll_max_ns));
    let (home, other) = (here.context().clone(), there.context().clone());
    let elapsed = here.context().spawn(move || {
        let hop = |to: &corio::AioContext| {
            // SAFETY: the stack holds contexts, numbers and times; the handle is Send.
            unsafe { corio::move_to(to) }
        };
        let start = Instant::now();
        for _ in 0..rounds / 2 {
            hop(&other);
            hop(&home);
        }
        start.elapsed()
    });
    Lap::of_threads(elapsed.join().expect("it does not panic"))
}

pub(super) fn tokio_hop(rounds: u32) -> Lap {
    let (to_there, mut at_there) = unbounded_channel::<u32>();
    let (to_here, mut at_here) = unbounded_channel::<u32>();
    let there = place::on(place::processors()[1], move || {
        place::task(async move {
            while let Some(message) = at_there.recv().await {
                to_here.send(message + 1).expect("the other side is there");
            }
        });
    });
    let here = place::on(place::processors()[0], move || {
        place::task(async move {
            let start = Instant::now();
            let mut hops = 0;
            for _ in 0..rounds / 2 {
                to_there.send(hops + 1).expect("the other side is there");
                hops = at_here.recv().await.expect("the other side is there");
            }
            assert_eq!(hops, rounds / 2 * 2);
            start.elapsed()
        })
    });
    let elapsed = here.join().expect("it does not panic");
    there.join().expect("it does not panic");
    Lap::of_threads(elapsed)
}

/// Counts what runs; the last one tells.
struct Count {
    left: AtomicU32,
    done: mpsc::SyncSender<()>,
}

impl Count {
    fn new(rounds: u32) -> (Arc<Self>, mpsc::Receiver<()>) {
        let (done, told) = mpsc::sync_channel(1);
        let left = AtomicU32::new(rounds);
        (Arc::new(Self { left, done }), told)
    }

    /// On one thread only, as all of them run there.
    fn one(&self) {
        let left = self.left.load(Ordering::Relaxed) - 1;
        self.left.store(left, Ordering::Relaxed);
        if left == 0 {
            self.done.send(()).expect("somebody waits");
        }
    }
}

pub(super) fn ours_oneshots(rounds: u32) -> Lap {
    oneshots(rounds, 0)
}

pub(super) fn ours_oneshots_polled(rounds: u32) -> Lap {
    oneshots(rounds, POLL_MAX_NS)
}

fn oneshots(rounds: u32, poll_max_ns: u64) -> Lap {
    let io = io_thread(1, poll_max_ns);
    let (count, told) = Count::new(rounds);
    let giver = place::on(place::processors()[0], move || {
        let start = Instant::now();
        for _ in 0..rounds {
            let count = Arc::clone(&count);
            io.context().schedule_oneshot("bench", move || count.one());
        }
        told.recv().expect("all run");
        start.elapsed()
    });
    Lap::of_threads(giver.join().expect("it does not panic"))
}

pub(super) fn tokio_oneshots(rounds: u32) -> Lap {
    type Work = Box<dyn FnOnce() + Send>;
    let (sender, mut receiver): (UnboundedSender<Work>, UnboundedReceiver<Work>) =
        unbounded_channel();
    let there = place::on(place::processors()[1], move || {
        place::task(async move {
            while let Some(work) = receiver.recv().await {
                work();
            }
        });
    });
    let (count, told) = Count::new(rounds);
    let giver = place::on(place::processors()[0], move || {
        let start = Instant::now();
        for _ in 0..rounds {
            let count = Arc::clone(&count);
            assert!(sender.send(Box::new(move || count.one())).is_ok());
        }
        told.recv().expect("all run");
        start.elapsed()
    });
    let elapsed = giver.join().expect("it does not panic");
    there.join().expect("it does not panic");
    Lap::of_threads(elapsed)
}

/// Whose turn it is, and how each side is woken: one is even, the other odd.
struct Table<W> {
    turn: AtomicU32,
    wakers: [Mutex<Option<W>>; 2],
}

impl<W> Table<W> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            turn: AtomicU32::new(0),
            wakers: [Mutex::new(None), Mutex::new(None)],
        })
    }

    /// Acquire: pairs with `pass`.
    fn is_turn_of(&self, side: u32) -> bool {
        self.turn.load(Ordering::Acquire) % 2 == side
    }

    /// Release: what the side did is seen by the other.
    fn pass(&self) {
        self.turn.fetch_add(1, Ordering::Release);
    }
}

const SIDES: [u32; 2] = [0, 1];

fn set(eventfd: &OwnedFd) {
    rustix::io::write(eventfd, &1u64.to_ne_bytes()).expect("an eventfd takes a write");
}

pub(super) fn bare(rounds: u32) -> Lap {
    let make = |_| eventfd(0, EventfdFlags::CLOEXEC).expect("no descriptor for an eventfd");
    let fds = Arc::new([0, 1].map(make));
    let threads = [0, 1].map(|side| {
        let fds = Arc::clone(&fds);
        place::on(place::processors()[side], move || {
            let watched = epoll::create(epoll::CreateFlags::CLOEXEC).expect("no epoll set");
            // Each write is told once: none has to be read.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&watched, &fds[side], epoll::EventData::new_u64(0), flags)
                .expect("an eventfd can be watched");
            let mut seen = 0;
            let start = Instant::now();
            if side == 0 {
                set(&fds[1]);
            }
            while seen < rounds / 2 {
                let mut events = Vec::with_capacity(1);
                let room = rustix::buffer::spare_capacity(&mut events);
                let came = epoll::wait(&watched, room, None).expect("nothing interrupts it");
                seen += u32::try_from(came).expect("it is one");
                if side == 1 || seen < rounds / 2 {
                    set(&fds[1 - side]);
                }
            }
            start.elapsed()
        })
    });
    let elapsed = threads.map(|thread| thread.join().expect("it does not panic"));
    Lap::of_threads(elapsed[0].max(elapsed[1]))
}

pub(super) fn ours_wake(rounds: u32) -> Lap {
    wake(rounds, 0)
}

pub(super) fn ours_wake_polled(rounds: u32) -> Lap {
    wake(rounds, POLL_MAX_NS)
}

fn wake(rounds: u32, poll_max_ns: u64) -> Lap {
    let table = Table::<CoWaker>::new();
    let threads = [0, 1].map(|side| io_thread(side, poll_max_ns));
    let sides = [0, 1].map(|number| {
        let table = Arc::clone(&table);
        threads[number].context().spawn(move || {
            let side = SIDES[number];
            let mine = CoWaker::current().expect("it is of a context");
            *table.wakers[number].lock().expect("nobody panics with it") = Some(mine);
            let other = loop {
                let waker = *table.wakers[1 - number].lock().expect("as above");
                if let Some(waker) = waker {
                    break waker;
                }
                corio::yield_now();
            };
            let start = Instant::now();
            for _ in 0..rounds / 2 {
                while !table.is_turn_of(side) {
                    corio::park();
                }
                table.pass();
                other.wake();
            }
            start.elapsed()
        })
    });
    let elapsed = sides.map(|side| side.join().expect("it does not panic"));
    assert_eq!(table.turn.load(Ordering::Relaxed), rounds / 2 * 2);
    Lap::of_threads(elapsed[0].max(elapsed[1]))
}

pub(super) fn tokio_wake(rounds: u32) -> Lap {
    let table = Table::<Waker>::new();
    let side = move |number: usize, table: Arc<Table<Waker>>| async move {
        let side = SIDES[number];
        let mine = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
        *table.wakers[number].lock().expect("nobody panics with it") = Some(mine);
        let other = loop {
            let waker = table.wakers[1 - number].lock().expect("as above").clone();
            if let Some(waker) = waker {
                break waker;
            }
            tokio::task::yield_now().await;
        };
        let start = Instant::now();
        for _ in 0..rounds / 2 {
            poll_fn(|_| {
                if table.is_turn_of(side) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            table.pass();
            other.wake_by_ref();
        }
        start.elapsed()
    };
    let threads = [0, 1].map(|number| {
        let table = Arc::clone(&table);
        let cpu = place::processors()[number];
        place::on(cpu, move || place::task(side(number, table)))
    });
    let [here, there] = threads.map(|thread| thread.join().expect("it does not panic"));
    assert_eq!(table.turn.load(Ordering::Relaxed), rounds / 2 * 2);
    Lap::of_threads(here.max(there))
}
