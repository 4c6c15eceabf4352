//! Flags of requests, and what block status reports.

use bitflags::bitflags;

bitflags! {
    /// How to write.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// Force unit access: the data is on stable storage when the write returns.
        const FUA = 1 << 0;
    }
}

bitflags! {
    /// How to zero.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ZeroFlags: u32 {
        /// Space may be given back (the range may become a hole).
        const MAY_UNMAP = 1 << 0;
        /// Fail with EOPNOTSUPP rather than write zero bytes one by one.
        const NO_FALLBACK = 1 << 1;
        /// Force unit access: the zeroes are on stable storage when the request returns.
        const FUA = 1 << 2;
    }
}

bitflags! {
    /// What is known of an extent. Nothing set: data.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ExtentFlags: u32 {
        /// No space is allocated.
        const HOLE = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
    }
}

/// A run of bytes of one kind, as [`Node::block_status`](crate::Node::block_status) reports it.
///
/// ```
/// use corio_block::{Extent, ExtentFlags, Length, Offset, memory};
///
/// let disk = memory::Options::new(Length(1 << 20)).open()?;
/// let mut map = Vec::new();
/// disk.block_status(Offset::ZERO, Length(1 << 20), 8, &mut map)?;
/// let hole = ExtentFlags::HOLE | ExtentFlags::ZERO;
/// assert_eq!(map, [Extent { len: 1 << 20, flags: hole }]);
/// # Ok::<(), corio_block::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long it is, in bytes.
    pub len: u64,
    /// Of which kind.
    pub flags: ExtentFlags,
}
