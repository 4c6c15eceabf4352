//! Clocks, by C's numbers.

use std::ffi::c_int;

use corio::time::Clock;

/// The clock that C means by `QEMU_CLOCK_..`.
pub(crate) fn clock(number: c_int, function: &str) -> Clock {
    match number {
        0 => Clock::Realtime,
        1 => Clock::Virtual,
        2 => Clock::Host,
        3 => Clock::VirtualRt,
        _ => die!("{function}: there is no clock {number}"),
    }
}
