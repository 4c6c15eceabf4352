//! The one door to atomics for the protocols that loom checks.
//!
//! A protocol module (the slot word, the inbox, the notify protocol, the bottom-half list, the
//! locks) names its atomics through here, so that `--cfg loom` puts loom's in their place and the
//! shipped code is what is model-checked. Statics that are no protocol (counters, switches) use
//! `core::sync::atomic` directly, because loom's types cannot be built in a `const`.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
