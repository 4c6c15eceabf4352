//! Sizes as people write them: `4096`, `512M`, `10GiB`, `2GB`.
//!
//! `K`, `M`, `G`, `T`, `P`, `E` and `KiB`, `MiB`, .. are powers of 1024; `kB`, `MB`, .. powers of
//! 1000, as in coreutils. Letters in either case. Strict: whole numbers only, no sign, no blanks,
//! nothing that does not fit a file offset.

use std::fmt;

/// The largest size a file offset can express.
const SIZE_MAX: u64 = i64::MAX.unsigned_abs();

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadSize {
    /// Not digits with a known suffix.
    Garbage,
    /// Nothing can be served from an empty disk.
    Zero,
    /// Past the largest file offset.
    TooBig,
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Garbage => {
                "bad size: give a whole number of bytes, or one with K, M, G or T (powers of \
                 1024), as 512M or 10GiB"
            }
            Self::Zero => "bad size: must be more than 0",
            Self::TooBig => "bad size: must be less than 8E (2^63 bytes)",
        })
    }
}

impl std::error::Error for BadSize {}

/// Reads a size in bytes.
///
/// # Errors
/// [`BadSize`] says what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<u64, BadSize> {
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, suffix) = text.split_at(digits_len);
    if digits.is_empty() {
        return Err(BadSize::Garbage);
    }
    let unit_bytes = unit_bytes(suffix).ok_or(BadSize::Garbage)?;
    // All digits, so only too many of them can fail.
    let count: u64 = digits.parse().map_err(|_| BadSize::TooBig)?;
    match count.checked_mul(unit_bytes) {
        Some(0) => Err(BadSize::Zero),
        Some(size) if size <= SIZE_MAX => Ok(size),
        _ => Err(BadSize::TooBig),
    }
}

/// Bytes in one unit of `suffix`; `None` when it is not one.
fn unit_bytes(suffix: &str) -> Option<u64> {
    let suffix = suffix.to_ascii_lowercase();
    let (letter, base) = match suffix.as_bytes() {
        [] | [b'b'] => return Some(1),
        [letter] | [letter, b'i', b'b'] => (*letter, 1024u64),
        [letter, b'b'] => (*letter, 1000u64),
        _ => return None,
    };
    let power = match letter {
        b'k' => 1,
        b'm' => 2,
        b'g' => 3,
        b't' => 4,
        b'p' => 5,
        b'e' => 6,
        _ => return None,
    };
    Some(base.pow(power))
}

/// A size for people: exact, in the largest unit that leaves no remainder.
pub(crate) fn human(size: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = size;
    let mut unit = 0;
    while value >= 1024 && value.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_bytes_and_every_kind_of_suffix() {
        assert_eq!(parse("1"), Ok(1));
        assert_eq!(parse("513"), Ok(513));
        assert_eq!(parse("512b"), Ok(512));
        assert_eq!(parse("4k"), Ok(4096));
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("1G"), Ok(1 << 30));
        assert_eq!(parse("10GiB"), Ok(10 << 30));
        assert_eq!(parse("10gib"), Ok(10 << 30));
        assert_eq!(parse("2GB"), Ok(2_000_000_000));
        assert_eq!(parse("3kB"), Ok(3000));
        assert_eq!(parse("1T"), Ok(1 << 40));
        assert_eq!(parse("1P"), Ok(1 << 50));
        assert_eq!(parse("7E"), Ok(7 << 60));
    }

    #[test]
    fn the_largest_file_offset_is_the_limit() {
        assert_eq!(parse("9223372036854775807"), Ok(SIZE_MAX));
        assert_eq!(parse("9223372036854775808"), Err(BadSize::TooBig));
        assert_eq!(parse("8E"), Err(BadSize::TooBig));
        assert_eq!(parse("18446744073709551616"), Err(BadSize::TooBig));
        assert_eq!(parse("99999999999999999999999999G"), Err(BadSize::TooBig));
        assert_eq!(parse("18014398509481985K"), Err(BadSize::TooBig));
    }

    #[test]
    fn zero_is_refused_in_every_unit() {
        for text in ["0", "00", "0G", "0KiB"] {
            assert_eq!(parse(text), Err(BadSize::Zero), "{text}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        let texts = [
            "", "G", "-1", "+1", "1.5G", "1 G", " 1", "1 ", "1GG", "1Gi", "1iB", "1X", "0x10",
            "1e9", "ten", "1\n", "١", "1K1", "1KiBs",
        ];
        for text in texts {
            assert_eq!(parse(text), Err(BadSize::Garbage), "{text:?}");
        }
    }

    #[test]
    fn every_refusal_says_bad_size() {
        for bad in [BadSize::Garbage, BadSize::Zero, BadSize::TooBig] {
            assert!(bad.to_string().starts_with("bad size: "), "{bad}");
        }
    }

    #[test]
    fn human_sizes_are_exact() {
        assert_eq!(human(1), "1 bytes");
        assert_eq!(human(1 << 30), "1 GiB");
        assert_eq!(human((1 << 30) + 512), "1073742336 bytes");
        assert_eq!(human(1536), "1536 bytes");
        assert_eq!(human(3 << 20), "3 MiB");
        assert_eq!(human(1 << 60), "1 EiB");
    }
}
