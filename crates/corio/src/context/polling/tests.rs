use core::cell::Cell;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use super::*;
use crate::context::local::Local;
use crate::context::{AioContext, Handler, Interest, MonitorChoice};

const PARAMS: PollParams = PollParams::IO_THREAD;

fn adjusted(old_ns: u64, waited_ns: u64, params: &PollParams) -> (Adjusted, u64) {
    let mut time = PollTime(old_ns);
    let what = time.adjust(waited_ns, params);
    (what, time.0)
}

// SPEC P2
#[test]
fn an_event_within_the_time_keeps_it() {
    for waited_ns in [0, 1, 3_999, 4_000] {
        assert_eq!(adjusted(4_000, waited_ns, &PARAMS), (Adjusted::Kept, 4_000));
    }
}

// SPEC P2
#[test]
fn an_event_a_little_later_makes_it_grow_from_4_us_by_2_up_to_the_maximum() {
    let mut time = PollTime(0);
    let mut times = Vec::new();
    while let Adjusted::Grown { old_ns, new_ns } = time.adjust(32_768, &PARAMS) {
        assert_eq!(times.last().copied().unwrap_or(0), old_ns);
        times.push(new_ns);
    }
    assert_eq!(times, [4_000, 8_000, 16_000, 32_000, 32_768]);
    let by_five = PollParams { grow: 5, ..PARAMS };
    assert_eq!(adjusted(4_000, 5_000, &by_five).1, 20_000);
    // Less than 4 us is all there may be.
    let little = PollParams {
        max_ns: 900,
        ..PARAMS
    };
    assert_eq!(adjusted(0, 500, &little).1, 900);
    let huge = PollParams {
        grow: u32::MAX,
        max_ns: 1_000_000_000,
        ..PARAMS
    };
    assert_eq!(adjusted(900_000_000, 1_000_000_000, &huge).1, 1_000_000_000);
}

// SPEC P2
#[test]
fn an_event_that_no_polling_would_catch_makes_it_shrink() {
    let (old_ns, waited_ns) = (32_000, 32_769);
    let what = Adjusted::Shrunk { old_ns, new_ns: 0 };
    assert_eq!(adjusted(old_ns, waited_ns, &PARAMS), (what, 0));
    let by_two = PollParams {
        shrink: 2,
        ..PARAMS
    };
    let what = Adjusted::Shrunk {
        old_ns,
        new_ns: 16_000,
    };
    assert_eq!(adjusted(old_ns, waited_ns, &by_two), (what, 16_000));
    // There is nothing to take away.
    assert_eq!(adjusted(0, waited_ns, &PARAMS), (Adjusted::Kept, 0));
    let by_one = PollParams {
        shrink: 1,
        ..PARAMS
    };
    assert_eq!(
        adjusted(old_ns, waited_ns, &by_one),
        (Adjusted::Kept, old_ns)
    );
}

// SPEC P2: whatever comes, a time is 0 or from 4 us (or all there may be) to the maximum.
#[test]
fn a_time_stays_in_its_range() {
    let waits = [0, 1, 4_000, 9_000, 20_000, 50_000, 1_000_000];
    for shrink in [0, 1, 2, 7] {
        let params = PollParams {
            shrink,
            max_ns: 50_000,
            ..PARAMS
        };
        let mut time = PollTime::default();
        for round in 0..10_000_usize {
            let _ = time.adjust(waits[round * round % 101 % waits.len()], &params);
            assert!(time.0 <= params.max_ns, "{time:?}");
        }
    }
}

// SPEC P7: whatever is asked for, over any span it takes no more than the share of it and of what
// may be saved up.
#[test]
fn a_budget_holds_over_any_span() {
    for percent in [1, 10, 50, 99] {
        let mut budget = Budget::new(percent, 1_000);
        let (mut now_ns, mut taken_ns) = (1_000_u64, 0_u64);
        for round in 0..20_000_u64 {
            now_ns += round * 7_919 % 60_000; // It does other things.
            let allowed_ns = budget.allow(now_ns, 32_768);
            budget.spend(allowed_ns);
            now_ns += allowed_ns;
            taken_ns += allowed_ns;
        }
        let share_ns = |ns: u64| ns * u64::from(percent) / 100;
        let elapsed_ns = now_ns - 1_000;
        assert!(taken_ns <= share_ns(elapsed_ns), "{percent}: {taken_ns}");
        // And it is there to be used, as far as more was asked for.
        if percent <= 10 {
            assert!(
                taken_ns >= share_ns(elapsed_ns) * 9 / 10,
                "{percent}: {taken_ns}"
            );
        }
        // A pause saves up one window.
        let after_pause_ns = now_ns + 10 * BUDGET_WINDOW_NS;
        let saved_ns = budget.allow(after_pause_ns, u64::MAX);
        assert!(
            saved_ns <= share_ns(BUDGET_WINDOW_NS),
            "{percent}: {saved_ns}"
        );
    }
}

// SPEC P7
#[test]
fn a_round_that_took_too_long_is_paid_for() {
    let mut budget = Budget::new(10, 0);
    assert_eq!(budget.allow(1_000_000, 32_768), 32_768);
    budget.spend(300_000); // 200 us more than there was.
    assert_eq!(budget.allow(2_000_000, 32_768), 0);
    assert_eq!(budget.allow(3_000_000, 32_768), 0);
    assert_eq!(budget.allow(3_100_000, 32_768), 10_000);
    let mut whole_core = Budget::new(100, 0);
    whole_core.spend(1_000_000_000);
    assert_eq!(whole_core.allow(1, 32_768), 32_768);
}

// SPEC I1
#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let refused = |params: PollParams| params.check().unwrap_err().to_string();
    assert_eq!(
        refused(PollParams {
            max_ns: 1_000_000_001,
            ..PARAMS
        }),
        "poll_max_ns is 1000000001, which is not at most 1000000000, a second"
    );
    for grow in [0, 1] {
        let message = refused(PollParams { grow, ..PARAMS });
        assert_eq!(
            message,
            format!("poll_grow is {grow}, which is not 2 or more")
        );
    }
    for budget_percent in [0, 101] {
        let message = refused(PollParams {
            budget_percent,
            ..PARAMS
        });
        assert!(message.ends_with("which is not 1 to 100"), "{message}");
    }
    PARAMS.check().unwrap();
    PollParams::default().check().unwrap();
}

/// A home on `monitor`, with a handler whose time is a second, polled by `poll`, and the other end
/// of its descriptor, by which it has its events.
fn with_a_second(
    monitor: MonitorChoice,
    poll: impl Fn() -> bool + 'static,
    test: impl FnOnce(&AioContext, &Handler<UnixStream>, &UnixStream),
) {
    let context = AioContext::builder()
        .monitor(monitor)
        .poll_params(PollParams {
            max_ns: 1_000_000_000,
            grow: u32::MAX,
            ..PARAMS
        })
        .build()
        .unwrap();
    let home = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let local = context.local().unwrap();
        let calls = Rc::new(Cell::new(0));
        let count = Rc::clone(&calls);
        let handler = local
            .add_handler(ours, Interest::READ, move |_| count.set(count.get() + 1))
            .unwrap();
        // By the descriptor, the first event gives 4 us and the second, a little later, a second.
        let is_ready = Rc::new(Cell::new(false));
        let ready = Rc::clone(&is_ready);
        handler.set_poll(move || ready.get() && poll(), || ());
        while handler.poll_stats().time_ns < 1_000_000_000 {
            let before = calls.get();
            let mut partner = theirs.try_clone().unwrap();
            let writes = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(1));
                partner.write_all(b"x").unwrap();
            });
            while calls.get() == before {
                context.poll(true).unwrap();
            }
            writes.join().unwrap();
            handler.get_ref().read_exact(&mut [0]).unwrap();
            context.poll(false).unwrap(); // One that was on its way.
        }
        is_ready.set(true);
        test(&context, &handler, &theirs);
    };
    context.enter_home(home).unwrap();
}

// SPEC N5: no byte is written for it, and nothing else would end it for a second.
#[test]
fn a_notification_ends_a_busy_poll_by_its_flag_alone() {
    for monitor in MonitorChoice::ALL {
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let poll = move || {
            count.set(count.get() + 1);
            if count.get() == 3 {
                let context = AioContext::current().unwrap();
                assert!(
                    !context.inner().notify.notify(),
                    "it wants the eventfd written"
                );
            }
            false
        };
        with_a_second(monitor, poll, |context, _handler, _theirs| {
            asked.set(0);
            assert!(!context.poll(true).unwrap());
            assert_eq!(asked.get(), 4, "three rounds, and one after the end");
        });
    }
}

// SPEC P3
#[test]
fn an_idle_handler_leaves_where_user_space_sees_its_descriptor() {
    for monitor in MonitorChoice::ALL {
        with_a_second(
            monitor,
            || false,
            |context, handler, _theirs| {
                let local = Local::current().unwrap();
                let state = handler.poll_stats();
                assert!(state.is_polled);
                let last_ns = crate::context::now_ns();
                local.leave_idle(last_ns); // It is not idle.
                assert!(handler.poll_stats().is_polled);
                if local.monitor.is_seen_from_user_space() {
                    local.leave_idle(last_ns + IDLE_NS + 1);
                    assert!(!handler.poll_stats().is_polled);
                    let begun = Cell::new(0);
                    let limit = context.timer(|| ());
                    limit.arm_after(std::time::Duration::from_millis(1));
                    begun.set(handler.poll_stats().wasted_ns);
                    context.poll(true).unwrap();
                    assert_eq!(handler.poll_stats().wasted_ns, begun.get(), "it was polled");
                }
            },
        );
    }
}

/// As if the last event of all had been `ns` earlier.
fn set_back(ns: u64) {
    let local = Local::current().unwrap();
    let kernel_last_ns = &local.polling.kernel_last_ns;
    kernel_last_ns.set(kernel_last_ns.get().saturating_sub(ns));
    for entry in local.handlers.all() {
        if let Some(state) = entry.poll.get() {
            let last_ns = state.last_event_ns.get();
            state.last_event_ns.set(last_ns.saturating_sub(ns));
        }
    }
}

// SPEC P3: by the turns themselves. On poll and epoll it would starve.
#[test]
fn an_idle_handler_is_gone_on_io_uring_until_its_next_event_and_polled_elsewhere() {
    for monitor in MonitorChoice::ALL {
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let poll = move || {
            count.set(count.get() + 1);
            false
        };
        with_a_second(monitor, poll, |context, handler, mut theirs| {
            let limit = context.timer(|| ());
            let turn = || {
                limit.arm_after(core::time::Duration::from_millis(1));
                context.poll(true).unwrap();
            };
            // Whether one of some turns, none of which has to wait for long, polls it.
            let is_asked = || {
                let before = asked.get();
                (0..10).any(|_| {
                    turn();
                    asked.get() > before
                })
            };
            set_back(5_000_000_000);
            assert!(is_asked() && handler.poll_stats().is_polled);
            set_back(3_000_000_000);
            let sees_all = Local::current().unwrap().monitor.is_seen_from_user_space();
            assert_eq!(is_asked(), !sees_all, "{monitor:?}");
            assert_eq!(handler.poll_stats().is_polled, !sees_all);
            theirs.write_all(b"x").unwrap();
            turn();
            while !handler.poll_stats().is_polled {
                turn();
            }
            handler.get_ref().read_exact(&mut [0]).unwrap();
            context.poll(false).unwrap(); // One that was on its way.
            assert!(is_asked() && handler.poll_stats().is_polled);
        });
    }
}

// SPEC P3: what ends the turns is a timer, by which no time shrinks.
#[test]
fn a_loop_that_asks_the_kernel_polls_no_more_once_all_are_idle() {
    for monitor in MonitorChoice::ALL {
        with_a_second(
            monitor,
            || false,
            |context, handler, mut theirs| {
                let asking = PollParams {
                    ask_kernel: true,
                    ..context.poll_params()
                };
                context.set_poll_params(asking).unwrap();
                let local = context.local().unwrap();
                let (ours, mut other) = UnixStream::pair().unwrap();
                let kernels = local.add_handler(ours, Interest::READ, |_| ()).unwrap();
                let limit = context.timer(|| ());
                let turn = || {
                    limit.arm_after(core::time::Duration::from_millis(1));
                    context.poll(true).unwrap();
                };
                // How many of some turns poll.
                let count = |what: &dyn Fn() -> bool| (0..10).filter(|_| what()).count();
                let wastes = || {
                    let before = handler.poll_stats().wasted_ns;
                    turn();
                    handler.poll_stats().wasted_ns > before
                };
                let time = &Local::current().unwrap().polling.kernel_time;
                // Ready at once: the first gives 4 us, which others keep.
                theirs.write_all(b"x").unwrap();
                other.write_all(b"x").unwrap();
                while handler.poll_stats().time_ns == 0 || time.get() == PollTime(0) {
                    turn();
                }
                handler.get_ref().read_exact(&mut [0]).unwrap();
                kernels.get_ref().read_exact(&mut [0]).unwrap();
                (0..3).for_each(|_| _ = context.poll(false).unwrap());
                set_back(5_000_000_000);
                assert!(count(&wastes) > 0, "{monitor:?}: 5 s are not long");
                set_back(3_000_000_000);
                assert_eq!(count(&wastes), 0, "{monitor:?}");
                assert_eq!(
                    (handler.poll_stats().is_polled, time.get()),
                    (false, PollTime(0))
                );
                theirs.write_all(b"x").unwrap();
                while !handler.poll_stats().is_polled {
                    turn();
                }
            },
        );
    }
}

// SPEC P1
#[test]
fn all_are_polled_for_the_largest_of_their_times() {
    for monitor in MonitorChoice::ALL {
        let context = AioContext::builder()
            .monitor(monitor)
            .poll_params(PollParams {
                max_ns: 1_000_000_000,
                ..PARAMS
            })
            .build()
            .unwrap();
        let home = || {
            let local = context.local().unwrap();
            // What ends the turn, when it has polled.
            let half = Rc::new(context.bottom_half("ends the wait", || ()));
            let asked = [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))];
            let handlers = asked.each_ref().map(|asked| {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                let handler = local.add_handler(ours, Interest::READ, |_| ()).unwrap();
                let (asked, half) = (Rc::clone(asked), Rc::clone(&half));
                let count = move || {
                    asked.set(asked.get() + 1);
                    false
                };
                handler.set_poll(count, || ());
                handler.set_poll_notify(|| (), move || half.schedule());
                theirs.write_all(b"x").unwrap();
                while !handler.poll_stats().is_polled {
                    context.poll(true).unwrap();
                }
                handler.get_ref().read_exact(&mut [0]).unwrap();
                (handler, theirs)
            });
            (0..3).for_each(|_| _ = context.poll(false).unwrap()); // What was on its way.
            for times in [[4_000, 1_000_000], [1_000_000, 4_000]] {
                let of_home = Local::current().unwrap().handlers.all();
                let states = of_home.iter().filter_map(|entry| entry.poll.get());
                let both = states.filter(|state| state.stats().is_polled);
                let set = both
                    .zip(times)
                    .map(|(state, ns)| state.time.set(PollTime(ns)));
                assert_eq!(set.count(), 2);
                let wasted_ns = || handlers.each_ref().map(|it| it.0.poll_stats().wasted_ns);
                let mut shortest_ns = u64::MAX;
                let mut in_rounds = 0;
                for _ in 0..20 {
                    asked.iter().for_each(|asked| asked.set(0));
                    let before = wasted_ns();
                    context.poll(true).unwrap();
                    let [one, other] = wasted_ns();
                    assert_eq!(one - before[0], other - before[1]);
                    assert!(one - before[0] >= 1_000_000, "{monitor:?}, {times:?}");
                    shortest_ns = shortest_ns.min(one - before[0]);
                    assert_eq!(asked[0].get(), asked[1].get());
                    in_rounds += usize::from(asked[0].get() > 2);
                }
                // In several rounds, and after the last one; but where other work took the time.
                assert!(in_rounds > 10, "{monitor:?}: {in_rounds} of 20");
                assert!(shortest_ns < 2_000_000, "{monitor:?}: {shortest_ns}");
            }
        };
        context.enter_home(home).unwrap();
    }
}
