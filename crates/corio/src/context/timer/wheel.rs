//! The armed timers, by deadline: a wheel for what is to come, a heap for what is due, and any can
//! be taken out by its handle.
//!
//! ```text
//!   Handle {index, generation} ──▶ entries[index]   payload, deadline, where it is
//!
//!   deadline   0 .......... base | base + 1 ................................. 2^64
//!              due: a heap       | slots: 11 levels of 64, each a list
//!              deferred: another |
//! ```
//!
//! A deadline is a number of eleven digits of six bits. An entry later than `base` is in the slot of
//! the first digit, from the top, in which its deadline differs from `base`: the digit's place is
//! the level, the digit the slot. So whatever is in a lower level is earlier than all of the higher
//! ones, and in a level lower slots are earlier.
//!
//! Arming puts an entry at the head of a list; cancelling only marks it, so that neither touches
//! another entry, which would be anywhere in memory. Marked ones are dropped when their slot is
//! looked at, and all of them once they are a quarter.
//!
//! When time comes to a slot, `base` moves there. If all of it is past and it holds few, they go to
//! the heap, which sorts them (SPEC T4: by deadline, then by age); else they are spread over the
//! levels below, at most eleven times in an entry's life. What is armed for `base` or earlier goes
//! to the heap at once. Nothing is rounded: deadlines keep their nanoseconds.
//!
//! A turn runs what was armed before it began; what its callbacks arm waits, however early its
//! deadline. So the turn keeps `next_sequence` as it was at its start and passes it to `pop_due`. An
//! entry that is due but too young would hide those below it: `pop_due` moves it to a second heap,
//! from where it comes back when a later turn (or a nested one) asks with a higher limit. Each entry
//! moves at most once there and once back in a turn, so that pop stays O(log n) also when every
//! callback arms in the past.
//!
//! Invariants
//! - I1. An entry with a payload is in one place, which it names: a slot's list, or at a position of
//!   a heap. One without is marked and still in a slot's list, or free.
//! - I2. What is in a slot is later than `base`, and that slot is `slot_of` its deadline.
//! - I3. What is in a heap is not later than `base`.
//! - I4. A handle is never reused: an entry's generation grows when it is freed, and an entry whose
//!   generation would wrap is not used again.

use super::heap::{self, Node};

/// Bits of a digit.
const BITS: u32 = 6;
/// Slots of a level.
const SLOTS: usize = 1 << BITS;
/// Digits of a deadline.
const LEVELS: usize = (u64::BITS.div_ceil(BITS)) as usize;

/// No entry.
const NONE: u32 = u32::MAX;
/// Places that are no slots.
const DUE: u32 = 1 << 16;
const DEFERRED: u32 = DUE + 1;
const FREE: u32 = DUE + 2;

/// How many of a slot go to the heap, or are looked at one by one.
const FEW: usize = 32;
/// How many are marked at least before all entries are looked at to drop them; few in tests, which
/// then do it often.
const MARKED_MIN: usize = if cfg!(test) { 8 } else { 1024 };

/// Names an entry of one wheel. Stale handles are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Handle {
    index: u32,
    generation: u32,
}

impl Handle {
    /// In one word, which is never all ones: an index stays below 2^31.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }

    /// What [`pack`](Self::pack) made.
    #[allow(clippy::cast_possible_truncation)] // Each half of the word is what is meant.
    pub(crate) fn unpack(packed: u64) -> Handle {
        Handle {
            index: (packed >> 32) as u32,
            generation: packed as u32,
        }
    }
}

#[derive(Debug)]
struct Entry<T> {
    deadline_ns: u64,
    sequence: u64,
    payload: Option<T>,
    generation: u32,
    /// A slot, or a heap (I1).
    place: u32,
    /// In a slot the next entry, or none; in a heap the position.
    position: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    base: u64,
    /// The first entry of each slot; empty until something is armed.
    slots: Box<[u32]>,
    /// For each level, which slots hold something.
    occupied: [u64; LEVELS],
    /// How many entries with a payload are in slots.
    in_slots: usize,
    /// How many are marked.
    marked: usize,
    due: Vec<Node>,
    deferred: Vec<Node>,
    /// Every deferred node's sequence is at least this.
    deferred_limit: u64,
    next_sequence: u64,
}

impl<T> Default for Wheel<T> {
    fn default() -> Wheel<T> {
        Wheel {
            entries: Vec::new(),
            free: Vec::new(),
            base: 0,
            slots: Box::default(),
            occupied: [0; LEVELS],
            in_slots: 0,
            marked: 0,
            due: Vec::new(),
            deferred: Vec::new(),
            deferred_limit: 0,
            next_sequence: 0,
        }
    }
}

impl<T> Wheel<T> {
    /// An empty wheel; allocates nothing.
    pub(crate) fn new() -> Wheel<T> {
        Wheel::default()
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.in_slots + self.due.len() + self.deferred.len()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sequence number that the next insertion gets: what a turn passes to `pop_due`.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Adds an entry.
    ///
    /// # Panics
    /// With 2^31 entries.
    pub(crate) fn insert(&mut self, deadline_ns: u64, payload: T) -> Handle {
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.add_entry(),
        };
        let entry = &mut self.entries[index as usize];
        entry.payload = Some(payload);
        let generation = entry.generation;
        self.arm(index, deadline_ns);
        Handle { index, generation }
    }

    /// Takes an entry out, with its deadline. `None` if it is gone already.
    pub(crate) fn remove(&mut self, handle: Handle) -> Option<(u64, T)> {
        let entry = self.get(handle)?;
        let (place, position, deadline_ns) = (entry.place, entry.position, entry.deadline_ns);
        if place >= DUE {
            self.take(place, position);
            return Some((deadline_ns, self.free_entry(handle.index)));
        }
        let payload = self.entries[handle.index as usize].payload.take()?;
        self.in_slots -= 1;
        self.marked += 1;
        if self.marked > MARKED_MIN.max(self.entries.len() / 4) {
            self.drop_marked();
        }
        Some((deadline_ns, payload))
    }

    /// Gives an entry another deadline and the youngest sequence number: removes it and inserts it
    /// again. `None` if it is gone.
    pub(crate) fn rearm(&mut self, handle: Handle, deadline_ns: u64) -> Option<Handle> {
        let (_, payload) = self.remove(handle)?;
        Some(self.insert(deadline_ns, payload))
    }

    /// An entry that is there.
    fn get(&self, handle: Handle) -> Option<&Entry<T>> {
        let entry = self.entries.get(handle.index as usize)?;
        let is_there = entry.generation == handle.generation && entry.payload.is_some();
        is_there.then_some(entry)
    }

    /// An entry's deadline. `None` if it is gone.
    pub(crate) fn deadline_of(&self, handle: Handle) -> Option<u64> {
        self.get(handle).map(|entry| entry.deadline_ns)
    }

    /// The earliest deadline of all. Spreads what a slot has too many of to look at each.
    pub(crate) fn peek_deadline(&mut self) -> Option<u64> {
        loop {
            let top = |heap: &[Node]| heap.first().map(|node| node.deadline_ns);
            match (top(&self.due), top(&self.deferred)) {
                (None, None) => {}
                (Some(a), Some(b)) => return Some(a.min(b)), // I3: before all that is in slots.
                (a, b) => return a.or(b),
            }
            let slot = self.first_slot()?;
            if let Some(deadline_ns) = self.earliest_of_few(slot) {
                return Some(deadline_ns);
            }
            self.spread(slot);
        }
    }

    /// Takes out the entry with the earliest deadline (of equal ones, the oldest) among those with
    /// a deadline not after `now_ns` and a sequence number below `sequence_limit`.
    pub(crate) fn pop_due(&mut self, now_ns: u64, sequence_limit: u64) -> Option<(u64, T)> {
        if !self.deferred.is_empty() && sequence_limit > self.deferred_limit {
            self.bring_back();
        }
        loop {
            if self.due.is_empty() {
                self.advance(now_ns);
            }
            let top = *self.due.first().filter(|top| top.deadline_ns <= now_ns)?;
            self.take(DUE, 0);
            if top.sequence < sequence_limit {
                return Some((top.deadline_ns, self.free_entry(top.index)));
            }
            if self.deferred.is_empty() || sequence_limit < self.deferred_limit {
                self.deferred_limit = sequence_limit;
            }
            self.push(DEFERRED, top);
        }
    }

    #[cold]
    fn bring_back(&mut self) {
        while let Some(node) = self.deferred.pop() {
            self.push(DUE, node);
        }
    }

    /// Moves `base` on until something is due, or the next slot is yet to come.
    fn advance(&mut self, now_ns: u64) {
        while self.due.is_empty()
            && let Some(slot) = self.first_slot()
        {
            let (first_ns, last_ns) = self.range_of(slot);
            if first_ns > now_ns {
                return;
            }
            if last_ns <= now_ns && self.earliest_of_few(slot).is_some() {
                self.base = last_ns;
                self.empty(slot, |wheel, index| wheel.push_due(index));
            } else {
                self.spread(slot);
            }
        }
    }

    /// Moves `base` to the beginning of the first slot, and what is in it to the levels below.
    fn spread(&mut self, slot: usize) {
        self.base = self.range_of(slot).0;
        self.empty(slot, |wheel, index| {
            let deadline_ns = wheel.entries[index as usize].deadline_ns;
            match wheel.slot_of(deadline_ns) {
                Some(slot) => wheel.link(index, slot),
                None => wheel.push_due(index),
            }
        });
    }

    /// Takes everything out of a slot, and hands it over.
    fn empty(&mut self, slot: usize, mut each: impl FnMut(&mut Self, u32)) {
        let mut at = core::mem::replace(&mut self.slots[slot], NONE);
        self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        while at != NONE {
            let entry = &self.entries[at as usize];
            let (next, is_marked) = (entry.position, entry.payload.is_none());
            if is_marked {
                self.marked -= 1;
                self.set_free(at);
            } else {
                self.in_slots -= 1;
                each(self, at);
            }
            at = next;
        }
    }

    /// Drops all that is marked, in the order of memory, which whatever is armed next then goes
    /// along. A quarter of all have been marked since it was done last.
    #[cold]
    fn drop_marked(&mut self) {
        self.slots.fill(NONE);
        self.occupied = [0; LEVELS];
        (self.in_slots, self.marked) = (0, 0);
        for at in (0..self.entries.len()).rev() {
            let entry = &self.entries[at];
            let (place, is_marked) = (entry.place, entry.payload.is_none());
            // `add_entry` keeps it below 2^31.
            #[allow(clippy::cast_possible_truncation)]
            let index = at as u32;
            match (place < DUE, is_marked) {
                (true, true) => self.set_free(index),
                (true, false) => self.link(index, place as usize),
                (false, _) => {}
            }
        }
    }

    /// The slot of the earliest, if there is any. Its first entry is not marked.
    fn first_slot(&mut self) -> Option<usize> {
        loop {
            let level = self.occupied.iter().position(|&occupied| occupied != 0)?;
            let slot = level * SLOTS + self.occupied[level].trailing_zeros() as usize;
            let first = self.slots[slot];
            let entry = &self.entries[first as usize];
            if entry.payload.is_some() {
                return Some(slot);
            }
            self.slots[slot] = entry.position;
            if entry.position == NONE {
                self.occupied[level] &= !(1 << (slot % SLOTS));
            }
            self.marked -= 1;
            self.set_free(first);
        }
    }

    /// The slot that a deadline belongs in; None if it is not later than `base`.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // Only the last digit is meant.
    fn slot_of(&self, deadline_ns: u64) -> Option<usize> {
        if deadline_ns <= self.base {
            return None;
        }
        let level = (deadline_ns ^ self.base).ilog2() / BITS;
        let digit = (deadline_ns >> (level * BITS)) as usize % SLOTS;
        Some(level as usize * SLOTS + digit)
    }

    /// The first and the last deadline of a slot.
    #[allow(clippy::cast_possible_truncation)] // There are eleven levels.
    fn range_of(&self, slot: usize) -> (u64, u64) {
        let shift = (slot / SLOTS) as u32 * BITS;
        let above = u64::MAX.checked_shl(shift + BITS).unwrap_or(0);
        let first_ns = self.base & above | ((slot % SLOTS) as u64) << shift;
        (first_ns, first_ns | ((1 << shift) - 1))
    }

    /// The earliest deadline in a slot, if that holds no more than a few.
    fn earliest_of_few(&self, slot: usize) -> Option<u64> {
        let mut earliest_ns = u64::MAX;
        let mut at = self.slots[slot];
        for _ in 0..FEW {
            let entry = &self.entries[at as usize];
            if entry.payload.is_some() {
                earliest_ns = earliest_ns.min(entry.deadline_ns);
            }
            at = entry.position;
            if at == NONE {
                return Some(earliest_ns);
            }
        }
        None
    }

    /// Puts an entry that is in no place where it belongs.
    #[inline]
    fn arm(&mut self, index: u32, deadline_ns: u64) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let entry = &mut self.entries[index as usize];
        entry.deadline_ns = deadline_ns;
        entry.sequence = sequence;
        match self.slot_of(deadline_ns) {
            Some(slot) => self.link(index, slot),
            None => self.push_due(index),
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // There are 704 slots.
    fn link(&mut self, index: u32, slot: usize) {
        if self.slots.is_empty() {
            self.slots = vec![NONE; LEVELS * SLOTS].into();
        }
        let next = core::mem::replace(&mut self.slots[slot], index);
        self.occupied[slot / SLOTS] |= 1 << (slot % SLOTS);
        let entry = &mut self.entries[index as usize];
        entry.place = slot as u32;
        entry.position = next;
        self.in_slots += 1;
    }

    fn push_due(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let node = Node {
            deadline_ns: entry.deadline_ns,
            sequence: entry.sequence,
            index,
        };
        self.push(DUE, node);
    }

    fn push(&mut self, which: u32, node: Node) {
        let entries = &mut self.entries;
        entries[node.index as usize].place = which;
        let heap = if which == DUE {
            &mut self.due
        } else {
            &mut self.deferred
        };
        let placed = |index: u32, position| entries[index as usize].position = position;
        heap::push(heap, placed, node);
    }

    /// Takes out what is at a position of a heap.
    fn take(&mut self, which: u32, position: u32) {
        let entries = &mut self.entries;
        let heap = if which == DUE {
            &mut self.due
        } else {
            &mut self.deferred
        };
        let placed = |index: u32, position| entries[index as usize].position = position;
        heap::take(heap, placed, position as usize);
    }

    #[cold]
    fn add_entry(&mut self) -> u32 {
        let index = u32::try_from(self.entries.len()).unwrap_or(1 << 31);
        assert!(
            index < 1 << 31,
            "a clock holds at most 2^31 timers: free some"
        );
        self.entries.push(Entry {
            deadline_ns: 0,
            sequence: 0,
            payload: None,
            generation: 0,
            place: FREE,
            position: NONE,
        });
        index
    }

    fn free_entry(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        let payload = entry
            .payload
            .take()
            .expect("I1: what is in a heap has a payload");
        self.set_free(index);
        payload
    }

    /// It is in no list and no heap any more.
    fn set_free(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.place = FREE;
        if let Some(generation) = entry.generation.checked_add(1) {
            entry.generation = generation;
            self.free.push(index);
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "wheel_tests.rs"]
mod tests;
