//! Waiting for descriptors, and sending and receiving whole buffers.
//!
//! ```text
//!   a descriptor's handler ──▶ its Waits: two lines of Waiters, which lie in their coroutines' frames
//! ```
//!
//! All that wait for a descriptor to be ready the same way go on once it is, and look for
//! themselves.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::mem;
use std::ptr;
use std::rc::Rc;

use corio::raw;

use crate::context::Context;
use crate::handler::{self, Calls};

/// Which way.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Receive,
    Send,
}

/// Who waits. In the waiter's frame.
struct Waiter {
    token: u64,
    is_ready: Cell<bool>,
}

/// Those that are to be told, oldest first. Each stays in its frame until it is.
#[derive(Default)]
struct Line(RefCell<Vec<*const Waiter>>);

/// Who waits for a descriptor in this home: what its handler is called with.
#[derive(Default)]
struct Waits {
    receivers: Line,
    senders: Line,
}

/// By descriptor. What nobody waits for any more stays for the next time.
type AllWaits = RefCell<HashMap<c_int, Rc<Waits>>>;

impl Line {
    fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Has all that are in it go on. Nothing of `self` is used once the first of them runs.
    fn wake(&self) {
        let all = mem::take(&mut *self.0.borrow_mut());
        for waiter in all {
            // SAFETY: its frame stays until it is told that it is ready, in this thread.
            let waiter = unsafe { &*waiter };
            waiter.is_ready.set(true);
            raw::wake_token(waiter.token);
        }
    }
}

impl Waits {
    fn line(&self, way: Way) -> &Line {
        match way {
            Way::Receive => &self.receivers,
            Way::Send => &self.senders,
        }
    }

    /// What the handler is to be, if somebody waits.
    fn calls(&self) -> Option<Calls> {
        let (receives, sends) = (!self.receivers.is_empty(), !self.senders.is_empty());
        (receives || sends).then_some(Calls {
            read: receives.then_some(readable),
            write: sends.then_some(writable),
            poll: None,
            poll_ready: None,
            poll_begin: None,
            poll_end: None,
            opaque: ptr::from_ref(self).cast_mut().cast(),
        })
    }
}

unsafe extern "C" fn readable(waits: *mut c_void) {
    // SAFETY: they stay as long as the home.
    unsafe { &*waits.cast::<Waits>() }.receivers.wake();
}

unsafe extern "C" fn writable(waits: *mut c_void) {
    // SAFETY: they stay as long as the home.
    unsafe { &*waits.cast::<Waits>() }.senders.wake();
}

/// Parks the running coroutine until `fd` is ready. What was watching it is replaced.
fn wait(fd: c_int, way: Way, function: &str) {
    let token = raw::token_of_running();
    if token == 0 {
        die!("{function}: called outside a coroutine");
    }
    // SAFETY: the thread's current context is there while it is current.
    let Some(ctx) = (unsafe { Context::current().as_ref() }) else {
        die!("{function}: this thread has no context that could watch a descriptor");
    };
    let Some(local) = ctx.rust().local() else {
        unreachable!("this thread is its home");
    };
    let waits = Rc::clone(
        local
            .attachment(AllWaits::default)
            .borrow_mut()
            .entry(fd)
            .or_default(),
    );
    let waiter = Waiter {
        token,
        is_ready: Cell::new(false),
    };
    waits.line(way).0.borrow_mut().push(&raw const waiter);
    handler::set(ctx, fd, waits.calls());
    while !waiter.is_ready.get() {
        corio::park();
    }
    handler::set_if(ctx, fd, |present| {
        // C may have put another handler in its place.
        let is_ours = present.is_some_and(|calls| ptr::eq(calls.opaque.cast(), &raw const *waits));
        is_ours.then(|| waits.calls())
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn yield_until_fd_readable(fd: c_int) {
    wait(fd, Way::Receive, "yield_until_fd_readable");
}

/// Goes on until all is done; what was done, or the negative errno.
///
/// # Safety
/// There are `iov_cnt` vectors, whose memory is there.
unsafe fn transfer(
    fd: c_int,
    iov: &[libc::iovec],
    offset: usize,
    bytes: usize,
    way: Way,
    function: &str,
) -> isize {
    if !corio::in_coroutine() {
        die!("{function}: called outside a coroutine");
    }
    let mut done = 0;
    while done < bytes {
        // One vector at a time: where it begins, and how much of it is left.
        let mut skip = offset + done;
        let Some(part) = iov
            .iter()
            .find(|part| match skip.checked_sub(part.iov_len) {
                Some(rest) => {
                    skip = rest;
                    false
                }
                None => true,
            })
        else {
            die!("{function}: the vectors are shorter than the bytes that are asked for");
        };
        let len = (part.iov_len - skip).min(bytes - done);
        // SAFETY: within the vector, by the caller's promise.
        let moved = unsafe {
            let at = part.iov_base.cast::<u8>().add(skip).cast();
            match way {
                Way::Receive => libc::recv(fd, at, len, libc::MSG_DONTWAIT),
                Way::Send => libc::send(fd, at, len, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL),
            }
        };
        match moved {
            0 if way == Way::Receive => break,
            1.. => done += moved.unsigned_abs(),
            _ => match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EAGAIN) => wait(fd, way, function),
                Some(libc::EINTR) => {}
                _ if done > 0 => break,
                error => return -isize::try_from(error.unwrap_or(libc::EIO)).unwrap_or(1),
            },
        }
    }
    isize::try_from(done).unwrap_or(isize::MAX)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_recv(sockfd: c_int, buf: *mut c_void, bytes: usize) -> isize {
    let iov = [libc::iovec {
        iov_base: buf,
        iov_len: bytes,
    }];
    // SAFETY: the header asks for a buffer of so many bytes.
    unsafe { transfer(sockfd, &iov, 0, bytes, Way::Receive, "corio_co_recv") }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_send(sockfd: c_int, buf: *const c_void, bytes: usize) -> isize {
    let iov = [libc::iovec {
        iov_base: buf.cast_mut(),
        iov_len: bytes,
    }];
    // SAFETY: the header asks for a buffer of so many bytes.
    unsafe { transfer(sockfd, &iov, 0, bytes, Way::Send, "corio_co_send") }
}

/// The vectors at `iov`.
///
/// # Safety
/// There are so many.
unsafe fn vectors<'a>(iov: *const libc::iovec, count: c_uint) -> &'a [libc::iovec] {
    if iov.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(iov, count as usize) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_recvv(
    sockfd: c_int,
    iov: *const libc::iovec,
    iov_cnt: c_uint,
    offset: usize,
    bytes: usize,
) -> isize {
    // SAFETY: the header asks for so many vectors, whose memory is there.
    unsafe {
        let iov = vectors(iov, iov_cnt);
        transfer(sockfd, iov, offset, bytes, Way::Receive, "corio_co_recvv")
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn corio_co_sendv(
    sockfd: c_int,
    iov: *const libc::iovec,
    iov_cnt: c_uint,
    offset: usize,
    bytes: usize,
) -> isize {
    // SAFETY: the header asks for so many vectors, whose memory is there.
    unsafe {
        let iov = vectors(iov, iov_cnt);
        transfer(sockfd, iov, offset, bytes, Way::Send, "corio_co_sendv")
    }
}
