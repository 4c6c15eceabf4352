//! How many stacks of ended coroutines the process keeps for later ones.
//!
//! Each thread keeps up to 256 stacks of the default size for itself while it has a home. Further
//! ones go to a pool for all threads, in which each keeps 16 KiB of memory at most; it holds 1024
//! stacks unless more are asked for. Past that a stack's memory goes back to the system, and the
//! next coroutine that needs it pays for a page again.
//!
//! Whoever knows of many coroutines to come, such as a device with a deep queue, raises the limit
//! by their number, and lowers it again once they are gone.
//!
//! Any thread, in a coroutine or not; nothing here waits.
//!
//! ```
//! use corio::stack_pool;
//!
//! # fn main() -> Result<(), corio::Error> {
//! let before = stack_pool::limit();
//! stack_pool::raise(64)?;
//! assert_eq!(stack_pool::limit(), before + 64);
//! stack_pool::lower(64)?;
//! assert!(stack_pool::lower(1 << 40).is_err(), "more than was asked for");
//! # Ok(())
//! # }
//! ```

use super::pool::{self, POOLED_DEFAULT, POOLED_MAX};
use crate::error::Error;

/// Lets the pool keep `stacks` more. Stacks whose guards are made by mprotect, of which
/// vm.max_map_count allows no more than so many, are given up by the pool when one of another size
/// needs their place.
///
/// # Errors
/// [`Error::Parameter`] if the sum is more stacks than there can be, 2^26; nothing has changed
/// then.
#[doc(alias = "qemu_coroutine_inc_pool_size")]
pub fn raise(stacks: usize) -> Result<(), Error> {
    let sum = |limit: usize| limit.checked_add(stacks).filter(|&sum| sum <= POOLED_MAX);
    change(stacks, sum, "what leaves the limit at 2^26 or below")
}

/// Takes back what [`raise`] was called for. Stacks that are too many are given up at once.
///
/// # Errors
/// [`Error::Parameter`] if the limit has not been raised by so many; nothing has changed then.
#[doc(alias = "qemu_coroutine_dec_pool_size")]
pub fn lower(stacks: usize) -> Result<(), Error> {
    let rest = |limit: usize| {
        limit
            .checked_sub(stacks)
            .filter(|&rest| rest >= POOLED_DEFAULT)
    };
    change(stacks, rest, "what the limit was raised by, or less")
}

fn change(
    stacks: usize,
    change: impl Fn(usize) -> Option<usize>,
    expected: &'static str,
) -> Result<(), Error> {
    if pool::change_limit(change) {
        return Ok(());
    }
    Err(Error::Parameter {
        name: "number of pooled stacks",
        value: stacks.to_string(),
        expected,
    })
}

/// How many stacks the pool may keep.
#[must_use]
pub fn limit() -> usize {
    pool::pooled_limit()
}

/// How many stacks it keeps now; those of the threads' own pools are not counted.
#[must_use]
pub fn len() -> usize {
    pool::pooled()
}
