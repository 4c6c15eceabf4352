//! Waiting for what other threads do, by turning a loop (SPEC W1, W2), and the process's main
//! context (A4).
//!
//! ```text
//!   who waits for context X            what is polled
//!   -----------------------            ---------------------------------------
//!   X's home thread                    X
//!   the main context's home thread     the main context; X's thread runs X
//!   any other                          nothing: misuse
//! ```
//!
//! Why no other thread may wait so: two IoThreads that wait for each other would never end, while
//! everything may wait in the main thread, as nothing waits for that.
//!
//! `state` has the protocol between who waits and who kicks.

mod state;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, LazyLock, OnceLock};
use std::thread;

use parking_lot::{Condvar, Mutex};

use self::state::WaiterCount;
use super::{AioContext, Local};
use crate::error::Error;
use crate::tls;

static MAIN: OnceLock<AioContext> = OnceLock::new();
/// Held while the main context is made, so that only one is.
static MAKING_MAIN: Mutex<()> = Mutex::new(());

static WAITERS: LazyLock<Waiters> = LazyLock::new(|| Waiters {
    count: WaiterCount::new(),
    polled: Mutex::default(),
});

/// Who waits in this process.
struct Waiters {
    count: WaiterCount,
    /// What each of them polls (state I2).
    polled: Mutex<Vec<AioContext>>,
}

/// Somebody who waits, for as long as it does.
struct Waiting<'a>(&'a AioContext);

impl<'a> Waiting<'a> {
    fn new(polled: &'a AioContext) -> Self {
        WAITERS.polled.lock().push(polled.clone());
        WAITERS.count.enter();
        Self(polled)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        WAITERS.count.leave();
        let mut polled = WAITERS.polled.lock();
        let place = polled
            .iter()
            .position(|context| context.id() == self.0.id());
        let ours = place.map(|place| polled.swap_remove(place));
        drop(polled);
        drop(ours);
    }
}

/// Makes everybody look again who is in [`AioContext::wait_while`]: to be called after what they
/// wait for has changed, unless a callback of the context that they poll changed it. Any thread;
/// never waits; a fence and a load while nobody waits. Not for signal handlers.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::sync::Arc;
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let busy = Arc::new(AtomicBool::new(true));
///     let theirs = Arc::clone(&busy);
///     let other = std::thread::spawn(move || {
///         theirs.store(false, Ordering::Release);
///         corio::context::kick();
///     });
///     context.wait_while(|| busy.load(Ordering::Acquire))?;
///     other.join().expect("it does not panic");
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "aio_wait_kick")]
pub fn kick() {
    if WAITERS.count.is_awaited() {
        // Under the lock: a notification takes none.
        for context in &*WAITERS.polled.lock() {
            context.notify();
        }
    }
}

impl AioContext {
    /// The process's main context, which is made by the first call (named `main`, with the best
    /// monitor that works); every later call gives the same one. It lives as long as the process.
    /// Any thread; whichever makes itself home ([`enter_home`](Self::enter_home)) is the main
    /// thread for as long.
    ///
    /// # Errors
    /// No descriptor for its eventfd; the next call tries again.
    ///
    /// ```
    /// use corio::AioContext;
    /// assert!(AioContext::main().is_none());
    /// let main = AioContext::init_main()?;
    /// assert_eq!(AioContext::init_main()?.id(), main.id());
    /// assert_eq!(AioContext::main().map(|context| context.id()), Some(main.id()));
    /// # Ok::<(), corio::Error>(())
    /// ```
    #[doc(alias = "qemu_init_main_loop")]
    pub fn init_main() -> Result<Self, Error> {
        let _making = MAKING_MAIN.lock();
        if let Some(main) = MAIN.get() {
            return Ok(main.clone());
        }
        let made = Self::builder().name("main").build()?;
        Ok(MAIN.get_or_init(|| made).clone())
    }

    /// The process's main context, if [`init_main`](Self::init_main) has made it. Any thread.
    #[doc(alias = "qemu_get_aio_context")]
    #[must_use]
    pub fn main() -> Option<Self> {
        MAIN.get().cloned()
    }

    /// Turns a loop until `condition` is false: this context's in its home thread, the main
    /// context's in the main thread. True if it was not false at once.
    ///
    /// The condition is looked at once a turn. Callbacks and coroutines run meanwhile, so it may
    /// change in them; whoever changes it elsewhere calls [`kick`] after that. May be called from a
    /// callback, not from a coroutine, which parks on something instead.
    ///
    /// # Errors
    /// The monitor refused something; the condition may still be true.
    ///
    /// # Panics
    /// In a coroutine, and in a thread that is home neither of this context nor of the main one.
    /// With a callback's panic.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use std::sync::Arc;
    /// use corio::AioContext;
    /// let io = corio::IoThread::builder().name("io0").spawn()?;
    /// AioContext::init_main()?.enter_home(|| {
    ///     let busy = Arc::new(AtomicBool::new(true));
    ///     let theirs = Arc::clone(&busy);
    ///     io.context().schedule_oneshot("work", move || {
    ///         theirs.store(false, Ordering::Release);
    ///         corio::context::kick();
    ///     });
    ///     io.context().wait_while(|| busy.load(Ordering::Acquire))
    /// })??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "AIO_WAIT_WHILE")]
    #[track_caller]
    pub fn wait_while(&self, mut condition: impl FnMut() -> bool) -> io::Result<bool> {
        refuse_in_coroutine("AioContext::wait_while");
        let polled = self.polled_here();
        if !condition() {
            return Ok(false);
        }
        let _waiting = Waiting::new(&polled);
        while condition() {
            polled.poll(true)?;
        }
        Ok(true)
    }

    /// What this thread polls while it waits for this context.
    #[track_caller]
    fn polled_here(&self) -> AioContext {
        if self.is_home() {
            return self.clone();
        }
        let main = Self::main().filter(Self::is_home);
        main.unwrap_or_else(|| {
            panic!(
                "a wait for context `{}` in a thread that is home neither of it nor of the main \
                 context: only these may turn a loop for it; wait in the main thread, or schedule a \
                 bottom half on the context and go on in that",
                self.name()
            )
        })
    }

    /// Runs `f` in a bottom half of this context and waits for what it returns; `name` is the
    /// bottom half's.
    ///
    /// In its home thread, and in the main thread, it waits as [`wait_while`](Self::wait_while)
    /// does; a thread that is nobody's home blocks (differs from QEMU, where it may not wait). `f`
    /// runs outside any coroutine and may not park. A context that never had a home runs it when it
    /// gets one.
    ///
    /// # Errors
    /// ESHUTDOWN: the IoThread that was the context's home has ended, or ends before `f` began;
    /// `f` was dropped. The wait's own errors, as of `wait_while`: `f` may still run then.
    ///
    /// # Panics
    /// With `f`'s panic, and as `wait_while` does.
    ///
    /// ```
    /// let io = corio::IoThread::builder().name("io0").spawn()?;
    /// let name = io
    ///     .context()
    ///     .run_in_bottom_half("ask", || std::thread::current().name().map(str::to_owned))?;
    /// assert_eq!(name.as_deref(), Some("io0"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[doc(alias = "aio_wait_bh_oneshot")]
    #[track_caller]
    pub fn run_in_bottom_half<T: Send + 'static>(
        &self,
        name: &'static str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        refuse_in_coroutine("AioContext::run_in_bottom_half");
        let polls = Local::current().map(|_| self.polled_here());
        let answer = Arc::new(Answer::new());
        let answering = Answering(Arc::clone(&answer));
        self.schedule_unless_ended(name, move || {
            let outcome = catch_unwind(AssertUnwindSafe(f));
            answering.give(outcome);
        });
        match polls {
            Some(_) => drop(self.wait_while(|| !answer.is_given())?),
            None => answer.block(),
        }
        match answer.take() {
            Some(Ok(value)) => Ok(value),
            Some(Err(payload)) => resume_unwind(payload),
            None => Err(Error::Os {
                op: "running a bottom half on a context whose home has ended",
                source: io::Error::from_raw_os_error(libc::ESHUTDOWN),
            }
            .into()),
        }
    }
}

/// Where a bottom half leaves what it returned.
struct Answer<T> {
    /// None: not yet; Some(None): never.
    outcome: Mutex<Option<Option<thread::Result<T>>>>,
    given: Condvar,
}

impl<T> Answer<T> {
    fn new() -> Self {
        Self {
            outcome: Mutex::new(None),
            given: Condvar::new(),
        }
    }

    /// The first one stands.
    fn give(&self, outcome: Option<thread::Result<T>>) {
        self.outcome.lock().get_or_insert(outcome);
        self.given.notify_one();
        kick();
    }

    fn is_given(&self) -> bool {
        self.outcome.lock().is_some()
    }

    fn block(&self) {
        let mut outcome = self.outcome.lock();
        self.given.wait_while(&mut outcome, |it| it.is_none());
    }

    fn take(&self) -> Option<thread::Result<T>> {
        self.outcome.lock().take().flatten()
    }
}

/// A bottom half that is dropped answers, too.
struct Answering<T>(Arc<Answer<T>>);

impl<T> Answering<T> {
    fn give(self, outcome: thread::Result<T>) {
        self.0.give(Some(outcome));
    }
}

impl<T> Drop for Answering<T> {
    fn drop(&mut self) {
        self.0.give(None);
    }
}

#[track_caller]
fn refuse_in_coroutine(what: &str) {
    assert!(
        tls::thread().current.get().is_null(),
        "{what} was called inside a coroutine, where it would run the loop on the coroutine's stack: \
         park instead (AioContext::run, locks, events), the loop that runs it goes on"
    );
}
