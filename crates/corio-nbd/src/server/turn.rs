//! Letting others have their turn.

/// Parks the coroutine until the loop has turned once.
pub(super) fn pass() {
    corio::yield_now();
}
