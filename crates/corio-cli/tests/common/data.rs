//! Patterns, files and their sums.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// Splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// A seed that differs between runs. It is printed, so that a failing run can be had again.
pub(crate) fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |since| since.as_nanos());
    let seed = Random::new(u64::try_from(nanos & 0xffff_ffff_ffff).unwrap_or(0)).next();
    println!("seed {seed:#x}");
    seed
}

/// Writes `len` random bytes to a new file.
pub(crate) fn random_file(path: &Path, len: u64, seed: u64) {
    let mut random = Random::new(seed);
    let mut file = File::create(path).unwrap();
    let mut block = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let part = usize::try_from(left.min(MIB)).unwrap();
        random.fill(&mut block[..part]);
        file.write_all(&block[..part]).unwrap();
        left -= u64::try_from(part).unwrap();
    }
}

/// Makes a new file of `len` bytes that is one hole.
pub(crate) fn sparse_file(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

/// The sha256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut sum = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut block).unwrap();
        if n == 0 {
            return format!("{:x}", sum.finalize());
        }
        sum.update(&block[..n]);
    }
}

/// Asserts that two byte strings agree, naming the first place where they do not instead of
/// printing both.
#[track_caller]
pub(crate) fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if found != expected {
        let at = (0..found.len()).find(|&i| found[i] != expected[i]).unwrap();
        panic!(
            "{what}: byte {at} is {:#04x}, not {:#04x}",
            found[at], expected[at]
        );
    }
}
