//! What a context has in its home thread only: the monitor, the ring, the handlers and the turn
//! itself.
//!
//! A `Local` lives on the native stack of the home thread for as long as the thread is home (SPEC
//! A1), and is found through `ThreadState::context`. It is not `Sync`, so whatever it hands out
//! stays on its thread.

use core::any::{Any, TypeId};
use core::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use super::embed::Foreign;
use super::event_notifier::EventNotifier;
use super::handler::remote::Shared;
use super::handler::{Call, Entry, Interest, Own, READ_EVENTS, Readiness, Table};
use super::monitor::{Monitor, MonitorInfo};
use super::polling::{Polled, Polling};
use super::ready::Ready;
use super::ring::ContextRing;
use super::{AioContext, PollStats, guarded, timer};
use crate::error::Error;
use crate::sys::clock::Moment;
use crate::tls::{self, ThreadState};
use crate::{coroutine, track};

/// Turns that may go by without looking at the descriptors while there is other work.
const SKIPPED_TURNS_MAX: u32 = 61;
/// The same in time, in ns; looked at when as many have gone by as a power of two, or a multiple of
/// [`UNTIMED_TURNS`].
const SKIPPED_NS_MAX: u64 = 50_000;
/// So many turns at most go by without a look at the clock: they may take longer than those before.
const UNTIMED_TURNS: u32 = 8;
/// How long a wait lasts at most while an engine has what a busy kernel has not taken.
const SUBMIT_RETRY_NS: u64 = 1_000_000;

/// A function, and what it is called with.
#[derive(Clone, Copy)]
pub(crate) struct Drain {
    pub(crate) run: unsafe fn(*const ()),
    pub(crate) with: *const (),
}

/// See the module's documentation.
pub(crate) struct Local {
    pub(super) context: AioContext,
    pub(super) monitor: Monitor,
    ring: OnceCell<ContextRing>,
    pub(super) handlers: Table,
    /// Taken from the mailbox, and not looked at yet.
    pub(super) arrivals: RefCell<VecDeque<Arc<Shared>>>,
    pub(super) ready: Ready,
    pub(super) polling: Polling,
    rearm: RefCell<Vec<u64>>,
    /// What a layer above runs in the turn after [`Local::drain_soon`].
    drain: Cell<Option<Drain>>,
    drain_due: Cell<bool>,
    /// What an engine has run before the next wait after [`Local::submit_soon`].
    submit: Cell<Option<Drain>>,
    submit_due: Cell<bool>,
    skipped_turns: Cell<u32>,
    last_look: Cell<Moment>,
    foreign: Foreign,
    attachments: RefCell<Vec<(TypeId, Rc<dyn Any>)>>,
}

impl Local {
    pub(super) fn new(context: AioContext, monitor: Monitor) -> Self {
        let polling = Polling::new(context.poll_params());
        Self {
            context,
            monitor,
            ring: OnceCell::new(),
            handlers: Table::default(),
            arrivals: RefCell::default(),
            ready: Ready::new(),
            polling,
            rearm: RefCell::default(),
            drain: Cell::new(None),
            drain_due: Cell::new(false),
            submit: Cell::new(None),
            submit_due: Cell::new(false),
            skipped_turns: Cell::new(0),
            last_look: Cell::default(),
            foreign: Foreign::default(),
            attachments: RefCell::default(),
        }
    }

    /// The context whose home thread this is, if any.
    #[inline]
    pub(crate) fn current<'a>() -> Option<&'a Local> {
        Local::of(tls::thread())
    }

    /// The same, for who has this thread's state at hand.
    #[inline]
    #[allow(unsafe_code)] // ThreadState::context is untyped.
    pub(super) fn of<'a>(thread: &ThreadState) -> Option<&'a Local> {
        // SAFETY: set to a living Local by `enter`, and back before it goes; callers do not keep
        // the reference past the code that runs in the home.
        unsafe { thread.context.get().cast::<Local>().as_ref() }
    }

    pub(crate) fn context(&self) -> &AioContext {
        &self.context
    }

    /// What `T` keeps in this home; made on first use, dropped with the home. `make` may use other
    /// slots; should it use this one, the inner one stands.
    pub(crate) fn attachment<T: Any>(&self, make: impl FnOnce(&Local) -> T) -> Rc<T> {
        if let Some(value) = self.attached() {
            return value;
        }
        let made = Rc::new(make(self));
        if let Some(value) = self.attached() {
            return value;
        }
        self.attachments
            .borrow_mut()
            .push((TypeId::of::<T>(), Rc::clone(&made) as Rc<dyn Any>));
        made
    }

    /// What `T` keeps in this home, if it is made.
    pub(crate) fn attached<T: Any>(&self) -> Option<Rc<T>> {
        let found = self
            .attachments
            .borrow()
            .iter()
            .find(|(id, _)| *id == TypeId::of::<T>())
            .map(|(_, value)| Rc::clone(value));
        found.and_then(|value| value.downcast().ok())
    }

    /// Has `drain` run once in the turn after each [`drain_soon`](Self::drain_soon): a bottom half
    /// that only the home thread schedules, and that costs it a flag.
    ///
    /// # Safety
    /// What it is run with stays until it is replaced outside of it.
    #[allow(unsafe_code)] // The contract; `run_drain` relies on it.
    pub(crate) unsafe fn set_drain(&self, drain: Option<Drain>) {
        self.drain.set(drain);
    }

    /// Has the drain run in the next turn, or in this one if its bottom halves are still to come.
    #[inline]
    pub(crate) fn drain_soon(&self) {
        if !self.drain_due.replace(true) {
            self.foreign.tell(&self.context);
        }
    }

    /// Has `submit` run once before the wait after each [`submit_soon`](Self::submit_soon): there
    /// an engine hands over what has gathered.
    ///
    /// # Safety
    /// As [`set_drain`](Self::set_drain)'s.
    #[allow(unsafe_code)] // As `set_drain`.
    pub(crate) unsafe fn set_submit(&self, submit: Option<Drain>) {
        self.submit.set(submit);
    }

    /// Has the engine hand over what it has before the next wait; what the kernel refuses and is
    /// due again is tried again soon.
    #[inline]
    pub(crate) fn submit_soon(&self) {
        self.submit_due.set(true);
    }

    /// See [`submit_soon`](Self::submit_soon).
    #[inline]
    #[allow(unsafe_code)] // As `set_drain`.
    fn submit_if_due(&self) {
        if !self.submit_due.get() {
            return;
        }
        self.submit_due.set(false);
        if let Some(submit) = self.submit.get() {
            // SAFETY: as who has set it has promised.
            unsafe { (submit.run)(submit.with) };
        }
    }

    pub(super) fn foreign(&self) -> &Foreign {
        &self.foreign
    }

    /// After a request has been queued, or a deadline come nearer, which might be outside of any
    /// turn or within polling: a loop that the context is in is told, and polling ends.
    #[inline]
    pub(crate) fn hurry(&self) {
        self.polling.hurry();
        self.foreign.tell(&self.context);
    }

    /// The descriptor that tells a foreign loop of everything that the monitor watches, if it has
    /// one.
    pub(super) fn pollable(&self) -> Option<io::Result<OwnedFd>> {
        self.monitor.pollable()
    }

    /// Before a foreign loop waits; see [`Monitor::submit_for_foreign`].
    pub(super) fn submit_for_foreign(&self) -> Option<u64> {
        self.submit_if_due();
        self.monitor.submit_for_foreign(self)
    }

    /// Runs what was drained soon before the turn's bottom halves.
    #[allow(unsafe_code)] // As `set_drain`.
    fn run_drain(&self) {
        if let Some(drain) = self.drain.get() {
            // SAFETY: as who has set it has promised.
            unsafe { (drain.run)(drain.with) };
        }
    }

    /// The context's ring, made on first use.
    pub(crate) fn ring(&self) -> Result<&ContextRing, Error> {
        if let Some(ring) = self.ring.get() {
            return Ok(ring);
        }
        let ring = ContextRing::new(self.monitor.ring_kind())?;
        Ok(self.ring.get_or_init(|| ring))
    }

    pub(crate) fn ring_if_made(&self) -> Option<&ContextRing> {
        self.ring.get()
    }

    /// Keeps the ring, and what the kernel may still write to, for ever: at the end of a home with
    /// requests in flight.
    pub(super) fn leak_ring(&mut self) {
        core::mem::forget(core::mem::take(&mut self.ring));
    }

    pub(super) fn handler(&self, token: u64) -> Option<Rc<Entry>> {
        self.handlers.get(token)
    }

    pub(super) fn note_rearm(&self, token: u64) {
        self.rearm.borrow_mut().push(token);
    }

    /// A descriptor was closed under its handler. It is not watched any more: epoll forgets such a
    /// one without a word, and the number may be another's soon.
    pub(super) fn note_closed(&self, token: u64) {
        let Some(entry) = self.handlers.get(token) else {
            return;
        };
        entry.armed.set(0);
        tracing::warn!(
            context = self.context.name(),
            fd = entry.fd,
            "a descriptor was closed before its handler was removed"
        );
    }

    /// It has another monitor from now on.
    pub(super) fn monitor_changed(&self, info: MonitorInfo) {
        tracing::info!(context = self.context.name(), monitor = ?info.kind, "{}", info.reason);
        *self.context.inner().monitor.lock() = Some(info);
    }

    pub(super) fn rearm_noted(&self, result: &mut io::Result<()>) {
        loop {
            let Some(token) = self.rearm.borrow_mut().pop() else {
                return;
            };
            if let Some(entry) = self.handlers.get(token)
                && let Err(error) = self.monitor.update(self, &entry)
            {
                *result = Err(error);
            }
        }
    }

    /// Registers a handler that waits for nothing yet.
    pub(crate) fn add_handler(
        &self,
        fd: impl AsFd,
        callback: impl Fn(Readiness) + 'static,
    ) -> io::Result<LocalHandler> {
        self.add_call(fd, Call::Local(Box::new(callback)))
    }

    /// The same of an event notifier.
    pub(super) fn add_notifier(
        &self,
        notifier: &EventNotifier,
        callback: impl Fn() + 'static,
    ) -> io::Result<LocalHandler> {
        self.add_call(notifier, Call::Notifier(Box::new(callback)))
    }

    /// The same of what the context itself watches.
    pub(super) fn add_own(&self, fd: impl AsFd, own: Own) -> io::Result<LocalHandler> {
        self.add_call(fd, Call::Own(own))
    }

    fn add_call(&self, fd: impl AsFd, call: Call) -> io::Result<LocalHandler> {
        let fd = fd.as_fd().as_raw_fd();
        self.monitor.check(fd)?;
        let entry = self.handlers.insert(fd, call)?;
        Ok(LocalHandler {
            entry,
            context_id: self.context.id(),
        })
    }

    /// Takes a handler out, if it is still there; its descriptor may be closed afterwards.
    pub(super) fn drop_entry(&self, entry: &Entry) {
        if let Some(removed) = self.handlers.remove(entry.token) {
            // A refusal leaves a registration whose token names nothing any more.
            let _ = self.monitor.update(self, entry);
            self.monitor.forget(self);
            self.polling.recount(entry);
            self.polling.leave(&self.context, entry);
            drop(removed); // Its destructor may run anything.
        }
    }

    /// Runs the handlers that a wait found ready. True: progress. What the monitor refuses is left
    /// in `result`, unless something is there before.
    #[inline(always)] // As `wait_in_monitor`.
    fn dispatch_ready(&self, result: &mut io::Result<()>) -> bool {
        let mut progress = false;
        while let Some((token, revents)) = self.ready.pop() {
            let Some(entry) = self.handlers.get(token) else {
                continue;
            };
            if let Some(own) = entry.own() {
                self.dispatch_own(own, revents);
            } else {
                let rearm = RearmOnPanic(self, &entry);
                progress |= entry.dispatch(revents);
                core::mem::forget(rearm);
            }
            // A one-shot poll that is spent is armed again, unless nothing is waited for: a report
            // of HUP or ERR, which come unasked, would come again and again.
            if entry.armed.get() == 0
                && let Err(error) = self.monitor.update(self, &entry)
                && result.is_ok()
            {
                *result = Err(error);
            }
        }
        progress
    }

    /// What the context itself watches has come.
    fn dispatch_own(&self, own: Own, revents: u32) {
        let is_read = own == Own::Notifier && revents & READ_EVENTS != 0;
        if is_read && !self.monitor.forgets_notifier() {
            self.context.inner().notifier.clear();
        }
    }

    /// One turn of the loop. See [`AioContext::poll`].
    #[inline]
    pub(super) fn turn(&self, blocking: bool) -> io::Result<bool> {
        if self.foreign.is_active() {
            return self.turn_embedded(blocking);
        }
        self.turn_in_order(blocking)
    }

    #[cold]
    #[inline(never)]
    fn turn_embedded(&self, blocking: bool) -> io::Result<bool> {
        let _arms = self.foreign.begin_turn(self);
        self.turn_in_order(blocking)
    }

    /// The same, whoever's loop it is. What the monitor refuses is returned at the end: it may
    /// refuse for ever, and the rest of the loop must not starve of it.
    #[inline(always)] // Into the loop's own.
    fn turn_in_order(&self, blocking: bool) -> io::Result<bool> {
        if self.has_remote() {
            self.take_up_remote();
        }
        self.submit_if_due();
        if self.may_skip_monitor() {
            self.run(Ok(()))
        } else {
            self.look_and_run(blocking)
        }
    }

    #[inline(never)] // Out of the way of turns that do not.
    fn look_and_run(&self, blocking: bool) -> io::Result<bool> {
        if let Some(home) = coroutine::context_home() {
            home.ask_refused(); // Before it waits: they could be what ends the wait.
        }
        self.run(self.wait(blocking))
    }

    /// The rest of a turn; `looked` is what became of the look at the descriptors.
    #[inline(always)] // As `wait_in_monitor`.
    fn run(&self, looked: io::Result<()>) -> io::Result<bool> {
        let mut result = looked;
        let inner = self.context.inner();
        track::notice(tls::thread());
        inner.notify.accept();
        let mut progress = self.run_bottom_halves();
        if let Some(ring) = self.ring.get() {
            progress |= ring.dispatch();
        }
        if !self.ready.is_empty() {
            progress |= self.dispatch_ready(&mut result);
        }
        if let Some(ring) = self.ring.get()
            && ring.pending() > 0
            && self.is_urgent()
        {
            // The next turn may skip the monitor, which would have submitted.
            result = result.and(ring.submit());
        }
        progress |= inner.timers.run();
        result.map(|()| progress)
    }

    /// Runs what was scheduled before the call. True: progress.
    #[inline]
    pub(super) fn run_bottom_halves(&self) -> bool {
        // Due still while the bottom halves run: a nested poll of one runs it (SPEC B6), and if one
        // panics the next turn does.
        let drain_due = self.drain_due.get();
        let mut progress = self.context.inner().bottom_halves.run();
        if drain_due && self.drain_due.replace(false) {
            self.run_drain();
            progress = true;
        }
        progress
    }

    /// Looks at the descriptors without running anything. True: a turn would find something to do.
    pub(super) fn look(&self) -> io::Result<bool> {
        self.submit_if_due();
        self.wait_in_monitor(false)?;
        Ok(self.timeout_ns() == Some(0) || self.ring.get().is_some_and(ContextRing::has_arrived))
    }

    /// Looks at the descriptors, and waits for them if nothing else is to be done.
    #[inline(always)] // As `wait_in_monitor`.
    fn wait(&self, blocking: bool) -> io::Result<()> {
        if blocking && self.polling.is_on() && self.may_poll() {
            return self.poll_and_wait();
        }
        self.wait_in_monitor(blocking)
    }

    /// The same with busy polling before it.
    #[inline(never)] // Out of the way of those that do not.
    fn poll_and_wait(&self) -> io::Result<()> {
        let (began_ns, noted) = (timer::now_ns(), self.ready.len());
        let result = match self.busy_poll() {
            Polled::Looked => Ok(()),
            Polled::Something if !self.monitor.has_something(self) && self.skips_look() => Ok(()),
            polled => self.wait_in_monitor(polled == Polled::Nothing),
        };
        self.adjust_polling(began_ns, noted);
        result
    }

    /// Looks at the descriptors on behalf of polling.
    #[inline(never)] // A frame of its own, which others do not have.
    pub(super) fn look_now(&self) -> io::Result<()> {
        self.wait_in_monitor(false)
    }

    /// Part of `look_and_run` down to the system call, as is the dispatch down to the read of an
    /// eventfd. The first return after a system call from a function that was called before it
    /// takes 70 to 210 ns where the kernel guards its own returns (measured on AMD Zen): it seems
    /// that the processor's notes of where to return to are gone. So only the turn's own is left.
    #[inline(always)]
    fn wait_in_monitor(&self, blocking: bool) -> io::Result<()> {
        if !self.ready.is_empty() {
            return self.look_beside_ready();
        }
        self.submit_if_due(); // Polling may have asked for something.
        let inner = self.context.inner();
        if blocking {
            inner.notify.begin_wait();
            inner.bottom_halves.look();
        }
        let timeout_ns = if blocking { self.timeout_ns() } else { Some(0) };
        let waited = self.monitor.wait(self, timeout_ns);
        if blocking {
            inner.notify.end_wait();
        }
        waited?;
        self.skipped_turns.set(0);
        self.last_look.set(Moment::now());
        Ok(())
    }

    /// What is ready already is an outer turn's, one's that panicked, or what polling has found.
    #[cold]
    #[inline(never)] // Which would have no end.
    fn look_beside_ready(&self) -> io::Result<()> {
        let before = self.ready.take();
        let looked = self.wait_in_monitor(false);
        self.ready.merge_into(before);
        looked
    }

    /// How long the next wait may last.
    #[inline(always)] // Into the turn's own wait.
    pub(super) fn timeout_ns(&self) -> Option<u64> {
        let inner = self.context.inner();
        // A notification that this turn accepts may be of what came after it took the mailbox.
        let has_work = inner.notify.is_notified()
            || self.has_remote()
            || !self.ready.is_empty()
            || self.drain_due.get()
            || self.monitor.need_wait(self);
        if has_work {
            return Some(0);
        }
        let has_limit =
            !inner.bottom_halves.is_empty() || self.submit_due.get() || inner.timers.any_armed();
        has_limit.then(|| self.limit_ns()).flatten()
    }

    /// The same, with nothing to do but what is not due yet, or bottom halves.
    #[inline(never)]
    fn limit_ns(&self) -> Option<u64> {
        let inner = self.context.inner();
        let bottom_halves = inner.bottom_halves.timeout_ns();
        if bottom_halves == Some(0) {
            return Some(0);
        }
        // Nothing but the time tells when the kernel is not busy any more.
        let retry = self.submit_due.get().then_some(SUBMIT_RETRY_NS);
        let timers = inner.timers.timeout_ns();
        sooner(retry, sooner(timers, bottom_halves))
    }

    /// True if other threads have asked something of handlers that is not taken up.
    #[inline]
    fn has_remote(&self) -> bool {
        !self.context.inner().mailbox.is_empty() || !self.arrivals.borrow().is_empty()
    }

    /// True if something that is no descriptor's nor timer's is to be run at once.
    #[inline]
    pub(crate) fn is_urgent(&self) -> bool {
        self.drain_due.get() || self.context.inner().bottom_halves.is_urgent()
    }

    /// True if the home has queued something for itself, in this very turn.
    pub(super) fn has_home_work(&self) -> bool {
        self.drain_due.get()
    }

    /// While bottom halves follow one another, the descriptors need not be looked at every time
    /// (SPEC A1).
    #[inline(always)] // Most turns with a bottom half do.
    fn may_skip_monitor(&self) -> bool {
        self.is_urgent()
            && !self.ring.get().is_some_and(ContextRing::has_arrived)
            && self.skips_look()
    }

    /// True if this turn need not look at the descriptors, and then counts as one that did not.
    fn skips_look(&self) -> bool {
        let skipped = self.skipped_turns.get();
        if skipped >= SKIPPED_TURNS_MAX {
            return false;
        }
        // To look at the clock is a quarter of a turn that does little. Turns that take as long as
        // those before them are not overlooked for twice the time.
        if (skipped & skipped.wrapping_sub(1) == 0 || skipped.is_multiple_of(UNTIMED_TURNS))
            && self.last_look.get().passed_ns_at_most() > SKIPPED_NS_MAX
        {
            return false;
        }
        self.skipped_turns.set(skipped + 1);
        true
    }

    pub(crate) fn has_requests_in_flight(&self) -> bool {
        self.ring.get().is_some_and(|ring| ring.in_flight() > 0)
    }

    /// Before the home lets go of the rest: their handlers are withdrawn from the monitor one by
    /// one, and what they wait for may need the loop.
    pub(super) fn drop_attachments(&self) {
        let attachments = core::mem::take(&mut *self.attachments.borrow_mut());
        for (_, attachment) in attachments {
            guarded(|| drop(attachment));
        }
    }

    /// Lets go of everything registered here, and of its descriptors: whoever waits for the home's
    /// end may reuse them.
    pub(super) fn clear(&self) {
        let entries = self.handlers.clear();
        self.polling.clear();
        // A foreign loop has the epoll set by a number of its own, and may wait for it still.
        let outlives = self.foreign.is_active();
        for entry in entries.iter().filter(|it| outlives || it.is_remote()) {
            // Its descriptor lives on. A refusal leaves it to the monitor's own end.
            let _ = self.monitor.update(self, entry);
        }
        self.foreign.end(&self.context);
        self.monitor.finish(self);
        self.put_back_remote(entries);
        // What destructors have added is of no home; the next one's tokens begin anew.
        for entry in self.handlers.clear() {
            guarded(|| drop(entry));
        }
    }
}

/// A callback's panic leaves the turn, but must not leave its handler with a one-shot poll that is
/// spent (SPEC A3).
struct RearmOnPanic<'a>(&'a Local, &'a Entry);

impl Drop for RearmOnPanic<'_> {
    fn drop(&mut self) {
        let Self(local, entry) = self;
        if let Err(error) = local.monitor.update(local, entry) {
            tracing::error!(
                context = local.context.name(),
                "a handler that panicked is not watched any more: {error}"
            );
        }
    }
}

/// A handler of the home thread. Dropping it removes it. Its descriptor is the owner's to keep open
/// for as long.
pub(crate) struct LocalHandler {
    entry: Rc<Entry>,
    context_id: u64,
}

impl LocalHandler {
    /// Changes what it waits for.
    pub(crate) fn set_interest(&self, interest: Interest) -> io::Result<()> {
        let before = self.entry.interest.replace(interest);
        if before == interest {
            return Ok(());
        }
        let Some(local) = self.home() else {
            return Ok(());
        };
        let updated = local.monitor.update(local, &self.entry);
        if updated.is_err() {
            self.entry.interest.set(before);
        }
        local.recount(&self.entry);
        updated
    }

    pub(crate) fn interest(&self) -> Interest {
        self.entry.interest.get()
    }

    /// Has it busy-polled, too.
    pub(crate) fn set_poll(&self, poll: Box<dyn Fn() -> bool>, ready: Box<dyn Fn()>) {
        if let Some(local) = self.home() {
            local.set_poll(&self.entry, poll, ready);
        }
    }

    pub(super) fn set_poll_notify(&self, begin: Box<dyn Fn()>, end: Box<dyn Fn()>) {
        if self.home().is_some() {
            Local::set_poll_notify(&self.entry, begin, end);
        }
    }

    pub(super) fn poll_stats(&self) -> PollStats {
        let state = self.entry.poll.get();
        state.map(|state| state.stats()).unwrap_or_default()
    }

    pub(super) fn token(&self) -> u64 {
        self.entry.token
    }

    /// The home that it is of, if that has not ended: the context's next one has tokens of its own.
    pub(super) fn home<'a>(&self) -> Option<&'a Local> {
        Local::current()
            .filter(|local| local.context.id() == self.context_id && !self.entry.removed.get())
    }
}

impl Drop for LocalHandler {
    fn drop(&mut self) {
        if let Some(local) = self.home() {
            local.drop_entry(&self.entry);
        }
    }
}

/// The shorter of two timeouts; None is without limit.
fn sooner(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Panics with advice inside a coroutine: a poll there would run the loop on the coroutine's stack.
#[track_caller]
pub(super) fn refuse_in_coroutine(thread: &ThreadState) {
    assert!(
        thread.current.get().is_null(),
        "AioContext::poll was called inside a coroutine: park it instead (sleep, I/O, locks), the loop that runs it goes on"
    );
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::context::MonitorChoice;

    // SPEC A1: turns that become slow are noticed soon.
    #[test]
    fn the_clock_is_looked_at_also_after_many_quick_turns() {
        let context = AioContext::new().unwrap();
        let test = || {
            let local = Local::current().unwrap();
            // Past the power of two that is followed by the most turns. Once more if this thread
            // was not let run meanwhile.
            let is_past = || {
                local.skipped_turns.set(0);
                local.last_look.set(Moment::now());
                (0..33).all(|_| local.skips_look())
            };
            while !is_past() {}
            while local.last_look.get().passed_ns_at_most() <= SKIPPED_NS_MAX {}
            let untimed = (0..).take_while(|_: &u32| local.skips_look()).count();
            assert!(untimed < UNTIMED_TURNS as usize, "{untimed}");
        };
        context.enter_home(test).unwrap();
    }

    // SPEC A1
    #[test]
    fn at_most_61_turns_skip_the_look() {
        let context = AioContext::new().unwrap();
        let test = || {
            let local = Local::current().unwrap();
            let in_time = |_: &u32| {
                local.last_look.set(Moment::now());
                local.skips_look()
            };
            // Fewer if this thread was not let run between the two.
            let runs = (0..20).map(|_| {
                local.skipped_turns.set(0);
                (0..1000).take_while(in_time).count()
            });
            assert_eq!(runs.max(), Some(61));
        };
        context.enter_home(test).unwrap();
    }

    #[allow(unsafe_code)] // A descriptor that is refused.
    // SPEC H1: a refusal is a refusal the second time, too.
    #[test]
    fn an_interest_that_the_monitor_refused_is_not_kept() {
        let context = AioContext::builder()
            .monitor(MonitorChoice::Epoll)
            .build()
            .unwrap();
        let test = || {
            // SAFETY: only epoll_ctl sees it, to which a number above the limit is EBADF.
            let nobodys = unsafe { std::os::fd::BorrowedFd::borrow_raw(i32::MAX) };
            let handler = Local::current()
                .unwrap()
                .add_handler(nobodys, |_| ())
                .unwrap();
            let wanted = Interest {
                read: true,
                write: false,
            };
            handler.set_interest(wanted).unwrap_err();
            assert_eq!(handler.interest(), Interest::default());
            handler.set_interest(wanted).expect_err("it is not watched");
        };
        context.enter_home(test).unwrap();
    }
}
