//! `QemuEvent`: set or not, and those who wait for it.

use corio::raw;
use corio::sync::Event;

use crate::{abort, layout};

/// What C allocates; all zeros: it is not set, and nobody waits.
#[repr(C)]
pub(crate) struct QemuEvent(Event);
layout::words!(QemuEvent, 4);

/// The event at `ev`; dies if it is null.
///
/// # Safety
/// `ev` is null or an event, zeroed or initialised.
#[inline]
unsafe fn at<'a>(ev: *mut QemuEvent, function: &str) -> &'a Event {
    // SAFETY: the caller's promise.
    match unsafe { ev.as_ref() } {
        Some(ev) => &ev.0,
        None => die!("{function}: the event is NULL"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_event_init(ev: *mut QemuEvent, init: bool) {
    abort::on_panic();
    let event = if init { Event::new_set() } else { Event::new() };
    // SAFETY: the header asks for room for an event.
    unsafe {
        at(ev, "qemu_event_init");
        ev.write(QemuEvent(event));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_event_set(ev: *mut QemuEvent) {
    // SAFETY: the header asks for an event.
    unsafe { at(ev, "qemu_event_set") }.set();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_event_reset(ev: *mut QemuEvent) {
    // SAFETY: the header asks for an event.
    unsafe { at(ev, "qemu_event_reset") }.reset();
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_event_wait(ev: *mut QemuEvent) {
    // SAFETY: the header asks for an event.
    raw::wait_or_block(unsafe { at(ev, "qemu_event_wait") });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_event_destroy(ev: *mut QemuEvent) {
    const NAME: &str = "qemu_event_destroy";
    // SAFETY: the header asks for an event that nobody uses any more.
    // Who has set it may be in there still, when the last that waited frees it.
    if !raw::settle_event(unsafe { at(ev, NAME) }) {
        die!("{NAME}: somebody waits for it");
    }
}
