//! What the C interface (the crate `corio-capi`) needs and Rust's own does not offer: coroutines by
//! pointers, which no home owns and any thread may enter, and threads that are home for good.
//!
//! Not for use from Rust: nothing here is checked by types. No version promises that it stays.

pub use crate::coroutine::loose::{Loose, Refused};
pub use crate::schedule::loose::{Loop, create, enter, queue_beside_running};
