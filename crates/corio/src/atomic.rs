//! The one door to atomics for the protocols that loom checks.
//!
//! A protocol module (the slot word, the inbox, the notify protocol, the bottom-half list, the
//! locks) names its atomics through here, so that `--cfg loom` puts loom's in their place and the
//! shipped code is what is model-checked. Statics that are no protocol (counters, switches) use
//! `core::sync::atomic` directly, because loom's types cannot be built in a `const`.
//!
//! ThreadSanitizer does not model fences. For its builds (`--cfg corio_tsan`, which `cargo xtask
//! sanitize` sets) a fence is a read-modify-write of one static: that orders all that a fence
//! orders, and more, so that nothing sound is reported. What it hides, a fence that is missing, is
//! loom's to find.

#[cfg(not(any(loom, corio_tsan)))]
pub(crate) use core::sync::atomic::fence;
#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// Stands in for a fence: see the module.
#[cfg(all(corio_tsan, not(loom)))]
pub(crate) fn fence(order: Ordering) {
    static FENCES: AtomicU32 = AtomicU32::new(0);
    FENCES.fetch_add(1, order);
}
