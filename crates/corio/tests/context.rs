//! The event loop's handlers and typed slots, from outside.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::{Handler, Interest, MonitorChoice, Readiness};

/// Runs a test in a home of each monitor.
fn on_each_monitor(test: impl Fn(&AioContext)) {
    for monitor in [MonitorChoice::Epoll, MonitorChoice::IoUring] {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        context.enter_home(|| test(&context)).unwrap();
    }
}

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

#[test]
fn a_regular_file_is_refused_by_epoll() {
    let context = AioContext::builder()
        .monitor(MonitorChoice::Epoll)
        .build()
        .unwrap();
    context
        .enter_home(|| {
            let local = context.local().unwrap();
            let file = tempfile::tempfile().unwrap();
            let refused = local.add_handler(file, Interest::READ, |_| ()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        })
        .unwrap();
}

/// A handler that outlived its home must not touch what the context's next home has under the same
/// token.
#[test]
fn a_handler_of_an_ended_home_is_inert() {
    for monitor in [MonitorChoice::Epoll, MonitorChoice::IoUring] {
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
