//! The armed timers, by deadline: a 4-ary heap that can remove any entry by its handle.
//!
//! ```text
//!   Handle {index, generation} ──▶ entries[index]  payload, generation
//!                                  places[index]   where its node is ──▶ due / deferred
//!   node {deadline_ns, sequence, index}, smallest on top; children of i: 4i+1 ..= 4i+4
//! ```
//!
//! A turn runs what was armed before it began, in deadline order, then insertion order; what its
//! callbacks arm waits, however early its deadline (SPEC T4). So the turn keeps `next_sequence` as
//! it was at its start and passes it to `pop_due`. An entry that is due but too young would hide
//! those below it: `pop_due` moves it to a second heap, from where it comes back when a later turn
//! (or a nested one) asks with a higher limit. Each entry moves at most once there and once back in
//! a turn, so that insert, remove and pop stay O(log n) also when every callback arms in the past.
//!
//! Four children, because a level then costs about one cache line of keys, and half the levels of a
//! binary heap. Timing wheels arm faster, but give deadlines only in steps and T4's order only by
//! sorting.
//!
//! Invariants
//! - I1. `places[n.index]` is the place of node n, for every node of both heaps.
//! - I2. An entry has a payload exactly while a node has its index.
//! - I3. A handle is never reused: an entry's generation grows when it is freed, and an entry whose
//!   generation would wrap is not used again.

/// Children of a node.
const ARITY: usize = 4;

/// Bit of a place that tells the heap; the others are the position in it.
const DEFERRED: u32 = 1 << 31;

/// Names an entry of one heap. Stale handles are recognised.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    // The order of the fields is the order of the heap; sequences differ, so that index never
    // counts.
    deadline_ns: u64,
    sequence: u64,
    index: u32,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    payload: Option<T>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Heap<T> {
    entries: Vec<Entry<T>>,
    // Apart from the entries, so that sifting touches four bytes a node.
    places: Vec<u32>,
    free: Vec<u32>,
    due: Vec<Node>,
    deferred: Vec<Node>,
    // Every deferred node's sequence is at least this.
    deferred_limit: u64,
    next_sequence: u64,
}

impl<T> Default for Heap<T> {
    fn default() -> Heap<T> {
        Heap {
            entries: Vec::new(),
            places: Vec::new(),
            free: Vec::new(),
            due: Vec::new(),
            deferred: Vec::new(),
            deferred_limit: 0,
            next_sequence: 0,
        }
    }
}

impl<T> Heap<T> {
    /// An empty heap; allocates nothing.
    pub(crate) fn new() -> Heap<T> {
        Heap::default()
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.due.len() + self.deferred.len()
    }

    /// Whether there are none.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look inside"))]
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
        self.add_node(deadline_ns, index);
        Handle { index, generation }
    }

    /// Takes an entry out. `None` if it is gone already.
    pub(crate) fn remove(&mut self, handle: Handle) -> Option<T> {
        self.get(handle)?;
        self.remove_node(handle.index);
        Some(self.free_entry(handle.index))
    }

    /// Gives an entry another deadline and the youngest sequence number, as if it were removed and
    /// inserted again; the handle stays. False if it is gone.
    pub(crate) fn rearm(&mut self, handle: Handle, deadline_ns: u64) -> bool {
        if self.get(handle).is_none() {
            return false;
        }
        self.remove_node(handle.index);
        self.add_node(deadline_ns, handle.index);
        true
    }

    /// An entry's payload. `None` if it is gone.
    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        let entry = self.entries.get(handle.index as usize)?;
        entry
            .payload
            .as_ref()
            .filter(|_| entry.generation == handle.generation)
    }

    /// An entry's deadline. `None` if it is gone.
    pub(crate) fn deadline_of(&self, handle: Handle) -> Option<u64> {
        self.get(handle)?;
        let (deferred, position) = split(self.places[handle.index as usize]);
        let heap = if deferred { &self.deferred } else { &self.due };
        Some(heap[position].deadline_ns)
    }

    /// The earliest deadline of all.
    pub(crate) fn peek_deadline(&self) -> Option<u64> {
        let first = |heap: &[Node]| heap.first().map(|node| node.deadline_ns);
        match (first(&self.due), first(&self.deferred)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes out the entry with the earliest deadline (of equal ones, the oldest) among those with
    /// a deadline not after `now_ns` and a sequence number below `sequence_limit`.
    pub(crate) fn pop_due(&mut self, now_ns: u64, sequence_limit: u64) -> Option<(u64, T)> {
        if !self.deferred.is_empty() && sequence_limit > self.deferred_limit {
            self.bring_back();
        }
        loop {
            let top = *self.due.first().filter(|top| top.deadline_ns <= now_ns)?;
            self.remove_node(top.index);
            if top.sequence < sequence_limit {
                return Some((top.deadline_ns, self.free_entry(top.index)));
            }
            if self.deferred.is_empty() || sequence_limit < self.deferred_limit {
                self.deferred_limit = sequence_limit;
            }
            push(&mut self.deferred, &mut self.places, DEFERRED, top);
        }
    }

    #[cold]
    fn bring_back(&mut self) {
        while let Some(node) = self.deferred.pop() {
            push(&mut self.due, &mut self.places, 0, node);
        }
    }

    fn add_node(&mut self, deadline_ns: u64, index: u32) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let node = Node {
            deadline_ns,
            sequence,
            index,
        };
        push(&mut self.due, &mut self.places, 0, node);
    }

    fn remove_node(&mut self, index: u32) {
        let (deferred, position) = split(self.places[index as usize]);
        if deferred {
            take(&mut self.deferred, &mut self.places, DEFERRED, position);
        } else {
            take(&mut self.due, &mut self.places, 0, position);
        }
    }

    #[cold]
    fn add_entry(&mut self) -> u32 {
        let index = u32::try_from(self.entries.len()).unwrap_or(DEFERRED);
        assert!(
            index < DEFERRED,
            "a clock holds at most 2^31 timers: free some"
        );
        self.entries.push(Entry {
            generation: 0,
            payload: None,
        });
        self.places.push(0);
        index
    }

    fn free_entry(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        let payload = entry
            .payload
            .take()
            .expect("I2: a node's entry has a payload");
        if let Some(generation) = entry.generation.checked_add(1) {
            entry.generation = generation;
            self.free.push(index);
        }
        payload
    }
}

fn split(place: u32) -> (bool, usize) {
    (place & DEFERRED != 0, (place & !DEFERRED) as usize)
}

/// Writes a node to its place (I1).
fn set(heap: &mut [Node], places: &mut [u32], mark: u32, position: usize, node: Node) {
    heap[position] = node;
    // `add_entry` keeps positions below 2^31.
    #[allow(clippy::cast_possible_truncation)]
    let place = position as u32 | mark;
    places[node.index as usize] = place;
}

fn push(heap: &mut Vec<Node>, places: &mut [u32], mark: u32, node: Node) {
    heap.push(node);
    let position = heap.len() - 1;
    sift_up(heap, places, mark, position, node);
}

fn take(heap: &mut Vec<Node>, places: &mut [u32], mark: u32, position: usize) {
    let last = heap.pop().expect("I1: a place lies in its heap");
    if position == heap.len() {
        return;
    }
    if position > 0 && last < heap[(position - 1) / ARITY] {
        sift_up(heap, places, mark, position, last);
    } else {
        sift_down(heap, places, mark, position, last);
    }
}

/// Puts `node` in the hole at `position` or above it.
fn sift_up(heap: &mut [Node], places: &mut [u32], mark: u32, mut position: usize, node: Node) {
    while position > 0 {
        let parent = (position - 1) / ARITY;
        if heap[parent] < node {
            break;
        }
        set(heap, places, mark, position, heap[parent]);
        position = parent;
    }
    set(heap, places, mark, position, node);
}

/// Puts `node` in the hole at `position` or below it.
fn sift_down(heap: &mut [Node], places: &mut [u32], mark: u32, mut position: usize, node: Node) {
    loop {
        let first = position * ARITY + 1;
        let children = first..heap.len().min(first + ARITY);
        let Some(least) = children.min_by_key(|&child| heap[child]) else {
            break;
        };
        if node < heap[least] {
            break;
        }
        set(heap, places, mark, position, heap[least]);
        position = least;
    }
    set(heap, places, mark, position, node);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn pops_in_deadline_order_then_insertion_order() {
        // SPEC T4
        let mut heap = Heap::new();
        for (deadline_ns, name) in [(30, 'd'), (10, 'a'), (20, 'b'), (20, 'c'), (40, 'e')] {
            heap.insert(deadline_ns, name);
        }
        assert_eq!(heap.peek_deadline(), Some(10));
        let limit = heap.next_sequence();
        let popped: Vec<_> = core::iter::from_fn(|| heap.pop_due(30, limit)).collect();
        assert_eq!(popped, [(10, 'a'), (20, 'b'), (20, 'c'), (30, 'd')]);
        assert_eq!((heap.len(), heap.peek_deadline()), (1, Some(40)));
    }

    #[test]
    fn what_is_armed_in_a_turn_waits_for_the_next_even_in_the_past() {
        // SPEC T4
        let mut heap = Heap::new();
        heap.insert(10, 'a');
        heap.insert(20, 'b');
        let limit = heap.next_sequence();
        assert_eq!(heap.pop_due(100, limit), Some((10, 'a')));
        heap.insert(1, 'c');
        assert_eq!(heap.pop_due(100, limit), Some((20, 'b')));
        assert_eq!(heap.pop_due(100, limit), None);
        assert_eq!((heap.len(), heap.peek_deadline()), (1, Some(1)));
        let limit = heap.next_sequence();
        assert_eq!(heap.pop_due(100, limit), Some((1, 'c')));
        assert!(heap.is_empty());
    }

    #[test]
    fn nested_turn_sees_what_the_outer_turn_deferred() {
        // SPEC T4
        let mut heap = Heap::new();
        heap.insert(10, 'a');
        let outer = heap.next_sequence();
        let early = heap.insert(1, 'b');
        assert_eq!(heap.pop_due(100, outer), Some((10, 'a')));
        assert_eq!(heap.pop_due(100, outer), None);
        assert_eq!(heap.deadline_of(early), Some(1));
        heap.insert(2, 'c');
        let inner = heap.next_sequence();
        assert_eq!(heap.pop_due(1, inner), Some((1, 'b')));
        assert_eq!(heap.pop_due(1, inner), None);
        assert_eq!(heap.pop_due(100, outer), None);
        assert_eq!(heap.pop_due(100, inner), Some((2, 'c')));
    }

    #[test]
    fn handles_go_stale_with_their_entry() {
        let mut heap = Heap::new();
        let a = heap.insert(10, 'a');
        assert_eq!(heap.remove(a), Some('a'));
        let b = heap.insert(20, 'b');
        assert_eq!(a.index, b.index);
        assert_eq!((heap.get(a), heap.get(b)), (None, Some(&'b')));
        assert_eq!((heap.remove(a), heap.deadline_of(a)), (None, None));
        assert!(!heap.rearm(a, 5));
        assert!(heap.rearm(b, 5));
        assert_eq!(
            (heap.peek_deadline(), heap.deadline_of(b)),
            (Some(5), Some(5))
        );
    }

    #[test]
    fn an_entry_whose_generation_would_wrap_is_retired() {
        let mut heap = Heap::new();
        let a = heap.insert(10, 'a');
        heap.remove(a);
        heap.entries[0].generation = u32::MAX;
        let last = heap.insert(10, 'b');
        assert_eq!((last.index, heap.remove(last)), (0, Some('b')));
        assert_eq!(heap.insert(10, 'c').index, 1);
        assert_eq!(heap.get(last), None);
    }

    #[test]
    fn a_million_timers_come_out_sorted() {
        // SPEC T6
        const COUNT: u64 = 1_000_000;
        let mut heap = Heap::new();
        let mut handles: Vec<_> = (0..COUNT)
            .map(|i| heap.insert(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32, i))
            .collect();
        for handle in handles.drain(..).step_by(2) {
            assert!(heap.remove(handle).is_some());
        }
        let limit = heap.next_sequence();
        let mut last = (0, 0);
        let mut count = 0;
        while let Some(popped) = heap.pop_due(u64::MAX, limit) {
            assert!(last <= popped);
            last = popped;
            count += 1;
        }
        assert_eq!(count, COUNT / 2);
    }

    #[test]
    fn arming_in_the_past_from_every_callback_is_not_quadratic() {
        // SPEC T6: with a scan over the younger ones this would take minutes.
        const COUNT: u64 = 200_000;
        let mut heap = Heap::new();
        for i in 0..COUNT {
            heap.insert(COUNT + i, i);
        }
        let limit = heap.next_sequence();
        let mut count = 0;
        while heap.pop_due(u64::MAX, limit).is_some() {
            heap.insert(count, count);
            assert_eq!(heap.peek_deadline(), Some(0));
            count += 1;
        }
        assert_eq!((count, heap.len() as u64), (COUNT, COUNT));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64),
        Remove(usize),
        Rearm(usize, u64),
        Turn(u64),
        Pop,
        EndTurn,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..50u64).prop_map(Step::Insert),
            1 => any::<usize>().prop_map(Step::Remove),
            1 => (any::<usize>(), 0..50u64).prop_map(|(i, d)| Step::Rearm(i, d)),
            1 => (0..60u64).prop_map(Step::Turn),
            4 => Just(Step::Pop),
            1 => Just(Step::EndTurn),
        ]
    }

    fn check_invariants(heap: &Heap<u64>) {
        for (nodes, mark) in [(&heap.due, 0), (&heap.deferred, DEFERRED)] {
            for (position, node) in nodes.iter().enumerate() {
                assert_eq!(
                    heap.places[node.index as usize] as usize,
                    position | mark as usize
                );
                assert!(position == 0 || nodes[(position - 1) / ARITY] < *node);
                assert!(heap.entries[node.index as usize].payload.is_some());
            }
        }
        let used = heap
            .entries
            .iter()
            .filter(|entry| entry.payload.is_some())
            .count();
        assert_eq!(used, heap.len());
    }

    proptest! {
        #[test]
        fn behaves_as_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
            // SPEC T4
            let mut heap = Heap::new();
            let mut model: BTreeMap<(u64, u64), u64> = BTreeMap::new();
            let mut armed: Vec<(Handle, (u64, u64))> = Vec::new();
            // Turns in progress, the innermost last: (now, limit).
            let mut turns: Vec<(u64, u64)> = Vec::new();
            let mut name = 0;
            for step in steps {
                match step {
                    Step::Insert(deadline_ns) => {
                        let key = (deadline_ns, heap.next_sequence());
                        armed.push((heap.insert(deadline_ns, name), key));
                        model.insert(key, name);
                        name += 1;
                    }
                    Step::Remove(i) if !armed.is_empty() => {
                        let i = i % armed.len();
                        let (handle, key) = armed[i];
                        prop_assert_eq!(heap.remove(handle), model.remove(&key));
                    }
                    Step::Rearm(i, deadline_ns) if !armed.is_empty() => {
                        let i = i % armed.len();
                        let (handle, key) = armed[i];
                        let new_key = (deadline_ns, heap.next_sequence());
                        let old = model.remove(&key);
                        prop_assert_eq!(heap.rearm(handle, deadline_ns), old.is_some());
                        if let Some(name) = old {
                            model.insert(new_key, name);
                            armed[i].1 = new_key;
                        }
                    }
                    Step::Turn(now_ns) => turns.push((now_ns, heap.next_sequence())),
                    Step::EndTurn => drop(turns.pop()),
                    Step::Pop => if let Some(&(now_ns, limit)) = turns.last() {
                        let next = model.iter().find(|((deadline_ns, sequence), _)| {
                            *deadline_ns <= now_ns && *sequence < limit
                        });
                        let next = next.map(|(&key, &name)| (key, name));
                        let popped = heap.pop_due(now_ns, limit);
                        prop_assert_eq!(popped, next.map(|(key, name)| (key.0, name)));
                        if let Some((key, _)) = next {
                            model.remove(&key);
                        }
                    },
                    Step::Remove(_) | Step::Rearm(..) => {}
                }
                check_invariants(&heap);
                prop_assert_eq!(heap.len(), model.len());
                prop_assert_eq!(heap.peek_deadline(), model.keys().next().map(|key| key.0));
            }
        }
    }
}
