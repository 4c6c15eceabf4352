//! Who may turn a loop, and in which order a turn does what (SPEC A1).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use corio::AioContext;
use corio::context::{Interest, MonitorChoice};

use super::{on_each_monitor, panic_of};

fn named(name: &str, monitor: MonitorChoice) -> AioContext {
    let builder = AioContext::builder().name(name).monitor(monitor);
    builder.build().unwrap()
}

// SPEC A1
#[test]
fn a_poll_off_the_home_thread_is_misuse() {
    const TEXT: &str = "AioContext::poll of `disk` was called off its home thread";
    for monitor in MonitorChoice::ALL {
        let disk = named("disk", monitor);
        let refused = || {
            for blocking in [false, true] {
                let text = panic_of(|| disk.poll(blocking));
                assert!(text.starts_with(TEXT), "{text}");
            }
        };
        refused(); // Without any home.
        let elsewhere = || thread::scope(|scope| scope.spawn(refused).join().unwrap());
        disk.enter_home(elsewhere).unwrap();
        named("other", monitor).enter_home(refused).unwrap();
        disk.enter_home(|| disk.poll(false).unwrap()).unwrap();
    }
}

// SPEC A1
#[test]
fn a_poll_in_a_coroutine_is_misuse() {
    on_each_monitor(|context| {
        let own = context.clone();
        let child = context.spawn(move || [false, true].map(|how| panic_of(|| own.poll(how))));
        while !child.is_finished() {
            context.poll(true).unwrap();
        }
        for text in child.join().unwrap() {
            let expected = "AioContext::poll was called inside a coroutine: park it instead";
            assert!(text.starts_with(expected), "{text}");
        }
    });
}

// SPEC A1
#[test]
fn a_second_home_at_a_time_is_misuse() {
    for monitor in MonitorChoice::ALL {
        let (disk, other) = (named("disk", monitor), named("other", monitor));
        let inside = || {
            let elsewhere = || panic_of(|| disk.enter_home(|| unreachable!()));
            let text = thread::scope(|scope| scope.spawn(elsewhere).join().unwrap());
            let number = rustix::thread::gettid().as_raw_nonzero();
            assert_eq!(
                text,
                format!(
                    "context `disk` has a home already (thread {number}): \
                     only one thread at a time"
                )
            );
            for context in [&disk, &other] {
                let text = panic_of(|| context.enter_home(|| unreachable!()));
                assert!(text.contains("a thread has one home at a time"), "{text}");
            }
            assert!(disk.is_home() && !disk.poll(false).unwrap());
        };
        disk.enter_home(inside).unwrap();
        // It is nobody's any more, and no refusal has left a mark.
        let next = || disk.enter_home(|| disk.poll(false).unwrap()).unwrap();
        assert!(!thread::scope(|scope| scope.spawn(next).join().unwrap()));
        other.enter_home(|| other.poll(false).unwrap()).unwrap();
    }
}

// SPEC A1
#[test]
fn a_turn_runs_bottom_halves_then_handlers_then_timers() {
    on_each_monitor(|context| {
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |what: &'static str| {
            let order = Arc::clone(&order);
            move || order.lock().unwrap().push(what)
        };
        let timer = context.timer(note("timer"));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Rc::new(ours);
        let (reader, handler) = (Rc::clone(&ours), note("handler"));
        let local = context.local().unwrap();
        let callback = move |_| {
            (&*reader).read_exact(&mut [0]).unwrap();
            handler();
        };
        let _handler = local.add_handler(ours, Interest::READ, callback).unwrap();
        let half = context.bottom_half("bottom half", note("bottom half"));
        context.poll(false).unwrap();
        for _ in 0..10 {
            timer.arm_at_ns(0);
            theirs.write_all(b"x").unwrap();
            half.schedule();
            thread::sleep(Duration::from_micros(200)); // A turn looks at the descriptors after 50.
            assert!(context.poll(true).unwrap());
            let ran = std::mem::take(&mut *order.lock().unwrap());
            assert_eq!(ran, ["bottom half", "handler", "timer"]);
            assert!(!context.poll(false).unwrap());
        }
    });
}
