//! What valgrind is told of us, by its client requests: a few instructions that do nothing on a
//! processor and that valgrind knows when it sees them (its manual, "The Client Request
//! mechanism").

#![allow(unsafe_code)] // Inline assembly that has no effect of its own.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

/// VG_USERREQ__RUNNING_ON_VALGRIND.
const RUNNING_ON_VALGRIND: usize = 0x1001;
/// VG_USERREQ__STACK_REGISTER.
const STACK_REGISTER: usize = 0x1501;
/// VG_USERREQ__MAKE_MEM_UNDEFINED, of memcheck.
const MAKE_MEM_UNDEFINED: usize = (b'M' as usize) << 24 | (b'C' as usize) << 16 | 1;

/// Whether valgrind runs this program, once a stack has been registered.
static WATCHING: AtomicBool = AtomicBool::new(false);

/// Says that `[low, low + len)` is a stack, for ever. Without that, valgrind takes a switch between
/// stacks that lie close together for a very large frame that comes or goes, and what the frames of
/// suspended coroutines hold for undefined.
pub(crate) fn register_stack(low: NonNull<u8>, len: usize) {
    if is_watching() {
        let low = low.as_ptr() as usize;
        // The answer is a number with which it could be taken back.
        let _ = request([STACK_REGISTER, low, low + len - 1, 0, 0, 0]);
        WATCHING.store(true, Ordering::Relaxed);
    }
}

/// Says that the frames on a registered stack are gone. Valgrind takes what lies below the stack
/// pointer for out of bounds, and where the next coroutine's first frame begins lower than the last
/// one's ended, it would not see that the red zone below it is there to be used.
#[cold]
pub(crate) fn clear_stack(low: NonNull<u8>, len: usize) {
    let low = low.as_ptr() as usize;
    // The answer says that memcheck is the tool.
    let _ = request([MAKE_MEM_UNDEFINED, low, len, 0, 0, 0]);
}

/// Whether valgrind knows of any stack, and has to be told what becomes of it.
#[inline]
pub(crate) fn knows_stacks() -> bool {
    WATCHING.load(Ordering::Relaxed)
}

/// Whether valgrind runs this program.
pub(crate) fn is_watching() -> bool {
    request([RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0]) != 0
}

/// Makes a request, and gives the answer, or 0 where valgrind does not watch.
#[cfg(target_arch = "x86_64")]
#[inline]
fn request(arguments: [usize; 6]) -> usize {
    let answer;
    // SAFETY: the rotations add up to two whole turns, the exchange is of a register with itself.
    // Valgrind reads the array in RAX, which lives until after it, and writes RDX.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") &arguments,
            inout("rdx") 0_usize => answer,
            out("rdi") _,
            options(nostack),
        );
    }
    answer
}

/// Makes a request, and gives the answer, or 0 where valgrind does not watch.
#[cfg(target_arch = "aarch64")]
#[inline]
fn request(arguments: [usize; 6]) -> usize {
    let answer;
    // SAFETY: the rotations add up to two whole turns, the last is a register's `or` with itself.
    // Valgrind reads the array in X4, which lives until after it, and writes X3.
    unsafe {
        core::arch::asm!(
            "ror x12, x12, #3",
            "ror x12, x12, #13",
            "ror x12, x12, #51",
            "ror x12, x12, #61",
            "orr x10, x10, x10",
            in("x4") &arguments,
            inout("x3") 0_usize => answer,
            out("x12") _,
            options(nostack),
        );
    }
    answer
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn request(_arguments: [usize; 6]) -> usize {
    0
}
