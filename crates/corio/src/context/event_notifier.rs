//! Event notifiers: eventfds that a handler takes in before it calls back (SPEC H4).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::Error;
use crate::sys::eventfd::EventFd;

/// An event that any thread or process that has its descriptor can set: an eventfd(2), as the kernel
/// takes it for the doorbells and interrupts of a virtual machine.
///
/// A home watches it by [`LocalContext::add_notifier`](super::LocalContext::add_notifier).
///
/// ```
/// let event = corio::context::EventNotifier::new()?;
/// event.set();
/// event.set();
/// assert!(event.test_and_clear());
/// assert!(!event.test_and_clear());
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "event_notifier_cleanup")]
#[derive(Debug)]
pub struct EventNotifier(EventFd);

impl EventNotifier {
    /// One that is not set; its descriptor is closed on exec.
    ///
    /// # Errors
    /// There are no more descriptors.
    #[doc(alias = "event_notifier_init")]
    pub fn new() -> Result<Self, Error> {
        EventFd::new().map(Self)
    }

    /// Of an eventfd that somebody else has made, which becomes non-blocking.
    ///
    /// # Errors
    /// It is none, or one that counts down (`EFD_SEMAPHORE`): being read once would not clear it.
    ///
    /// ```
    /// use corio::context::EventNotifier;
    /// let (pipe, _) = std::io::pipe()?;
    /// assert!(EventNotifier::from_fd(pipe.into()).is_err());
    /// let event = EventNotifier::new()?;
    /// event.set();
    /// let same = EventNotifier::from_fd(event.into())?;
    /// assert!(same.test_and_clear());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "event_notifier_init_fd")]
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
        // Without /proc it is taken for what it is said to be.
        if let Ok(info) = info {
            let fault = if !info.contains("eventfd-count:") {
                "an event notifier was made of a descriptor that is no eventfd: make it by eventfd(2)"
            } else if info.contains("eventfd-semaphore: 1") {
                "an event notifier was made of an eventfd with EFD_SEMAPHORE: make it without"
            } else {
                ""
            };
            if !fault.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
            }
        }
        EventFd::from_fd(fd).map(Self)
    }

    /// Sets it. Any thread, and signal handlers.
    #[doc(alias = "event_notifier_set")]
    pub fn set(&self) {
        self.0.set();
    }

    /// Clears it; true if it was set. Any thread, and signal handlers.
    #[doc(alias = "event_notifier_test_and_clear")]
    pub fn test_and_clear(&self) -> bool {
        self.0.clear()
    }
}

impl AsFd for EventNotifier {
    #[doc(alias = "event_notifier_get_fd")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventNotifier> for OwnedFd {
    fn from(event: EventNotifier) -> OwnedFd {
        event.0.into_fd()
    }
}
