//! The report of a stack that has overflowed (SPEC C7).
//!
//! A coroutine that runs off its stack meets the guard below it. The kernel then raises SIGSEGV,
//! which is taken on the thread's alternate stack, recognised by the address, and told of in one
//! line on standard error; then the process dies of the signal, as it would have without us. Any
//! other fault goes on to whoever handled it before.
//!
//! What is read here is the block of the coroutine that runs, which lies at the far end of its
//! stack from the guard. What it points to is handed to writev(2), which refuses a bad pointer
//! instead of faulting.

use core::panic::Location;

use super::control::ControlBlock;
use super::switch;
use crate::stack::Slot;
use crate::sys;
use crate::sys::signal::{AlternateStack, Fault};

/// Has overflows of this thread's coroutines reported while the value lives. Once a thread, when
/// its outermost home begins.
pub(super) fn watch() -> AlternateStack {
    sys::signal::on_fault(report);
    AlternateStack::ensure()
}

/// In a signal handler: neither allocates, nor locks, nor unwinds.
fn report(fault: &Fault) -> bool {
    let Some(block) = switch::running() else {
        return false;
    };
    let is_overflow = match fault.address {
        Some(address) => block.slot.is_guard(address),
        None => block.slot.is_full(fault.stack_pointer),
    };
    if is_overflow {
        tell(block, block.slot, block.created_at);
    }
    is_overflow
}

fn tell(block: &ControlBlock, slot: &Slot, at: &Location<'_>) {
    let (mut line, mut column, mut size) = ([0; 20], [0; 20], [0; 20]);
    sys::signal::write_error(&[
        b"\ncorio: coroutine `",
        block.name.as_deref().unwrap_or("unnamed").as_bytes(),
        b"` (created at ",
        at.file().as_bytes(),
        b":",
        decimal(u64::from(at.line()), &mut line),
        b":",
        decimal(u64::from(at.column()), &mut column),
        b") has overflowed its stack of ",
        decimal(slot.size() as u64, &mut size),
        b" bytes; make it with a larger one: `corio::Builder::stack_size`\n",
    ]);
}

/// core's formatting takes more of the alternate stack than is needed.
fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10).to_le_bytes()[0];
        number /= 10;
        at -= 1;
        if number == 0 {
            break;
        }
    }
    &digits[at..]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::decimal;

    #[test]
    fn numbers_are_written_as_others_write_them() {
        for number in [0, 7, 10, 65_536, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
