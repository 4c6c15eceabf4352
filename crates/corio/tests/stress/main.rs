//! Coroutines of five contexts that hop from one to another, wait for one another and are
//! cancelled, all at random (SPEC C12, S5, S7, L1, L2, L3, L5).
//!
//! It goes in rounds: all coroutines of a round must end before the next one begins, so that a wake
//! that is lost shows as a coroutine that hangs, with no later traffic to get it going. Each takes
//! its decisions from a generator of its own, whose seed follows from the printed one, the round
//! and its number; how they meet is the scheduler's.
//!
//! `CORIO_STRESS_SEED=N` plays a seed again, `CORIO_STRESS_SECONDS=N` says for how long.

#![allow(unsafe_code)] // Moving coroutines.

mod body;
mod shared;

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corio::context::MonitorChoice;
use corio::sync::channel;
use corio::{Builder, IoThread, JoinError, stack_pool};

use body::{Member, Round};
use shared::{Bell, Count, Errand, Shared};

const CONTEXTS: usize = 5;
/// In a round.
const COROUTINES: usize = 200;
/// Messages that a round's channel holds.
const ROOM: usize = 2;
/// How long a round may take, on a slow machine and under valgrind, before what hangs is named.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much larger the process may be at the end than when it was warm.
const GROWTH_MAX_KIB: u64 = 16 * 1024;

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
struct Random(u64);

impl Random {
    /// The generator of one part of the whole.
    fn of(seed: u64, round: u64, number: u64) -> Random {
        let mut random = Random(seed ^ round << 32 ^ number << 16);
        let _ = random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

fn seed() -> u64 {
    number("CORIO_STRESS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from(now.as_nanos() & u128::from(u32::MAX)).unwrap()
    })
}

/// Resident memory of the process.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse().unwrap()
}

fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().count()
}

/// Starts a round, and returns once all of it has ended.
fn play(shared: &Arc<Shared>, seed: u64, number: u64) {
    let round = Arc::new(Round::new(COROUTINES));
    let mut random = Random::of(seed, number, u64::from(u16::MAX));
    let (asks, mut asked) = channel::<Bell>(ROOM);
    let answering = Arc::clone(shared);
    let echo = shared.contexts[random.below(CONTEXTS)].spawn(move || {
        for bell in asked.iter() {
            bell.ring(&answering);
        }
    });
    for i in 0..COROUTINES {
        let own = Random::of(seed, number, u64::try_from(i).unwrap());
        let member = Member::new(shared, &round, asks.clone(), i, own);
        let context = &shared.contexts[random.below(CONTEXTS)];
        let handle = Builder::new()
            .name(format!("{number}/{i}"))
            .spawn_on(context, move || member.run());
        if random.one_in(20) {
            shared.count(Count::CancelsAsked);
            handle.cancel().unwrap(); // It may not have begun.
        }
        round.set_handle(i, handle);
    }
    drop(asks);
    let (told, end) = mpsc::channel();
    let joiner = Arc::clone(&round);
    thread::spawn(move || {
        for i in 0..COROUTINES {
            if told.send((i, joiner.join(i))).is_err() {
                return;
            }
        }
    });
    let mut unjoined = 0;
    while unjoined < COROUTINES {
        let Ok((i, outcome)) = end.recv_timeout(PATIENCE) else {
            let hanging = round.hanging().join("\n  ");
            panic!("CORIO_STRESS_SEED={seed}, round {number}: these do not end:\n  {hanging}");
        };
        unjoined = i + 1;
        match outcome {
            Ok(()) => shared.count(Count::Ended),
            Err(JoinError::Cancelled) => shared.count(Count::Cancelled),
            Err(error) => panic!(
                "CORIO_STRESS_SEED={seed}, coroutine {number}/{i}: {:?}",
                error.resume_panic()
            ),
        }
    }
    echo.join().unwrap(); // All who could ask are gone.
    shared.check_at_rest();
}

// SPEC C12, S5, S7, L1, L2, L3, L5
#[test]
fn no_wake_is_lost_and_nothing_leaks_where_all_hop_wait_and_are_cancelled() {
    let seed = seed();
    let time = Duration::from_secs(number("CORIO_STRESS_SECONDS").unwrap_or(10));
    println!(
        "CORIO_STRESS_SEED={seed} CORIO_STRESS_SECONDS={}",
        time.as_secs()
    );
    let monitors = MonitorChoice::ALL;
    let threads: Vec<_> = (0..CONTEXTS)
        .map(|i| {
            let builder = IoThread::builder().name(format!("stress{i}"));
            builder
                .monitor(monitors[i % monitors.len()])
                .spawn()
                .unwrap()
        })
        .collect();
    let (shared, ringers) = shared::start(threads.iter().map(|io| io.context().clone()));
    let begin = Instant::now();
    let (mut rounds, mut warm) = (0, None);
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        while begin.elapsed() < time {
            play(&shared, seed, rounds);
            rounds += 1;
            if warm.is_none() && begin.elapsed() > time / 4 {
                warm = Some((resident_kib(), mappings()));
            }
        }
    }));
    if let Err(payload) = played {
        std::mem::forget(threads); // Their ends would wait for what hangs.
        std::panic::resume_unwind(payload);
    }
    let (warm_kib, warm_mappings) = warm.unwrap_or((u64::MAX, usize::MAX));
    let (now_kib, now_mappings) = (resident_kib(), mappings());
    println!(
        "{rounds} rounds of {COROUTINES} coroutines; {}",
        shared.counts()
    );
    println!(
        "resident: {warm_kib} KiB warm, {now_kib} KiB at the end; stacks pooled: {}",
        stack_pool::len()
    );
    assert!(
        now_kib < warm_kib.saturating_add(GROWTH_MAX_KIB),
        "memory leaks"
    );
    assert!(
        now_mappings < warm_mappings.saturating_add(64),
        "mappings leak"
    );
    assert!(stack_pool::len() <= stack_pool::limit());
    for _ in &ringers {
        shared.errands.send(Errand::End).unwrap();
    }
    for ringer in ringers {
        ringer.join().unwrap();
    }
    for io in threads {
        io.join();
    }
    // Whoever is on a context's list keeps the context, which keeps all this.
    assert_eq!(Arc::strong_count(&shared), 1);
    shared.check_all_happened();
    assert_eq!(shared.live.load(Ordering::Relaxed), 0);
}
