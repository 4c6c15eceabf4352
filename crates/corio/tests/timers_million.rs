//! A million timers, and clocks that are disabled while their callbacks run (SPEC T4 to T6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use corio::context::Clock;
use corio::{AioContext, IoThread};

/// Numbers that look random and are the same in each run (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

/// What the callbacks, all in one thread, have seen.
#[derive(Default)]
struct Seen {
    count: AtomicUsize,
    last: [AtomicU64; 2],
    early: AtomicUsize,
    disordered: AtomicUsize,
    late_ns: AtomicU64,
    latest_ns: AtomicU64,
}

impl Seen {
    fn one(&self, deadline_ns: u64, armed: u64) {
        let now_ns = Clock::Realtime.now_ns();
        let last = [0, 1].map(|i| self.last[i].load(Ordering::Relaxed));
        self.last[0].store(deadline_ns, Ordering::Relaxed);
        self.last[1].store(armed, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        if now_ns < deadline_ns {
            self.early.fetch_add(1, Ordering::Relaxed);
        }
        if last > [deadline_ns, armed] {
            self.disordered.fetch_add(1, Ordering::Relaxed);
        }
        let late_ns = now_ns.saturating_sub(deadline_ns);
        self.late_ns.fetch_add(late_ns, Ordering::Relaxed);
        self.latest_ns.fetch_max(late_ns, Ordering::Relaxed);
    }
}

// SPEC T4, T6
#[test]
fn a_million_timers_armed_at_random_fire_in_order_and_none_early() {
    const COUNT: u64 = 1_000_000;
    /// They are all armed before the first is due, or it would not wait for the others.
    const LEAD_NS: u64 = 4_000_000_000;
    const SPAN_NS: u64 = 2_000_000_000;
    let context = AioContext::new().unwrap();
    let seen = Arc::<Seen>::default();
    let mut random = Random(0x0c0f_fee5);
    let start_ns = Clock::Realtime.now_ns() + LEAD_NS;
    let timers: Vec<_> = (0..COUNT)
        .map(|armed| {
            // Some at the same time as others: these fire in the order armed.
            let deadline_ns = match random.below(4) {
                0 => start_ns + random.below(100) * (SPAN_NS / 100),
                _ => start_ns + random.below(SPAN_NS),
            };
            let seen = Arc::clone(&seen);
            let timer = context.timer(move || seen.one(deadline_ns, armed));
            timer.arm_at_ns(deadline_ns);
            timer
        })
        .collect();
    assert!(
        Clock::Realtime.now_ns() < start_ns,
        "the machine is too slow to arm them in time"
    );
    let home = || {
        while seen.count.load(Ordering::Relaxed) < timers.len() {
            context.poll(true).unwrap();
        }
    };
    context.enter_home(home).unwrap();
    assert_eq!(seen.early.load(Ordering::Relaxed), 0, "some were early");
    assert_eq!(seen.disordered.load(Ordering::Relaxed), 0, "out of order");
    assert!(timers.iter().all(|timer| !timer.is_armed()));
    println!(
        "lateness of {COUNT} timers in 2 s: {} us on average, {} us at most",
        seen.late_ns.load(Ordering::Relaxed) / COUNT / 1000,
        seen.latest_ns.load(Ordering::Relaxed) / 1000
    );
}

// SPEC T5: over and over, from another thread, while callbacks run that arm themselves again.
#[test]
fn no_callback_runs_while_its_clock_is_disabled() {
    // Of no other test in this program.
    const CLOCK: Clock = Clock::VirtualRt;
    const ROUNDS: usize = 500;
    let io = IoThread::builder().spawn().unwrap();
    let disabled = Arc::new(AtomicBool::new(false));
    let (ran, wrong) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let timers: Vec<_> = (0..200)
        .map(|number| {
            let (disabled, ran, wrong) =
                (Arc::clone(&disabled), Arc::clone(&ran), Arc::clone(&wrong));
            let rearm: Arc<std::sync::OnceLock<_>> = Arc::default();
            let timer = Arc::new(io.context().timer_on(CLOCK, {
                let rearm: Arc<std::sync::OnceLock<std::sync::Weak<corio::context::Timer>>> =
                    Arc::clone(&rearm);
                move || {
                    wrong.fetch_add(
                        usize::from(disabled.load(Ordering::SeqCst)),
                        Ordering::SeqCst,
                    );
                    ran.fetch_add(1, Ordering::SeqCst);
                    let timer = rearm.get().and_then(std::sync::Weak::upgrade);
                    if let Some(timer) = timer {
                        timer.arm_after(Duration::from_micros(number));
                    }
                    wrong.fetch_add(
                        usize::from(disabled.load(Ordering::SeqCst)),
                        Ordering::SeqCst,
                    );
                }
            }));
            rearm.set(Arc::downgrade(&timer)).unwrap();
            timer.arm_at_ns(0);
            timer
        })
        .collect();
    for _ in 0..ROUNDS {
        let before = ran.load(Ordering::SeqCst);
        while ran.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        CLOCK.disable();
        disabled.store(true, Ordering::SeqCst);
        let stopped = ran.load(Ordering::SeqCst);
        // A turn of the loop, which finds them due.
        let (tx, rx) = std::sync::mpsc::channel();
        io.context()
            .schedule_oneshot("a turn", move || tx.send(()).unwrap());
        rx.recv().unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), stopped);
        disabled.store(false, Ordering::SeqCst);
        CLOCK.enable();
    }
    assert_eq!(wrong.load(Ordering::SeqCst), 0, "callbacks ran meanwhile");
    drop(timers);
}
