//! System calls and nothing else.
//!
//! Each file wraps one kernel interface, keeps the errno, and knows nothing of coroutines or
//! contexts. Every system call of the runtime is made from here, so that a simulated kernel can be
//! put below the shipped code.

#[cfg(feature = "asan")]
pub(crate) mod asan;
pub(crate) mod clock;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod file;
// Models have another word, and their own way to wait for it.
#[cfg(not(loom))]
pub(crate) mod futex;
pub(crate) mod linux_aio;
pub(crate) mod mem;
pub(crate) mod poll;
#[cfg(feature = "power-loss-shim")]
pub(crate) mod power_loss;
pub(crate) mod signal;
pub(crate) mod tcp;
pub(crate) mod thread;
pub(crate) mod timerfd;
pub(crate) mod uring;
pub(crate) mod valgrind;
