//! What cannot be seen from outside: the wall clock set under a timer's feet, and how long a loop
//! waits.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use super::wheel::Wheel;
use super::*;
use crate::sys::clock::wall;

const DAY_NS: u64 = 86_400_000_000_000;

fn counter(context: &AioContext, clock: Clock) -> (Timer, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let timer = context.timer_on(clock, {
        let count = Arc::clone(&count);
        move || {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    (timer, count)
}

// SPEC T1: the only test that sets the wall clock; no other of this program reads it.
#[test]
fn a_timer_on_the_wall_clock_is_due_by_what_the_clock_shows_now() {
    let context = AioContext::new().unwrap();
    let (timer, count) = counter(&context, Clock::Host);
    let ran = || {
        context.poll(false).unwrap();
        count.load(Ordering::Relaxed)
    };
    let test = || {
        let noon_ns = Clock::Host.now_ns();
        timer.arm_at_ns(noon_ns + DAY_NS);
        assert_eq!(ran(), 0);
        let wait_ns = context.inner().timers.timeout_ns().unwrap();
        assert!(
            wait_ns <= 1_000_000_000,
            "nobody tells when the clock is set"
        );
        // Forward: it is due at once. The machine's own time goes on meanwhile.
        wall::set_off_by_ns(i64::try_from(DAY_NS).unwrap());
        assert_eq!(context.inner().timers.timeout_ns(), Some(0));
        assert_eq!((ran(), timer.is_armed()), (1, false));
        // Back: what was due in a minute is not for a day.
        timer.arm_at_ns(Clock::Host.now_ns() + 60_000_000_000);
        wall::set_off_by_ns(0);
        assert!(timer.expire_time_ns().unwrap() > Clock::Host.now_ns() + DAY_NS);
        assert_eq!((ran(), timer.is_armed()), (1, true));
        wall::set_off_by_ns(i64::try_from(DAY_NS + 120_000_000_000).unwrap());
        assert_eq!(ran(), 2);
        wall::set_off_by_ns(0);
    };
    context.enter_home(test).unwrap();
}

// SPEC T1, T5: the only test of this program that stops or disables a clock.
#[test]
fn a_loop_does_not_wait_for_a_clock_that_stands_still_or_is_disabled() {
    let context = AioContext::new().unwrap();
    let timers = &context.inner().timers;
    assert_eq!(timers.timeout_ns(), None);
    let (timer, _) = counter(&context, Clock::Virtual);
    timer.arm_after(Duration::from_secs(3600));
    let hour_ns = 3_600_000_000_000;
    let wait_ns = timers.timeout_ns().unwrap();
    assert!((1..=hour_ns).contains(&wait_ns));
    VirtualClock::stop();
    assert_eq!(timers.timeout_ns(), None);
    VirtualClock::step(Duration::from_secs(3601));
    assert_eq!(timers.timeout_ns(), Some(0));
    Clock::Virtual.disable();
    assert_eq!(timers.timeout_ns(), None);
    let (other, _) = counter(&context, Clock::Realtime);
    other.arm_after(Duration::from_secs(3600));
    assert!(timers.timeout_ns().unwrap() > 1, "it has one of its own");
    Clock::Virtual.enable();
    assert_eq!(timers.timeout_ns(), Some(0), "the earliest of all clocks");
    VirtualClock::resume();
}

#[test]
fn a_timers_place_survives_its_word() {
    let mut wheel = Wheel::new();
    let mut last = wheel.insert(1, ());
    for _ in 0..3 {
        wheel.remove(last);
        last = wheel.insert(1, ());
        wheel.insert(2, ());
    }
    assert_eq!(super::wheel::Handle::unpack(last.pack()), last);
    assert_ne!(last.pack(), u64::MAX);
}
