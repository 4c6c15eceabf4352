//! Entering and yielding as C does them.
//!
//! A processor predicts where a function returns to by the calls that it has seen last. After a
//! switch of stacks these are another stack's: a `ret` out of `qemu_coroutine_yield`, back into the
//! coroutine that called it long ago, is predicted wrong, and so is the one out of
//! `qemu_coroutine_enter`, and, as the two calls were never answered, those of their callers. That
//! costs more than all else in them. So nothing is called here, and nothing returns: all goes by
//! indirect jumps, which are predicted by where they went the last times.
//!
//! ```text
//!   C's code ── jmp enter_by_jump ──▶ begin ── jmp ──▶ (in yield) jmp ──▶ the coroutine's body
//!            ◀── jmp ──── (in enter) ◀── jmp ── begin ◀── jmp yield_by_jump ──┘
//! ```
//!
//! A function would also have to save the registers that C expects to be kept, twice a round, which
//! is half of the instructions of one. The header's `qemu_coroutine_enter(co)` is therefore a jump to
//! `corio_enter_by_jump` in assembly that tells the compiler what is lost, as `Machine::resume`
//! does in Rust:
//!
//! - J1 r9 holds the address to go on at, rdi the coroutine that is to be entered. rsp, rbx, rbp and
//!   this rdi are kept, nothing else.
//! - J2 The stack below the red zone, the 128 bytes that a function without calls may use, is free.
//!   Its end need not be aligned.
//!
//! The functions are there as well, for pointers to them and for compilers without such assembly:
//! they save the rest and jump to the same.
//!
//! What a stack that waits looks like is the machine's affair (corio, `coroutine/machine/x86_64.rs`):
//! its resumer leaves rbx, what was current and its own `rip` on its stack, and jumps to the address
//! at the end of the one that waits, with the coroutine in `rdi`, that end in `rdx` and the thread in
//! `rax`. Of these it gets the first and the last back, and what it is given in `rsi`.
//!
//! Jumps that are taken cost most where the core is shared with another thread. So `enter` looks
//! whether the one that waits has yielded here, and `yield` whether its resumer is `enter`, and each
//! does then what the other would begin with: two jumps of six less. The stacks look as they would.
//!
//! What unwinders are told is right at each instruction: a signal may come in between, and its
//! handler look for where it was.
//!
//! Whatever is not simply suspended is entered the ordinary way, by calls. So is a coroutine that
//! has never run: one that never yields returns as it was called.
//!
//! A library for AddressSanitizer enters and yields by calls alone.

#[cfg(not(feature = "asan"))]
use std::arch::global_asm;
use std::arch::naked_asm;

#[cfg(not(feature = "asan"))]
use corio::raw::{SETTLE, layout};

use crate::coroutine::{self, Coroutine};

#[cfg(not(feature = "asan"))]
const NAME: &str = "qemu_coroutine_enter";

/// Where this thread's state is from the thread pointer: see corio's `tls`.
#[cfg(not(feature = "asan"))]
macro_rules! thread_state {
    () => {
        concat!(
            "[rip + \"corio_thread_state_",
            env!("CARGO_PKG_VERSION"),
            "\"@GOTTPOFF]"
        )
    };
}

/// A name that is not exported, by which the library itself jumps to one that is.
#[cfg(not(feature = "asan"))]
macro_rules! here {
    ($name:literal) => {
        concat!("\"", $name, "_", env!("CARGO_PKG_VERSION"), "\"")
    };
}

/// Begins a function that is exported, and has such a name besides. It lies where the processor
/// fetches it at once.
#[cfg(not(feature = "asan"))]
macro_rules! begin {
    ($name:literal) => {
        concat!(
            ".pushsection .text.",
            $name,
            ",\"ax\",@progbits\n.balign 64\n.hidden ",
            here!($name),
            "\n.globl ",
            here!($name),
            ", ",
            $name,
            "\n.type ",
            $name,
            ", @function\n",
            here!($name),
            ":\n",
            $name,
            ":\n.cfi_startproc\n",
            outside!()
        )
    };
}

/// Its end.
#[cfg(not(feature = "asan"))]
macro_rules! end {
    ($name:literal) => {
        concat!(
            ".cfi_endproc\n.size ",
            $name,
            ", . - ",
            $name,
            "\n.popsection"
        )
    };
}

/// Saves a register.
#[cfg(not(feature = "asan"))]
macro_rules! push {
    ($register:literal) => {
        concat!(
            "push ",
            $register,
            "\n.cfi_adjust_cfa_offset 8\n.cfi_rel_offset ",
            $register,
            ", 0"
        )
    };
}

/// Restores it.
#[cfg(not(feature = "asan"))]
macro_rules! pop {
    ($register:literal) => {
        concat!(
            "pop ",
            $register,
            "\n.cfi_adjust_cfa_offset -8\n.cfi_restore ",
            $register
        )
    };
}

/// Saves what is of no use to unwinders.
#[cfg(not(feature = "asan"))]
macro_rules! push_other {
    ($what:literal) => {
        concat!("push ", $what, "\n.cfi_adjust_cfa_offset 8")
    };
}

/// What unwinders are told where there is no frame (J1).
macro_rules! outside {
    () => {
        ".cfi_def_cfa rsp, 0\n.cfi_register rip, r9"
    };
}

/// What begins a frame (J1, J2): the address to go on at lies on top of it.
macro_rules! frame {
    () => {
        "lea rsp, [rsp - 128]\n\
         .cfi_adjust_cfa_offset 128\n\
         push r9\n\
         .cfi_adjust_cfa_offset 8\n\
         .cfi_rel_offset rip, 0"
    };
}

/// The frame of a resumer, in which rbx is; what was `current`, and the address at which to go on when
/// the coroutine suspends, will be. Nothing is pushed: the processor would have to make the stack
/// pointer good where it is read again.
#[cfg(not(feature = "asan"))]
macro_rules! resumer {
    () => {
        "lea rsp, [rsp - 168]\n\
         .cfi_adjust_cfa_offset 168\n\
         mov [rsp + 32], r9\n\
         .cfi_rel_offset rip, 32\n\
         mov [rsp + 24], rbx\n\
         .cfi_rel_offset rbx, 24"
    };
}

/// Where a resumer goes on. An unwinder gets to the first instruction in two ways. A signal's has
/// the stack end right above this instruction's address, which lies in the red zone still; one that
/// comes from the coroutine has taken `current` and rbx off, too: see the machine. So the frame
/// ends at rsp + 152 if [rsp - 8] is rip, else at rsp + 136: DW_OP_breg7 -8, DW_OP_deref,
/// DW_OP_breg16 0, DW_OP_eq, DW_OP_lit4, DW_OP_shl, DW_OP_breg7 136, DW_OP_plus. (Linkers describe
/// a PLT by the same operations.)
#[cfg(not(feature = "asan"))]
macro_rules! goes_on_entered {
    () => {
        ".cfi_escape 0x0f, 12, 0x77, 0x78, 0x06, 0x80, 0, 0x29, 0x34, 0x24, 0x77, 0x88, 1, 0x22\n\
         mov rbx, [rsp + 8]\n\
         .cfi_def_cfa rsp, 152\n\
         .cfi_restore rbx"
    };
}

/// The coroutine in rdi goes on, from where it has yielded: rdx is the end of its stack.
#[cfg(not(feature = "asan"))]
macro_rules! goes_on {
    () => {
        ".cfi_def_cfa rdx, 160\n\
         .cfi_offset rip, -136\n\
         .cfi_offset rbp, -144\n\
         .cfi_offset rbx, -152\n\
         mov rbx, [rdx + 8]\n\
         .cfi_restore rbx\n\
         mov rbp, [rdx + 16]\n\
         .cfi_restore rbp\n\
         mov rcx, [rdx + 24]\n\
         .cfi_register rip, rcx\n\
         lea rsp, [rdx + 160]\n\
         jmp rcx"
    };
}

/// The end of a frame.
macro_rules! leave {
    () => {
        ".cfi_remember_state\n\
         pop rcx\n\
         .cfi_adjust_cfa_offset -8\n\
         .cfi_register rip, rcx\n\
         lea rsp, [rsp + 128]\n\
         .cfi_adjust_cfa_offset -128\n\
         jmp rcx\n\
         .cfi_restore_state"
    };
}

/// Calls a function, which may want an aligned stack. rbx and rbp are kept.
macro_rules! call {
    ($function:literal) => {
        concat!(
            "push rbp\n\
             .cfi_adjust_cfa_offset 8\n\
             .cfi_rel_offset rbp, 0\n\
             mov rbp, rsp\n\
             .cfi_def_cfa_register rbp\n\
             and rsp, -16\n\
             call ",
            $function,
            "\n\
             mov rsp, rbp\n\
             .cfi_def_cfa_register rsp\n\
             pop rbp\n\
             .cfi_adjust_cfa_offset -8\n\
             .cfi_restore rbp"
        )
    };
}

/// The function that jumps to `$name`, and leaves by a jump, too.
#[cfg(not(feature = "asan"))]
macro_rules! saving_all {
    ($name:literal) => {
        concat!(
            ".cfi_startproc\n",
            push!("r12"),
            "\n",
            push!("r13"),
            "\n",
            push!("r14"),
            "\n",
            push!("r15"),
            "\nlea r9, [rip + 2f]\njmp ",
            here!($name),
            "\n2:\n",
            pop!("r15"),
            "\n",
            pop!("r14"),
            "\n",
            pop!("r13"),
            "\n",
            pop!("r12"),
            "\npop rcx\n.cfi_adjust_cfa_offset -8\n.cfi_register rip, rcx\njmp rcx\n.cfi_endproc"
        )
    };
}

#[cfg(not(feature = "asan"))]
global_asm!(
    begin!("corio_enter_by_jump"),
    // As `corio::raw::enter`, as far as all is as it mostly is.
    "test rdi, rdi",
    "jz 9f",
    concat!("mov rax, ", thread_state!()),
    "add rax, fs:[0]",
    "mov rcx, [rdi + {place}]",
    "cmp rcx, [rax + {thread_place}]",
    "jne 9f",
    "mov rdx, [rdi + {key}]",
    "mov rsi, [rdi + {slot}]",
    "lea r8, [rdx + {running}]",
    "cmp r8, [rsi + {word}]",
    "jne 9f",
    "add rdx, {entered}",
    "mov [rdi + {key}], rdx",
    // Where no coroutine runs, what `current` goes back to is known: see the machine.
    "cmp qword ptr [rax], 0",
    "jne 6f",
    resumer!(),
    "lea rcx, [rip + 2f]",
    "mov [rsp + 8], rcx",
    "3:",
    "mov [rax], rdi",
    "mov rdx, [rdi]",
    // One that yields as below goes on as it would there, without a jump to it.
    concat!("lea rcx, [rip + ", here!("corio_yielded"), "]"),
    "cmp rcx, [rdx]",
    "jne 8f",
    "mov [rsp], rbp",
    "mov [rdi + 8], rsp",
    ".cfi_remember_state",
    goes_on!(),
    ".cfi_restore_state",
    ".cfi_def_cfa rsp, 168", // The assembler adjusts what it has read last, not what is restored.
    "8:",
    "lea rsp, [rsp + 8]",
    ".cfi_adjust_cfa_offset -8",
    "jmp [rdx]",
    // It has suspended, or ended; rdi is the coroutine, rax the thread, rbp as it was.
    "2:",
    concat!(".hidden ", here!("corio_entered")),
    concat!(here!("corio_entered"), ":"),
    goes_on_entered!(),
    "mov qword ptr [rax], 0",
    "4:",
    "test sil, {settle_bit}",
    "jnz 5f",
    "mov rcx, [rsp + 16]",
    ".cfi_remember_state",
    ".cfi_register rip, rcx",
    "lea rsp, [rsp + 152]",
    ".cfi_adjust_cfa_offset -152",
    "jmp rcx",
    ".cfi_restore_state",
    ".cfi_def_cfa rsp, 152",
    "5:",
    push_other!("rdi"),
    call!("{settle}"),
    "pop rdi",
    ".cfi_adjust_cfa_offset -8",
    "mov rcx, [rsp + 16]",
    ".cfi_register rip, rcx",
    "lea rsp, [rsp + 152]",
    ".cfi_adjust_cfa_offset -152",
    "jmp rcx",
    // The same where one runs.
    "6:",
    outside!(),
    resumer!(),
    "mov rcx, [rax]",
    "mov [rsp + 16], rcx",
    "lea rcx, [rip + 7f]",
    "mov [rsp + 8], rcx",
    "jmp 3b",
    "7:",
    goes_on_entered!(),
    "mov rcx, [rsp]",
    "mov [rax], rcx",
    "jmp 4b",
    "9:",
    outside!(),
    frame!(),
    push_other!("rdi"),
    call!("{by_call}"),
    "pop rdi",
    ".cfi_adjust_cfa_offset -8",
    leave!(),
    end!("corio_enter_by_jump"),
    place = const layout::PLACE,
    thread_place = const layout::THREAD_PLACE,
    key = const layout::KEY,
    slot = const layout::SLOT,
    running = const layout::RUNNING,
    word = const layout::WORD,
    entered = const layout::ENTERED,
    settle_bit = const SETTLE,
    settle = sym settle,
    by_call = sym enter_by_call,
);

/// # Safety
/// As `corio_enter_by_jump`.
#[cfg(not(feature = "asan"))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn qemu_coroutine_enter(co: *mut Coroutine) {
    naked_asm!(saving_all!("corio_enter_by_jump"))
}

/// # Safety
/// As `corio_enter_by_jump`.
#[cfg(not(feature = "asan"))]
unsafe extern "C" fn enter_by_call(co: *mut Coroutine) {
    // SAFETY: the caller's promise.
    unsafe { coroutine::enter(coroutine::loose(co, NAME), NAME) };
}

/// # Safety
/// The coroutine has just given something to settle.
#[cfg(not(feature = "asan"))]
unsafe extern "C" fn settle(co: *mut Coroutine) {
    // SAFETY: the caller's promise.
    unsafe { coroutine::loose(co, NAME).settle() }
}

#[cfg(not(feature = "asan"))]
global_asm!(
    begin!("corio_yield_by_jump"),
    // As `corio::suspend`; a loose coroutine is never cancelled.
    concat!("mov rax, ", thread_state!()),
    "add rax, fs:[0]",
    "mov rdi, [rax]",
    "test rdi, rdi",
    "jz 9f",
    "mov rsi, [rdi + {suspended_key}]",
    "mov [rdi + {key}], rsi",
    "lea rsp, [rsp - 160]",
    ".cfi_adjust_cfa_offset 160",
    "mov [rsp + 24], r9",
    ".cfi_rel_offset rip, 24",
    "mov [rsp + 16], rbp",
    ".cfi_rel_offset rbp, 16",
    "mov [rsp + 8], rbx",
    ".cfi_rel_offset rbx, 8",
    concat!("lea rcx, [rip + ", here!("corio_yielded"), "]"),
    "mov [rsp], rcx",
    "mov [rdi], rsp",
    "mov rdx, [rdi + 8]",
    // The frame is where it was, *rdi + 160: DW_OP_breg5 0, DW_OP_deref, DW_OP_plus_uconst 160.
    ".cfi_escape 0x0f, 6, 0x75, 0, 0x06, 0x23, 0xa0, 0x01",
    "mov rbp, [rdx]",
    concat!("lea rcx, [rip + ", here!("corio_entered"), "]"),
    "cmp rcx, [rdx + 8]",
    "jne 3f",
    // A resumer as above goes on as it would there.
    "test sil, {settle_bit}",
    "jnz 3f",
    "mov rbx, [rdx + 24]",
    "mov rcx, [rdx + 32]",
    "mov qword ptr [rax], 0",
    ".cfi_remember_state",
    "lea rsp, [rdx + 168]",
    // A signal's frame may go where the resumer's registers were: this is its frame from here on.
    ".cfi_def_cfa rsp, 0",
    ".cfi_restore rbx",
    ".cfi_restore rbp",
    ".cfi_register rip, rcx",
    "jmp rcx",
    ".cfi_restore_state",
    "3:",
    "mov rcx, [rdx + 8]",
    "lea rsp, [rdx + 16]",
    "jmp rcx",
    ".cfi_endproc",
    ".cfi_startproc",
    ".cfi_signal_frame", // As the machine's.
    ".cfi_def_cfa rsp, 24",
    ".cfi_offset rbx, -8",
    ".cfi_offset rip, -24",
    // Resumed; by whom is not known to who unwinds the coroutine's stack, and told instead.
    concat!(".hidden ", here!("corio_yielded")),
    concat!(here!("corio_yielded"), ":"),
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    "mov [rdi + 8], rsp",
    // The stack ends above what is read of it only at last: it lies below the red zone, where a
    // signal's frame goes.
    goes_on!(),
    ".cfi_endproc",
    ".cfi_startproc",
    outside!(),
    "9:",
    frame!(),
    call!("{to_no_one}"),
    "ud2",
    end!("corio_yield_by_jump"),
    suspended_key = const layout::SUSPENDED_KEY,
    key = const layout::KEY,
    settle_bit = const SETTLE,
    to_no_one = sym to_no_one,
);

/// # Safety
/// As `corio_yield_by_jump`.
#[cfg(not(feature = "asan"))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn qemu_coroutine_yield() {
    naked_asm!(saving_all!("corio_yield_by_jump"))
}

#[cfg(not(feature = "asan"))]
extern "C" fn to_no_one() {
    die!("Co-routine is yielding to no one")
}

/// The function that calls `$function`.
#[cfg(feature = "asan")]
macro_rules! by_call {
    ($function:path) => {
        naked_asm!(
            ".cfi_startproc",
            outside!(),
            frame!(),
            "push rdi\n.cfi_adjust_cfa_offset 8",
            call!("{function}"),
            "pop rdi\n.cfi_adjust_cfa_offset -8",
            leave!(),
            ".cfi_endproc",
            function = sym $function,
        )
    };
}

/// # Safety
/// As for `qemu_coroutine_enter`. J1.
#[cfg(feature = "asan")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn corio_enter_by_jump(co: *mut Coroutine) {
    by_call!(coroutine::qemu_coroutine_enter)
}

/// # Safety
/// J1.
#[cfg(feature = "asan")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn corio_yield_by_jump() {
    by_call!(coroutine::qemu_coroutine_yield)
}
