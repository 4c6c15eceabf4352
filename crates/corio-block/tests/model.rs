//! Nodes of every kind against a model: a vector of bytes. SPEC Q4.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test patterns are bytes of counters"
)]

mod common;

use common::{Disk, ENGINES, KINDS, Kind, contents, in_coroutine};
use corio_block::{Error, ExtentFlags, Length, Node, Offset, WriteFlags, ZeroFlags};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Read {
        at: u64,
        len: u64,
    },
    TryRead {
        at: u64,
        len: u64,
    },
    Write {
        at: u64,
        len: u64,
        fill: u8,
        fua: bool,
    },
    Zero {
        at: u64,
        len: u64,
        flags: ZeroFlags,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Status {
        at: u64,
        len: u64,
        max: usize,
    },
    Cache {
        at: u64,
        len: u64,
    },
    Flush,
}

/// Ranges of all sizes, many of them near block boundaries and near the end.
fn range(size: u64) -> impl Strategy<Value = (u64, u64)> {
    let edge =
        (0..=size / 512, -3i64..=3).prop_map(|(block, by)| (block * 512).saturating_add_signed(by));
    let at = prop_oneof![0..=size, edge, Just(0), Just(size)].prop_map(move |at| at.min(size));
    let len = prop_oneof![1 => Just(0), 4 => 1u64..1100, 2 => 0..=size, 2 => Just(u64::MAX)];
    (at, len).prop_map(move |(at, len)| (at, len.min(size - at)))
}

fn step(size: u64) -> impl Strategy<Value = Step> {
    let zero_flags = (0u32..8).prop_map(ZeroFlags::from_bits_truncate);
    prop_oneof![
        3 => range(size).prop_map(|(at, len)| Step::Read { at, len }),
        1 => range(size).prop_map(|(at, len)| Step::TryRead { at, len }),
        4 => (range(size), 1u8.., any::<bool>())
            .prop_map(|((at, len), fill, fua)| Step::Write { at, len, fill, fua }),
        2 => (range(size), zero_flags)
            .prop_map(|((at, len), flags)| Step::Zero { at, len, flags }),
        1 => range(size).prop_map(|(at, len)| Step::Discard { at, len }),
        1 => (range(size), 1usize..6).prop_map(|((at, len), max)| Step::Status { at, len, max }),
        1 => range(size).prop_map(|(at, len)| Step::Cache { at, len }),
        1 => Just(Step::Flush),
    ]
}

fn history() -> impl Strategy<Value = (u64, Vec<Step>)> {
    prop_oneof![
        Just(1),
        Just(511),
        Just(512),
        Just(4096),
        Just(4097),
        Just(10_000),
        Just(70_001),
        // More than one bounce buffer.
        Just((2 << 20) + 700),
    ]
    .prop_flat_map(|size| (Just(size), prop::collection::vec(step(size), 1..24)))
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// Bytes that differ from place to place, none of them zero.
fn pattern(len: u64, fill: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i % 251) as u8 ^ fill)
        .map(|b| b.max(1))
        .collect()
}

fn apply(node: &Node, model: &mut [u8], step: &Step) {
    match *step {
        Step::Read { at, len } => {
            let mut buf = vec![0xee; usize_of(len)];
            node.read_at(&mut buf, Offset(at)).unwrap();
            assert!(buf == model[usize_of(at)..][..buf.len()], "{step:?}");
        }
        Step::TryRead { at, len } => {
            let mut buf = vec![0xee; usize_of(len)];
            if node.try_read_at(&mut buf, Offset(at)).unwrap() {
                assert!(buf == model[usize_of(at)..][..buf.len()], "{step:?}");
            }
        }
        Step::Write { at, len, fill, fua } => {
            let buf = pattern(len, fill);
            let flags = if fua {
                WriteFlags::FUA
            } else {
                WriteFlags::empty()
            };
            node.write_at(&buf, Offset(at), flags).unwrap();
            model[usize_of(at)..][..buf.len()].copy_from_slice(&buf);
        }
        Step::Zero { at, len, flags } => match node.write_zeroes(Offset(at), Length(len), flags) {
            Ok(()) => model[usize_of(at)..][..usize_of(len)].fill(0),
            Err(Error::NoFastZero { .. }) => assert!(flags.contains(ZeroFlags::NO_FALLBACK)),
            Err(error) => panic!("{step:?}: {error}"),
        },
        Step::Discard { at, len } => {
            node.discard(Offset(at), Length(len)).unwrap();
            // What was discarded is as it was, or zero; the rest is as it was.
            let now = contents(node);
            for (i, (byte, old)) in now.iter().zip(&*model).enumerate() {
                let inside = (usize_of(at)..usize_of(at + len)).contains(&i);
                assert!(byte == old || inside && *byte == 0, "{step:?}: byte {i}");
            }
            model.copy_from_slice(&now);
        }
        Step::Status { at, len, max } => check_status(node, model, (at, len), max),
        Step::Cache { at, len } => node.cache(Offset(at), Length(len)).unwrap(),
        Step::Flush => node.flush().unwrap(),
    }
}

fn check_status(node: &Node, model: &[u8], (at, len): (u64, u64), max: usize) {
    let mut map = Vec::new();
    node.block_status(Offset(at), Length(len), max, &mut map)
        .unwrap();
    assert!(map.len() <= max);
    assert!(map.iter().all(|e| e.len > 0));
    assert!(map.windows(2).all(|pair| pair[0].flags != pair[1].flags));
    let covered: u64 = map.iter().map(|e| e.len).sum();
    assert!(covered <= len);
    assert!(
        covered == len || map.len() == max,
        "only a full map may end early"
    );
    let mut from = at;
    for extent in map {
        let bytes = &model[usize_of(from)..][..usize_of(extent.len)];
        if extent.flags.contains(ExtentFlags::ZERO) {
            assert!(
                bytes.iter().all(|&b| b == 0),
                "data reported as zero at {from}"
            );
        }
        from += extent.len;
        let alignment = u64::from(node.limits().request_alignment);
        if at % alignment == 0 && from < at + len {
            assert_eq!(from % alignment, 0, "an extent ends within a block");
        }
    }
}

fn check_history(kind: Kind, size: u64, steps: &[Step]) {
    let Some(disk) = Disk::new(kind, size) else {
        return;
    };
    let mut model = vec![0; usize_of(size)];
    for step in steps {
        apply(&disk.node, &mut model, step);
    }
    assert!(
        contents(&disk.node) == model,
        "the disk differs from the model"
    );
    assert_eq!(disk.node.in_flight(), 0);
    if let Some(path) = &disk.path {
        disk.node.flush().unwrap();
        // Through the page cache, so that both ways to the file are seen to agree; and to the byte.
        assert!(
            std::fs::read(path).unwrap() == model,
            "the file differs from the model"
        );
    }
}

fn check_on_engines(kind: Kind, size: u64, steps: &[Step]) {
    for engine in ENGINES {
        let steps = steps.to_vec();
        in_coroutine(engine, move || check_history(kind, size, &steps));
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn memory_disk_is_a_vector_of_bytes((size, steps) in history()) {
        check_on_engines(Kind::Memory, size, &steps);
    }

    #[test]
    fn cached_file_is_a_vector_of_bytes((size, steps) in history()) {
        check_on_engines(Kind::Writeback, size, &steps);
    }

    #[test]
    fn direct_file_is_a_vector_of_bytes((size, steps) in history()) {
        check_on_engines(Kind::Direct, size, &steps);
    }

    #[test]
    fn disk_of_blocks_is_a_vector_of_bytes((size, steps) in history()) {
        for alignment in [512, 4096] {
            check_on_engines(Kind::Blocks(alignment), size, &steps);
        }
    }
}

// Plain threads may use a node, too; they block.
#[test]
fn nodes_work_without_a_loop() {
    for kind in KINDS {
        let steps = [
            Step::Write {
                at: 100,
                len: 5000,
                fill: 3,
                fua: true,
            },
            Step::Zero {
                at: 600,
                len: 700,
                flags: ZeroFlags::MAY_UNMAP,
            },
            Step::Write {
                at: 9_999,
                len: 1,
                fill: 9,
                fua: false,
            },
            Step::Read { at: 0, len: 10_000 },
            Step::Status {
                at: 0,
                len: 10_000,
                max: 5,
            },
            Step::Flush,
        ];
        check_history(kind, 10_000, &steps);
    }
}

// Longer than a bounce buffer, than what memory serves at once, and odd at both ends.
#[test]
fn long_unaligned_requests_are_served_whole() {
    for kind in KINDS {
        let steps = [
            Step::Write {
                at: 3,
                len: 5 << 20,
                fill: 1,
                fua: false,
            },
            Step::Read {
                at: 1,
                len: (5 << 20) + 9,
            },
            Step::Zero {
                at: 1001,
                len: 3 << 20,
                flags: ZeroFlags::empty(),
            },
            Step::Read {
                at: 0,
                len: (6 << 20) + 5,
            },
        ];
        check_on_engines(kind, (6 << 20) + 5, &steps);
    }
}
