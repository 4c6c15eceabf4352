//! eventfd(2): a counter that a poll can wait for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;

use crate::error::Error;

/// A non-blocking eventfd, closed on exec.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> Result<Self, Error> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|errno| Error::Os {
                op: "eventfd",
                source: errno.into(),
            })
    }

    /// Of one that is there, which becomes non-blocking.
    pub(crate) fn from_fd(fd: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(fd))
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Makes it readable. A full counter (EAGAIN) is readable already.
    pub(crate) fn set(&self) {
        while let Err(rustix::io::Errno::INTR) = rustix::io::write(&self.0, &1u64.to_ne_bytes()) {}
    }

    /// Makes it unreadable; true if it was readable.
    pub(crate) fn clear(&self) -> bool {
        clear(self.0.as_fd())
    }
}

/// The same, of whoever's it is.
pub(crate) fn clear(fd: BorrowedFd<'_>) -> bool {
    let mut counter = [0u8; 8];
    loop {
        match rustix::io::read(fd, &mut counter) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok(),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
