//! futex(2): sleeping until a word in memory changes. Within this process only.

use core::sync::atomic::AtomicU32;

use rustix::thread::futex::{self, Flags};

/// Blocks the thread if the word is `expected`, until a [`wake_one`] picks it. May return early, so
/// that the caller looks again in any case: a signal came, or the word was another one.
pub(crate) fn wait(word: &AtomicU32, expected: u32) {
    // EAGAIN and EINTR are those cases; nothing else is answered to a valid address.
    let _ = futex::wait(word, Flags::PRIVATE, expected, None);
}

/// Lets one of those go on that wait for the word, if any does.
pub(crate) fn wake_one(word: &AtomicU32) {
    // Nothing is refused to a valid address.
    let _ = futex::wake(word, Flags::PRIVATE, 1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;

    // SPEC L6
    #[test]
    fn a_word_that_has_changed_is_not_waited_for() {
        let word = AtomicU32::new(1);
        wait(&word, 0);
        wake_one(&word); // For nobody.
        assert_eq!(word.load(Ordering::Relaxed), 1);
    }

    // SPEC L6
    #[test]
    fn who_waits_is_woken() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                while word.load(Ordering::Acquire) == 0 {
                    wait(&word, 0);
                }
            });
            word.store(1, Ordering::Release);
            // It may not be asleep yet, and looks at the word again then.
            while !waiter.is_finished() {
                wake_one(&word);
                std::thread::yield_now();
            }
        });
    }
}
