//! Corio: stackful coroutines, the AioContext event loop, and disk and network engines on it.
//!
//! The modules form layers, each of which imports only from those above it in this list: `sys`,
//! `atomic`, `tls`, [`track`], `stack`, `coroutine`, [`context`], `schedule`, [`sync`], `engine`,
//! and the public face [`fs`], [`net`], [`time`].
//!
//! Where to begin: [`IoThread`] runs an [`AioContext`] on a thread of its own;
//! [`AioContext::spawn`] starts a coroutine there; inside it, [`fs::File`] and [`net::TcpStream`]
//! read and write with borrowed buffers and park the coroutine while they wait. [`home`] and
//! [`Coroutine`] are the raw coroutines without a loop.

// Failures carry their operation and their paths; they are rare, and boxing them would not make
// them rarer.
#![allow(clippy::result_large_err)]

#[macro_use]
mod planted;

mod atomic;
pub mod context;
mod coroutine;
pub mod engine;
mod error;
pub mod fs;
#[cfg(all(test, loom))]
mod model;
pub mod net;
mod schedule;
mod stack;
pub mod sync;
mod sys;
pub mod time;
mod tls;
pub mod track;

pub use context::AioContext;
pub use coroutine::{
    Builder, CancelMask, Coroutine, CoroutineId, current_id as current, home, in_coroutine,
    mask_cancel, suspend,
};
pub use error::Error;
pub use schedule::{
    CoWaker, IoThread, IoThreadBuilder, JoinError, JoinHandle, LocalJoinHandle, Scope,
    ScopedJoinHandle, move_to, park, scope, spawn, spawn_local, yield_now,
};
pub use stack::{stack_pool, stack_usage};

/// The README's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
