//! Slabs: as many stacks as one page of the page table maps, or one larger one. A slab all of whose
//! stacks are free gives back its pages, its page of page table and its guards at one go.
//!
//! ```text
//!   region   one mmap: | slab | slab | slab | ..    neighbours are joined by the kernel
//!   slab     of 2 MiB: | stack | stack | .. | stack |
//!   a stack            bare: no guard, no page, or cold: a guard, no page; or it is out
//! ```
//!
//! Guards are of two kinds. MADV_GUARD_INSTALL marks the page table's entries of a region that is
//! all one mapping. Where the kernel does not have it, or refuses it because memory is locked
//! (EINVAL), mprotect splits the region at each stack, which costs two mappings a stack: their
//! number is limited, so that malloc is never starved. A region of the second kind is readable
//! where its stacks are bare, because a handle of a coroutine that has ended may look at its key
//! there.
//!
//! Invariants, under the global pool's lock
//! - I1 A stack that is not in `bare` has a guard. One in `bare` or `cold` has no pages, or holds
//!   what may be lost.
//! - I2 `empty` lists exactly the slabs all of whose stacks are bare; `partial` lists every other
//!   slab that has a free one, and perhaps slabs that have none by now.

use core::ptr::NonNull;
use std::sync::OnceLock;

use super::table::{self, SLOTS_MAX};
use super::{Slot, depth, guard_size};
use crate::error::Error;
use crate::sys::mem::{self, Access, Range};

/// What a page of page table maps where pages are of 4 KiB, in bytes: the size of slabs.
const SLAB_BYTES: usize = 2 * 1024 * 1024;
/// Stacks that are reserved together at most, and bytes, unless one stack needs more.
const REGION_STACKS: usize = 64;
const REGION_BYTES: usize = 16 * 1024 * 1024;
/// Mappings left to the rest of the process when guards are made by mprotect.
const MAPPINGS_RESERVED: usize = 5000;

/// How the low end of a stack is made to fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// MADV_GUARD_INSTALL: no mapping of its own.
    Install,
    /// PROT_NONE: splits the mapping.
    Mprotect,
}

impl Guard {
    /// What a bare stack's mapping allows.
    fn bare_access(self) -> Access {
        match self {
            Self::Install => Access::ReadWrite,
            Self::Mprotect => Access::Read,
        }
    }
}

/// `CORIO_STACK_GUARD=mprotect` forces the fallback.
fn preferred_guard() -> Guard {
    static PREFERRED: OnceLock<Guard> = OnceLock::new();
    *PREFERRED.get_or_init(|| {
        depth::prepare();
        match std::env::var_os("CORIO_STACK_GUARD") {
            Some(value) if value == "mprotect" => Guard::Mprotect,
            _ => Guard::Install,
        }
    })
}

/// Stacks with guards made by mprotect: two mappings each.
#[derive(Debug)]
pub(super) struct Budget {
    used: usize,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Self { used: 0 }
    }

    fn take(&mut self) -> Result<(), Error> {
        let (limit, max_map_count) = Self::limit();
        if self.used >= limit {
            return Err(Error::StackLimit {
                limit,
                max_map_count,
            });
        }
        self.used += 1;
        Ok(())
    }

    /// How many there may be, as malloc must not starve (SPEC C6), and the setting that says so.
    fn limit() -> (usize, usize) {
        static LIMIT: OnceLock<(usize, usize)> = OnceLock::new();
        *LIMIT.get_or_init(|| {
            let max_map_count = mem::max_map_count();
            let limit = max_map_count.saturating_sub(MAPPINGS_RESERVED) / 2;
            (limit, max_map_count)
        })
    }
}

/// A slab. The sets have a bit for each stack, the lowest for the first.
#[derive(Debug)]
struct Slab {
    /// Index of the first slot; the others follow.
    first: u32,
    /// Those that exist.
    all: u32,
    bare: u32,
    cold: u32,
    /// Those with a guard that the budget counts.
    split: u32,
    guard: Guard,
    is_partial_listed: bool,
}

impl Slab {
    fn slot(&self, bit: u32) -> &'static Slot {
        table::slot_at(self.first + bit.trailing_zeros()).expect("a slab's slots are made with it")
    }

    /// Guards a bare stack by mprotect.
    fn split(&mut self, bit: u32, budget: &mut Budget) -> Result<(), Error> {
        budget.take()?;
        let slot = self.slot(bit);
        let guard = guard_size(slot.size());
        // SAFETY: the slot is free (stack I1) and holds nothing.
        let done = unsafe {
            mem::protect_none(slot.low(), guard).and_then(|()| match self.guard {
                Guard::Install => Ok(()),
                Guard::Mprotect => mem::allow(slot.low().add(guard), slot.size() - guard),
            })
        };
        if done.is_ok() {
            self.split |= bit;
        } else {
            budget.used -= 1;
        }
        done
    }

    /// Makes free stacks that follow one another bare.
    fn renew(&mut self, bits: u32, budget: &mut Budget) {
        let slot = self.slot(bits & bits.wrapping_neg());
        let len = slot.size() * usize::try_from(bits.count_ones()).unwrap_or_default();
        // SAFETY: the stacks are free (stack I1, I3).
        let renewed = unsafe { mem::renew(slot.low(), len, self.guard.bare_access()) };
        if renewed.is_ok() {
            self.bare |= bits;
            self.cold &= !bits;
            budget.used -= usize::try_from((self.split & bits).count_ones()).unwrap_or_default();
            self.split &= !bits;
            return;
        }
        // No room for another mapping, not even for a moment. The kernel leaves the old one, but
        // some older ones do not: then its address space is never used again.
        // SAFETY: as above.
        if unsafe { mem::dont_need_all(&[Range::new(slot.low(), len)]) }
            .is_err_and(|error| error.raw_os_error() == Some(libc::ENOMEM))
        {
            self.cold &= !bits;
        }
    }
}

/// Where the slots of a reservation are.
#[derive(Debug)]
struct Region {
    /// The first slot's index, and its slab.
    first: u32,
    slab: usize,
    /// Slots a slab.
    step: u32,
}

/// All slabs of one size of stacks.
#[derive(Debug)]
pub(super) struct Slabs {
    size: usize,
    /// By their first slots.
    regions: Vec<Region>,
    slabs: Vec<Slab>,
    /// I2. The last is used first.
    partial: Vec<usize>,
    empty: Vec<usize>,
}

impl Slabs {
    /// `size` is a class size.
    pub(super) const fn new(size: usize) -> Self {
        Self {
            size,
            regions: Vec::new(),
            slabs: Vec::new(),
            partial: Vec::new(),
            empty: Vec::new(),
        }
    }

    /// Appends up to `wanted` stacks, guarded and without pages; an error if there is none.
    pub(super) fn take(
        &mut self,
        wanted: usize,
        budget: &mut Budget,
        taken: &mut Vec<&'static Slot>,
    ) -> Result<(), Error> {
        let before = taken.len();
        let mut result = Ok(());
        let mut to_guard = Vec::new();
        while taken.len() < before + wanted {
            let at = match self.next_slab() {
                Some(at) => at,
                None => match self.reserve() {
                    Ok(()) => continue,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                },
            };
            let slab = &mut self.slabs[at];
            // A guard that is there already comes first.
            let free = if slab.cold != 0 { slab.cold } else { slab.bare };
            let bit = free & free.wrapping_neg();
            if slab.cold == 0 && slab.guard == Guard::Mprotect {
                result = slab.split(bit, budget);
                if result.is_err() {
                    self.list(at);
                    break;
                }
            } else if slab.cold == 0 {
                to_guard.push((at, bit, taken.len()));
            }
            slab.cold &= !bit;
            slab.bare &= !bit;
            taken.push(slab.slot(bit));
        }
        if let Err(error) = self.guard_all(to_guard, budget, taken) {
            result = Err(error);
        }
        if taken.len() > before { Ok(()) } else { result }
    }

    /// A slab that has a free stack, on the partial list.
    fn next_slab(&mut self) -> Option<usize> {
        while let Some(&at) = self.partial.last() {
            let slab = &mut self.slabs[at];
            if slab.cold | slab.bare != 0 && slab.bare != slab.all {
                return Some(at);
            }
            slab.is_partial_listed = false;
            self.partial.pop();
        }
        let at = self.empty.pop()?;
        // It is about to lose a stack (I2). Nothing is on the partial list, so neither is it.
        self.slabs[at].is_partial_listed = true;
        self.partial.push(at);
        Some(at)
    }

    /// Installs the guards of stacks that have been taken, named by slab, bit and place in `taken`;
    /// those that cannot have one are taken out again.
    fn guard_all(
        &mut self,
        stacks: Vec<(usize, u32, usize)>,
        budget: &mut Budget,
        taken: &mut Vec<&'static Slot>,
    ) -> Result<(), Error> {
        let guard = guard_size(self.size);
        let range = |slot: &Slot| Range::new(slot.low(), guard);
        let ranges: Vec<_> = stacks.iter().map(|&(.., at)| range(taken[at])).collect();
        // SAFETY: the stacks are ours (stack I1) and hold nothing.
        if ranges.is_empty() || unsafe { mem::guard_install_all(&ranges) }.is_ok() {
            return Ok(());
        }
        // Locked memory, since the region was reserved. From the last, as places move.
        let mut result = Ok(());
        for &(at, bit, place) in stacks.iter().rev() {
            let slab = &mut self.slabs[at];
            // SAFETY: as above.
            if unsafe { mem::guard_install(slab.slot(bit).low(), guard) }.is_ok() {
                continue;
            }
            if let Err(error) = slab.split(bit, budget) {
                result = Err(error);
                slab.bare |= bit;
                taken.swap_remove(place);
                self.list(at);
            }
        }
        result
    }

    /// Puts a slab that has a free stack on the list that it belongs to.
    fn list(&mut self, at: usize) {
        let slab = &mut self.slabs[at];
        if slab.bare == slab.all {
            self.empty.push(at);
        } else if !slab.is_partial_listed {
            slab.is_partial_listed = true;
            self.partial.push(at);
        }
    }

    /// Reserves address space for more stacks: fewer than usual if there is not enough, or if it
    /// counts for a limit on committed or locked memory.
    fn reserve(&mut self) -> Result<(), Error> {
        let mut count = (REGION_BYTES / self.size).clamp(1, REGION_STACKS);
        loop {
            match region(self.size, count) {
                Ok((start, guard)) => return self.add_region(start, count, guard),
                Err(error) if count == 1 => return Err(error),
                Err(_) => count /= 2,
            }
        }
    }

    fn add_region(&mut self, start: NonNull<u8>, count: usize, guard: Guard) -> Result<(), Error> {
        let stacks = u32::try_from(count).unwrap_or_default();
        let first = table::extend(stacks, |index, nth| {
            // SAFETY: within the reservation.
            let slot = Slot::new(index, unsafe { start.add(nth * self.size) }, self.size);
            slot.register();
            slot
        });
        let Some(first) = first else {
            // SAFETY: nothing knows of the reservation yet.
            unsafe { mem::release(start, count * self.size) };
            return Err(Error::StackLimit {
                limit: SLOTS_MAX,
                max_map_count: Budget::limit().1,
            });
        };
        let step = u32::try_from((SLAB_BYTES / self.size).max(1)).unwrap_or(1);
        self.regions.push(Region {
            first,
            slab: self.slabs.len(),
            step,
        });
        let from = self.slabs.len();
        for nth in (0..stacks).step_by(usize::try_from(step).unwrap_or(1)) {
            let all = u32::MAX >> (u32::BITS - step.min(stacks - nth));
            self.slabs.push(Slab {
                first: first + nth,
                all,
                bare: all,
                cold: 0,
                split: 0,
                guard,
                is_partial_listed: false,
            });
        }
        // In reverse, so that the region is used from its start.
        self.empty.extend((from..self.slabs.len()).rev());
        Ok(())
    }

    /// The slab of a slot, and the slot's bit in it.
    fn find(&self, slot: &Slot) -> (usize, u32) {
        let index = slot.index();
        let region = self.regions.partition_point(|at| at.first <= index) - 1;
        let region = &self.regions[region];
        let nth = index - region.first;
        let slab = region.slab + usize::try_from(nth / region.step).unwrap_or_default();
        (slab, 1 << (nth % region.step))
    }

    /// Takes stacks back; their memory is given to the system, and that of each slab that is not
    /// used any more whole.
    pub(super) fn give(&mut self, slots: &[&'static Slot], budget: &mut Budget) {
        for slot in slots {
            let (at, bit) = self.find(slot);
            debug_assert!((self.slabs[at].cold | self.slabs[at].bare) & bit == 0, "I1");
            self.slabs[at].cold |= bit;
            self.list(at);
        }
        let mut ranges = Vec::new();
        for slot in slots {
            let (at, bit) = self.find(slot);
            let slab = &mut self.slabs[at];
            if slab.cold & bit == 0 {
                continue; // With its slab, when another of it was looked at.
            }
            if slab.cold | slab.bare == slab.all {
                slab.renew(slab.all, budget);
                if slab.bare == slab.all {
                    self.empty.push(at);
                }
            } else {
                ranges.push(slot.below(0));
            }
        }
        // SAFETY: the stacks are free (stack I1, I3).
        _ = unsafe { mem::dont_need_all(&ranges) };
    }

    /// Makes room in the budget: no free stack keeps a guard that it counts.
    pub(super) fn give_guards_back(&mut self, budget: &mut Budget) {
        for at in 0..self.slabs.len() {
            let slab = &mut self.slabs[at];
            let was_empty = slab.bare == slab.all;
            while slab.cold & slab.split != 0 {
                let free = slab.cold & slab.split;
                slab.renew(free & free.wrapping_neg(), budget);
            }
            if slab.bare == slab.all && !was_empty {
                self.empty.push(at);
            }
        }
    }
}

/// Reserves a region and finds out what guards it can have.
fn region(size: usize, count: usize) -> Result<(NonNull<u8>, Guard), Error> {
    let len = size * count;
    let start = mem::reserve(len, size.min(SLAB_BYTES), Access::Read)?;
    // SAFETY: the reservation made above, which nothing knows of.
    let done = unsafe {
        // EINVAL: an older kernel, or memory that is locked (mlockall).
        if preferred_guard() == Guard::Mprotect
            || mem::guard_install(start, guard_size(size)).is_err()
        {
            return Ok((start, Guard::Mprotect));
        }
        mem::allow(start, len)
    };
    match done {
        Ok(()) => Ok((start, Guard::Install)),
        Err(error) => {
            // SAFETY: as above.
            unsafe { mem::release(start, len) };
            Err(error)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::stack::SIZE_DEFAULT;

    fn is_resident(slot: &Slot) -> bool {
        let page = mem::page_size();
        let mut resident = [0];
        // SAFETY: asks about the slot's top page.
        let done = unsafe {
            let top = slot.low().add(slot.size() - page);
            libc::mincore(top.as_ptr().cast(), page, resident.as_mut_ptr())
        };
        assert_eq!(done, 0);
        resident[0] & 1 == 1
    }

    fn touch(slots: &[&'static Slot]) {
        slots.iter().for_each(|slot| depth::mark(slot));
    }

    // SPEC C6
    #[test]
    fn the_mprotect_budget_is_half_of_what_is_left_of_max_map_count() {
        let (limit, max_map_count) = Budget::limit();
        assert_eq!(limit, (max_map_count - MAPPINGS_RESERVED) / 2);
        let mut budget = Budget { used: limit - 1 };
        assert!(budget.take().is_ok());
        assert!(budget.take().is_err());
    }

    // SPEC C6
    #[test]
    fn a_slab_is_made_anew_when_its_last_stack_comes_back() {
        let (mut slabs, mut budget, mut taken) = (Slabs::new(SIZE_DEFAULT), Budget::new(), vec![]);
        let step = SLAB_BYTES / SIZE_DEFAULT;
        slabs.take(step + 1, &mut budget, &mut taken).unwrap();
        assert_eq!(taken.len(), step + 1);
        assert_eq!(slabs.find(taken[0]).0, slabs.find(taken[step - 1]).0);
        assert_ne!(slabs.find(taken[0]).0, slabs.find(taken[step]).0);
        touch(&taken);
        slabs.give(&taken[..step - 1], &mut budget);
        let slab = |slabs: &Slabs| {
            let slab = &slabs.slabs[slabs.find(taken[0]).0];
            (slab.bare, slab.cold)
        };
        assert_eq!(slab(&slabs), (0, (1 << (step - 1)) - 1));
        assert!(taken[..step - 1].iter().all(|slot| !is_resident(slot)));
        assert!(is_resident(taken[step - 1]) && is_resident(taken[step]));
        slabs.give(&taken[step - 1..step], &mut budget);
        assert_eq!(slab(&slabs), ((1 << step) - 1, 0));
        assert!(!is_resident(taken[step - 1]) && is_resident(taken[step]));
        // What is partly used is filled first, then what is empty, and each is given out once.
        let mut again = vec![];
        slabs.take(2 * step, &mut budget, &mut again).unwrap();
        assert!(again.iter().all(|slot| !core::ptr::eq(*slot, taken[step])));
        assert_eq!(slabs.find(again[0]).0, slabs.find(taken[step]).0);
        again.sort_by_key(|slot| slot.index());
        again.dedup_by_key(|slot| slot.index());
        assert_eq!(again.len(), 2 * step);
        touch(&again);
    }

    // SPEC C6
    #[test]
    fn guards_that_the_budget_counts_are_given_back_one_by_one() {
        let (mut slabs, mut budget, mut taken) = (Slabs::new(SIZE_DEFAULT), Budget::new(), vec![]);
        let start = mem::reserve(SLAB_BYTES, SLAB_BYTES, Access::Read).unwrap();
        slabs
            .add_region(start, SLAB_BYTES / SIZE_DEFAULT, Guard::Mprotect)
            .unwrap();
        slabs.take(3, &mut budget, &mut taken).unwrap();
        assert_eq!(budget.used, 3);
        touch(&taken);
        slabs.give(&taken[..2], &mut budget);
        assert_eq!(budget.used, 3);
        slabs.give_guards_back(&mut budget);
        assert_eq!(budget.used, 1);
        slabs.take(1, &mut budget, &mut taken).unwrap();
        assert_eq!(budget.used, 2);
        touch(&taken[2..]);
        budget.used = Budget::limit().0;
        let error = slabs.take(1, &mut budget, &mut taken).unwrap_err();
        assert!(matches!(error, Error::StackLimit { .. }), "{error}");
        budget.used = 2;
        slabs.give(&taken[2..], &mut budget);
        assert_eq!(budget.used, 0);
        assert_eq!(slabs.empty.len(), 1);
    }
}
