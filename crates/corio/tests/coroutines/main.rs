//! Coroutines from outside: raw ones, those of a context, and what is done to them (SPEC sections 1
//! and 2, C12).
//!
//! A test that could take others along runs in a process of its own.

mod attacks_cancel;
mod attacks_coroutine;
mod attacks_sound;
mod attacks_sync;
mod backtrace;
mod cancel;
mod coroutine;
mod leaks;
mod named;
mod schedule;
