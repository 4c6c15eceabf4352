//! A context's home: the loop's scope and the coroutines' scope in one (SPEC A1, C0).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::inbox::Inbox;
use crate::context::{AioContext, Drain, Local, now_ns};
use crate::coroutine::{self, Home};
use crate::error::Error;

/// How long leaving a home waits for what is in flight before it is leaked and named, in ns.
const LEAVE_GRACE_NS: u64 = 5_000_000_000;

impl AioContext {
    /// Makes this thread the context's home for as long as `f` runs. `f` turns the loop with
    /// [`poll`](Self::poll).
    ///
    /// When `f` returns, coroutines that are still there are cancelled and reaped, and what the
    /// kernel still works on is waited for; what does not end within 5 s is leaked and named in the
    /// log. What is spawned meanwhile is cancelled before it begins. A panic of `f` passes through
    /// after that.
    ///
    /// # Errors
    /// The monitor cannot be made (no descriptors, or refused).
    ///
    /// # Panics
    /// If this thread is a home already, the context has one, or inside a coroutine.
    #[doc(alias = "qemu_set_current_aio_context")]
    pub fn enter_home<R>(&self, f: impl FnOnce() -> R) -> Result<R, Error> {
        let inbox = Inbox::new(self);
        let result = self.with_local(
            || {
                run_by_loop(Some(inbox.run_by_home()));
                let end = coroutine::with_home(Arc::as_ptr(&inbox).cast(), f, |home| {
                    self.reap(home);
                    inbox.close();
                    run_by_loop(None);
                });
                // A waker holds it for some instructions (`push_remote`). It must not be the last
                // to: what is queued in the context would be dropped in it, with its caller's locks
                // held (SPEC S6).
                while end.leaked.is_empty() && Arc::strong_count(&inbox) > 1 {
                    std::thread::yield_now();
                }
                if !end.leaked.is_empty() {
                    // A waker may have won one of them and be on its way here (inbox I3).
                    core::mem::forget(Arc::clone(&inbox));
                }
                end.leaked.report();
                end.result.unwrap_or_else(|payload| resume_unwind(payload))
            },
            |local: &Local| !local.has_requests_in_flight(),
        );
        drop(inbox);
        result
    }

    /// Cancels what lives in the home, and turns the loop until it has ended or the grace is over.
    /// The stubborn are asked again at least as often as an idle bottom half runs.
    fn reap(&self, home: &Home) {
        let deadline_ns = now_ns().saturating_add(LEAVE_GRACE_NS);
        // Not a timer, whose clock may be disabled.
        let tick = self.bottom_half("reap", || ());
        // What is queued already begins in this turn, and is cancelled with the rest.
        self.turn_guarded(false);
        loop {
            home.cancel_all(false);
            if home.living() == 0 || now_ns() >= deadline_ns {
                break;
            }
            tick.schedule_idle();
            self.turn_guarded(true);
        }
        while home.living() == 0
            && now_ns() < deadline_ns
            && Local::current().is_some_and(Local::has_requests_in_flight)
        {
            tick.schedule_idle();
            self.turn_guarded(true);
        }
    }

    /// One turn whose failures end here: a callback's panic has been reported by the hook, and a
    /// monitor that fails now fails for the last time.
    fn turn_guarded(&self, blocking: bool) {
        match catch_unwind(AssertUnwindSafe(|| self.poll(blocking))) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::error!(context = self.name(), "the loop's wait failed: {error}")
            }
            Err(payload) => {
                let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                core::mem::forget(dropped); // A destructor's panic, whose own could panic again.
            }
        }
    }
}

/// Has the loop of this thread run its inbox, which stays until there is another, or none.
#[allow(unsafe_code)] // `Local::set_drain`'s contract.
fn run_by_loop(inbox: Option<Drain>) {
    if let Some(local) = Local::current() {
        // SAFETY: `enter_home` keeps the inbox until its scope has ended, and takes it back there,
        // outside of any turn.
        unsafe { local.set_drain(inbox) };
    }
}
