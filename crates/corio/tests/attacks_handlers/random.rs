//! Changes in any order, against what each handler waits for.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corio::AioContext;
use corio::context::{Handler, Interest, RemoteHandler};

use super::{is_readable, on_each_monitor};

/// A small generator: the same seed, the same attack.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

enum Registered {
    Local(Handler<Arc<UnixStream>>),
    Remote(RemoteHandler),
}

/// One handler of the random attack, what it wants, and what it was called for since it was asked.
struct Target {
    registered: Registered,
    stream: Arc<UnixStream>,
    theirs: UnixStream,
    wants: Arc<Mutex<Interest>>,
    reads: Arc<AtomicUsize>,
    writes: Arc<AtomicUsize>,
}

impl Target {
    fn set(&self, interest: Interest) {
        match &self.registered {
            Registered::Local(handler) => handler.set_interest(interest).unwrap(),
            Registered::Remote(handler) => handler.set_interest(interest),
        }
        *self.wants.lock().unwrap() = interest;
    }
}

fn target(
    context: &AioContext,
    stream: Arc<UnixStream>,
    theirs: UnixStream,
    remote: bool,
) -> Target {
    let wants = Arc::new(Mutex::new(Interest::READ));
    let (reads, writes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (wanted, read, written) = (Arc::clone(&wants), Arc::clone(&reads), Arc::clone(&writes));
    let callback = move |why: corio::context::Readiness| {
        let wanted = *wanted.lock().unwrap();
        assert!(
            (!why.read || wanted.read) && (!why.write || wanted.write),
            "it is not wanted"
        );
        read.fetch_add(usize::from(why.read), Ordering::Relaxed);
        written.fetch_add(usize::from(why.write), Ordering::Relaxed);
    };
    let fd = Arc::clone(&stream);
    let registered = if remote {
        Registered::Remote(context.add_handler(fd, Interest::READ, callback))
    } else {
        let local = context.local().unwrap();
        Registered::Local(local.add_handler(fd, Interest::READ, callback).unwrap())
    };
    Target {
        registered,
        stream,
        theirs,
        wants,
        reads,
        writes,
    }
}

// SPEC H1, H2, H3, H5, M1, M3: whatever the order, who wants what is there is called, and nobody
// else.
#[test]
fn random_changes_lose_no_event_and_call_nobody_who_does_not_want() {
    for seed in 1..=6 {
        on_each_monitor(|context| {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
            let mut targets: Vec<Target> = Vec::new();
            let local = context.local().unwrap();
            let mut file = None;
            for step in 0..1_500 {
                let at = random.below(targets.len().max(1));
                match random.below(12) {
                    // More come than go, in the first half.
                    0..=2 if targets.len() < 90 => {
                        let is_remote = random.below(2) == 0;
                        let shared = random.below(4) == 0 && !targets.is_empty();
                        let (ours, theirs) = if shared {
                            let other = &targets[at];
                            (Arc::clone(&other.stream), other.theirs.try_clone().unwrap())
                        } else {
                            let (ours, theirs) = UnixStream::pair().unwrap();
                            ours.set_nonblocking(true).unwrap();
                            (Arc::new(ours), theirs)
                        };
                        targets.push(target(context, ours, theirs, is_remote));
                    }
                    3 if step > 700 && !targets.is_empty() => {
                        let gone = targets.swap_remove(at);
                        *gone.wants.lock().unwrap() = Interest::default();
                        drop(gone);
                    }
                    4 if seed % 2 == 0 && step > 1_000 && file.is_none() => {
                        let made = tempfile::tempfile().unwrap();
                        file = Some(local.add_handler(made, Interest::READ, |_| ()).unwrap());
                    }
                    5..=7 if !targets.is_empty() => {
                        let read = random.below(2) == 0;
                        let write = random.below(3) == 0;
                        targets[at].set(Interest { read, write });
                    }
                    8 if !targets.is_empty() => (&targets[at].theirs).write_all(b"x").unwrap(),
                    9 if !targets.is_empty() => {
                        let _ = (&*targets[at].stream).read(&mut [0; 64]);
                    }
                    _ => drop(context.poll(false).unwrap()),
                }
                if step % 100 == 99 {
                    check_all(context, &targets);
                }
            }
        });
    }
}

fn check_all(context: &AioContext, targets: &[Target]) {
    for _ in 0..3 {
        context.poll(false).unwrap();
    }
    for target in targets {
        target.reads.store(0, Ordering::Relaxed);
        target.writes.store(0, Ordering::Relaxed);
    }
    for _ in 0..3 {
        context.poll(false).unwrap();
    }
    for target in targets {
        let wants = *target.wants.lock().unwrap();
        let is_there = is_readable(&*target.stream, Duration::ZERO);
        let (reads, writes) = (&target.reads, &target.writes);
        assert_eq!(reads.load(Ordering::Relaxed) > 0, wants.read && is_there);
        assert_eq!(writes.load(Ordering::Relaxed) > 0, wants.write);
    }
}
