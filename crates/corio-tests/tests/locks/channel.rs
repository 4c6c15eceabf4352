//! The bounded channel between coroutines of several threads, and plain threads.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex};

use corio::sync::{Receiver, RecvError, Room, Sender, TryRecvError, TrySendError, channel};
use corio::{AioContext, Coroutine, IoThread, JoinError, JoinHandle};

fn io(name: &str) -> IoThread {
    IoThread::builder().name(name).spawn().unwrap()
}

/// Returns when all that was spawned on the context before has run until it parked.
fn settle(io: &IoThread) {
    io.context().spawn(|| ()).join().unwrap();
}

/// Spawns, and returns once it has run until it parked.
fn start<T: Send + 'static>(
    io: &IoThread,
    f: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let handle = io.context().spawn(f);
    settle(io);
    handle
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap()
}

/// Counts how many of it are there.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

// SPEC L5, C10
#[test]
fn ends_go_where_their_messages_may() {
    fn shared<T: Send + Sync>() {}
    fn send<T: Send>() {}
    shared::<Sender<Cell<i32>>>();
    send::<Receiver<Cell<i32>>>();
    send::<Room<'static, Cell<i32>>>();
}

// SPEC L5
#[test]
fn messages_arrive_in_order_between_threads() {
    const MESSAGES: usize = 5000;
    for capacity in [1, 3, 1000] {
        let (from, to) = (io("from"), io("to"));
        let (tx, rx) = channel(capacity);
        let sender = from.context().spawn(move || {
            for number in 0..MESSAGES {
                tx.send(number).unwrap();
            }
        });
        let receiver = to
            .context()
            .spawn(move || rx.into_iter().collect::<Vec<_>>());
        assert!(receiver.join().unwrap().into_iter().eq(0..MESSAGES));
        sender.join().unwrap();
    }
}

// SPEC L5
#[test]
fn many_senders_of_several_threads_lose_nothing() {
    const EACH: usize = 1000;
    let (a, b, to) = (io("a"), io("b"), io("to"));
    let (tx, rx) = channel(2);
    let work = |sender: usize| {
        let tx = tx.clone();
        move || {
            for number in 0..EACH {
                tx.send((sender, number)).unwrap();
            }
        }
    };
    let coroutines: Vec<_> = (0..6)
        .map(|sender| [&a, &b][sender % 2].context().spawn(work(sender)))
        .collect();
    let thread = std::thread::spawn(work(6));
    drop(tx);
    let receiver = to.context().spawn(move || {
        let mut next = [0; 7];
        for (sender, number) in rx {
            assert_eq!(number, next[sender], "each sender's are in order");
            next[sender] += 1;
        }
        next
    });
    assert_eq!(receiver.join().unwrap(), [EACH; 7]);
    coroutines.into_iter().for_each(|co| co.join().unwrap());
    thread.join().unwrap();
}

// SPEC L5
#[test]
fn plain_threads_block() {
    let (tx, mut rx) = channel(1);
    let thread = std::thread::spawn(move || (0..100).map(|n| tx.send(n)).all(|sent| sent.is_ok()));
    assert!(rx.iter().eq(0..100));
    assert!(thread.join().unwrap());
}

// SPEC L5
#[test]
fn those_who_wait_for_room_are_served_in_order() {
    let (a, b) = (io("a"), io("b"));
    let (tx, mut rx) = channel(1);
    tx.send(0).unwrap();
    let senders: Vec<_> = (1..20)
        .map(|number| {
            let tx = tx.clone();
            let io = if number % 3 == 0 { &a } else { &b };
            // Some send at once, some keep the room first.
            start(io, move || match number % 2 {
                0 => tx.send(number).unwrap(),
                _ => tx.reserve().unwrap().send(number).unwrap(),
            })
        })
        .collect();
    assert_eq!(tx.try_send(99), Err(TrySendError::Full(99)));
    drop(tx);
    assert!(rx.iter().eq(0..20));
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
}

// SPEC L5
#[test]
fn it_holds_as_many_as_its_capacity_says() {
    let (tx, mut rx) = channel(3);
    assert_eq!((tx.len(), tx.capacity(), rx.capacity()), (0, 3, 3));
    for number in 0..3 {
        tx.try_send(number).unwrap();
    }
    assert_eq!(tx.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!((rx.len(), rx.is_empty()), (3, false));
    assert_eq!(rx.try_recv(), Ok(0));
    let room = tx.reserve().unwrap();
    assert_eq!(tx.try_send(3), Err(TrySendError::Full(3)), "it is reserved");
    drop(room);
    tx.try_send(3).unwrap();
    assert!((1..4).map(Ok).eq((1..4).map(|_| rx.try_recv())));
    assert_eq!(rx.try_recv(), Err(TryRecvError::Empty));
    assert!(rx.is_empty());
}

// SPEC L5
#[test]
fn no_capacity_is_refused_with_advice() {
    let payload = catch_unwind(|| channel::<()>(0)).unwrap_err();
    let text = panic_text(&*payload);
    assert!(text.contains("ask for 1"), "{text}");
}

// SPEC L5
#[test]
fn the_last_sender_that_goes_ends_it_after_what_was_sent() {
    let io = io("io");
    let (tx, mut rx) = channel(2);
    let other = tx.clone();
    let receiver = start(&io, move || {
        let first = rx.recv();
        (first, rx.recv(), rx.recv(), rx.try_recv())
    });
    drop(tx);
    settle(&io);
    assert!(!receiver.is_finished(), "there is another sender");
    other.send(1).unwrap();
    other.send(2).unwrap();
    drop(other);
    let seen = receiver.join().unwrap();
    let end = (Err(RecvError), Err(TryRecvError::Closed));
    assert_eq!(seen, (Ok(1), Ok(2), end.0, end.1));
}

// SPEC L5
#[test]
fn a_receiver_that_waits_learns_of_the_end() {
    let io = io("io");
    let (tx, mut rx) = channel::<()>(1);
    let receiver = start(&io, move || rx.recv());
    drop(tx);
    assert_eq!(receiver.join().unwrap(), Err(RecvError));
}

// SPEC L5
#[test]
fn senders_get_their_message_back_when_the_receiver_goes() {
    let io = io("io");
    let count = Arc::new(AtomicUsize::new(0));
    let (tx, rx) = channel(1);
    tx.send(Counted::new(&count)).unwrap();
    let sender = start(&io, {
        let (tx, message) = (tx.clone(), Counted::new(&count));
        move || tx.send(message).unwrap_err().0
    });
    let reserving = start(&io, {
        let tx = tx.clone();
        move || tx.reserve().is_err()
    });
    assert!(!tx.is_closed());
    drop(rx);
    assert!(tx.is_closed());
    let back = sender.join().unwrap();
    assert_eq!(
        count.load(Ordering::Relaxed),
        1,
        "what was in it is dropped"
    );
    assert!(reserving.join().unwrap());
    assert!(matches!(tx.try_send(back), Err(TrySendError::Closed(_))));
    assert!(tx.send(Counted::new(&count)).is_err());
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

// SPEC L5
#[test]
fn room_outlives_nothing_and_is_given_back() {
    let io = io("io");
    let (tx, mut rx) = channel(1);
    let room = tx.reserve().unwrap();
    let sender = start(&io, {
        let tx = tx.clone();
        move || tx.send(1).unwrap()
    });
    assert!(!sender.is_finished(), "the room is taken");
    drop(room);
    sender.join().unwrap();
    assert_eq!(rx.recv(), Ok(1));
    // Kept over the receiver's end, it sends nothing.
    let room = tx.reserve().unwrap();
    drop(rx);
    assert_eq!(room.send(2).unwrap_err().0, 2);
    assert!(matches!(tx.try_reserve(), Err(TrySendError::Closed(()))));
}

// SPEC L5
#[test]
fn room_that_a_waiting_receiver_makes_needless_goes_to_the_next() {
    let (a, b) = (io("a"), io("b"));
    let (tx, mut rx) = channel(1);
    let receiver = start(&a, move || {
        let first = rx.recv();
        (first, rx)
    });
    let room = tx.reserve().unwrap();
    let sender = start(&b, {
        let tx = tx.clone();
        move || tx.send(2)
    });
    assert!(!sender.is_finished() && !receiver.is_finished());
    room.send(1).unwrap();
    let (first, mut rx) = receiver.join().unwrap();
    assert_eq!(first, Ok(1));
    sender.join().unwrap().unwrap();
    assert_eq!(rx.recv(), Ok(2));
}

// SPEC L5
#[test]
fn room_given_back_goes_to_the_sender_whose_message_the_receiver_waits_for() {
    let (a, b) = (io("a"), io("b"));
    let (tx, mut rx) = channel(1);
    let receiver = start(&a, move || (rx.recv(), rx.recv()));
    let room = tx.reserve().unwrap();
    let senders = [1, 2].map(|number| {
        let tx = tx.clone();
        start(&b, move || tx.send(number).unwrap())
    });
    drop(room);
    assert_eq!(receiver.join().unwrap(), (Ok(1), Ok(2)));
    senders
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
}

// SPEC L5, C12
#[test]
fn sender_that_is_cancelled_leaves_the_line_and_drops_its_message() {
    let (leaving, staying) = (io("leaving"), io("staying"));
    let count = Arc::new(AtomicUsize::new(0));
    let (tx, mut rx) = channel(1);
    tx.send((0, Counted::new(&count))).unwrap();
    let spawn = |io: &IoThread, number: i32| {
        let (tx, message) = (tx.clone(), (number, Counted::new(&count)));
        start(io, move || tx.send(message).is_ok())
    };
    let cancelled = [spawn(&leaving, 1), spawn(&leaving, 2)];
    let waiter = spawn(&staying, 3);
    let cancelled_too = spawn(&leaving, 4);
    // While it is full: a waiter that could not leave would keep its home from ending.
    leaving.join();
    for handle in cancelled.into_iter().chain([cancelled_too]) {
        assert!(matches!(handle.join(), Err(JoinError::Cancelled)));
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
    drop(tx);
    assert!(rx.iter().map(|(number, _)| number).eq([0, 3]));
    assert!(waiter.join().unwrap());
}

/// A context with its home on this thread, where who is woken and who is cancelled can be told
/// apart to the step.
fn at_home(f: impl FnOnce(&AioContext)) {
    let context = AioContext::new().unwrap();
    context.enter_home(|| f(&context)).unwrap();
}

/// A coroutine that has run until it parked.
fn entered(f: impl FnOnce() + 'static) -> Coroutine {
    let co = Coroutine::new(f);
    co.enter();
    co
}

// SPEC L5, C12
#[test]
fn receiver_that_is_cancelled_with_a_message_in_hand_leaves_it() {
    at_home(|context| {
        let (tx, rx) = channel(1);
        let rx = Rc::new(RefCell::new(rx));
        let receiver = entered({
            let rx = Rc::clone(&rx);
            move || _ = rx.borrow_mut().recv()
        });
        tx.try_send(1).unwrap(); // Into its hands, but it has not run since.
        tx.try_send(2).unwrap();
        assert_eq!(tx.len(), 1);
        drop(receiver);
        context.poll(false).unwrap();
        let mut rx = rx.borrow_mut();
        assert_eq!(rx.len(), 2, "one more than it has room for");
        assert_eq!(tx.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!((rx.try_recv(), rx.try_recv()), (Ok(1), Ok(2)));
        tx.try_send(3).unwrap();
        assert_eq!(rx.try_recv(), Ok(3));
    });
}

// SPEC L5, C12
#[test]
fn a_message_put_back_takes_nobodys_reserved_room() {
    at_home(|context| {
        let (tx, rx) = channel(1);
        let rx = Rc::new(RefCell::new(rx));
        let receiver = entered({
            let rx = Rc::clone(&rx);
            move || _ = rx.borrow_mut().recv()
        });
        tx.try_send(1).unwrap();
        let room = tx.try_reserve().unwrap();
        drop(receiver);
        context.poll(false).unwrap();
        room.send(2).unwrap();
        let mut rx = rx.borrow_mut();
        assert!(matches!(tx.try_reserve(), Err(TrySendError::Full(()))));
        assert_eq!((rx.try_recv(), rx.try_recv()), (Ok(1), Ok(2)));
        assert!(tx.try_reserve().is_ok());
    });
}

// SPEC L5, C12
#[test]
fn room_granted_to_one_that_is_cancelled_goes_to_the_next() {
    at_home(|context| {
        let (tx, mut rx) = channel(1);
        tx.try_send(0).unwrap();
        let reserving = entered({
            let tx = tx.clone();
            move || _ = tx.reserve().map(|room| room.send(1))
        });
        let sending = entered({
            let tx = tx.clone();
            move || tx.send(2).unwrap()
        });
        assert_eq!(rx.try_recv(), Ok(0)); // Its room is the first one's, which does not know it.
        assert_eq!(rx.try_recv(), Err(TryRecvError::Empty));
        drop(reserving);
        context.poll(false).unwrap();
        assert_eq!(rx.try_recv(), Ok(2));
        assert!(sending.is_done());
    });
}

// SPEC L5, C12
#[test]
fn sender_that_is_cancelled_once_its_message_was_taken_has_sent_it() {
    at_home(|context| {
        let (tx, mut rx) = channel(1);
        tx.try_send(0).unwrap();
        let sending = entered({
            let tx = tx.clone();
            move || tx.send(1).unwrap()
        });
        assert_eq!(rx.try_recv(), Ok(0));
        drop(sending);
        context.poll(false).unwrap();
        assert_eq!(rx.try_recv(), Ok(1));
        assert_eq!(rx.try_recv(), Err(TryRecvError::Empty));
    });
}

// SPEC L5, C12
#[test]
fn nothing_is_lost_or_doubled_by_those_who_are_cancelled_under_load() {
    const STOP: usize = usize::MAX;
    let staying = io("staying");
    let count = Arc::new(AtomicUsize::new(0));
    let (tx, rx) = channel(2);
    let seen = Arc::new(StdMutex::new(Vec::new()));
    let rx = Arc::new(corio::sync::Mutex::new(rx));
    let sent = Arc::new(AtomicUsize::new(0));
    for round in 0..40 {
        let leaving = io("leaving");
        let send = |io: &IoThread, sender: usize| {
            let (tx, count, sent) = (tx.clone(), Arc::clone(&count), Arc::clone(&sent));
            io.context().spawn(move || {
                for number in 0..20 {
                    let message = (sender, number, Counted::new(&count));
                    if tx.send(message).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        };
        let receive = |io: &IoThread| {
            let (rx, seen) = (Arc::clone(&rx), Arc::clone(&seen));
            io.context().spawn(move || {
                loop {
                    let mut rx = rx.lock(); // Until it is noted: what is seen is in order.
                    let (sender, number, _) = rx.recv().unwrap();
                    if sender == STOP {
                        break;
                    }
                    seen.lock().unwrap().push((sender, number));
                }
            })
        };
        let cancelled = send(&leaving, 1000 + round);
        let cancelled_too = receive(&leaving);
        let going_on = send(&staying, round);
        let receiving = receive(&staying);
        leaving.join();
        going_on.join().unwrap();
        tx.send((STOP, 0, Counted::new(&count))).unwrap();
        receiving.join().unwrap();
        drop((cancelled, cancelled_too));
    }
    let mut rx = rx.lock();
    drop(tx);
    let mut seen = seen.lock().unwrap();
    seen.extend(rx.iter().map(|(sender, number, _)| (sender, number)));
    assert_eq!(
        count.load(Ordering::Relaxed),
        0,
        "every message was dropped once"
    );
    assert!(seen.len() >= sent.load(Ordering::Relaxed), "none was lost");
    for sender in (0..40).chain(1000..1040) {
        let numbers: Vec<_> = seen
            .iter()
            .filter(|it| it.0 == sender)
            .map(|it| it.1)
            .collect();
        let whole = sender >= 1000 || numbers.len() == 20;
        assert!(
            whole && numbers.iter().copied().eq(0..numbers.len()),
            "in order: {numbers:?}"
        );
    }
}

// SPEC C3
#[test]
fn waiting_where_it_would_stop_a_loop_is_misuse() {
    let context = AioContext::builder().name("home").build().unwrap();
    let misuse: [fn(); 3] = [
        || _ = channel(1).0.send(1),
        || _ = channel::<()>(1).1.recv(),
        || _ = channel::<()>(1).0.reserve(),
    ];
    for f in misuse {
        let panicked = context.enter_home(|| catch_unwind(f)).unwrap();
        let text = panic_text(&*panicked.unwrap_err());
        assert!(text.contains("outside a coroutine"), "{text}");
    }
    context
        .enter_home(|| {
            let (tx, mut rx) = channel(1);
            tx.try_send(1).unwrap();
            assert_eq!(rx.try_recv(), Ok(1));
        })
        .unwrap();
}

// SPEC C3
#[test]
fn waiting_without_a_loop_is_misuse_but_not_what_need_not_wait() {
    corio::home(|| {
        let (tx, mut rx) = channel(1);
        let co = Coroutine::new(move || {
            tx.send(1).unwrap();
            assert_eq!(rx.recv(), Ok(1));
            let empty = catch_unwind(AssertUnwindSafe(|| rx.recv())).unwrap_err();
            assert!(panic_text(&*empty).contains("no event loop"));
            tx.send(2).unwrap();
            let full = catch_unwind(AssertUnwindSafe(|| tx.send(3))).unwrap_err();
            assert!(panic_text(&*full).contains("no event loop"));
            drop(tx);
            assert_eq!((rx.recv(), rx.recv()), (Ok(2), Err(RecvError)));
        });
        co.enter();
        assert!(co.is_done());
    });
}

// SPEC L5, C8
#[test]
fn a_panic_on_one_side_is_an_end_to_the_other() {
    let (a, b) = (io("a"), io("b"));
    let (tx, mut rx) = channel::<i32>(1);
    let receiver = start(&a, move || rx.recv());
    let panics = b.context().spawn(move || {
        let _tx = tx;
        panic!("on purpose");
    });
    assert!(matches!(
        panics.join().map(|(): ()| ()),
        Err(JoinError::Panicked(_))
    ));
    assert_eq!(receiver.join().unwrap(), Err(RecvError));
}

// SPEC L5
#[test]
fn messages_may_have_no_size_or_a_large_one() {
    let io = io("io");
    let (tx, rx) = channel::<()>(4);
    let count = start(&io, move || rx.into_iter().count());
    (0..100).for_each(|_| tx.send(()).unwrap());
    drop(tx);
    assert_eq!(count.join().unwrap(), 100);
    let (tx, rx) = channel::<[u64; 512]>(2);
    let sum = start(&io, move || {
        rx.into_iter().map(|block| block[511]).sum::<u64>()
    });
    (0..10).for_each(|number| tx.send([number; 512]).unwrap());
    drop(tx);
    assert_eq!(sum.join().unwrap(), 45);
}
