//! epoll(7), with nanosecond time-outs where the kernel has epoll_pwait2(2) (Linux 5.11).

#![allow(unsafe_code)] // epoll_pwait2 has no safe wrapper that keeps both its precision and a fallback.

use core::cell::Cell;
use core::mem::MaybeUninit;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use crate::error::Error;

/// Beside the conditions that are asked for: only what comes is reported, not what is there still.
pub(crate) const EDGE: u32 = epoll::EventFlags::ET.bits();

/// How many reports one wait takes at most.
const EVENTS_MAX: usize = 128;

/// Room for them.
type Room = [MaybeUninit<libc::epoll_event>; EVENTS_MAX];

/// One readiness report: what was registered as `data`, and the conditions as poll(2) bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) data: u64,
    pub(crate) revents: u32,
}

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Epoll {
    fd: OwnedFd,
    /// epoll_pwait2 was refused once (old kernel, or a filter): milliseconds from now on.
    coarse: Cell<bool>,
}

impl Epoll {
    pub(crate) fn new() -> Result<Self, Error> {
        epoll::create(epoll::CreateFlags::CLOEXEC)
            .map(|fd| Self {
                fd,
                coarse: Cell::new(false),
            })
            .map_err(|errno| Error::Os {
                op: "epoll_create1",
                source: errno.into(),
            })
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, data: u64, events: u32) -> io::Result<()> {
        epoll::add(&self.fd, fd, epoll::EventData::new_u64(data), flags(events)).map_err(Into::into)
    }

    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, data: u64, events: u32) -> io::Result<()> {
        epoll::modify(&self.fd, fd, epoll::EventData::new_u64(data), flags(events))
            .map_err(Into::into)
    }

    pub(crate) fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        epoll::delete(&self.fd, fd).map_err(Into::into)
    }

    /// Waits for at most `timeout_ns` (None: without limit) and hands each report to `each`.
    #[inline(always)] // Into the turn's own wait.
    pub(crate) fn wait(
        &self,
        timeout_ns: Option<u64>,
        mut each: impl FnMut(Event),
    ) -> io::Result<()> {
        // Not written beforehand: that would take longer than the system call.
        let mut room: Room = [const { MaybeUninit::uninit() }; EVENTS_MAX];
        let count = match timeout_ns {
            None | Some(0) => self.wait_ms(&mut room, timeout_ns.map_or(-1, |_| 0))?,
            Some(ns) => self.wait_ns(&mut room, ns)?,
        };
        for event in &room[..count] {
            // SAFETY: the kernel has written so many.
            let event = unsafe { event.assume_init_ref() };
            let (data, revents) = (event.u64, event.events);
            each(Event { data, revents });
        }
        Ok(())
    }

    #[inline(always)] // As `wait`.
    fn wait_ns(&self, room: &mut Room, ns: u64) -> io::Result<usize> {
        if !self.coarse.get() {
            match self.pwait2(room, ns) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.coarse.set(true);
                }
                result => return result,
            }
        }
        // Rounded up: waking early would only make the caller wait again.
        let ms = libc::c_int::try_from(ns.div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX);
        self.wait_ms(room, ms)
    }

    /// -1: without limit.
    #[inline(always)] // As `wait`.
    fn wait_ms(&self, room: &mut Room, ms: libc::c_int) -> io::Result<usize> {
        // epoll_pwait takes 25 ns more than epoll_wait, which not all architectures have.
        #[cfg(target_arch = "x86_64")]
        const NUMBER: libc::c_long = libc::SYS_epoll_wait;
        #[cfg(not(target_arch = "x86_64"))]
        const NUMBER: libc::c_long = libc::SYS_epoll_pwait;
        let timeout = isize::try_from(ms).unwrap_or(isize::MAX);
        // SAFETY: the array outlives the call.
        unsafe {
            enter(
                NUMBER,
                self.fd.as_raw_fd(),
                room.as_mut_ptr().cast(),
                timeout,
            )
        }
    }

    #[inline(always)] // As `wait`.
    fn pwait2(&self, room: &mut Room, ns: u64) -> io::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
        };
        let timeout = (&raw const timeout).expose_provenance().cast_signed();
        let number = libc::SYS_epoll_pwait2;
        // SAFETY: the array and the timespec outlive the call.
        unsafe {
            enter(
                number,
                self.fd.as_raw_fd(),
                room.as_mut_ptr().cast(),
                timeout,
            )
        }
    }
}

/// Whether a wait for the descriptor would return at once. Who cannot be told that it would not is
/// told that it would.
pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut fds, Some(&now)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result != Ok(0),
        }
    }
}

/// epoll_wait, epoll_pwait or epoll_pwait2 (with no signal mask) for at most EVENTS_MAX events: how
/// many have come.
///
/// C's functions are points of cancellation, which costs two locked instructions in a program of
/// several threads. And to return from a function after the system call, C's `syscall` as well,
/// may cost as much as the rest of a turn: see `Local::wait_in_monitor`.
///
/// # Safety
/// `events` has room for so many, and `timeout` is what `number` takes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn enter(
    number: libc::c_long,
    fd: RawFd,
    events: *mut libc::epoll_event,
    timeout: isize,
) -> io::Result<usize> {
    let count: i64;
    // SAFETY: the kernel writes to the array, for which the caller answers, and to three registers.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => count,
            in("rdi") fd,
            in("rsi") events,
            in("rdx") EVENTS_MAX,
            in("r10") timeout,
            in("r8") 0usize,
            in("r9") 0usize,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    usize::try_from(count).map_err(|_| {
        let errno = i32::try_from(-count);
        io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO))
    })
}

/// The same by C's `syscall`.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn enter(
    number: libc::c_long,
    fd: RawFd,
    events: *mut libc::epoll_event,
    timeout: isize,
) -> io::Result<usize> {
    let no_mask = core::ptr::null::<libc::sigset_t>();
    // SAFETY: the caller answers for the array and the time.
    let count = unsafe { libc::syscall(number, fd, events, EVENTS_MAX, timeout, no_mask, 0usize) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn flags(events: u32) -> epoll::EventFlags {
    epoll::EventFlags::from_bits_retain(events)
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
