//! The event loop, which knows no coroutine: the AioContext (SPEC section 4).
//!
//! ```text
//!   any thread                        home thread, one turn
//!   ----------                        ---------------------------------------------------
//!   schedule a bottom half  --list--> wait for descriptors (monitor), at most until the next timer
//!   arm a timer             --heap--> accept the notification
//!   notify                  --flag--> bottom halves, disk completions, ready handlers, timers
//! ```
//!
//! `AioContext` is what any thread may hold; `local::Local` is what only the home thread has.
//! Files: `notify` the wake-up protocol, `bottom_half`, `timer`, `handler` what a turn runs,
//! `polling` what it does before it waits, `monitor` how it waits, `ready` what that has found,
//! `ring` the io_uring it shares with the disk engine, `list` what other threads push onto,
//! `lock_cnt` the lock for lists that are walked far more often than they change, `embed` somebody
//! else's loop, `wait` how other threads' work is waited for by turning the loop, `phases` the parts
//! of a turn by name.

mod bottom_half;
mod embed;
mod event_notifier;
mod handler;
mod here;
mod list;
mod local;
pub(crate) mod lock_cnt;
mod monitor;
mod notify;
mod phases;
mod polling;
mod ready;
mod reentrancy;
mod ring;
mod timer;
mod wait;

use core::any::{Any, TypeId};
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use bottom_half::BottomHalf;
pub use embed::Embedded;
pub use event_notifier::EventNotifier;
pub use handler::remote::RemoteHandler;
pub use handler::{Interest, Readiness};
pub use here::{Handler, LocalContext};
pub use monitor::{MonitorChoice, MonitorInfo, MonitorKind};
pub use polling::{PollParams, PollStats};
pub use reentrancy::{Engaged, ReentrancyGuard};
pub use timer::{Clock, Timer, VirtualClock};
pub use wait::kick;

pub(crate) use local::{Drain, Local, LocalHandler};
pub(crate) use ring::Completion;
pub(crate) use timer::now_ns;

use self::handler::Own;
use self::monitor::Monitor;
use self::notify::NotifyState;
use crate::error::Error;
use crate::sys::eventfd::EventFd;
use crate::tls;

/// An event loop. Clones name the same one.
///
/// Any thread may hold it, schedule bottom halves on it, arm timers and spawn coroutines; one
/// thread at a time is its home and runs it. The usual home is an [`IoThread`](crate::IoThread).
///
/// ```
/// let context = corio::AioContext::new()?;
/// let other = context.clone();
/// let sum = context.enter_home(|| {
///     let handle = other.spawn(|| 1 + 2);
///     while !handle.is_finished() {
///         other.poll(true)?;
///     }
///     Ok::<_, std::io::Error>(handle.join().expect("it does not panic"))
/// })??;
/// assert_eq!(sum, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "aio_context_new")]
#[derive(Clone)]
pub struct AioContext(Arc<Inner>);

/// What any thread may touch.
pub(crate) struct Inner {
    id: u64,
    name: String,
    choice: MonitorChoice,
    monitor: Mutex<Option<MonitorInfo>>,
    /// Who is home: a thread's number, 0 for nobody.
    home: AtomicU64,
    /// Whether it had a home for good, which has ended: nothing is spawned then. Held while a spawn
    /// is queued, so that none comes after those that [`AioContext::end`] has dropped.
    ended: Mutex<bool>,
    notify: NotifyState,
    notifier: EventFd,
    bottom_halves: bottom_half::BottomHalves,
    /// What other threads have asked of handlers.
    mailbox: handler::remote::Mailbox,
    timers: timer::Timers,
    poll_params: Mutex<PollParams>,
    attachments: Mutex<Vec<(TypeId, Arc<dyn Any + Send + Sync>)>>,
}

impl Inner {
    /// After a bottom half was pushed from elsewhere onto an empty list.
    fn tell_pushed(&self) {
        if self.notify.pushed() {
            self.notifier.set();
        }
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Makes contexts.
///
/// ```
/// use corio::{AioContext, context::{MonitorChoice, MonitorKind}};
/// let context = AioContext::builder().name("disk0").monitor(MonitorChoice::Epoll).build()?;
/// assert_eq!(context.name(), "disk0");
/// let monitor = context.enter_home(|| context.monitor())?;
/// assert_eq!(monitor.expect("it has had a home").kind, MonitorKind::Epoll);
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ContextBuilder {
    name: Option<String>,
    monitor: MonitorChoice,
    poll_params: PollParams,
}

impl ContextBuilder {
    /// The name that messages and traces use.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Which monitor to use; the default takes the best that works.
    #[must_use]
    pub fn monitor(mut self, choice: MonitorChoice) -> Self {
        self.monitor = choice;
        self
    }

    /// How it polls before it waits; the default does not.
    #[must_use]
    pub fn poll_params(mut self, params: PollParams) -> Self {
        self.poll_params = params;
        self
    }

    /// Makes the context. No thread is its home yet.
    ///
    /// # Errors
    /// No descriptor for its eventfd; a name with a NUL byte, which no thread can have; a parameter
    /// out of its range.
    pub fn build(self) -> Result<AioContext, Error> {
        if let Some(name) = self.name.as_ref().filter(|name| name.contains('\0')) {
            return Err(Error::Parameter {
                name: "name",
                value: name.escape_debug().to_string(),
                expected: "free of NUL bytes",
            });
        }
        self.poll_params.check()?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(AioContext(Arc::new(Inner {
            id,
            name: self.name.unwrap_or_else(|| format!("context{id}")),
            choice: self.monitor,
            monitor: Mutex::new(None),
            home: AtomicU64::new(0),
            ended: Mutex::new(false),
            notify: NotifyState::new(),
            notifier: EventFd::new()?,
            bottom_halves: bottom_half::BottomHalves::new(),
            mailbox: handler::remote::Mailbox::new(),
            timers: timer::Timers::new(),
            poll_params: Mutex::new(self.poll_params),
            attachments: Mutex::default(),
        })))
    }
}

impl AioContext {
    /// A context with a name of its own and the best monitor that works.
    ///
    /// # Errors
    /// No descriptor for its eventfd.
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// A context whose name or monitor is chosen.
    #[must_use]
    pub fn builder() -> ContextBuilder {
        ContextBuilder::default()
    }

    /// The context whose home this thread is, if any. Also inside its coroutines.
    #[doc(alias = "qemu_get_current_aio_context")]
    #[must_use]
    pub fn current() -> Option<Self> {
        Local::current().map(|local| local.context().clone())
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// A number that no other context of this process has or had.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Which monitor its home uses, and why; None before it first had a home.
    #[must_use]
    pub fn monitor(&self) -> Option<MonitorInfo> {
        self.0.monitor.lock().clone()
    }

    /// True in its home thread.
    #[doc(alias = "in_aio_context_home_thread")]
    #[must_use]
    pub fn is_home(&self) -> bool {
        Local::current().is_some_and(|local| local.context().id() == self.id())
    }

    /// Makes a blocked poll return; a poll that is about to block does not. Any thread, and signal
    /// handlers.
    #[doc(alias = "aio_notify")]
    pub fn notify(&self) {
        if self.0.notify.notify() {
            self.0.notifier.set();
        }
    }

    /// Makes a poll that is blocked, or about to be, compute anew how long it may be. Any thread,
    /// and signal handlers.
    pub(crate) fn shorten_wait(&self) {
        if self.0.notify.shorten_wait() {
            self.0.notifier.set();
        }
    }

    /// Runs one turn: waits for descriptors if `blocking` and nothing else is to be done, then runs
    /// bottom halves, ready handlers and timers. True: a handler, a non-idle bottom half or a timer
    /// ran.
    ///
    /// The home thread only; may be called from a callback, not from a coroutine. A panic of a
    /// callback passes through and leaves the rest for the next turn.
    ///
    /// # Errors
    /// The monitor refused something. What does not depend on it has run all the same.
    ///
    /// # Panics
    /// Off the home thread, and inside a coroutine.
    #[doc(alias = "aio_poll")]
    #[track_caller]
    pub fn poll(&self, blocking: bool) -> io::Result<bool> {
        let thread = tls::thread();
        local::refuse_in_coroutine(thread);
        let Some(local) =
            Local::of(thread).filter(|local| Arc::ptr_eq(&local.context().0, &self.0))
        else {
            self.refuse_elsewhere()
        };
        local.turn(blocking)
    }

    /// Panics with advice where this thread is not its home.
    #[cold]
    #[inline(never)]
    #[track_caller]
    fn refuse_elsewhere(&self) -> ! {
        panic!(
            "AioContext::poll of `{}` was called off its home thread: call it inside `enter_home`",
            self.name()
        )
    }

    /// Makes a bottom half; see [`BottomHalf`]. Any thread.
    pub fn bottom_half(
        &self,
        name: &'static str,
        callback: impl Fn() + Send + Sync + 'static,
    ) -> BottomHalf {
        BottomHalf::new(self.clone(), name, callback)
    }

    /// Runs `callback` once in the home thread, in the next turn. Any thread; allocates, so not
    /// from a signal handler.
    #[doc(alias("aio_bh_schedule_oneshot", "aio_bh_schedule_oneshot_full"))]
    pub fn schedule_oneshot(&self, name: &'static str, callback: impl FnOnce() + Send + 'static) {
        bottom_half::oneshot(self, name, callback);
    }

    /// A oneshot that starts a coroutine: it is dropped, now or later, if no home is to come.
    pub(crate) fn schedule_spawn(&self, callback: impl FnOnce() + Send + 'static) {
        self.schedule_unless_ended("spawn", callback);
    }

    /// A oneshot that is dropped, now or later, if no home is to come.
    fn schedule_unless_ended(&self, name: &'static str, callback: impl FnOnce() + Send + 'static) {
        let ended = self.0.ended.lock();
        if *ended {
            drop(ended); // The callback's destructor may spawn.
            return drop(callback);
        }
        let wakes = bottom_half::push_spawn(self, name, callback);
        drop(ended);
        if wakes {
            self.0.notifier.set();
        }
    }

    /// Nobody will be home any more, unless somebody makes himself home: drops what waits to be
    /// spawned, and what will be. On a thread that has just been home, outside of it.
    pub(crate) fn end(&self) {
        // Who is home already runs what waits.
        if let Ok(_home) = self.claim_home() {
            *self.0.ended.lock() = true;
            self.0.bottom_halves.drop_spawns();
        }
    }

    /// Nobody else is home while the scope lives. Err: the thread that is.
    fn claim_home(&self) -> Result<HomeScope, u64> {
        // Acquire: pairs with the end of the last `HomeScope`.
        self.0
            .home
            .compare_exchange(0, thread_number(), Ordering::Acquire, Ordering::Relaxed)
            .map(|_| HomeScope(self.clone()))
    }

    /// What `T` keeps with this context, for every thread: made by `make` on first use, dropped
    /// with the context. It is how a layer above, which this one cannot name, has state of its own
    /// on each context.
    ///
    /// Any thread. `make` runs once, without a lock held; others who want a `T` wait for it. It may
    /// use the slots of other types, not its own.
    ///
    /// ```
    /// # use std::sync::atomic::{AtomicUsize, Ordering};
    /// #[derive(Default)]
    /// struct Readers(AtomicUsize);
    /// let context = corio::AioContext::new()?;
    /// context.attachment(Readers::default).0.fetch_add(1, Ordering::Relaxed);
    /// assert_eq!(context.attachment(Readers::default).0.load(Ordering::Relaxed), 1);
    /// # Ok::<(), corio::Error>(())
    /// ```
    pub fn attachment<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        type Cell<T> = OnceLock<Arc<T>>;
        let found = {
            let mut attachments = self.0.attachments.lock();
            let found = attachments
                .iter()
                .find(|(id, _)| *id == TypeId::of::<T>())
                .map(|(_, cell)| Arc::clone(cell));
            found.unwrap_or_else(|| {
                let cell: Arc<dyn Any + Send + Sync> = Arc::new(Cell::<T>::new());
                attachments.push((TypeId::of::<T>(), Arc::clone(&cell)));
                cell
            })
        };
        match found.downcast::<Cell<T>>() {
            Ok(cell) => Arc::clone(cell.get_or_init(|| Arc::new(make()))),
            Err(_) => unreachable!("the cell of a type was found under its TypeId"),
        }
    }

    /// Makes this thread the context's home for as long as `f` runs, with `leave` before everything
    /// is let go.
    ///
    /// `leave` answers whether nothing is in flight any more; otherwise the ring is leaked.
    pub(crate) fn with_local<R>(
        &self,
        f: impl FnOnce() -> R,
        leave: impl FnOnce(&Local) -> bool,
    ) -> Result<R, Error> {
        let open = self.open_local()?;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        let clean = leave(&open.local);
        open.close(clean);
        Ok(result.unwrap_or_else(|payload| std::panic::resume_unwind(payload)))
    }

    /// Makes this thread the context's home until what is returned is closed.
    pub(crate) fn open_local(&self) -> Result<OpenLocal, Error> {
        let state = tls::thread();
        assert!(
            state.context.get().is_null(),
            "this thread is already the home of a context: a thread has one home at a time"
        );
        let scope = self.claim_home().unwrap_or_else(|other| {
            panic!(
                "context `{}` has a home already (thread {other}): only one thread at a time",
                self.name()
            )
        });
        let (monitor, info) = Monitor::new(self.0.choice)?;
        tracing::debug!(context = self.name(), monitor = ?info.kind, "{}", info.reason);
        *self.0.monitor.lock() = Some(info);
        let local = Box::new(Local::new(self.clone(), monitor));
        state.context.set(ptr::from_ref(&*local).cast());
        state.context_id.set(self.id());
        let mut open = OpenLocal {
            notifier: None,
            current: CurrentScope,
            local,
            scope,
        };
        match self.watch_notifier(&open.local) {
            Ok(notifier) => open.notifier = Some(notifier),
            Err(error) => {
                open.close(true);
                return Err(error);
            }
        }
        *self.0.ended.lock() = false;
        Ok(open)
    }

    /// The eventfd is read where its own handler would run, when it is readable (SPEC N3).
    fn watch_notifier(&self, local: &Local) -> Result<LocalHandler, Error> {
        let refused = |source| Error::Os {
            op: "watching the context's eventfd",
            source,
        };
        let handler = local
            .add_own(&self.0.notifier, Own::Notifier)
            .map_err(refused)?;
        handler.set_interest(Interest::READ).map_err(refused)?;
        // Whoever notifies a loop that polls need not write the eventfd (SPEC N5).
        let context = self.clone();
        handler.set_poll(
            Box::new(move || context.0.notify.is_notified() || context.0.bottom_halves.is_pushed()),
            Box::new(|| ()),
        );
        Ok(handler)
    }
}

/// Clears the home mark when the home ends, however it ends.
struct HomeScope(AioContext);

impl Drop for HomeScope {
    fn drop(&mut self) {
        self.0.0.home.store(0, Ordering::Release);
    }
}

/// What a thread has while it is home. Stays on its thread, and is closed there.
pub(crate) struct OpenLocal {
    // In the order in which they go, whatever panics.
    notifier: Option<LocalHandler>,
    current: CurrentScope,
    local: Box<Local>,
    scope: HomeScope,
}

impl OpenLocal {
    /// Ends the home. Unless it is `clean`, something is in flight, and its ring is leaked.
    pub(crate) fn close(self, clean: bool) {
        let Self {
            notifier,
            current,
            mut local,
            scope,
        } = self;
        local.drop_attachments();
        drop(notifier); // Until here they can be notified.
        local.clear();
        drop(current);
        if !clean {
            local.leak_ring();
        }
        drop(local);
        drop(scope);
    }

    pub(crate) fn local(&self) -> &Local {
        &self.local
    }
}

/// Has this thread be home no more, before what it was home with goes.
struct CurrentScope;

impl Drop for CurrentScope {
    fn drop(&mut self) {
        let state = tls::thread();
        state.context.set(ptr::null());
        state.context_id.set(0);
    }
}

/// Runs destructors of the user's, and keeps their panic here: the hook has reported it.
fn guarded(f: impl FnOnce()) {
    if let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        core::mem::forget(payload); // Its destructor could panic again.
    }
}

/// A number for this thread that is not 0.
fn thread_number() -> u64 {
    u64::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap_or(u64::MAX)
}

impl core::fmt::Debug for AioContext {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AioContext")
            .field("id", &self.0.id)
            .field("name", &self.0.name)
            .finish_non_exhaustive()
    }
}
