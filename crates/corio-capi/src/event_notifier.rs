//! Event notifiers: descriptors to be notified by, and their handlers.

use std::ffi::{c_int, c_void};

use crate::context::Context;
use crate::handler::{self, AioPollFn, Calls, IoHandler};
use crate::{abort, layout};

/// What C allocates; all zeros: there is no descriptor.
#[repr(C)]
pub(crate) struct EventNotifier {
    read_fd: c_int,
    write_fd: c_int,
    is_open: bool,
    /// It is `event_notifier_init`'s, and closed by `event_notifier_cleanup`.
    is_own: bool,
}

/// The size that the header says: two words.
#[repr(C, align(8))]
pub(crate) struct Published(EventNotifier);
layout::words!(Published, 2);

/// A notifier's function.
type NotifierHandler = unsafe extern "C" fn(*mut EventNotifier);

/// The notifier at `e`; dies if it is null.
///
/// # Safety
/// `e` is null or a notifier, zeroed or initialised.
unsafe fn at<'a>(e: *const EventNotifier, function: &str) -> &'a EventNotifier {
    // SAFETY: the caller's promise.
    match unsafe { e.as_ref() } {
        Some(e) => e,
        None => die!("{function}: the event notifier is NULL"),
    }
}

/// An errno negated: of the last system call, which has failed.
fn last_error() -> c_int {
    -std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

/// # Safety
/// `e` is null or room for a notifier.
unsafe fn init(e: *mut EventNotifier, fd: c_int, is_own: bool) {
    let notifier = EventNotifier {
        read_fd: fd,
        write_fd: fd,
        is_open: true,
        is_own,
    };
    // SAFETY: the caller's promise.
    unsafe { e.write(notifier) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn event_notifier_init(e: *mut EventNotifier, active: c_int) -> c_int {
    // SAFETY: the header asks for room for a notifier; eventfd takes two numbers.
    unsafe {
        at(e, "event_notifier_init");
        let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
        let fd = libc::eventfd(u32::from(active != 0), flags);
        if fd < 0 {
            return last_error();
        }
        init(e, fd, true);
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn event_notifier_init_fd(e: *mut EventNotifier, fd: c_int) {
    const NAME: &str = "event_notifier_init_fd";
    if fd < 0 {
        die!("{NAME}: {fd} is no descriptor");
    }
    // SAFETY: the header asks for room for a notifier.
    unsafe {
        at(e, NAME);
        init(e, fd, false);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn event_notifier_cleanup(e: *mut EventNotifier) {
    // SAFETY: the header asks for a notifier that is not used any more.
    unsafe {
        let notifier = at(e, "event_notifier_cleanup");
        if notifier.is_open && notifier.is_own {
            libc::close(notifier.read_fd);
        }
        let closed = EventNotifier {
            read_fd: -1,
            write_fd: -1,
            is_open: false,
            is_own: false,
        };
        e.write(closed);
    }
}

/// The descriptor to read from; dies if there is none.
fn read_fd(e: &EventNotifier, function: &str) -> c_int {
    if !e.is_open {
        die!("{function}: the event notifier was not initialised");
    }
    e.read_fd
}

#[unsafe(no_mangle)]
unsafe extern "C" fn event_notifier_get_fd(e: *const EventNotifier) -> c_int {
    // SAFETY: the header asks for a notifier.
    read_fd(
        unsafe { at(e, "event_notifier_get_fd") },
        "event_notifier_get_fd",
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn event_notifier_set(e: *mut EventNotifier) -> c_int {
    // SAFETY: the header asks for a notifier.
    let e = unsafe { at(e, "event_notifier_set") };
    if !e.is_open {
        return -libc::EBADF;
    }
    let one = 1u64.to_ne_bytes();
    loop {
        // SAFETY: eight bytes are there.
        if unsafe { libc::write(e.write_fd, one.as_ptr().cast(), one.len()) } >= 0 {
            return 0;
        }
        match last_error() {
            error if error == -libc::EINTR => {}
            error if error == -libc::EAGAIN => return 0, // It is readable.
            error => return error,
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn event_notifier_test_and_clear(e: *mut EventNotifier) -> c_int {
    // SAFETY: the header asks for a notifier.
    let e = unsafe { at(e, "event_notifier_test_and_clear") };
    let mut was_set = 0;
    if !e.is_open {
        return was_set;
    }
    // An eventfd is empty after one read; what else it may be is so after a short one.
    let mut buffer = [0u8; 512];
    loop {
        // SAFETY: the buffer is there.
        let got = unsafe { libc::read(e.read_fd, buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(got) {
            Ok(0) => return was_set,
            Ok(count) => {
                was_set = 1;
                if count < buffer.len() {
                    return was_set;
                }
            }
            Err(_) if last_error() == -libc::EINTR => {}
            Err(_) => return was_set,
        }
    }
}

/// As functions of a descriptor's handler, which gets the notifier.
fn with_pointer(function: Option<NotifierHandler>) -> Option<IoHandler> {
    // SAFETY: both take one pointer and return nothing.
    function.map(|function| unsafe { std::mem::transmute::<NotifierHandler, IoHandler>(function) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_set_event_notifier(
    ctx: *mut Context,
    notifier: *mut EventNotifier,
    io_read: Option<NotifierHandler>,
    io_poll: Option<AioPollFn>,
    io_poll_ready: Option<NotifierHandler>,
) {
    const NAME: &str = "aio_set_event_notifier";
    abort::on_panic();
    // SAFETY: the header asks for a context and a notifier that stays until it is removed.
    let (ctx, fd) = unsafe { (Context::at(ctx, NAME), read_fd(at(notifier, NAME), NAME)) };
    if io_poll.is_some() && io_poll_ready.is_none() {
        die!("{NAME}: io_poll without io_poll_ready");
    }
    let calls = Calls {
        read: with_pointer(io_read),
        write: None,
        poll: io_poll,
        poll_ready: with_pointer(io_poll_ready),
        poll_begin: None,
        poll_end: None,
        opaque: notifier.cast::<c_void>(),
    };
    let is_wanted = io_read.is_some() || io_poll.is_some();
    handler::set(ctx, fd, is_wanted.then_some(calls));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_set_event_notifier_poll(
    ctx: *mut Context,
    notifier: *mut EventNotifier,
    io_poll_begin: Option<NotifierHandler>,
    io_poll_end: Option<NotifierHandler>,
) {
    const NAME: &str = "aio_set_event_notifier_poll";
    // SAFETY: the header asks for a context and a notifier that stays until it is removed.
    let (ctx, fd) = unsafe { (Context::at(ctx, NAME), read_fd(at(notifier, NAME), NAME)) };
    let is_there = handler::change(ctx, fd, |calls| {
        calls.poll_begin = with_pointer(io_poll_begin);
        calls.poll_end = with_pointer(io_poll_end);
    });
    if !is_there {
        die!("{NAME}: the event notifier has no handler");
    }
}
