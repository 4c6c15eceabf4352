//! Thread-locals that survive a switch.
//!
//! The compiler may compute a thread-local's address once and keep it across a call, and a switch
//! looks like a call. In safe code a coroutine never changes threads (SPEC C10), so a kept address
//! stays right; for the `unsafe` moves it would not. All of the runtime's thread-locals are
//! therefore fields of one struct, reached through [`thread`], whose address goes through an `asm!`
//! block that the optimiser cannot look through.
//!
//! The fields are untyped pointers because the layers that own them lie above this one; each names
//! its owner.

#![allow(unsafe_code)] // The accessor hands out a reference to a thread-local; see its SAFETY comment.

use core::cell::Cell;

/// Everything the runtime keeps for a thread.
pub(crate) struct ThreadState {
    /// The running coroutine's control block, null outside any. Owner: `coroutine`.
    pub(crate) current: Cell<*const ()>,
    /// The innermost home of this thread, null outside any. Owner: `coroutine::home`.
    pub(crate) home: Cell<*const ()>,
    /// The context that this thread is the home of, null if none. Owner: `context`.
    pub(crate) context: Cell<*const ()>,
    /// The thread's pool of free stacks. Owner: `stack::pool`.
    pub(crate) pool: Cell<*mut ()>,
}

thread_local! {
    // No destructor and a constant initialiser: an access is an address computation, valid until
    // the thread is gone.
    static STATE: ThreadState = const {
        ThreadState {
            current: Cell::new(core::ptr::null()),
            home: Cell::new(core::ptr::null()),
            context: Cell::new(core::ptr::null()),
            pool: Cell::new(core::ptr::null_mut()),
        }
    };
}

/// This thread's state. Call it again after anything that may have switched stacks.
#[inline(never)]
pub(crate) fn thread() -> &'static ThreadState {
    let mut state: *const ThreadState = STATE.with(core::ptr::from_ref);
    // SAFETY: the block does nothing; it only hides where the pointer came from.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) state, options(nostack, preserves_flags)) };
    // SAFETY: STATE has no destructor and lives as long as its thread; `ThreadState` is not Sync,
    // so the reference cannot be given to another thread, and callers do not keep it across a
    // switch that may change threads.
    unsafe { &*state }
}
