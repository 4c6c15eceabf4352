//! Whether a coroutine is to end early (SPEC C12), and masks, which put that off for a while.

use core::marker::PhantomData;

use super::control::Cancel;
use super::{CoRef, current, of_slot};
use crate::stack::Slot;

impl CoRef {
    /// Takes note of a cancellation that was asked for with a token, perhaps on another thread.
    #[inline]
    pub(crate) fn accept_cancel(self) {
        if self.slot().is_cancel_wanted(self.generation()) {
            self.request_cancel();
        }
    }

    pub(crate) fn request_cancel(self) {
        if self.block().hot.cancel.get() == Cancel::None {
            self.block().hot.cancel.set(Cancel::Requested);
        }
    }

    /// True once it unwinds because it was cancelled.
    pub(crate) fn is_unwinding(self) -> bool {
        self.block().hot.cancel.get() == Cancel::Raised
    }

    /// True once it is asked to end, unless a mask defers it.
    pub(crate) fn is_cancelled(self) -> bool {
        self.block().hot.cancel.get() != Cancel::None && self.block().hot.cancel_masks.get() == 0
    }

    /// True while it is asked to end, no mask defers it, and it has not begun to unwind.
    pub(super) fn is_cancel_due(self) -> bool {
        self.block().hot.cancel.get() == Cancel::Requested && self.is_cancelled()
    }

    /// True while it is asked to end and cannot be made to, as something on this thread unwinds,
    /// perhaps itself: then it must not wait for what may never come.
    pub(crate) fn must_not_wait(self) -> bool {
        self.is_unwinding()
            || self.block().hot.cancel.get() == Cancel::Requested
                && self.block().hot.cancel_masks.get() == 0
                && std::thread::panicking()
    }
}

/// While it lives, the coroutine that made it is not cancelled: that waits for the first park after
/// it. From [`mask_cancel`].
///
/// ```
/// # let io = corio::IoThread::builder().spawn()?;
/// use std::time::Duration;
/// let (tx, rx) = std::sync::mpsc::channel();
/// let handle = io.context().spawn(move || {
///     let mask = corio::mask_cancel();
///     tx.send("begun").unwrap();
///     corio::time::sleep(Duration::from_millis(5)); // Not to be left half done.
///     tx.send("done").unwrap();
///     drop(mask);
///     corio::time::sleep(Duration::from_secs(3600)); // Ends here.
/// });
/// assert_eq!(rx.recv().unwrap(), "begun");
/// handle.cancel()?;
/// assert_eq!(rx.recv().unwrap(), "done");
/// assert!(matches!(handle.join(), Err(corio::JoinError::Cancelled)));
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the coroutine can be cancelled again once this is dropped"]
pub struct CancelMask {
    /// A mask may outlive its coroutine, so it has no `CoRef`.
    of: Option<(&'static Slot, u32)>,
    /// Tied to its thread.
    not_send: PhantomData<*const ()>,
}

/// Keeps the running coroutine from being cancelled until what it returns is dropped (SPEC C12).
/// Masks nest. Outside a coroutine it does nothing. Any thread; never suspends.
///
/// A destructor that waits is a cancellation point, too, where it does not run because its
/// coroutine unwinds: one that must do what it waits for takes a mask first.
pub fn mask_cancel() -> CancelMask {
    let of = current().map(|co| {
        let masks = &co.block().hot.cancel_masks;
        masks.set(masks.get() + 1);
        (co.slot(), co.generation())
    });
    CancelMask {
        of,
        not_send: PhantomData,
    }
}

impl Drop for CancelMask {
    fn drop(&mut self) {
        if let Some((slot, generation)) = self.of
            // Else its coroutine has ended, and another may have the slot.
            && slot.word.generation() == generation
        {
            let masks = &of_slot(slot).block().hot.cancel_masks;
            masks.set(masks.get() - 1);
        }
    }
}
