//! What a driver wants of the requests it is handed. The node sees to it; callers of the node may
//! send what they like and read the limits only to do better than that.

/// Sizes and alignments of a driver, all powers of two, in bytes.
///
/// [`Node`](crate::Node) serves any offset and length: what is not aligned it reads, modifies and
/// writes back. A caller that keeps to the limits saves that work.
///
/// ```
/// let disk = corio_block::memory::Options::new(corio_block::Length(1 << 20)).open()?;
/// assert_eq!(disk.limits().request_alignment, 1);
/// # Ok::<(), corio_block::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Offsets and lengths of reads, writes and zeroing are multiples of this, except that a
    /// request may end at the end of the disk. 1: any byte.
    pub request_alignment: u32,
    /// Buffers begin at multiples of this. 1: anywhere.
    pub memory_alignment: u32,
    /// The request size below which a request costs more per byte.
    pub preferred: u32,
    /// The longest read or write the driver is handed; longer ones are split by the node.
    pub max_transfer: u32,
    /// Zeroing requests are cut to multiples of this, the edges are written. A multiple of
    /// `request_alignment`.
    pub zero_alignment: u32,
    /// Discards are shrunk to multiples of this, the edges are kept. A multiple of
    /// `request_alignment`.
    pub discard_alignment: u32,
}

impl Limits {
    /// The longest single read or write handed to a driver unless it says less: far from what one
    /// system call takes at most (2 GiB less a page).
    pub const MAX_TRANSFER: u32 = 1 << 30;

    /// Limits of a driver that takes any byte.
    #[must_use]
    pub const fn bytes() -> Limits {
        Limits {
            request_alignment: 1,
            memory_alignment: 1,
            preferred: 4096,
            max_transfer: Self::MAX_TRANSFER,
            zero_alignment: 1,
            discard_alignment: 1,
        }
    }

    /// Limits of a driver that takes blocks of `alignment` bytes from memory aligned the same.
    ///
    /// # Panics
    ///
    /// If `alignment` is not a power of two.
    #[must_use]
    pub const fn blocks(alignment: u32) -> Limits {
        assert!(
            alignment.is_power_of_two(),
            "an alignment is a power of two: give 512 or 4096"
        );
        Limits {
            request_alignment: alignment,
            memory_alignment: alignment,
            preferred: if alignment > 4096 { alignment } else { 4096 },
            max_transfer: Self::MAX_TRANSFER,
            zero_alignment: alignment,
            discard_alignment: alignment,
        }
    }

    /// The first rule of this type that is broken, in words; `None` if all hold.
    pub(crate) fn broken_rule(&self) -> Option<&'static str> {
        let powers = [
            self.request_alignment,
            self.memory_alignment,
            self.preferred,
            self.max_transfer,
            self.zero_alignment,
            self.discard_alignment,
        ];
        if !powers.iter().all(|n| n.is_power_of_two()) {
            return Some("every limit is a power of two");
        }
        if self.request_alignment > MAX_ALIGNMENT || self.memory_alignment > MAX_ALIGNMENT {
            return Some("requests and memory are aligned to at most 64 KiB");
        }
        if self.max_transfer < MAX_ALIGNMENT {
            return Some("a driver takes at least 64 KiB at once");
        }
        if self.zero_alignment < self.request_alignment
            || self.discard_alignment < self.request_alignment
        {
            return Some("zero and discard alignment are multiples of the request alignment");
        }
        None
    }
}

/// The largest alignment the node pads to: pages of every architecture fit, and a padded request
/// stays far below a bounce buffer.
pub(crate) const MAX_ALIGNMENT: u32 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_limits_keep_the_rules() {
        assert_eq!(Limits::bytes().broken_rule(), None);
        for shift in 0..=16 {
            assert_eq!(Limits::blocks(1 << shift).broken_rule(), None);
        }
    }

    #[test]
    fn each_rule_is_checked() {
        let ok = Limits::blocks(512);
        for bad in [
            Limits {
                request_alignment: 3,
                ..ok
            },
            Limits {
                max_transfer: 0,
                ..ok
            },
            Limits {
                max_transfer: 4096,
                ..ok
            },
            Limits {
                zero_alignment: 256,
                ..ok
            },
            Limits {
                discard_alignment: 1,
                ..ok
            },
            Limits {
                memory_alignment: 1 << 17,
                ..ok
            },
        ] {
            assert!(bad.broken_rule().is_some(), "{bad:?}");
        }
    }
}
