//! Entering and yielding as C calls them: by a function.
//!
//! A processor predicts where a function returns to by the calls that it has seen last. After a
//! switch of stacks these are another stack's: a `ret` out of `qemu_coroutine_yield`, back into the
//! coroutine that called it long ago, is predicted wrong, and so is the one out of
//! `qemu_coroutine_enter`; that costs more than all else in them. So both leave by an indirect jump,
//! which is predicted by where it went the last times, and switch by jumps as well.
//!
//! ```text
//!   C's caller ── call enter ──▶ prepare ── jmp ──▶ (in yield) pop, jmp ──▶ the coroutine's body
//!              ◀── pop, jmp ──── (in enter) ◀── jmp ── prepare ◀── call yield ──┘
//! ```
//!
//! What a stack that waits looks like is the machine's affair (`corio::raw::Saved`): its resumer
//! leaves its own `rip` on its stack, jumps to the address at the top of the one that waits with
//! `rdi` and `rdx` pointing to both, and finds in `rsi` what it is given.
//!
//! A coroutine that is entered for the first time is entered the ordinary way, by calls: one that
//! never yields returns as it was called.

use std::arch::naked_asm;
use std::ptr::NonNull;

use corio::raw::{Loose, SETTLE, Saved};

use crate::coroutine::{self, Coroutine};

/// # Safety
/// As `qemu_coroutine_enter`.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn qemu_coroutine_enter(co: *mut Coroutine) {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbp, 0",
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbx, 0",
        "push r12",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r12, 0",
        "push r13",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r13, 0",
        "push r14",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r14, 0",
        "push r15",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r15, 0",
        "push rdi",
        ".cfi_adjust_cfa_offset 8",
        "call {prepare}",
        "test rax, rax",
        "jz 4f",
        "mov rdi, rax",
        "mov rdx, [rax]",
        "lea rax, [rip + 2f]",
        "push rax",
        "jmp [rdx]",
        "2:", // It has suspended, or ended: rsi is what it gives. rbp is as it was.
        "test sil, {settle_bit}",
        "jz 3f",
        "mov rdi, [rsp]",
        "call {settle}",
        "3:",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "pop rcx",
        "jmp rcx",
        "4:", // All is done, by calls.
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        ".cfi_endproc",
        prepare = sym prepare_enter,
        settle = sym settle,
        settle_bit = const SETTLE,
    )
}

/// The stack to be resumed; null if that is done already.
///
/// # Safety
/// As `qemu_coroutine_enter`.
unsafe extern "C" fn prepare_enter(co: *mut Coroutine) -> *const Saved {
    // SAFETY: the caller's promise.
    let saved = NonNull::new(co).and_then(|co| unsafe { Loose::from_ptr(co.cast()).begin_enter() });
    match saved {
        Some(saved) => saved.as_ptr(),
        // SAFETY: the caller's promise.
        None => unsafe { enter_by_call(co) },
    }
}

/// # Safety
/// As `qemu_coroutine_enter`.
#[inline(never)] // What it needs of registers, `prepare_enter` need not save.
unsafe extern "C" fn enter_by_call(co: *mut Coroutine) -> *const Saved {
    const NAME: &str = "qemu_coroutine_enter";
    // SAFETY: the caller's promise.
    unsafe { coroutine::enter(coroutine::loose(co, NAME), NAME) };
    std::ptr::null()
}

/// # Safety
/// The coroutine has just given something to settle.
unsafe extern "C" fn settle(co: *mut Coroutine) {
    // SAFETY: the caller's promise.
    unsafe { coroutine::loose(co, "qemu_coroutine_enter").settle() }
}

#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn qemu_coroutine_yield() {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbp, 0",
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbx, 0",
        "push r12",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r12, 0",
        "push r13",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r13, 0",
        "push r14",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r14, 0",
        "push r15",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset r15, 0",
        "sub rsp, 8",
        ".cfi_adjust_cfa_offset 8",
        "call {prepare}",
        "mov rdi, rax",
        "mov rsi, rdx",
        "lea rax, [rip + 2f]",
        "push rax",
        "mov [rdi], rsp",
        "mov rsp, [rdi + 8]",
        "pop rbp",
        "pop rcx",
        "jmp rcx",
        "2:", // Resumed: rdi is the coroutine, rdx its stack.
        "push rbp",
        "mov [rdi + 8], rsp",
        "lea rsp, [rdx + 16]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "pop rcx",
        "jmp rcx",
        ".cfi_endproc",
        prepare = sym prepare_yield,
    )
}

/// What is handed back in two registers.
#[repr(C)]
struct Leaving {
    saved: *const Saved,
    given: u64,
}

extern "C" fn prepare_yield() -> Leaving {
    match Loose::begin_suspend() {
        Some((saved, given)) => Leaving {
            saved: saved.as_ptr(),
            given,
        },
        None => die!("Co-routine is yielding to no one"),
    }
}
