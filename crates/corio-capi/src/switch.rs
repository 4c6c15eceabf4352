//! Entering and yielding as C calls them: by a function.
//!
//! A processor predicts where a function returns to by the calls that it has seen last. After a
//! switch of stacks these are another stack's: a `ret` out of `qemu_coroutine_yield`, back into the
//! coroutine that called it long ago, is predicted wrong, and so is the one out of
//! `qemu_coroutine_enter`; that costs more than all else in them. So both leave by an indirect jump,
//! which is predicted by where it went the last times, and switch by jumps as well.
//!
//! ```text
//!   C's caller ── call enter ──▶ begin ── jmp ──▶ (in yield) pop, jmp ──▶ the coroutine's body
//!              ◀── pop, jmp ──── (in enter) ◀── jmp ── begin ◀── call yield ──┘
//! ```
//!
//! What a stack that waits looks like is the machine's affair (corio, `coroutine/machine/x86_64.rs`):
//! its resumer leaves what was current and its own `rip` on its stack, and jumps to the address at
//! the end of the one that waits, with the coroutine in `rdi`, that end in `rdx` and the thread in
//! `rax`. Of these it gets the first and the last back, and what it is given in `rsi`.
//!
//! Whatever is not simply suspended is entered the ordinary way, by calls. So is a coroutine that
//! has never run: one that never yields returns as it was called.

use std::arch::naked_asm;

use corio::raw::{SETTLE, layout};

use crate::coroutine::{self, Coroutine};

const NAME: &str = "qemu_coroutine_enter";

/// Where this thread's state is from the thread pointer: see corio's `tls`.
macro_rules! thread_state {
    () => {
        concat!(
            "[rip + \"corio_thread_state_",
            env!("CARGO_PKG_VERSION"),
            "\"@GOTTPOFF]"
        )
    };
}

/// Saves what a C function must leave as it was.
macro_rules! save {
    () => {
        concat!(
            save!(rbp),
            save!(rbx),
            save!(r12),
            save!(r13),
            save!(r14),
            save!(r15)
        )
    };
    ($register:ident) => {
        concat!(
            "push ",
            stringify!($register),
            "\n",
            ".cfi_adjust_cfa_offset 8\n",
            ".cfi_rel_offset ",
            stringify!($register),
            ", 0\n"
        )
    };
}

/// Restores it, and leaves by a jump to where the function was called.
macro_rules! restore_and_leave {
    () => {
        "pop r15\npop r14\npop r13\npop r12\npop rbx\npop rbp\npop rcx\njmp rcx"
    };
}

/// # Safety
/// The header's contract: a coroutine of `qemu_coroutine_create` that nobody else enters.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn qemu_coroutine_enter(co: *mut Coroutine) {
    naked_asm!(
        ".cfi_startproc",
        // As `corio::raw::enter`, as far as all is as it mostly is.
        "test rdi, rdi",
        "jz 9f",
        concat!("mov rax, ", thread_state!()),
        "add rax, fs:[0]",
        "mov rcx, [rax + {home}]",
        "test rcx, rcx",
        "jz 9f",
        "cmp byte ptr [rax + {traced}], 0",
        "jne 9f",
        "mov rdx, [rdi + {key}]",
        "test edx, edx",
        "jnz 9f",
        "mov rsi, [rdi + {slot}]",
        "lea r8, [rdx + {running}]",
        "cmp r8, [rsi + {word}]",
        "jne 9f",
        "mov rcx, [rcx + {home_inbox}]",
        "mov [rsi + {inbox}], rcx",
        "mov [rdi + {thread}], rax",
        "add rdx, {entered}",
        "mov [rdi + {key}], rdx",
        save!(),
        "push [rax]",
        ".cfi_adjust_cfa_offset 8",
        "mov [rax], rdi",
        "mov rdx, [rdi]",
        "lea rcx, [rip + 2f]",
        "push rcx",
        "jmp [rdx]",
        "2:", // It has suspended, or ended; rdi is the coroutine, rax the thread, rbp as it was.
        "pop [rax]",
        ".cfi_adjust_cfa_offset -8",
        "test sil, {settle_bit}",
        "jnz 4f",
        "3:",
        restore_and_leave!(),
        "4:",
        "sub rsp, 8",
        "call {settle}",
        "add rsp, 8",
        "jmp 3b",
        "9:",
        "jmp {by_call}",
        ".cfi_endproc",
        home = const layout::HOME,
        traced = const layout::TRACED,
        key = const layout::KEY,
        slot = const layout::SLOT,
        running = const layout::RUNNING,
        word = const layout::WORD,
        home_inbox = const layout::HOME_INBOX,
        inbox = const layout::INBOX,
        thread = const layout::THREAD,
        entered = const layout::ENTERED,
        settle_bit = const SETTLE,
        settle = sym settle,
        by_call = sym enter_by_call,
    )
}

/// # Safety
/// As `qemu_coroutine_enter`.
unsafe extern "C" fn enter_by_call(co: *mut Coroutine) {
    // SAFETY: the caller's promise.
    unsafe { coroutine::enter(coroutine::loose(co, NAME), NAME) };
}

/// # Safety
/// The coroutine has just given something to settle.
unsafe extern "C" fn settle(co: *mut Coroutine) {
    // SAFETY: the caller's promise.
    unsafe { coroutine::loose(co, NAME).settle() }
}

#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn qemu_coroutine_yield() {
    naked_asm!(
        ".cfi_startproc",
        // As `corio::suspend`; a loose coroutine is never cancelled.
        concat!("mov rax, ", thread_state!()),
        "add rax, fs:[0]",
        "mov rdi, [rax]",
        "test rdi, rdi",
        "jz 9f",
        "mov rsi, [rdi + {suspended_key}]",
        "mov [rdi + {key}], rsi",
        save!(),
        "lea rcx, [rip + 2f]",
        "push rcx",
        "mov [rdi], rsp",
        "mov rsp, [rdi + 8]",
        "pop rbp",
        "pop rcx",
        "jmp rcx",
        "2:", // Resumed.
        "push rbp",
        "mov [rdi + 8], rsp",
        "lea rsp, [rdx + 8]",
        restore_and_leave!(),
        "9:",
        "jmp {to_no_one}",
        ".cfi_endproc",
        suspended_key = const layout::SUSPENDED_KEY,
        key = const layout::KEY,
        to_no_one = sym to_no_one,
    )
}

extern "C" fn to_no_one() {
    die!("Co-routine is yielding to no one")
}
