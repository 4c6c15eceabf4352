//! Block nodes on [`corio`]: disks that coroutines of any thread read and write.
//!
//! A [`Node`] is a disk. It checks bounds, pads what is not aligned, makes overlapping requests
//! wait where they must, and hands what is left to its [`Driver`]: a [`raw`] file or block device,
//! or [`memory`].
//!
//! ```text
//! caller (an NBD connection's coroutine, or a plain thread)
//!    |  offset and length from outside
//! Node          bounds -> serialise -> align -> bounce | flush      (request/)
//!    |  aligned ranges within the disk
//! Driver        raw: page cache or O_DIRECT | memory: memfd         (driver/)
//!    |  borrowed buffers
//! corio::fs     parks the coroutine until the kernel is done
//! ```
//!
//! Calls made in a coroutine park it and leave its loop turning; in a plain thread they block.
//! Buffers are borrowed throughout.
//!
//! ```
//! use corio_block::{Length, Offset, WriteFlags, memory};
//!
//! let disk = memory::Options::new(Length(1 << 30)).open()?;
//! disk.write_at(b"hello", Offset(4095), WriteFlags::FUA)?;
//! let mut back = [0; 5];
//! disk.read_at(&mut back, Offset(4095))?;
//! assert_eq!(&back, b"hello");
//! # Ok::<(), corio_block::Error>(())
//! ```

#![forbid(unsafe_code)]

mod driver;
mod error;
mod flags;
mod limits;
mod lock;
mod node;
pub mod probe;
mod request;
mod units;

pub use self::{
    driver::{Driver, memory, raw},
    error::{Error, Operation},
    flags::{Extent, ExtentFlags, WriteFlags, ZeroFlags},
    limits::Limits,
    node::Node,
    units::{Length, Offset},
};
