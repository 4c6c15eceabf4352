//! Random sequences of taking locks, giving them up and cancelling who waits, beside models that
//! say who has them. The seed is printed; `CORIO_TEST_SEED=N` plays one again.

mod local;
mod mutex;
mod rwlock;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use corio::AioContext;

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }
}

fn seed() -> u64 {
    let given = std::env::var("CORIO_TEST_SEED").ok();
    given.map_or_else(
        || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::try_from(now.as_nanos() & u128::from(u32::MAX)).unwrap()
        },
        |text| text.parse().expect("CORIO_TEST_SEED is a number"),
    )
}

/// Picks one, each as often as its weight says.
fn pick(random: &mut Random, weights: &[usize]) -> usize {
    let mut left = random.below(weights.iter().sum());
    let hit = weights.iter().position(|&weight| {
        let hit = left < weight;
        left = left.wrapping_sub(weight);
        hit
    });
    hit.unwrap()
}

/// Counts those whose frame is gone, however it went.
struct Ends(Rc<Cell<usize>>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// Plays so many sequences in a context's home.
fn play(sequences: u64, sequence: impl Fn(&AioContext, &mut Random)) {
    let first = seed();
    println!("CORIO_TEST_SEED={first}");
    let context = AioContext::new().unwrap();
    context
        .enter_home(|| {
            for seed in first..first + sequences {
                let run = || sequence(&context, &mut Random(seed));
                let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                assert!(run.is_ok(), "the sequence of CORIO_TEST_SEED={seed}");
            }
        })
        .unwrap();
}
