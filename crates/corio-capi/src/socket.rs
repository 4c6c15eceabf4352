//! Waiting for descriptors, and sending and receiving whole buffers.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use corio::raw;

use crate::context::Context;
use crate::handler::{self, Calls};

/// Which way.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Receive,
    Send,
}

/// Who waits: what the handler is called with. In the waiter's frame.
struct Waiter {
    token: u64,
    is_ready: Cell<bool>,
}

unsafe extern "C" fn ready(waiter: *mut c_void) {
    // SAFETY: the frame stays until its handler is removed, in this thread.
    let waiter = unsafe { &*waiter.cast::<Waiter>() };
    waiter.is_ready.set(true);
    raw::wake_token(waiter.token);
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
    let waiter = Waiter {
        token,
        is_ready: Cell::new(false),
    };
    let handler = |wanted| (way == wanted).then_some(ready as handler::IoHandler);
    let calls = Calls {
        read: handler(Way::Receive),
        write: handler(Way::Send),
        poll: None,
        poll_ready: None,
        poll_begin: None,
        poll_end: None,
        opaque: ptr::from_ref(&waiter).cast_mut().cast(),
    };
    handler::set(ctx, fd, Some(calls));
    while !waiter.is_ready.get() {
        corio::park();
    }
    handler::set(ctx, fd, None);
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
