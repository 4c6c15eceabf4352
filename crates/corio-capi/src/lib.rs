//! Corio for C programs: the coroutine and AioContext functions under QEMU's names.
//!
//! ```text
//!   include/corio.h    what C sees: types, constants, declarations      docs/C.md: how it is used
//!         │
//!   this crate         one file a subject, each a thin coat: checks what C may get wrong, calls corio
//!         │
//!   corio              raw: coroutines by pointers, threads that are home for good; and the rest
//! ```
//!
//! Conventions
//! - C1 A C function is a private `unsafe extern "C" fn` with `#[unsafe(no_mangle)]`, in the file of
//!   its subject, in the header's order. What it does and asks is said in the header, for C's
//!   readers; a test compares the header's functions with those that are exported.
//! - C2 Misuse that can be foreseen is checked, and ends the process by [`die!`], in the words that
//!   QEMU has for it where there are any. All other panics end it as well: see [`abort`].
//! - C3 What C allocates is an array of words in C and `repr(C)` here, valid when it is all zeros;
//!   sizes and alignments are asserted on both sides ([`layout`]). It holds no pointer to itself
//!   and nothing that would have to be freed.
//! - C4 What is ours to allocate is a `Box` or an `Arc` whose raw pointer C has.
//! - C5 An `errp` may be NULL; else it is set to a [`error::CorioError`] that C frees.

#![allow(unsafe_code)]
// C's side keeps no promise that a type could hold; the header says which.
// An extern function's contract is the header's.
#![allow(clippy::missing_safety_doc)]

#[macro_use]
mod abort;
mod bottom_half;
mod clock;
mod context;
mod coroutine;
mod defer;
mod disk;
mod error;
mod event;
mod event_notifier;
#[cfg(feature = "glib")]
mod g_source;
mod handler;
mod io_thread;
mod layout;
mod lock;
mod lockcnt;
mod params;
mod queue;
mod shres;
mod sleep;
mod socket;
#[cfg(target_arch = "x86_64")]
mod switch;
mod thread_pool;
mod timer;
mod wait;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a lock protects; none of ours is poisoned, as the first panic ends the process.
fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
