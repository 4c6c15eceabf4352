//! What is the same of a wheel and of a sorted map, and what is not.

use super::*;
use crate::context::timer::heap::ARITY;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn pops_in_deadline_order_then_insertion_order() {
    // SPEC T4
    let mut wheel = Wheel::new();
    for (deadline_ns, name) in [(30, 'd'), (10, 'a'), (20, 'b'), (20, 'c'), (40, 'e')] {
        wheel.insert(deadline_ns, name);
    }
    assert_eq!(wheel.peek_deadline(), Some(10));
    let limit = wheel.next_sequence();
    let popped: Vec<_> = core::iter::from_fn(|| wheel.pop_due(30, limit)).collect();
    assert_eq!(popped, [(10, 'a'), (20, 'b'), (20, 'c'), (30, 'd')]);
    assert_eq!((wheel.len(), wheel.peek_deadline()), (1, Some(40)));
}

#[test]
fn what_is_armed_in_a_turn_waits_for_the_next_even_in_the_past() {
    // SPEC T4
    let mut wheel = Wheel::new();
    wheel.insert(10, 'a');
    wheel.insert(20, 'b');
    let limit = wheel.next_sequence();
    assert_eq!(wheel.pop_due(100, limit), Some((10, 'a')));
    wheel.insert(1, 'c');
    assert_eq!(wheel.pop_due(100, limit), Some((20, 'b')));
    assert_eq!(wheel.pop_due(100, limit), None);
    assert_eq!((wheel.len(), wheel.peek_deadline()), (1, Some(1)));
    let limit = wheel.next_sequence();
    assert_eq!(wheel.pop_due(100, limit), Some((1, 'c')));
    assert!(wheel.is_empty());
}

#[test]
fn nested_turn_sees_what_the_outer_turn_deferred() {
    // SPEC T4
    let mut wheel = Wheel::new();
    wheel.insert(10, 'a');
    let outer = wheel.next_sequence();
    let early = wheel.insert(1, 'b');
    assert_eq!(wheel.pop_due(100, outer), Some((10, 'a')));
    assert_eq!(wheel.pop_due(100, outer), None);
    assert_eq!(wheel.deadline_of(early), Some(1));
    wheel.insert(2, 'c');
    let inner = wheel.next_sequence();
    assert_eq!(wheel.pop_due(1, inner), Some((1, 'b')));
    assert_eq!(wheel.pop_due(1, inner), None);
    assert_eq!(wheel.pop_due(100, outer), None);
    assert_eq!(wheel.pop_due(100, inner), Some((2, 'c')));
}

#[test]
fn handles_go_stale_with_their_entry() {
    let mut wheel = Wheel::new();
    let a = wheel.insert(10, 'a');
    assert_eq!(wheel.remove(a), Some((10, 'a')));
    let b = wheel.insert(20, 'b');
    assert_ne!(a, b);
    assert_eq!(
        (wheel.deadline_of(a), wheel.deadline_of(b)),
        (None, Some(20))
    );
    assert_eq!((wheel.remove(a), wheel.deadline_of(a)), (None, None));
    assert_eq!(wheel.rearm(a, 5), None);
    let b = wheel.rearm(b, 5).unwrap();
    assert_eq!(
        (wheel.peek_deadline(), wheel.deadline_of(b)),
        (Some(5), Some(5))
    );
}

#[test]
fn an_entry_whose_generation_would_wrap_is_retired() {
    let mut wheel = Wheel::new();
    let a = wheel.insert(0, 'a');
    wheel.remove(a);
    wheel.entries[0].generation = u32::MAX;
    let last = wheel.insert(0, 'b');
    assert_eq!((last.index, wheel.remove(last)), (0, Some((0, 'b'))));
    assert_eq!(wheel.insert(0, 'c').index, 1);
    assert_eq!(wheel.deadline_of(last), None);
}

// SPEC T6: what is cancelled takes no room for ever, nor time again and again.
#[test]
fn what_is_cancelled_is_dropped_in_time() {
    let mut wheel = Wheel::new();
    let kept: Vec<_> = (0..100).map(|i| wheel.insert(1_000_000 + i, i)).collect();
    for i in 0..1_000_000 {
        let handle = wheel.insert(1_000_000 + i % 5_000, i);
        assert_eq!(wheel.remove(handle), Some((1_000_000 + i % 5_000, i)));
        assert_eq!(wheel.peek_deadline(), Some(1_000_000));
    }
    assert!(wheel.entries.len() <= 2 * (MARKED_MIN + kept.len()));
    assert_eq!(wheel.len(), kept.len());
}

#[test]
fn a_million_timers_come_out_sorted() {
    // SPEC T6
    const COUNT: u64 = 1_000_000;
    let mut wheel = Wheel::new();
    let mut handles: Vec<_> = (0..COUNT)
        .map(|i| wheel.insert(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32, i))
        .collect();
    for handle in handles.drain(..).step_by(2) {
        assert!(wheel.remove(handle).is_some());
    }
    let limit = wheel.next_sequence();
    let mut last = (0, 0);
    let mut count = 0;
    while let Some(popped) = wheel.pop_due(u64::MAX, limit) {
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
    let mut wheel = Wheel::new();
    for i in 0..COUNT {
        wheel.insert(COUNT + i, i);
    }
    let limit = wheel.next_sequence();
    let mut count = 0;
    while wheel.pop_due(u64::MAX, limit).is_some() {
        wheel.insert(count, count);
        assert_eq!(wheel.peek_deadline(), Some(0));
        count += 1;
    }
    assert_eq!((count, wheel.len() as u64), (COUNT, COUNT));
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

/// Near each other, far from each other, and at the borders of slots.
fn deadline() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..50u64,
        2 => (0..8u32, 0..66u64).prop_map(|(level, digit)| digit << (level * BITS)),
        2 => (0..8u32, 1..66u64).prop_map(|(level, digit)| (digit << (level * BITS)) - 1),
        1 => 0..u64::MAX,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => deadline().prop_map(Step::Insert),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => (any::<usize>(), deadline()).prop_map(|(i, d)| Step::Rearm(i, d)),
        1 => deadline().prop_map(Step::Turn),
        4 => Just(Step::Pop),
        1 => Just(Step::EndTurn),
    ]
}

fn check_invariants(wheel: &Wheel<u64>) {
    for (nodes, which) in [(&wheel.due, DUE), (&wheel.deferred, DEFERRED)] {
        for (position, node) in nodes.iter().enumerate() {
            let entry = &wheel.entries[node.index as usize];
            assert_eq!((entry.place, entry.position as usize), (which, position));
            assert_eq!(entry.deadline_ns, node.deadline_ns);
            assert!(position == 0 || nodes[(position - 1) / ARITY] < *node);
            assert!(entry.payload.is_some());
        }
    }
    let mut in_slots = [0; 2];
    for (slot, &first) in wheel.slots.iter().enumerate() {
        let occupied = wheel.occupied[slot / SLOTS] >> (slot % SLOTS) & 1 == 1;
        assert_eq!(occupied, first != NONE);
        let mut at = first;
        while at != NONE {
            let entry = &wheel.entries[at as usize];
            assert_eq!(entry.place as usize, slot);
            assert_eq!(wheel.slot_of(entry.deadline_ns), Some(slot));
            in_slots[usize::from(entry.payload.is_none())] += 1;
            at = entry.position;
        }
    }
    assert_eq!(in_slots, [wheel.in_slots, wheel.marked]);
    let used = wheel.entries.iter().filter(|entry| entry.payload.is_some());
    assert_eq!(used.count(), wheel.len());
}

proptest! {
    #[test]
    fn behaves_as_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
        // SPEC T4
        let mut wheel = Wheel::new();
        let mut model: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let mut armed: Vec<(Handle, (u64, u64))> = Vec::new();
        // Turns in progress, the innermost last: (now, limit).
        let mut turns: Vec<(u64, u64)> = Vec::new();
        let mut name = 0;
        for step in steps {
            match step {
                Step::Insert(deadline_ns) => {
                    let key = (deadline_ns, wheel.next_sequence());
                    armed.push((wheel.insert(deadline_ns, name), key));
                    model.insert(key, name);
                    name += 1;
                }
                Step::Remove(i) if !armed.is_empty() => {
                    let i = i % armed.len();
                    let (handle, key) = armed[i];
                    let removed = wheel.remove(handle);
                    prop_assert_eq!(removed, model.remove(&key).map(|name| (key.0, name)));
                }
                Step::Rearm(i, deadline_ns) if !armed.is_empty() => {
                    let i = i % armed.len();
                    let (handle, key) = armed[i];
                    let new_key = (deadline_ns, wheel.next_sequence());
                    let old = model.remove(&key);
                    let rearmed = wheel.rearm(handle, deadline_ns);
                    prop_assert_eq!(rearmed.is_some(), old.is_some());
                    armed[i].0 = rearmed.unwrap_or(handle);
                    if let Some(name) = old {
                        model.insert(new_key, name);
                        armed[i].1 = new_key;
                    }
                }
                Step::Turn(now_ns) => turns.push((now_ns, wheel.next_sequence())),
                Step::EndTurn => drop(turns.pop()),
                Step::Pop => if let Some(&(now_ns, limit)) = turns.last() {
                    let next = model.iter().find(|((deadline_ns, sequence), _)| {
                        *deadline_ns <= now_ns && *sequence < limit
                    });
                    let next = next.map(|(&key, &name)| (key, name));
                    let popped = wheel.pop_due(now_ns, limit);
                    prop_assert_eq!(popped, next.map(|(key, name)| (key.0, name)));
                    if let Some((key, _)) = next {
                        model.remove(&key);
                    }
                },
                Step::Remove(_) | Step::Rearm(..) => {}
            }
            check_invariants(&wheel);
            prop_assert_eq!(wheel.len(), model.len());
            prop_assert_eq!(wheel.peek_deadline(), model.keys().next().map(|key| key.0));
        }
    }
}
