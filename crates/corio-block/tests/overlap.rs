//! Requests that overlap in their blocks, from coroutines on two loops at once, lose no byte.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test patterns are bytes of counters"
)]

mod common;

use std::sync::Arc;

use common::{Disk, KINDS, Kind, contents};
use corio::IoThread;
use corio_block::{Length, Node, Offset, WriteFlags, ZeroFlags};

const WRITERS: u64 = 6;
const ROUNDS: u8 = 40;
/// Odd, so that each block holds stripes of several writers.
const STRIPE: u64 = 99;

/// Writes its stripes again and again, now as bytes, now as zeroes; the last round is bytes.
fn write_stripes(node: &Node, writer: u64, stripes: u64) {
    for round in 1..=ROUNDS {
        for stripe in (writer..stripes).step_by(usize::try_from(WRITERS).unwrap()) {
            let (offset, len) = (Offset(stripe * STRIPE), Length(STRIPE));
            if (u64::from(round) + stripe) % 5 == 0 && round != ROUNDS {
                node.write_zeroes(offset, len, ZeroFlags::MAY_UNMAP)
                    .unwrap();
            } else {
                let value = round ^ (stripe as u8);
                node.write_at(&[value; STRIPE as usize], offset, WriteFlags::empty())
                    .unwrap();
            }
        }
    }
}

// SPEC Q4
#[test]
fn overlapping_unaligned_writes_lose_no_byte() {
    for kind in KINDS {
        // With an odd end: the last stripes lie in the tail.
        let stripes = 61;
        let Some(disk) = Disk::new(kind, stripes * STRIPE) else {
            continue;
        };
        let loops = [0, 1].map(|_| IoThread::builder().spawn().unwrap());
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let node = disk.node.clone();
                let at = usize::from(writer % 2 == 1);
                loops[at]
                    .context()
                    .spawn(move || write_stripes(&node, writer, stripes))
            })
            .collect();
        for writer in writers {
            assert!(writer.join().is_ok(), "{kind:?}: a writer panicked");
        }
        let all = contents(&disk.node);
        for (stripe, bytes) in all.chunks_exact(STRIPE as usize).enumerate() {
            let value = ROUNDS ^ (stripe as u8);
            assert!(
                bytes.iter().all(|&b| b == value),
                "{kind:?}: stripe {stripe} lost bytes"
            );
        }
        assert_eq!(disk.node.in_flight(), 0);
    }
}

// An aligned write that falls between the read and the write of a read-modify-write would be undone
// by it.
#[test]
fn aligned_writes_are_not_undone_by_unaligned_neighbours() {
    for kind in [Kind::Direct, Kind::Blocks(512)] {
        let Some(disk) = Disk::new(kind, 64 << 10) else {
            continue;
        };
        let block = disk.node.limits().request_alignment;
        let loops = [0, 1].map(|_| IoThread::builder().spawn().unwrap());
        let (aligned, unaligned) = (disk.node.clone(), disk.node.clone());
        let one = loops[0].context().spawn(move || {
            let block = block as usize;
            let mut seen = vec![0; block];
            for round in 1..=200u8 {
                // Its first half is overwritten from the other side, its second half is ours.
                aligned
                    .write_at(&vec![round; block], Offset(0), WriteFlags::empty())
                    .unwrap();
                aligned.read_at(&mut seen, Offset(0)).unwrap();
                assert!(
                    seen[block / 2..].iter().all(|&b| b == round),
                    "{kind:?}: undone"
                );
            }
        });
        let other = loops[1].context().spawn(move || {
            for round in 0..200u8 {
                let half = vec![!round; block as usize / 2];
                unaligned
                    .write_at(&half, Offset(0), WriteFlags::empty())
                    .unwrap();
            }
        });
        assert!(one.join().is_ok() && other.join().is_ok());
    }
}

// A tail that is written while O_DIRECT writes the blocks next to it.
#[test]
fn tail_and_the_blocks_before_it_do_not_disturb_each_other() {
    const SIZE: u64 = (16 << 10) + 1001;
    let Some(disk) = Disk::new(Kind::Direct, SIZE) else {
        return;
    };
    let loops = [0, 1].map(|_| IoThread::builder().spawn().unwrap());
    let write = |node: Arc<Node>, from: u64, to: u64| {
        move || {
            for round in 1..=100u8 {
                let bytes = vec![round; usize::try_from(to - from).unwrap()];
                node.write_at(&bytes, Offset(from), WriteFlags::empty())
                    .unwrap();
                let mut back = vec![0; bytes.len()];
                node.read_at(&mut back, Offset(from)).unwrap();
                assert!(back == bytes, "round {round}, {from}..{to}");
            }
        }
    };
    // Block by block up to the tail's page, the blocks of that page, and the odd bytes.
    let ranges = [
        (0, 8 << 10),
        (8 << 10, 16 << 10),
        (16 << 10, (16 << 10) + 512),
        (SIZE - 489, SIZE),
    ];
    let writers: Vec<_> = ranges
        .iter()
        .enumerate()
        .map(|(i, &(from, to))| {
            loops[i % 2]
                .context()
                .spawn(write(disk.node.clone(), from, to))
        })
        .collect();
    for writer in writers {
        assert!(writer.join().is_ok());
    }
    disk.node.flush().unwrap();
    let file = std::fs::read(disk.path.as_ref().unwrap()).unwrap();
    assert_eq!(file.len() as u64, SIZE, "the file has grown");
    assert!(file.iter().all(|&byte| byte == 100));
}
