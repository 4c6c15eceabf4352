//! What a wait in the ring lets pass, with requests that end when the test wants them to.

#![allow(unsafe_code)] // Requests are put into the ring by hand.

use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::super::Backend;
use super::*;
use crate::context::ring::Completion;
use crate::context::{AioContext, Interest, LocalHandler, MonitorChoice};
use crate::sys::eventfd::EventFd;
use crate::sys::uring::{opcode, types};

/// A request that ends once its eventfd is set.
#[repr(C)]
struct Request {
    completion: Completion,
    ended: Cell<bool>,
    ends: EventFd,
}

/// # Safety
/// `completion` is the first field of a living `Request`.
unsafe fn complete(completion: *const Completion, _result: i32) {
    // SAFETY: the caller's promise.
    unsafe { &*completion.cast::<Request>() }.ended.set(true);
}

/// As one of several, for which the loop waits in the ring.
fn request(local: &Local) -> &'static Request {
    let request = alone(local);
    with_monitor(local, |monitor| monitor.ring_waits.set(1000));
    request
}

/// Those that were made, as addresses: what is never freed is to be found, or it is a leak.
static MADE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// In flight from now on. It is never freed: a test that fails leaves it to the kernel.
fn alone(local: &Local) -> &'static Request {
    let request: &Request = Box::leak(Box::new(Request {
        // SAFETY: `complete` is called with the address of a Request, whose first field this is.
        completion: unsafe { Completion::new(complete) },
        ended: Cell::new(false),
        ends: EventFd::new().unwrap(),
    }));
    MADE.lock().unwrap().push(ptr::from_ref(request).addr());
    let fd = types::Fd(request.ends.as_fd().as_raw_fd());
    let entry = opcode::PollAdd::new(fd, POLLIN).build();
    // SAFETY: it stays for ever, and a poll points to nothing.
    unsafe {
        local
            .ring()
            .unwrap()
            .push(entry, &raw const request.completion)
    }
    .unwrap();
    request
}

/// A descriptor that is counted when it is ready.
fn counted(local: &Local) -> (Rc<EventFd>, Rc<Cell<usize>>, LocalHandler) {
    let (fd, count) = (Rc::new(EventFd::new().unwrap()), Rc::new(Cell::new(0)));
    let (of_fd, of_count) = (Rc::clone(&fd), Rc::clone(&count));
    let handler = local.add_handler(&*fd, move |_| {
        of_fd.clear();
        of_count.set(of_count.get() + 1);
    });
    let handler = handler.unwrap();
    handler.set_interest(Interest::READ).unwrap();
    (fd, count, handler)
}

/// Runs a test at home, if there are rings.
fn at_home(test: impl FnOnce(&AioContext, &Local)) {
    let context = AioContext::builder()
        .monitor(MonitorChoice::Epoll)
        .build()
        .unwrap();
    let run = || {
        let local = Local::current().unwrap();
        match local.ring() {
            Ok(_) => test(&context, local),
            Err(error) => println!("SKIPPED: waiting in a ring: {error}"),
        }
    };
    context.enter_home(run).unwrap();
}

fn with_monitor<R>(local: &Local, f: impl FnOnce(&EpollMonitor) -> R) -> R {
    match &*local.monitor.0.borrow() {
        Backend::Epoll(monitor) => f(monitor),
        _ => panic!("another monitor"),
    }
}

/// Whether the ring has a poll of the set.
fn set_polled(local: &Local) -> bool {
    with_monitor(local, |monitor| monitor.set_polled.get())
}

// SPEC M1: for one request the loop waits in the set, for several in the ring; and for a while after
// those.
#[test]
fn one_request_is_waited_for_in_the_set_and_several_in_the_ring() {
    at_home(|context, local| {
        let ring_added = || with_monitor(local, |monitor| monitor.ring_added.get());
        let first = alone(local);
        context.poll(false).unwrap();
        assert!(ring_added() && !set_polled(local), "for one");
        let second = alone(local);
        context.poll(false).unwrap();
        assert!(!ring_added() && set_polled(local), "for two");
        first.ends.set();
        while !first.ended.get() {
            context.poll(true).unwrap();
        }
        for _ in 1..RING_WAITS {
            assert!(!ring_added(), "soon after two");
            context.poll(false).unwrap();
        }
        context.poll(false).unwrap();
        assert!(ring_added(), "later");
        second.ends.set();
        while !second.ended.get() {
            context.poll(true).unwrap();
        }
    });
}

// SPEC M1
#[test]
fn descriptors_notifications_and_timers_end_a_wait_in_the_ring() {
    at_home(|context, local| {
        let (fd, count, _handler) = counted(local);
        let request = request(local);
        for expected in 1..4 {
            fd.set();
            while count.get() < expected {
                context.poll(true).unwrap();
            }
        }
        let told = Arc::new(AtomicBool::new(false));
        let (of_told, other) = (Arc::clone(&told), context.clone());
        std::thread::spawn(move || {
            other.schedule_oneshot("tells", move || of_told.store(true, Ordering::Relaxed));
        });
        while !told.load(Ordering::Relaxed) {
            context.poll(true).unwrap();
        }
        let child = context.local().unwrap().spawn(|| {
            crate::time::sleep(Duration::from_millis(1));
        });
        while !child.is_finished() {
            context.poll(true).unwrap();
        }
        assert!(!request.ended.get());
        request.ends.set();
        while !request.ended.get() {
            context.poll(true).unwrap();
        }
        assert_eq!(count.get(), 3);
    });
}

// SPEC M1: what the ring still tells of once no request is in flight keeps no loop awake.
#[test]
fn a_poll_that_is_left_in_the_ring_is_taken_out_by_a_wait_in_the_set() {
    at_home(|context, local| {
        let (fd, count, _handler) = counted(local);
        let request = request(local);
        request.ends.set();
        while !request.ended.get() {
            context.poll(true).unwrap();
        }
        assert!(set_polled(local), "the wait was not in the ring");
        fd.set();
        while count.get() < 1 {
            context.poll(true).unwrap();
        }
        context.poll(false).unwrap();
        assert!(!set_polled(local), "its completion was not taken");
        assert_eq!(local.timeout_ns(), None);
    });
}

// SPEC M1: between two waits in the ring a foreign loop waits in the set.
#[test]
fn a_foreign_loop_has_the_ring_in_the_set_and_the_ring_is_waited_in_again_after_it() {
    let is_readable = |fd: &dyn AsFd| {
        let mut entry = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        let at_most = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut entry, Some(&at_most)).unwrap() == 1
    };
    at_home(|context, local| {
        let (fd, count, _handler) = counted(local);
        let first = request(local);
        fd.set();
        while count.get() < 1 {
            context.poll(true).unwrap();
        }
        context.poll(false).unwrap(); // It polls the set again.
        let embedded = context.local().unwrap().embed().unwrap();
        let second = request(local);
        let _ = embedded.prepare();
        fd.set();
        while count.get() < 2 {
            assert!(is_readable(&embedded), "a descriptor");
            embedded.dispatch().unwrap();
        }
        for request in [first, second] {
            request.ends.set();
            while !request.ended.get() {
                assert!(is_readable(&embedded), "a completion");
                embedded.dispatch().unwrap();
            }
        }
        drop(embedded);
        let third = request(local);
        fd.set();
        while count.get() < 3 {
            context.poll(true).unwrap();
        }
        context.poll(false).unwrap();
        assert!(set_polled(local), "the wait was not in the ring");
        third.ends.set();
        while !third.ended.get() {
            context.poll(true).unwrap();
        }
    });
}

/// Turns the loop by waits that block, until something ends them that is there; how often.
fn turns_until(context: &AioContext, ended: impl Fn() -> bool) -> usize {
    let late = Rc::new(Cell::new(false));
    let of_late = Rc::clone(&late);
    let patience = context.local().unwrap().spawn(move || {
        crate::time::sleep(Duration::from_secs(20));
        of_late.set(true);
    });
    let mut turns = 0;
    while !ended() {
        assert!(!late.get(), "nothing has ended the wait");
        context.poll(true).unwrap();
        turns += 1;
    }
    patience.cancel().unwrap();
    while !patience.is_finished() {
        context.poll(true).unwrap();
    }
    turns
}

// SPEC N4, M1: few turns while there is nothing to do, whichever of the two is waited in, and when
// each has a reason to tell of the other.
#[test]
fn requests_that_do_not_end_keep_no_loop_awake() {
    at_home(|context, local| {
        let idle = |requests: &str| {
            let child = context.local().unwrap().spawn(|| {
                crate::time::sleep(Duration::from_millis(20));
            });
            let turns = turns_until(context, || child.is_finished());
            assert!(turns < 50, "{turns} turns with {requests}");
        };
        let (fd, count, _handler) = counted(local);
        let first = alone(local);
        idle("one");
        let second = alone(local);
        idle("two");
        let ring_added = || with_monitor(local, |monitor| monitor.ring_added.get());
        assert!(set_polled(local) && !ring_added(), "not in the ring");
        second.ends.set();
        turns_until(context, || second.ended.get());
        // From here on the ring polls the set, and is in it, too.
        for _ in 0..=RING_WAITS {
            context.poll(false).unwrap();
        }
        assert!(set_polled(local) && ring_added(), "not in each other");
        idle("one, and each in the other");
        fd.set();
        turns_until(context, || count.get() == 1);
        idle("one, and what the ring had to tell");
        first.ends.set();
        turns_until(context, || first.ended.get());
        idle("none");
    });
}

// SPEC M1: what the set has no room for is waited for in the ring.
#[test]
fn a_ring_that_the_set_does_not_take_is_waited_in() {
    at_home(|context, local| {
        with_monitor(local, |monitor| {
            // As a user who has reached fs.epoll.max_user_watches gets an error.
            let ring = local.ring().unwrap().ring();
            monitor.epoll.add(ring.as_fd(), RING, 0).unwrap();
        });
        let (fd, count, _handler) = counted(local);
        let request = alone(local);
        fd.set();
        while count.get() < 1 {
            context.poll(true).unwrap();
        }
        request.ends.set();
        while !request.ended.get() {
            context.poll(true).unwrap();
        }
    });
}

// SPEC M3, H5: the poll monitor that takes over finds nothing of the set before it.
#[test]
fn falling_back_to_poll_leaves_no_poll_of_the_set_behind() {
    at_home(|context, local| {
        let (fd, count, _handler) = counted(local);
        let (first, second) = (alone(local), alone(local));
        context.poll(false).unwrap();
        assert!(set_polled(local));
        let regular = tempfile::tempfile().unwrap();
        let always = local.add_handler(&regular, |_| ()).unwrap();
        always.set_interest(Interest::READ).unwrap();
        drop(always);
        assert!(matches!(*local.monitor.0.borrow(), Backend::Poll(_)));
        let ring = local.ring().unwrap();
        fd.set();
        ring.ring().flush_completions().unwrap();
        assert!(!ring.has_arrived(), "the set is polled still");
        turns_until(context, || count.get() == 1);
        for request in [first, second] {
            request.ends.set();
            turns_until(context, || request.ended.get());
        }
    });
}

/// What a step of the test below has begun.
enum Sign {
    Request(&'static Request),
    Descriptor(usize),
    Told(usize),
}

// SPEC M1, N1, G3: in any order, with any number of requests, nested, and whoever turns the loop.
#[test]
fn nothing_is_missed_whatever_is_under_way_and_whoever_turns_the_loop() {
    use core::sync::atomic::AtomicUsize;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % u64::try_from(below).unwrap()).unwrap()
    };
    at_home(|context, local| {
        let told = Arc::new(AtomicUsize::new(0));
        let (tell, tells) = std::sync::mpsc::channel::<()>();
        let (of_told, other) = (Arc::clone(&told), context.clone());
        let teller = std::thread::spawn(move || {
            for () in tells {
                let told = Arc::clone(&of_told);
                other.schedule_oneshot("tells", move || {
                    told.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        let (fd, count, handler) = counted(local);
        let mut handler = Some(handler);
        let mut requests = Vec::new();
        let mut embedded = None;
        let mut signs = Vec::new();
        let (mut telling, mut written) = (0, 0);
        for _ in 0..3000 {
            match next(9) {
                0 | 1 if requests.len() < 4 => {
                    requests.push(alone(local));
                    local.hurry(); // As who makes requests does.
                }
                2 | 3 if !requests.is_empty() => {
                    let request: &Request = requests.swap_remove(next(requests.len()));
                    request.ends.set();
                    signs.push(Sign::Request(request));
                }
                4 => {
                    written = count.get() + 1;
                    fd.set();
                    signs.push(Sign::Descriptor(written));
                }
                5 => {
                    telling += 1;
                    tell.send(()).unwrap();
                    signs.push(Sign::Told(telling));
                }
                6 if embedded.is_none() => {
                    embedded = Some(context.local().unwrap().embed().unwrap());
                }
                6 => embedded = None,
                7 => {
                    // Removed with its event on the way, perhaps, and watched anew.
                    drop(handler.take());
                    let (of_fd, of_count) = (Rc::clone(&fd), Rc::clone(&count));
                    let anew = local.add_handler(&*fd, move |_| {
                        of_fd.clear();
                        of_count.set(of_count.get() + 1);
                    });
                    let anew = anew.unwrap();
                    anew.set_interest(Interest::READ).unwrap();
                    handler = Some(anew);
                }
                _ => {
                    let nested = context.clone();
                    context.schedule_oneshot("polls", move || {
                        nested.poll(false).unwrap();
                    });
                }
            }
            if next(3) > 0 {
                continue;
            }
            for sign in signs.drain(..) {
                let is_there = || match sign {
                    Sign::Request(request) => request.ended.get(),
                    Sign::Descriptor(expected) => count.get() >= expected.min(written),
                    Sign::Told(expected) => told.load(Ordering::Relaxed) >= expected,
                };
                match &embedded {
                    None => drop(turns_until(context, is_there)),
                    Some(embedded) => {
                        while !is_there() {
                            let at_most = rustix::event::Timespec {
                                tv_sec: 20,
                                tv_nsec: 0,
                            };
                            let mut entry = [PollFd::new(embedded, PollFlags::IN)];
                            let ready = rustix::event::poll(&mut entry, Some(&at_most));
                            assert_eq!(ready, Ok(1), "nothing has told the foreign loop");
                            embedded.dispatch().unwrap();
                        }
                    }
                }
            }
        }
        drop(tell);
        teller.join().unwrap();
        for request in requests {
            request.ends.set();
            while !request.ended.get() {
                context.poll(true).unwrap();
            }
        }
    });
}
