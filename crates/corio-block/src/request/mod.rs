//! What happens to a request between the node and its driver.
//!
//! ```text
//! bounds     within the disk? -> Span, arithmetic on which cannot overflow
//! serialise  who must wait for whom, where requests are padded to blocks
//! align      padding; which piece of a request goes through which bounce buffer
//! bounce     carries the pieces out: read, modify, write
//! flush      one flush at a time, those that wait share the next one
//! ```

pub(crate) mod align;
pub(crate) mod bounce;
pub(crate) mod bounds;
pub(crate) mod flush;
pub(crate) mod in_flight;
pub(crate) mod serialise;
