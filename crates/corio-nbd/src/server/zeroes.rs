//! Data that is nothing but zeroes, and so can be told instead of sent.

/// Bytes that are looked at before the next branch: enough for the compiler to use vectors.
const BLOCK_BYTES: usize = 128;

/// Whether there are only zeroes.
///
/// Ordinary data is told by its first bytes, in a nanosecond; zeroes are read at the memory's speed
/// and then not sent, which is worth more.
#[inline]
pub(super) fn only_zeroes(data: &[u8]) -> bool {
    match data.first_chunk() {
        Some(&first) if u64::from_ne_bytes(first) != 0 => false,
        _ => only_zeroes_to_the_end(data),
    }
}

/// Out of line, so that the path of a cached READ stays short.
#[inline(never)]
fn only_zeroes_to_the_end(data: &[u8]) -> bool {
    let (blocks, rest) = data.as_chunks::<BLOCK_BYTES>();
    let is_zero = |bytes: &[u8]| bytes.iter().fold(0, |bits, byte| bits | byte) == 0;
    blocks.iter().all(|block| is_zero(block)) && is_zero(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_anywhere_is_found() {
        for len in [0, 1, 7, 8, 9, 127, 128, 129, 256, 1000] {
            let mut data = vec![0; len];
            assert!(only_zeroes(&data), "{len}");
            for at in 0..len {
                for bit in [1, 0x80] {
                    data[at] = bit;
                    assert!(!only_zeroes(&data), "byte {at} of {len}");
                }
                data[at] = 0;
            }
        }
    }
}
