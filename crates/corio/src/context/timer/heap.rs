//! A 4-ary heap of the timers that are due, by deadline and then by age, out of which any can be
//! taken.
//!
//! Four children, because a level then costs about one cache line of keys, and half the levels of a
//! binary heap.
//!
//! Invariants
//! - I1. Whenever a node comes to another position, `placed` is told.

/// Children of a node.
pub(super) const ARITY: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node {
    // The order of the fields is the order of the heap; sequences differ, so that index never
    // counts.
    pub(super) deadline_ns: u64,
    pub(super) sequence: u64,
    /// Whose node it is.
    pub(super) index: u32,
}

/// Told of a node's new position (I1).
pub(super) trait Placed: FnMut(u32, u32) {}
impl<F: FnMut(u32, u32)> Placed for F {}

/// Writes a node to its place.
#[allow(clippy::cast_possible_truncation)] // The wheel keeps its entries below 2^31.
fn set(heap: &mut [Node], placed: &mut impl Placed, position: usize, node: Node) {
    heap[position] = node;
    placed(node.index, position as u32);
}

/// Adds a node.
pub(super) fn push(heap: &mut Vec<Node>, mut placed: impl Placed, node: Node) {
    heap.push(node);
    let position = heap.len() - 1;
    sift_up(heap, &mut placed, position, node);
}

/// Takes the node at `position` out.
pub(super) fn take(heap: &mut Vec<Node>, mut placed: impl Placed, position: usize) {
    let last = heap.pop().expect("I1: a place lies in its heap");
    if position == heap.len() {
        return;
    }
    if position > 0 && last < heap[(position - 1) / ARITY] {
        sift_up(heap, &mut placed, position, last);
    } else {
        sift_down(heap, &mut placed, position, last);
    }
}

/// Puts `node` in the hole at `position` or above it.
fn sift_up(heap: &mut [Node], placed: &mut impl Placed, mut position: usize, node: Node) {
    while position > 0 {
        let parent = (position - 1) / ARITY;
        if heap[parent] < node {
            break;
        }
        set(heap, placed, position, heap[parent]);
        position = parent;
    }
    set(heap, placed, position, node);
}

/// Puts `node` in the hole at `position` or below it.
fn sift_down(heap: &mut [Node], placed: &mut impl Placed, mut position: usize, node: Node) {
    loop {
        let first = position * ARITY + 1;
        let children = first..heap.len().min(first + ARITY);
        let Some(least) = children.min_by_key(|&child| heap[child]) else {
            break;
        };
        if node < heap[least] {
            break;
        }
        set(heap, placed, position, heap[least]);
        position = least;
    }
    set(heap, placed, position, node);
}
