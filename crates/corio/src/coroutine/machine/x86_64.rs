//! Switching stacks on x86-64, System V ABI.
//!
//! ```text
//!   a stack that waits to be resumed       the resumer's stack meanwhile
//!
//!   |  frames, or the body  |              |  frames              |
//!   +-----------------------+              +----------------------+
//!   |  rbp  \ not for one   |              |  rbx                 |
//!   |  rbx  / that is new   |              |  current             |
//!   |  rip                  | <-- sp       |  rip                 |
//!   +-----------------------+              |  rbp                 | <-- resumer
//!                                          +----------------------+
//!
//!   a stack that is new: the body, one word free, `discard`, `begin`, rip <-- sp
//! ```
//!
//! The compiler cannot be told that rbx and rbp change, so they are saved here; all other registers
//! it takes to be lost. Resuming is a `call` through the saved rip and suspending a `ret`, so that
//! the processor predicts the return from what it has seen. What is resumed saves the resumer's rbp
//! and stack pointer itself: it has the machine in a register. `current` is what the thread's was
//! before. Its address comes from the thread pointer on both sides, not from the machine, whose own
//! address is a load behind the stack pointer: the round is a chain of such loads.
//!
//! Both give the machine's address back, as the code around them would have to save it otherwise.
//!
//! Unwinders go on from a coroutine's outermost frame to its resumer by the directives at
//! `corio_machine_begin`. Sources: System V ABI, AMD64 supplement, 3.2; DWARF 5, 2.5 and 6.4.
//!
//! The control bits of MXCSR and the x87 control word belong to the thread, not to the coroutine.

#![allow(unsafe_code)] // Assembly; SAFETY comments name the rules.

use core::arch::{asm, global_asm};
use core::cell::Cell;
use core::mem::offset_of;
use core::ptr::{self, NonNull};

use crate::stack::Slot;
use crate::tls::{self, ThreadState};

/// See the module's documentation, and its parent's for the rules.
#[repr(C)]
pub(crate) struct Machine {
    /// Where the coroutine's stack ends while it is not running.
    sp: Cell<*mut u8>,
    /// Where its resumer's ends while it is.
    resumer: Cell<*mut u8>,
}

// The directives below hold the offset of `resumer` in one byte, and those of the fields in code.
const _: () = assert!(offset_of!(Machine, sp) == 0);
const _: () = assert!(offset_of!(Machine, resumer) == 8);

/// What lies below the body on a new stack, in bytes: see the picture.
const BELOW_BODY: usize = 32;
// `corio_machine_begin` has both by number.
const _: () = assert!(BELOW_BODY == 32 && size_of::<Begin>() == 8);
type Begin = unsafe extern "C" fn(&Machine, *mut u8) -> !;
type Discard = unsafe fn(*mut u8);

/// One for each version, as a program may link several.
macro_rules! symbol {
    () => {
        concat!("corio_machine_begin_", env!("CARGO_PKG_VERSION"))
    };
}

global_asm!(
    ".pushsection .text.corio_machine_begin,\"ax\",@progbits",
    ".balign 16",
    concat!(".hidden \"", symbol!(), "\""),
    concat!(".globl \"", symbol!(), "\""),
    concat!(".type \"", symbol!(), "\", @function"),
    concat!("\"", symbol!(), "\":"),
    ".cfi_startproc",
    // The frame that called is not above this one on the same stack, which debuggers only accept
    // of a signal's frame.
    ".cfi_signal_frame",
    // The resumer's frame, and what lies below it.
    ".cfi_def_cfa rsp, 24",
    ".cfi_offset rbx, -8",
    ".cfi_offset rip, -24",
    // rdi: the machine, rdx: its `sp`, which points to this very address; rax: the thread.
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rbp, -32",
    "mov [rdi + 8], rsp",
    // *(rdi + 8) + 32: DW_OP_breg5 8, DW_OP_deref, DW_OP_plus_uconst 32.
    ".cfi_escape 0x0f, 5, 0x75, 8, 0x06, 0x23, 32",
    "mov rax, [rdx + 8]",
    "lea rsp, [rdx + 32]",
    "mov rbp, rdi",
    // rbp is the machine from here on: DW_OP_breg6.
    ".cfi_escape 0x0f, 5, 0x76, 8, 0x06, 0x23, 32",
    "mov rsi, rsp",
    // Not a call: the processor would remember a return that never comes.
    "lea rcx, [rip + 2f]",
    "push rcx",
    "jmp rax",
    "2:",
    "int3", // The body never returns; unwinders look this address up.
    ".cfi_endproc",
    concat!(".size \"", symbol!(), "\", . - \"", symbol!(), "\""),
    ".popsection",
);

unsafe extern "C" {
    /// What is resumed first on a new stack. Not to be called from Rust.
    #[link_name = concat!("corio_machine_begin_", env!("CARGO_PKG_VERSION"))]
    fn corio_machine_begin();
}

impl Machine {
    /// What a resumer gets when the coroutine has ended.
    pub(crate) const ENDED: u64 = u64::MAX;

    /// A machine that runs `body` on the slot's stack when it is first resumed. It will be put at
    /// `_at`.
    #[inline]
    pub(crate) fn new<F: FnOnce() + 'static>(
        _at: NonNull<Machine>,
        slot: &'static Slot,
        body: F,
    ) -> Machine {
        let top = slot.control_block().as_ptr();
        let align = align_of::<F>().max(16);
        let below = (size_of::<F>() + align - 1) & !(align - 1);
        // SAFETY: the slot is the caller's own, and its stack is larger than any body (larger ones
        // are boxed, `switch::INLINE_MAX`); `top` is aligned to what the largest of them is (asserted
        // there).
        unsafe {
            let at = top.sub(below);
            at.cast::<F>().write(body);
            let sp = at.sub(BELOW_BODY);
            let rip = corio_machine_begin as unsafe extern "C" fn();
            sp.cast::<unsafe extern "C" fn()>().write(rip);
            sp.cast::<Begin>().add(1).write(begin::<F>);
            sp.cast::<Discard>().add(2).write(discard::<F>);
            Machine {
                sp: Cell::new(sp),
                resumer: Cell::new(ptr::null_mut()),
            }
        }
    }

    /// Runs the coroutine until it suspends or ends, with its address as `current` of `thread`,
    /// which is this one. Returns what [`suspend`](Self::suspend) was given, in a register, or
    /// [`ENDED`](Self::ENDED); and `self`.
    ///
    /// # Safety
    /// M1 and M2.
    #[inline(always)]
    pub(crate) unsafe fn resume(&self, thread: &ThreadState) -> (u64, NonNull<Machine>) {
        let given;
        let this: *mut Machine;
        // SAFETY: the stack holds what the picture shows: `new` or `suspend` left it so, and only
        // here it is used up. rax is the thread again afterwards, and rdi the machine.
        unsafe {
            asm!(
                "push rbx",
                "push [rax + {current}]",
                "mov [rax + {current}], rdi",
                "call [rdx]",
                "pop [rax + {current}]",
                "pop rbx",
                current = const offset_of!(ThreadState, current),
                inout("rdi") ptr::from_ref(self) => this,
                inout("rdx") self.sp.get() => _,
                inout("rax") ptr::from_ref(thread) => _,
                lateout("rsi") given,
                lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
                clobber_abi("sysv64"),
            );
            (given, NonNull::new_unchecked(this))
        }
    }

    /// As [`resume`](Self::resume), where no coroutine runs: what `current` goes back to is known,
    /// and the place for it on the stack stays as it is. One store less, and one chain less of a
    /// load behind the store before it, from each round to the next.
    ///
    /// # Safety
    /// M1 and M2, and `current` is null.
    #[inline(always)]
    pub(crate) unsafe fn resume_first(&self, thread: &ThreadState) -> (u64, NonNull<Machine>) {
        let given;
        let this: *mut Machine;
        // SAFETY: as in `resume`.
        unsafe {
            asm!(
                "push rbx",
                "lea rsp, [rsp - 8]",
                "mov [rax + {current}], rdi",
                "call [rdx]",
                "lea rsp, [rsp + 8]",
                "mov qword ptr [rax + {current}], 0",
                "pop rbx",
                current = const offset_of!(ThreadState, current),
                inout("rdi") ptr::from_ref(self) => this,
                inout("rdx") self.sp.get() => _,
                inout("rax") ptr::from_ref(thread) => _,
                lateout("rsi") given,
                lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
                clobber_abi("sysv64"),
            );
            (given, NonNull::new_unchecked(this))
        }
    }

    /// Gives control back to the resumer, who gets `given`; returns `self` when the coroutine is
    /// resumed again.
    ///
    /// # Safety
    /// M2.
    #[inline(always)]
    pub(crate) unsafe fn suspend(&self, given: u64) -> NonNull<Machine> {
        let this: *mut Machine;
        // SAFETY: the coroutine runs, so `resumer` is the end of its resumer's stack, which holds
        // what the picture shows.
        unsafe {
            asm!(
                "push rbp",
                "push rbx",
                "lea rcx, [rip + 2f]",
                "push rcx",
                "mov [rdi], rsp",
                "mov rsp, [rdi + 8]",
                "pop rbp",
                "ret",
                "2:", // Resumed: rdi and rdx are as in `corio_machine_begin`.
                "push rbp",
                "mov [rdi + 8], rsp",
                "lea rsp, [rdx + 8]",
                "pop rbx",
                "pop rbp",
                inout("rdi") ptr::from_ref(self) => this,
                inout("rsi") given => _,
                inout("rax") ptr::from_ref(tls::thread()) => _,
                lateout("rdx") _,
                lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
                clobber_abi("sysv64"),
            );
            NonNull::new_unchecked(this)
        }
    }

    /// Gives control back for the last time. What is still on the stack is forgotten.
    ///
    /// # Safety
    /// M2.
    #[inline(always)]
    unsafe fn end(&self) -> ! {
        // SAFETY: as for `suspend`.
        unsafe {
            asm!(
                "mov rsp, [rdi + 8]",
                "pop rbp",
                "ret",
                in("rdi") ptr::from_ref(self),
                in("rsi") Self::ENDED,
                in("rax") ptr::from_ref(tls::thread()),
                options(noreturn),
            );
        }
    }

    /// Drops the body of one that was never resumed.
    ///
    /// # Safety
    /// It was not; and it is not resumed afterwards, nor discarded again.
    pub(crate) unsafe fn discard(&self) {
        let sp = self.sp.get();
        // SAFETY: all lies where `new` put it.
        unsafe { sp.cast::<Discard>().add(2).read()(sp.add(BELOW_BODY)) };
    }

    /// Where a suspended coroutine goes on, and its stack and frame pointer there.
    #[allow(dead_code)] // For walking suspended stacks.
    pub(crate) fn position(&self) -> [usize; 3] {
        let sp = self.sp.get().cast::<usize>();
        // SAFETY: a suspended stack holds what the picture shows.
        unsafe { [sp.read(), sp.addr() + 24, sp.add(2).read()] }
    }
}

/// The outermost function on a coroutine's stack.
unsafe extern "C" fn begin<F: FnOnce()>(machine: &Machine, body: *mut u8) -> ! {
    // SAFETY: `new` put a body of this very type there, for this one use.
    let body = unsafe { body.cast::<F>().read() };
    body();
    // SAFETY: inside the coroutine.
    unsafe { machine.end() }
}

unsafe fn discard<F>(body: *mut u8) {
    // SAFETY: as for `begin`.
    unsafe { body.cast::<F>().drop_in_place() };
}
