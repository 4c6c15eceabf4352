//! High-water marks: how much of their stacks the coroutines of each entry point use.
//!
//! Off by default, and then free. While it is on, each coroutine's stack is looked at when it ends,
//! which costs some microseconds, and the largest use is kept for the place in the program where
//! the coroutine was made. A test or a pilot run shows with it which entry points need more than
//! the default of 256 KiB, and which could do with less ([`Builder::stack_size`](crate::Builder)).
//!
//! Coroutines that were made before it was turned on are not counted, nor are some that reuse the
//! stacks of those, once each: it is best turned on before the first. One that is leaked never
//! ends.
//!
//! Any thread, in a coroutine or not; nothing here waits.
//!
//! ```
//! use corio::{Builder, stack_usage};
//!
//! # fn main() -> Result<(), corio::Error> {
//! stack_usage::enable();
//! corio::home(|| {
//!     let co = Builder::new().name("parser").create(|| {
//!         std::hint::black_box([0_u8; 50_000]);
//!     })?;
//!     co.enter();
//!     Ok::<(), corio::Error>(())
//! })?;
//! let usage = stack_usage::snapshot();
//! let parser = &usage.entry_points[0];
//! assert_eq!(parser.name.as_deref(), Some("parser"));
//! assert!(parser.used_max >= 50_000 && parser.used_max <= parser.stack_size);
//! # Ok(())
//! # }
//! ```

use core::panic::Location;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{depth, pool};

/// Entry points that are kept; ends of coroutines from others are only counted.
const ENTRY_POINTS_MAX: usize = 1024;
/// Bytes of a name that are kept.
const NAME_MAX: usize = 64;

static TABLE: Mutex<Table> = Mutex::new(Table {
    entry_points: BTreeMap::new(),
    missed: 0,
});

struct Table {
    entry_points: BTreeMap<&'static Location<'static>, EntryPoint>,
    missed: u64,
}

/// What is known of the coroutines that were made at one place in the program.
///
/// ```
/// use corio::stack_usage;
/// stack_usage::enable();
/// corio::home(|| corio::Coroutine::new(|| ()).enter());
/// let usage = stack_usage::snapshot();
/// let entry_point = &usage.entry_points[0];
/// println!("{}: {} of {}", entry_point.location, entry_point.used_max, entry_point.stack_size);
/// assert_eq!((entry_point.count, &entry_point.name), (1, &None));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EntryPoint {
    /// Where they were made, or spawned.
    pub location: &'static Location<'static>,
    /// The name of the one that used most, or the beginning of it.
    pub name: Option<String>,
    /// How much of its stack that one used at any time, in bytes: whole pages, including what the
    /// runtime keeps at the top.
    pub used_max: usize,
    /// That one's stack, in bytes, guard included.
    pub stack_size: usize,
    /// How many have ended.
    pub count: u64,
}

/// The high-water marks at one time.
///
/// ```
/// use corio::stack_usage;
/// stack_usage::enable();
/// corio::home(|| {
///     for _ in 0..3 {
///         corio::Coroutine::new(|| ()).enter();
///     }
/// });
/// let usage = stack_usage::snapshot();
/// assert_eq!((usage.entry_points.len(), usage.entry_points[0].count, usage.missed), (1, 3, 0));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Usage {
    /// Those that used most come first.
    pub entry_points: Vec<EntryPoint>,
    /// Ends that are not in the list, because it is full with 1024 entry points.
    pub missed: u64,
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to measure, on all threads. What was measured earlier stays.
pub fn enable() {
    depth::measure(true);
    pool::discard_warm();
}

/// Stops measuring.
pub fn disable() {
    depth::measure(false);
}

/// Forgets what was measured.
pub fn clear() {
    let mut table = table();
    table.entry_points.clear();
    table.missed = 0;
}

/// What has been measured.
#[must_use]
pub fn snapshot() -> Usage {
    let table = table();
    let mut entry_points: Vec<_> = table.entry_points.values().cloned().collect();
    entry_points.sort_by_key(|at| core::cmp::Reverse(at.used_max));
    Usage {
        entry_points,
        missed: table.missed,
    }
}

/// A coroutine has ended that used so much of its stack.
pub(super) fn record(
    location: &'static Location<'static>,
    name: Option<&str>,
    used: usize,
    stack_size: usize,
) {
    let ended = EntryPoint {
        location,
        name: name.map(|name| name[..name.floor_char_boundary(NAME_MAX)].to_owned()),
        used_max: used,
        stack_size,
        count: 1,
    };
    table().record(ended, ENTRY_POINTS_MAX);
}

impl Table {
    fn record(&mut self, ended: EntryPoint, entry_points_max: usize) {
        if let Some(known) = self.entry_points.get_mut(ended.location) {
            let count = known.count + 1;
            if ended.used_max > known.used_max {
                *known = ended;
            }
            known.count = count;
        } else if self.entry_points.len() < entry_points_max {
            self.entry_points.insert(ended.location, ended);
        } else {
            self.missed += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_full_list_takes_no_new_entry_points_and_counts_them() {
        let mut table = Table {
            entry_points: BTreeMap::new(),
            missed: 0,
        };
        let (first, second) = (Location::caller(), Location::caller());
        for (location, used) in [(first, 1), (second, 9), (first, 5), (first, 2)] {
            let ended = EntryPoint {
                location,
                name: Some(used.to_string()),
                used_max: used,
                stack_size: 100 + used,
                count: 1,
            };
            table.record(ended, 1);
        }
        assert_eq!((table.missed, table.entry_points.len()), (1, 1));
        let kept = &table.entry_points[first];
        assert_eq!((kept.count, kept.used_max, kept.stack_size), (3, 5, 105));
        assert_eq!(kept.name.as_deref(), Some("5"));
    }
}
