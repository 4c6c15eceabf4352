//! Requests that overlap in their blocks, from coroutines on two loops at once, lose no byte.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test patterns are bytes of counters"
)]

mod common;

use std::sync::Arc;

use common::{Disk, ENGINES, KINDS, Kind, contents, io_thread};
use corio::engine::EngineChoice;
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

fn check_stripes(kind: Kind, engine: EngineChoice) {
    // With an odd end: the last stripes lie in the tail.
    let stripes = 61;
    let Some(disk) = Disk::new(kind, stripes * STRIPE) else {
        return;
    };
    let loops = [engine, engine].map(io_thread);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let node = disk.node.clone();
            let home = loops[usize::from(writer % 2 == 1)].context();
            home.spawn(move || write_stripes(&node, writer, stripes))
        })
        .collect();
    for writer in writers {
        assert!(writer.join().is_ok(), "{kind:?}: a writer panicked");
    }
    let all = contents(&disk.node);
    for (stripe, bytes) in all.chunks_exact(STRIPE as usize).enumerate() {
        let whole = bytes.iter().all(|&b| b == ROUNDS ^ (stripe as u8));
        assert!(whole, "{kind:?}, {engine:?}: stripe {stripe} lost bytes");
    }
    assert_eq!(disk.node.in_flight(), 0);
}

// SPEC Q4
#[test]
fn overlapping_unaligned_writes_lose_no_byte() {
    for kind in KINDS {
        for engine in ENGINES {
            check_stripes(kind, engine);
        }
    }
}

fn check_neighbours(kind: Kind, engine: EngineChoice) {
    let Some(disk) = Disk::new(kind, 64 << 10) else {
        return;
    };
    let block = disk.node.limits().request_alignment as usize;
    let loops = [engine, engine].map(io_thread);
    let (aligned, unaligned) = (disk.node.clone(), disk.node.clone());
    let one = loops[0].context().spawn(move || {
        let mut seen = vec![0; block];
        for round in 1..=200u8 {
            // Its first half is overwritten from the other side, its second half is ours.
            let bytes = vec![round; block];
            aligned
                .write_at(&bytes, Offset(0), WriteFlags::empty())
                .unwrap();
            aligned.read_at(&mut seen, Offset(0)).unwrap();
            let kept = seen[block / 2..].iter().all(|&b| b == round);
            assert!(kept, "{kind:?}, {engine:?}: undone");
        }
    });
    let other = loops[1].context().spawn(move || {
        for round in 0..200u8 {
            let half = vec![!round; block / 2];
            unaligned
                .write_at(&half, Offset(0), WriteFlags::empty())
                .unwrap();
        }
    });
    assert!(one.join().is_ok() && other.join().is_ok());
}

// An aligned write that falls between the read and the write of a read-modify-write would be undone
// by it. SPEC Q4
#[test]
fn aligned_writes_are_not_undone_by_unaligned_neighbours() {
    for kind in [Kind::Direct, Kind::Blocks(512)] {
        for engine in ENGINES {
            check_neighbours(kind, engine);
        }
    }
}

fn check_tail(engine: EngineChoice) {
    const SIZE: u64 = (16 << 10) + 1001;
    let Some(disk) = Disk::new(Kind::Direct, SIZE) else {
        return;
    };
    let loops = [engine, engine].map(io_thread);
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

// A tail that is written while O_DIRECT writes the blocks next to it: were they to share a page,
// data or the next flush would be lost.
#[test]
fn tail_and_the_blocks_before_it_do_not_disturb_each_other() {
    for engine in ENGINES {
        check_tail(engine);
    }
}
