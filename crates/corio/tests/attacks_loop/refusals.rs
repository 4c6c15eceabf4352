//! A kernel that has no memory just now, is old, or is told to refuse.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use corio::context::{MonitorChoice, MonitorInfo, MonitorKind};
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::File;
use corio::net::UnixStream;
use corio::{AioContext, Coroutine, IoThread};

use super::kernel::{Args, EPOLL_ADDS, EPOLL_CREATES, EPOLL_WAITS, Kernel, POLL_WAITS, RING_ENTER};
use super::{MONITORS, PATIENCE, eventually, io_thread, settle};

/// More sockets than a ring has entries.
const MANY: usize = 300;

fn scratch() -> File {
    File::from(OwnedFd::from(tempfile::tempfile().unwrap()))
}

/// What the ring calls when its queue is full; the loop's own waits are others.
fn is_flush_of_full_queue(args: Args) -> bool {
    let [_fd, to_submit, _min_complete, flags, ..] = args;
    to_submit == 256 && flags == 0
}

// SPEC E1: EAGAIN once, for the only request there is.
#[test]
fn a_request_that_the_kernel_was_too_busy_for_is_submitted_later() {
    let once = AtomicBool::new(true);
    let busy = move |args: Args| {
        (args[1] > 0 && once.swap(false, Ordering::Relaxed)).then_some(libc::EAGAIN)
    };
    let Some(kernel) = Kernel::new("a busy kernel's requests", RING_ENTER, busy) else {
        return;
    };
    let io = IoThread::builder()
        .monitor(MonitorChoice::Epoll)
        .engine(EngineChoice::IoUring)
        .spawn()
        .unwrap();
    let first = io.context().spawn(|| scratch().read_at(&mut [0; 16], 0));
    first.join().unwrap().unwrap(); // The ring is made.
    let watch = io.context().spawn(move || kernel.watch_this_thread());
    watch.join().unwrap();
    let read = io.context().spawn(|| scratch().read_at(&mut [0; 16], 0));
    assert!(eventually(|| read.is_finished()), "the request is lost");
    assert_eq!(read.join().unwrap().unwrap(), 0);
}

// SPEC H1, M5: in a turn that arms so many other polls that the queue is full.
#[test]
fn a_poll_that_the_kernel_was_too_busy_for_is_armed_later() {
    let busy = Arc::new(AtomicBool::new(false));
    let decide = {
        let busy = Arc::clone(&busy);
        move |args| {
            (busy.load(Ordering::Relaxed) && is_flush_of_full_queue(args)).then_some(libc::EAGAIN)
        }
    };
    let Some(kernel) = Kernel::new("a busy kernel's polls", RING_ENTER, decide) else {
        return;
    };
    let io = io_thread(MonitorChoice::IoUring);
    let watch = io.context().spawn(move || kernel.watch_this_thread());
    watch.join().unwrap();
    let (ours, mut theirs) = StdUnixStream::pair().unwrap();
    let (tx, rx) = mpsc::channel();
    let reader = io.context().spawn(move || {
        let mut stream = UnixStream::try_from_std(ours).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        let mut others = Vec::new();
        for _ in 0..256 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let other = Coroutine::new(move || drop((&ours).read(&mut [0])));
            other.enter();
            others.push((other, theirs));
        }
        busy.store(true, Ordering::Relaxed);
        tx.send(()).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        tx.send(()).unwrap();
    });
    for _ in 0..2 {
        settle(&io); // It waits.
        theirs.write_all(b"x").unwrap();
        rx.recv_timeout(PATIENCE).expect("the reader is awake");
    }
    reader.join().unwrap();
}

// SPEC E6, M5
#[test]
fn a_busy_kernel_is_not_a_readers_error() {
    let busy = |args| is_flush_of_full_queue(args).then_some(libc::EAGAIN);
    let Some(kernel) = Kernel::new("a busy kernel's readers", RING_ENTER, busy) else {
        return;
    };
    let io = io_thread(MonitorChoice::IoUring);
    let watch = io.context().spawn(move || kernel.watch_this_thread());
    watch.join().unwrap();
    let rounds: Arc<[AtomicUsize; 2]> = Arc::default();
    let (errors, failed) = mpsc::channel();
    let (streams, mut peers): (Vec<_>, Vec<_>) = (0..MANY)
        .map(|_| StdUnixStream::pair().unwrap())
        .map(|(ours, theirs)| (UnixStream::try_from_std(ours).unwrap(), theirs))
        .unzip();
    let start = io.context().spawn({
        let rounds = Arc::clone(&rounds);
        move || {
            for mut stream in streams {
                let (rounds, errors) = (Arc::clone(&rounds), errors.clone());
                let read_all = move || {
                    for round in &*rounds {
                        match stream.read_exact(&mut [0]) {
                            Ok(()) => round.fetch_add(1, Ordering::Relaxed),
                            Err(error) => return errors.send(error).unwrap(),
                        };
                    }
                };
                drop(corio::spawn(read_all));
            }
        }
    });
    start.join().unwrap();
    for round in &*rounds {
        settle(&io);
        // All at once: the loop is held up meanwhile.
        let (go_on, wait) = mpsc::channel::<()>();
        io.context()
            .schedule_oneshot("hold up", move || wait.recv().unwrap_or_default());
        for peer in &mut peers {
            let _ = peer.write_all(b"x"); // A reader that has failed is told of below.
        }
        drop(go_on);
        let is_complete = || round.load(Ordering::Relaxed) == MANY;
        assert!(
            eventually(is_complete),
            "{round:?} of {MANY}, {:?}",
            failed.try_recv()
        );
    }
}

// SPEC M2, E4: a filter that knows io_uring_setup and refuses io_uring_enter.
#[test]
fn an_engine_whose_ring_cannot_be_entered_is_not_chosen() {
    let Some(kernel) = Kernel::new("an engine's ring", RING_ENTER, |_| Some(libc::EPERM)) else {
        return;
    };
    let io = IoThread::builder().spawn().unwrap();
    let watch = io.context().spawn(move || kernel.watch_this_thread());
    watch.join().unwrap();
    let read = io.context().spawn(|| scratch().read_at(&mut [0; 16], 0));
    assert!(eventually(|| read.is_finished()), "the request is lost");
    assert_eq!(read.join().unwrap().unwrap(), 0);
    let engine = io.context().engine().unwrap();
    assert_eq!(engine.kind, EngineKind::Threads, "{}", engine.reason);
    settle(&io); // The loop still turns.
}

/// Which monitor a new context gets where the kernel refuses what `decide` says.
fn monitor_under(
    test: &str,
    choice: MonitorChoice,
    calls: &'static [libc::c_long],
    decide: impl Fn(Args) -> Option<i32> + Send + 'static,
) -> Option<MonitorInfo> {
    let kernel = Kernel::new(test, calls, decide)?;
    let home = std::thread::spawn(move || {
        kernel.watch_this_thread();
        let context = AioContext::builder().monitor(choice).build().unwrap();
        let turn = || context.poll(false).unwrap();
        context.enter_home(turn).unwrap();
        context.monitor().unwrap()
    });
    Some(home.join().unwrap())
}

// SPEC M2
#[test]
fn a_monitor_whose_ring_cannot_be_entered_is_not_chosen() {
    let refuse = |_| Some(libc::EPERM);
    let choice = MonitorChoice::IoUring;
    if let Some(info) = monitor_under("a monitor's ring", choice, RING_ENTER, refuse) {
        assert_eq!(info.kind, MonitorKind::Epoll);
        assert!(info.reason.starts_with("io_uring is refused"), "{info:?}");
    }
}

// SPEC M2
#[test]
fn where_epoll_is_refused_poll_is_used() {
    for choice in [MonitorChoice::Auto, MonitorChoice::Epoll] {
        let refuse = |_| Some(libc::EPERM);
        if let Some(info) = monitor_under("an epoll set", choice, EPOLL_CREATES, refuse) {
            assert_eq!(info.kind, MonitorKind::Poll);
            assert!(info.reason.starts_with("epoll is refused"), "{info:?}");
        }
    }
}

// SPEC M3: fs.epoll.max_user_watches is used up, when the context's own descriptor is added.
#[test]
fn where_epoll_takes_no_more_poll_takes_over() {
    let refuse = |args: Args| (args[1] == 1).then_some(libc::ENOSPC); // EPOLL_CTL_ADD
    let choice = MonitorChoice::Epoll;
    if let Some(info) = monitor_under("a full epoll set", choice, EPOLL_ADDS, refuse) {
        assert_eq!(info.kind, MonitorKind::Poll);
        assert!(info.reason.contains("refuses a descriptor"), "{info:?}");
    }
}

// SPEC M2: Linux 5.11 to 5.17 have all that the ring needs, but not SUBMIT_ALL (5.18).
#[test]
fn an_older_kernels_ring_is_good_enough() {
    const SETUP: &[libc::c_long] = &[libc::SYS_io_uring_setup];
    const KNOWN: u32 = 0x7f; // IORING_SETUP_IOPOLL to IORING_SETUP_R_DISABLED
    let decide = |args: Args| {
        let params = std::ptr::with_exposed_provenance::<u32>(usize::try_from(args[1]).unwrap());
        // SAFETY: io_uring_params of a call in this process that waits for the answer; its third
        // word are the flags.
        let flags = unsafe { params.add(2).read_volatile() };
        (flags & !KNOWN != 0).then_some(libc::EINVAL)
    };
    let choice = MonitorChoice::IoUring;
    if let Some(info) = monitor_under("an older kernel", choice, SETUP, decide) {
        assert_eq!(info.kind, MonitorKind::IoUring);
    }
}

// SPEC A1, T4: what the monitor refuses for ever keeps nothing else from running.
#[test]
fn a_monitor_that_refuses_starves_neither_bottom_halves_nor_timers() {
    for (monitor, calls) in MONITORS
        .into_iter()
        .zip([POLL_WAITS, EPOLL_WAITS, RING_ENTER])
    {
        let refuses = Arc::new(AtomicBool::new(false));
        let decide = {
            let refuses = Arc::clone(&refuses);
            move |_| refuses.load(Ordering::Relaxed).then_some(libc::EPERM)
        };
        let Some(kernel) = Kernel::new("a monitor that refuses", calls, decide) else {
            return;
        };
        let home = move || {
            kernel.watch_this_thread();
            let context = AioContext::builder().monitor(monitor).build().unwrap();
            let ran: Arc<[AtomicUsize; 2]> = Arc::default();
            let count = |i: usize| {
                let ran = Arc::clone(&ran);
                move || {
                    ran[i].fetch_add(1, Ordering::Relaxed);
                }
            };
            let bottom_half = context.bottom_half("counts", count(0));
            let timer = context.timer(count(1));
            let test = || {
                refuses.store(true, Ordering::Relaxed);
                for turn in 1..=3 {
                    bottom_half.schedule();
                    timer.arm_after(std::time::Duration::ZERO);
                    let error = context.poll(false).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{monitor:?}");
                    assert_eq!(ran[0].load(Ordering::Relaxed), turn, "{monitor:?}");
                    assert_eq!(ran[1].load(Ordering::Relaxed), turn, "{monitor:?}");
                }
                refuses.store(false, Ordering::Relaxed);
            };
            context.enter_home(test).unwrap();
        };
        std::thread::spawn(home).join().unwrap();
    }
}
