//! A bottom half that a signal handler schedules, in whichever of the storm's threads it interrupts.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use corio::AioContext;
use corio::context::BottomHalf;

/// What the handler schedules, if anything; leaked, as a handler may be about to use it.
static SCHEDULES: AtomicPtr<BottomHalf> = AtomicPtr::new(ptr::null_mut());
static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: leaked in `Signals::new`.
    if let Some(half) = unsafe { SCHEDULES.load(Ordering::Acquire).as_ref() } {
        half.schedule();
    }
}

/// Signals, and what is seen of them.
pub(crate) struct Signals {
    seen: Arc<AtomicU64>,
    half: *mut BottomHalf,
}

impl Signals {
    pub(crate) fn new(context: &AioContext) -> Self {
        // SAFETY: all-zero bytes are an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler uses atomics and what is documented to be for handlers.
        let done = unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, ptr::null_mut()) };
        assert_eq!(done, 0);
        let seen = Arc::<AtomicU64>::default();
        let half = context.bottom_half("of signals", {
            let seen = Arc::clone(&seen);
            move || seen.store(HANDLED.load(Ordering::SeqCst), Ordering::SeqCst)
        });
        let half = Box::into_raw(Box::new(half));
        SCHEDULES.store(half, Ordering::Release); // Pairs with the handler's load.
        Self { seen, half }
    }

    /// Sends one to each thread, and waits for them to be handled.
    pub(crate) fn send(&self, threads: &[Thread<'_>]) {
        let wanted = HANDLED.load(Ordering::SeqCst) + u64::try_from(threads.len()).unwrap();
        for thread in threads {
            // SAFETY: the thread has not been joined.
            assert_eq!(unsafe { libc::pthread_kill(thread.id, libc::SIGUSR2) }, 0);
        }
        while HANDLED.load(Ordering::SeqCst) < wanted {
            thread::yield_now();
        }
    }

    /// Waits for the bottom half to have seen the last signal.
    pub(crate) fn check(&self) {
        let deadline = Instant::now() + super::PATIENCE;
        while self.seen.load(Ordering::SeqCst) != HANDLED.load(Ordering::SeqCst) {
            assert!(Instant::now() < deadline, "a handler's schedule is lost");
            thread::sleep(Duration::from_millis(1)); // Between two looks.
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        SCHEDULES.store(ptr::null_mut(), Ordering::Release);
        // SAFETY: made in `new`; all signals have been handled, and none is sent any more.
        drop(unsafe { Box::from_raw(self.half) });
    }
}

/// A thread that signals are sent to, and that ends only once none is sent any more.
pub(crate) struct Thread<'scope> {
    id: libc::pthread_t,
    _handle: ScopedJoinHandle<'scope, ()>,
}

pub(crate) fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    f: impl FnOnce() + Send + 'scope,
) -> Thread<'scope> {
    let (tx, rx) = mpsc::channel();
    let handle = scope.spawn(move || {
        // SAFETY: has no conditions.
        tx.send(unsafe { libc::pthread_self() }).unwrap();
        f();
    });
    Thread {
        id: rx.recv().unwrap(),
        _handle: handle,
    }
}
