//! Disk engines.

use crate::context::AioContext;

/// Which engine disk requests use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineChoice {
    /// The best that works: io_uring, else worker threads.
    #[default]
    Auto,
    /// io_uring, on the context's ring.
    IoUring,
    /// Worker threads.
    Threads,
}

pub(crate) fn choose(_context: &AioContext, _choice: EngineChoice) {}
