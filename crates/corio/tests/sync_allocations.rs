//! What waiting for one another allocates once it is warm, and scheduling a bottom half ever:
//! nothing.

#![allow(unsafe_code)] // An allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use corio::AioContext;
use corio::sync::{Event, OneOf, Semaphore, channel, select};

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ROUNDS: usize = 1000;

/// Runs both in one context and gives what the thread has allocated during all but the first round
/// of `first`.
fn allocations(mut first: impl FnMut() + 'static, mut second: impl FnMut() + 'static) -> usize {
    let context = AioContext::new().unwrap();
    let count = Rc::new(Cell::new(usize::MAX));
    context
        .enter_home(|| {
            let counted = Rc::clone(&count);
            let handles = [
                corio::spawn_local(move || {
                    first();
                    let before = ALLOCATIONS.get();
                    (1..ROUNDS).for_each(|_| first());
                    counted.set(ALLOCATIONS.get() - before);
                }),
                corio::spawn_local(move || (0..ROUNDS).for_each(|_| second())),
            ];
            while !handles.iter().all(|handle| handle.is_finished()) {
                context.poll(true).unwrap();
            }
        })
        .unwrap();
    count.get()
}

// SPEC L5
#[test]
fn messages_that_are_waited_for_allocate_nothing() {
    let ((ping, mut pinged), (pong, mut ponged)) = (channel(1), channel(1));
    let allocated = allocations(
        move || {
            ping.send(1).unwrap();
            assert_eq!(ponged.recv(), Ok(2));
        },
        move || {
            assert_eq!(pinged.recv(), Ok(1));
            pong.send(2).unwrap();
        },
    );
    assert_eq!(allocated, 0);
}

// SPEC L5
#[test]
fn senders_that_wait_for_room_allocate_nothing() {
    let (tx, mut rx) = channel(1);
    let allocated = allocations(
        move || (0..3).for_each(|n| tx.send([n; 100]).unwrap()),
        move || (0..3).for_each(|n| assert_eq!(rx.recv(), Ok([n; 100]))),
    );
    assert_eq!(allocated, 0);
}

// SPEC L5
#[test]
fn waiting_for_one_of_several_allocates_nothing() {
    let ((tx, mut rx), never) = (channel(1), Event::new());
    let (permits, turns) = (Semaphore::new(1), Rc::new(Event::new()));
    let taken = Rc::clone(&turns);
    let allocated = allocations(
        move || {
            let all = permits.try_acquire(1);
            let arms = (never.on_set(), permits.on_permits(1), rx.on_recv());
            assert!(matches!(select(arms), OneOf::Third(Ok(5))));
            drop(all);
            taken.set();
        },
        move || {
            tx.send(5).unwrap();
            turns.wait();
            turns.reset();
        },
    );
    assert_eq!(allocated, 0);
}

// SPEC B1
#[test]
fn scheduling_a_bottom_half_allocates_nothing() {
    let context = AioContext::new().unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let half = context.bottom_half("counts", move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    // Schedules that often, and waits for each by `wait`; what the schedules have allocated.
    let schedules = |wait: &dyn Fn()| {
        let mut allocated = 0;
        for _ in 0..ROUNDS {
            let (seen, before) = (ran.load(Ordering::Relaxed), ALLOCATIONS.get());
            half.schedule();
            allocated += ALLOCATIONS.get() - before;
            while ran.load(Ordering::Relaxed) == seen {
                wait();
            }
        }
        allocated
    };
    let turn = || _ = context.poll(true).unwrap();
    let home = || {
        assert_eq!(schedules(&turn), 0, "at home");
        let allocated = thread::scope(|scope| {
            let other = scope.spawn(|| schedules(&thread::yield_now));
            while ran.load(Ordering::Relaxed) < 2 * ROUNDS {
                turn();
            }
            other.join().unwrap()
        });
        assert_eq!(allocated, 0, "elsewhere");
    };
    context.enter_home(home).unwrap();
}
