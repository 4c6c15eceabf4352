//! The event loop's handlers and typed slots, from outside.

#![allow(unsafe_code)] // Numbers that are no descriptors.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::{Handler, Interest, MonitorChoice, MonitorKind, Readiness};

use super::on_each_monitor;

/// Turns the loop until `done`, for at most 5 s.
fn turn_until(context: &AioContext, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let tick = context.timer(|| ());
    while !done() {
        assert!(
            Instant::now() < deadline,
            "what is waited for does not come"
        );
        tick.arm_after(Duration::from_millis(5));
        context.poll(true).unwrap();
    }
}

/// Turns that see whatever there is to see.
fn some_turns(context: &AioContext) {
    for _ in 0..3 {
        context.poll(false).unwrap();
    }
}

fn add(
    context: &AioContext,
    fd: UnixStream,
    interest: Interest,
    callback: impl Fn(Readiness) + 'static,
) -> Handler<UnixStream> {
    let local = context.local().expect("this thread is its home");
    local.add_handler(fd, interest, callback).unwrap()
}

// SPEC H1
#[test]
fn what_is_not_drained_fires_again() {
    on_each_monitor(|context| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let calls = Rc::new(Cell::new(0));
        let count = Rc::clone(&calls);
        let handler = add(context, ours, Interest::READ, move |why| {
            assert!(why.read && !why.write);
            count.set(count.get() + 1);
        });
        theirs.write_all(b"x").unwrap();
        turn_until(context, || calls.get() >= 3);
        handler.get_ref().read_exact(&mut [0]).unwrap();
        some_turns(context); // One that was on its way.
        let drained = calls.get();
        some_turns(context);
        assert_eq!(calls.get(), drained, "there is nothing to read any more");
    });
}

// SPEC H2
#[test]
fn a_hang_up_is_readable_and_room_is_writable() {
    on_each_monitor(|context| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let seen = Rc::new(Cell::new(None));
        let note = Rc::clone(&seen);
        let handler = add(context, ours, Interest::WRITE, move |why| {
            note.set(Some(why))
        });
        turn_until(context, || seen.get().is_some());
        let writable = seen.take().unwrap();
        assert!(writable.write && !writable.read);
        handler.set_interest(Interest::READ).unwrap();
        assert_eq!(handler.interest(), Interest::READ);
        some_turns(context);
        seen.take();
        drop(theirs);
        turn_until(context, || seen.get().is_some_and(|why| why.read));
    });
}

// SPEC H1, H3
#[test]
fn a_handler_may_remove_itself_and_is_not_called_again() {
    on_each_monitor(|context| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let own: Rc<RefCell<Option<Handler<UnixStream>>>> = Rc::default();
        let calls = Rc::new(Cell::new(0));
        let (slot, count) = (Rc::clone(&own), Rc::clone(&calls));
        let handler = add(context, ours, Interest::READ, move |_| {
            count.set(count.get() + 1);
            let handler = slot.borrow_mut().take();
            // The descriptor is closed here, and its number may be another's at once.
            drop(handler);
        });
        *own.borrow_mut() = Some(handler);
        theirs.write_all(b"x").unwrap();
        turn_until(context, || calls.get() > 0);
        assert_eq!(theirs.read(&mut [0]).unwrap_or(0), 0, "our end is closed");
        some_turns(context);
        assert_eq!(calls.get(), 1);
    });
}

// SPEC H5
#[test]
fn a_number_that_is_used_again_is_another_descriptor() {
    on_each_monitor(|context| {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let watch = |name: &'static str| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(b"x").unwrap();
            let note = Rc::clone(&calls);
            let add = add(context, ours, Interest::READ, move |_| {
                note.borrow_mut().push(name)
            });
            (add, theirs)
        };
        let first = watch("first");
        drop(first); // Before it was ever looked at.
        let second = watch("second");
        turn_until(context, || !calls.borrow().is_empty());
        some_turns(context);
        assert!(calls.borrow().iter().all(|&name| name == "second"));
        drop(second);
    });
}

#[test]
fn what_a_handler_watched_comes_back() {
    on_each_monitor(|context| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let handler = add(context, ours, Interest::READ, |_| ());
        let mut ours = handler.into_inner();
        theirs.write_all(b"x").unwrap();
        some_turns(context);
        ours.read_exact(&mut [0]).unwrap();
    });
}

// SPEC M3
#[test]
fn a_regular_file_is_always_ready() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let test = || {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let calls = Rc::new(Cell::new([0; 2]));
            let count = |i: usize| {
                let calls = Rc::clone(&calls);
                move |_| {
                    let mut now = calls.get();
                    now[i] += 1;
                    calls.set(now);
                }
            };
            // Before and after the file; and what goes on being watched is called all the same.
            let socket = add(&context, ours, Interest::READ, count(0));
            let local = context.local().unwrap();
            let both = Interest {
                read: true,
                ..Interest::WRITE
            };
            let file = tempfile::tempfile().unwrap();
            let handler = local.add_handler(file, both, count(1)).unwrap();
            turn_until(&context, || calls.get()[1] >= 5);
            assert_eq!(calls.get()[0], 0);
            theirs.write_all(b"x").unwrap();
            turn_until(&context, || calls.get()[0] >= 2);
            socket.set_interest(Interest::default()).unwrap();
            handler.set_interest(Interest::default()).unwrap();
            some_turns(&context);
            let before = calls.get();
            some_turns(&context);
            assert_eq!(calls.get(), before, "nothing is waited for");
        };
        context.enter_home(test).unwrap();
        let info = context.monitor().unwrap();
        match monitor {
            MonitorChoice::Epoll => {
                assert_eq!(info.kind, MonitorKind::Poll);
                assert!(info.reason.starts_with("epoll refuses"), "{info:?}");
            }
            _ => assert_eq!(info.reason, "asked for"),
        }
    }
}

// SPEC M3
#[test]
fn poll_turns_into_epoll_at_64_descriptors() {
    let context = AioContext::builder()
        .monitor(MonitorChoice::Poll)
        .build()
        .unwrap();
    let kind = || context.monitor().unwrap().kind;
    let test = || {
        let calls = Rc::new(RefCell::new(vec![0; 100]));
        let mut handlers = Vec::new();
        for i in 0..100 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let count = Rc::clone(&calls);
            let handler = add(&context, ours, Interest::READ, move |_| {
                count.borrow_mut()[i] += 1;
            });
            handlers.push((handler, theirs));
            // The context's own descriptor is one of them.
            let expected = if i + 2 < 64 {
                MonitorKind::Poll
            } else {
                MonitorKind::Epoll
            };
            assert_eq!(kind(), expected, "{i}");
        }
        for (i, (handler, theirs)) in handlers.iter_mut().enumerate() {
            theirs.write_all(b"x").unwrap();
            turn_until(&context, || calls.borrow()[i] > 0);
            handler.get_ref().read_exact(&mut [0]).unwrap();
        }
        // For good.
        handlers.truncate(1);
        some_turns(&context);
        assert_eq!(kind(), MonitorKind::Epoll);
        // But not with what epoll would refuse.
        let file = tempfile::tempfile().unwrap();
        let local = context.local().unwrap();
        let _file = local.add_handler(file, Interest::READ, |_| ()).unwrap();
        assert_eq!(kind(), MonitorKind::Poll);
    };
    context.enter_home(test).unwrap();
}

// SPEC M3: at 64 descriptors one of which epoll would refuse, poll goes on, and says why.
#[test]
fn poll_stays_with_what_epoll_refuses() {
    let context = AioContext::builder()
        .monitor(MonitorChoice::Poll)
        .build()
        .unwrap();
    let test = || {
        let local = context.local().unwrap();
        let calls = Rc::new(Cell::new(0));
        let count = Rc::clone(&calls);
        let file = tempfile::tempfile().unwrap();
        let file = local.add_handler(file, Interest::READ, move |_| count.set(count.get() + 1));
        let handlers: Vec<_> = (0..70)
            .map(|_| UnixStream::pair().unwrap())
            .map(|(ours, theirs)| (add(&context, ours, Interest::READ, |_| ()), theirs))
            .collect();
        turn_until(&context, || calls.get() >= 3);
        drop(file);
        let last = handlers.len();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let count = Rc::clone(&calls);
        let _last = add(&context, ours, Interest::READ, move |_| count.set(1000));
        theirs.write_all(b"x").unwrap();
        turn_until(&context, || calls.get() == 1000);
        assert_eq!(last, 70);
    };
    context.enter_home(test).unwrap();
    let info = context.monitor().unwrap();
    assert_eq!(info.kind, MonitorKind::Poll);
    assert!(info.reason.contains("for many descriptors"), "{info:?}");
}

// SPEC H2, M1: one handler reads, another writes.
#[test]
fn two_handlers_of_one_descriptor_are_both_called() {
    on_each_monitor(|context| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Rc::new(ours);
        let local = context.local().unwrap();
        let calls = Rc::new(Cell::new([0; 2]));
        let watch = |i: usize, interest| {
            let calls = Rc::clone(&calls);
            let count = move |_| {
                let mut now = calls.get();
                now[i] += 1;
                calls.set(now);
            };
            local
                .add_handler(Rc::clone(&ours), interest, count)
                .unwrap()
        };
        let reader = watch(0, Interest::READ);
        let writer = watch(1, Interest::WRITE);
        turn_until(context, || calls.get()[1] > 0);
        assert_eq!(calls.get()[0], 0, "nothing is sent");
        writer.set_interest(Interest::default()).unwrap();
        theirs.write_all(b"x").unwrap();
        turn_until(context, || calls.get()[0] > 0);
        writer.set_interest(Interest::WRITE).unwrap();
        drop(reader); // The first to be added goes first.
        some_turns(context); // What was on its way.
        let before = calls.get();
        turn_until(context, || calls.get()[1] > before[1]);
        assert_eq!(calls.get()[0], before[0]);
        drop(writer);
        drop(ours);
        assert_eq!(
            theirs.read(&mut [0]).unwrap_or(0),
            0,
            "all shares are closed"
        );
    });
}

/// A number that nobody owns, and that may be no descriptor's.
#[derive(Debug)]
struct Raw(RawFd);

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is above what other tests open, and above every limit where it is not open:
        // whoever uses it is told EBADF.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

// SPEC M1
#[test]
fn what_is_no_descriptor_is_refused() {
    on_each_monitor(|context| {
        let local = context.local().unwrap();
        for number in [i32::MAX, -100] {
            let refused = local.add_handler(Raw(number), Interest::READ, |_| ());
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
        // From elsewhere it is only logged.
        let _logged = context.add_handler(Raw(i32::MAX), Interest::READ, |_| unreachable!());
        some_turns(context);
    });
}

// SPEC M1: closed under its handler, which only `unsafe` code can do, it is not watched any more.
#[test]
fn a_descriptor_that_was_closed_is_let_go() {
    on_each_monitor(|context| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // SAFETY: a number of our own, as others are given the lowest that are free.
        let number = unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 900) };
        assert!(number >= 900);
        drop(ours);
        let local = context.local().unwrap();
        let calls = Rc::new(Cell::new(0));
        let count = Rc::clone(&calls);
        let handler = local.add_handler(Raw(number), Interest::READ, move |_| {
            count.set(count.get() + 1)
        });
        some_turns(context);
        // SAFETY: it was made above.
        assert_eq!(unsafe { libc::close(number) }, 0);
        drop(theirs); // A poll in a ring keeps our end until it has told of this.
        some_turns(context);
        let told = calls.get();
        assert!(told <= 1);
        some_turns(context);
        assert_eq!(calls.get(), told);
        handler.unwrap().set_interest(Interest::default()).unwrap();
        some_turns(context);
    });
}

/// A handler that outlived its home must not touch what the context's next home has under the same
/// token.
#[test]
fn a_handler_of_an_ended_home_is_inert() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let late = context
            .enter_home(|| add(&context, ours, Interest::READ, |_| ()))
            .unwrap();
        context
            .enter_home(|| {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                let calls = Rc::new(Cell::new(0));
                let count = Rc::clone(&calls);
                let _watched = add(&context, ours, Interest::READ, move |_| count.set(1));
                late.set_interest(Interest::WRITE).unwrap();
                drop(late);
                theirs.write_all(b"x").unwrap();
                turn_until(&context, || calls.get() == 1);
            })
            .unwrap();
    }
}

// SPEC C10
#[test]
fn a_context_is_local_in_its_home_only() {
    let context = AioContext::new().unwrap();
    assert!(context.local().is_none());
    let other = context.clone();
    context
        .enter_home(|| {
            assert_eq!(context.local().unwrap().context().id(), context.id());
            std::thread::scope(|scope| {
                assert!(scope.spawn(|| other.local().is_none()).join().unwrap());
            });
            let late = context.local().unwrap();
            let count = Rc::new(Cell::new(0));
            let child = late.spawn({
                let count = Rc::clone(&count);
                move || count.set(1)
            });
            turn_until(&context, || child.is_finished());
            assert_eq!(count.get(), 1);
        })
        .unwrap();
    assert!(context.local().is_none());
}

#[test]
fn a_local_context_after_its_home_is_misuse() {
    let context = AioContext::new().unwrap();
    let late = context.enter_home(|| context.local().unwrap()).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| late.attachment(|| 1))).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("after its home had ended"), "{text}");
}

/// What tells when it goes.
struct Tells(Arc<AtomicUsize>);

impl Drop for Tells {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_attachment_is_made_once_and_goes_with_the_context() {
    let (made, dropped) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let context = AioContext::new().unwrap();
    let together = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                together.wait();
                context.attachment(|| {
                    made.fetch_add(1, Ordering::Relaxed);
                    Tells(Arc::clone(&dropped))
                });
            });
        }
    });
    assert_eq!(made.load(Ordering::Relaxed), 1);
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    drop(context);
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn an_attachment_may_use_another_while_it_is_made() {
    struct Outer(Arc<u32>);
    let context = AioContext::new().unwrap();
    let outer = context.attachment(|| Outer(context.attachment(|| 7u32)));
    assert_eq!(*outer.0, 7);
    assert!(Arc::ptr_eq(&outer.0, &context.attachment(|| 8u32)));
}

#[test]
fn a_homes_attachment_goes_with_the_home() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let context = AioContext::new().unwrap();
    for homes in 1..3 {
        context
            .enter_home(|| {
                let local = context.local().unwrap();
                let first = local.attachment(|| Tells(Arc::clone(&dropped)));
                let again = local.attachment(|| unreachable!("it is there"));
                assert!(Rc::ptr_eq(&first, &again));
            })
            .unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), homes);
    }
}

/// Has another thread end waits; then waits that nobody ends are to last.
fn waits_last(context: &AioContext) {
    const PINGS: usize = 20;
    let ran = Arc::new(AtomicUsize::new(0));
    let ping = context.bottom_half("ping", {
        let ran = Arc::clone(&ran);
        move || {
            ran.fetch_add(1, Ordering::Release);
        }
    });
    std::thread::scope(|s| {
        s.spawn(|| {
            for number in 0..PINGS {
                while ran.load(Ordering::Acquire) < number {
                    std::thread::yield_now();
                }
                ping.schedule();
            }
        });
        while ran.load(Ordering::Acquire) < PINGS {
            context.poll(true).unwrap();
        }
    });
    const WAITS: usize = 5;
    let due = Arc::new(AtomicUsize::new(0));
    let timer = context.timer({
        let due = Arc::clone(&due);
        move || {
            due.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut turns = 0;
    for number in 0..WAITS {
        timer.arm_after(Duration::from_millis(2));
        while due.load(Ordering::Relaxed) <= number {
            context.poll(true).unwrap();
            turns += 1;
        }
    }
    // A late ping may end one, and a timer's wait may be cut in two.
    assert!(turns <= 2 * WAITS + 1, "{turns} turns");
}

// SPEC N3, N4, M3: what notified a loop ends no wait twice, whatever has become of the home or of its
// monitor.
#[test]
fn a_notification_outlives_neither_home_nor_monitor() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        for _ in 0..2 {
            context.enter_home(|| waits_last(&context)).unwrap();
        }
        let changes = || {
            let local = context.local().unwrap();
            let many: Vec<_> = (0..70)
                .map(|_| UnixStream::pair().unwrap())
                .map(|(ours, theirs)| (add(&context, ours, Interest::READ, |_| ()), theirs))
                .collect();
            waits_last(&context);
            drop(many);
            waits_last(&context);
            // On epoll there is poll from here on.
            let file = tempfile::tempfile().unwrap();
            drop(local.add_handler(file, Interest::READ, |_| ()).unwrap());
            waits_last(&context);
        };
        context.enter_home(changes).unwrap();
    }
}
