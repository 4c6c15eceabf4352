//! Thread-locals that survive a switch.
//!
//! The compiler may compute a thread-local's address once and keep it across a call, and a switch
//! looks like a call. In safe code a coroutine never changes threads (SPEC C10), so a kept address
//! stays right; for the `unsafe` moves it would not. All of the runtime's thread-locals are
//! therefore fields of one struct, reached through [`thread`], whose address the optimiser does not
//! see come about: it is computed in an `asm!` block, each time.
//!
//! The fields are untyped pointers because the layers that own them lie above this one; each names
//! its owner.

#![allow(unsafe_code)] // The accessor hands out a reference to a thread-local; see its SAFETY comment.

use core::cell::Cell;

/// Everything the runtime keeps for a thread.
#[repr(C)] // `current` first.
pub(crate) struct ThreadState {
    /// The running coroutine's control block, null outside any. Owner: `coroutine`.
    pub(crate) current: Cell<*const ()>,
    /// The innermost home of this thread, null outside any. Owner: `coroutine::home`.
    pub(crate) home: Cell<*const ()>,
    /// The context that this thread is the home of, null if none. Owner: `context`.
    pub(crate) context: Cell<*const ()>,
    /// That context's number, 0 if none, for layers that know no context. Owner: `context`.
    pub(crate) context_id: Cell<u64>,
    /// The thread's pool of free stacks. Owner: `stack::pool`.
    pub(crate) pool: Cell<*mut ()>,
    /// Whether this thread's runs are traced, as far as it has noticed: 0 or 1, in a word that what
    /// else must be 0 is put together with. Owner: `track`.
    pub(crate) traced: Cell<u64>,
    /// What coroutines know that were entered here with what the thread is now; 0 if they are to look
    /// again. Owner: `coroutine::loose`.
    pub(crate) place: Cell<u64>,
}

impl ThreadState {
    /// Makes a home the innermost one, or its outer one again.
    #[inline]
    pub(crate) fn set_home(&self, home: *const ()) {
        self.home.set(home);
        self.place.set(0);
    }
}

/// This thread's state. Call it again after anything that may have switched stacks.
#[inline(always)]
pub(crate) fn thread() -> &'static ThreadState {
    // SAFETY: the state has no destructor and lives as long as its thread; `ThreadState` is not
    // Sync, so the reference cannot be given to another thread, and callers do not keep it across
    // a switch that may change threads.
    unsafe { &*imp::thread() }
}

/// `thread().current`, for who wants nothing else.
#[inline(always)]
pub(crate) fn current() -> *const () {
    imp::current()
}

/// A thread-local of our own making, read by the two instructions that it takes: a suspension has
/// to find its coroutine, and calls that do so cost more than all else in it
/// (docs/adr/0007). Source: ELF Handling For Thread-Local Storage, the initial-exec model.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod imp {
    use super::ThreadState;

    /// One for each version, as a program may link several.
    macro_rules! symbol {
        () => {
            concat!("\"corio_thread_state_", env!("CARGO_PKG_VERSION"), "\"")
        };
    }

    core::arch::global_asm!(
        ".pushsection .tbss.corio_thread_state,\"awT\",@nobits",
        concat!(".hidden ", symbol!()),
        concat!(".globl ", symbol!()),
        concat!(".type ", symbol!(), ", @object"),
        concat!(".size ", symbol!(), ", {size}"),
        ".balign {align}",
        concat!(symbol!(), ":"),
        ".zero {size}", // Null pointers, and the number of no context.
        ".popsection",
        size = const size_of::<ThreadState>(),
        align = const align_of::<ThreadState>(),
    );

    #[inline(always)]
    pub(super) fn thread() -> *const ThreadState {
        let state;
        // SAFETY: reads the offset that the linker or the loader has filled in, and the thread
        // pointer, which the ABI keeps at fs:0.
        unsafe {
            core::arch::asm!(
                concat!("mov {state}, qword ptr [rip + ", symbol!(), "@GOTTPOFF]"),
                "add {state}, qword ptr fs:[0]",
                state = out(reg) state,
                options(nostack, readonly),
            );
        }
        state
    }

    #[inline(always)]
    pub(super) fn current() -> *const () {
        const { assert!(core::mem::offset_of!(ThreadState, current) == 0) }
        let current;
        // SAFETY: as above, and reads the state's first word.
        unsafe {
            core::arch::asm!(
                concat!("mov {current}, qword ptr [rip + ", symbol!(), "@GOTTPOFF]"),
                "mov {current}, qword ptr fs:[{current}]",
                current = out(reg) current,
                options(nostack, readonly, preserves_flags),
            );
        }
        current
    }
}

/// A thread-local of std's.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod imp {
    use core::cell::Cell;

    use super::ThreadState;

    thread_local! {
        // No destructor and a constant initialiser: an access is an address computation, valid
        // until the thread is gone.
        static STATE: ThreadState = const {
            ThreadState {
                current: Cell::new(core::ptr::null()),
                home: Cell::new(core::ptr::null()),
                context: Cell::new(core::ptr::null()),
                context_id: Cell::new(0),
                pool: Cell::new(core::ptr::null_mut()),
                traced: Cell::new(0),
                place: Cell::new(0),
            }
        };
    }

    #[inline(never)]
    pub(super) fn thread() -> *const ThreadState {
        let mut state: *const ThreadState = STATE.with(core::ptr::from_ref);
        // SAFETY: the block does nothing; it only hides where the pointer came from.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) state, options(nostack, preserves_flags));
        }
        state
    }

    #[inline(always)]
    pub(super) fn current() -> *const () {
        // SAFETY: it lives as long as its thread.
        unsafe { (*thread()).current.get() }
    }
}
