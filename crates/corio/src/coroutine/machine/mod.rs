//! The machine that switches stacks: begins a coroutine on its stack, gives control back to whoever
//! resumed it, ends it.
//!
//! Nothing goes in or out but control; the thread's `current` follows it. Two implementations with one face:
//!
//! - `x86_64`, our own: a suspension is 13 instructions, a resumption 6.
//! - `portable`, on corosensei, for other processors, and for builds with AddressSanitizer, which
//!   has to be told of every switch.
//!
//! docs/adr/0010 says why there are two, and what each costs.
//!
//! Rules for whoever uses a machine
//! - M1 It is in place, in its control block, before it is first resumed, and is not moved.
//! - M2 `resume` is called by whoever owns the coroutine while it is not running; `suspend` and
//!   `end` only inside it. After `end` it is not resumed again.
//! - M3 The body does not unwind into the machine: it catches what it is to catch.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(feature = "asan"))))]
mod portable;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(feature = "asan")))]
mod x86_64;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(feature = "asan"))))]
pub(super) use portable::Machine;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(feature = "asan")))]
pub(super) use x86_64::Machine;
