//! The polling of a turn.
//!
//! ```text
//!   begin of each ─▶ rounds: each one's `poll`, the flags, the kernel ─▶ end of each ─▶ each once more
//! ```
//!
//! Between `begin` and `end` a handler's partner may leave out its notifications, so what it did in
//! between and no round saw is found by the last check. They always come in pairs and within one
//! turn, so that no turn waits with a partner that is quiet.
//!
//! Invariants
//! - I1 `obstacles` is how many handlers are watched that have nothing to poll by, but the
//!   context's own: each counts exactly while its `obstructs` is set.
//! - I2 Only handlers of this home that are not removed are in `polled`.

use core::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use smallvec::SmallVec;

use super::super::handler::{Entry, Own};
use super::super::local::Local;
use super::super::ring::ContextRing;
use super::super::{AioContext, timer};
use super::{Adjusted, Budget, IDLE_NS, PollParams, PollStats, PollTime};
use crate::error::Error;
use crate::track::{self, Kind};

/// What a handler is polled by.
struct PollCallbacks {
    poll: Box<dyn Fn() -> bool>,
    ready: Box<dyn Fn()>,
}

/// What is called around polling.
struct Around {
    begin: Box<dyn Fn()>,
    end: Box<dyn Fn()>,
}

/// What an entry has that can be polled, or once could. Home thread.
#[derive(Default)]
pub(in super::super) struct PollState {
    callbacks: RefCell<Option<Rc<PollCallbacks>>>,
    around: RefCell<Option<Rc<Around>>>,
    pub(super) time: Cell<PollTime>,
    is_polled: Cell<bool>,
    pub(super) last_event_ns: Cell<u64>,
    hits: Cell<u64>,
    wasted_ns: Cell<u64>,
}

impl PollState {
    pub(in super::super) fn can_poll(&self) -> bool {
        self.callbacks.borrow().is_some()
    }

    /// Runs what takes an event that polling found. False: there is nothing to run any more.
    pub(in super::super) fn run_ready(&self) -> bool {
        let callbacks = self.callbacks.borrow().clone();
        let Some(callbacks) = callbacks else {
            return false;
        };
        (callbacks.ready)();
        true
    }

    pub(in super::super) fn stats(&self) -> PollStats {
        PollStats {
            is_polled: self.is_polled.get(),
            time_ns: self.time.get().0,
            hits: self.hits.get(),
            wasted_ns: self.wasted_ns.get(),
        }
    }
}

/// How a handler is named in tracking: it lives, at that address.
fn number(entry: &Entry) -> u64 {
    core::ptr::from_ref(entry).addr() as u64
}

/// What a home has for polling.
pub(in super::super) struct Polling {
    /// There may be something to poll; all that a turn without looks at.
    is_on: Cell<bool>,
    params: Cell<PollParams>,
    budget: Cell<Budget>,
    /// How many handlers have something to poll by.
    able: Cell<usize>,
    /// See I1.
    obstacles: Cell<usize>,
    /// See I2.
    polled: RefCell<Vec<Rc<Entry>>>,
    /// For how long the kernel is worth asking.
    pub(super) kernel_time: Cell<PollTime>,
    /// When it last told of something.
    pub(super) kernel_last_ns: Cell<u64>,
    /// How many requests for files coroutines of this home wait for.
    requests: Cell<usize>,
    /// The home has asked for something, from within polling, that is due before it was to end.
    is_hurried: Cell<bool>,
}

/// What polling has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Polled {
    /// Nothing: the turn may wait.
    Nothing,
    /// The turn has something to do.
    Something,
    /// The same, and the kernel has just been asked.
    Looked,
}

/// What one turn polls, with what is to be called after it.
type Snapshot = SmallVec<[(Rc<Entry>, Option<Rc<Around>>); 4]>;

impl Polling {
    pub(in super::super) fn new(params: PollParams) -> Self {
        let polling = Self {
            is_on: Cell::new(false),
            params: Cell::new(params),
            budget: Cell::new(Budget::new(params.budget_percent, 0)),
            able: Cell::new(0),
            obstacles: Cell::new(0),
            polled: RefCell::default(),
            kernel_time: Cell::default(),
            kernel_last_ns: Cell::new(0),
            requests: Cell::new(0),
            is_hurried: Cell::new(false),
        };
        polling.set_params(params);
        polling
    }

    #[inline]
    pub(in super::super) fn is_on(&self) -> bool {
        self.is_on.get()
    }

    /// The home has armed a timer for earlier, queued a request or watches another descriptor: what
    /// is polled for is to be looked at anew.
    #[inline]
    pub(in super::super) fn hurry(&self) {
        self.is_hurried.set(true);
    }

    fn set_params(&self, params: PollParams) {
        self.params.set(params);
        self.budget
            .set(Budget::new(params.budget_percent, timer::now_ns()));
        self.kernel_time.set(PollTime::default());
        self.decide();
    }

    fn decide(&self) {
        let params = self.params.get();
        let is_on = params.max_ns > 0 && (params.ask_kernel || self.able.get() > 0);
        self.is_on.set(is_on);
    }

    fn asks_kernel(&self) -> bool {
        self.params.get().ask_kernel
    }

    /// After a change of what `entry` waits for, or of what it is polled by.
    pub(in super::super) fn recount(&self, entry: &Entry) {
        let can_poll = entry.poll.get().is_some_and(|state| state.can_poll());
        let is_watched = entry.events() != 0 && entry.own() != Some(Own::Notifier);
        count(&self.obstacles, &entry.obstructs, is_watched && !can_poll);
        if is_watched && !can_poll {
            self.hurry(); // The kernel is to be asked.
        }
        count(&self.able, &entry.able, can_poll && !entry.removed.get());
        self.decide();
    }

    /// It is polled no more.
    pub(in super::super) fn leave(&self, context: &AioContext, entry: &Entry) {
        let Some(state) = entry.poll.get() else {
            return;
        };
        if state.is_polled.replace(false) {
            let mut polled = self.polled.borrow_mut();
            let at = polled.iter().position(|it| it.token == entry.token);
            let left = at.map(|at| polled.swap_remove(at));
            drop(polled);
            drop(left);
            track::emit(Kind::PollRemove, number(entry), context.id(), 0);
        }
    }

    /// At the end of a home.
    pub(in super::super) fn clear(&self) {
        let polled = self.polled.take();
        drop(polled);
    }
}

fn count(counter: &Cell<usize>, is_counted: &Cell<bool>, counts: bool) {
    match (is_counted.replace(counts), counts) {
        (false, true) => counter.set(counter.get() + 1),
        (true, false) => counter.set(counter.get() - 1),
        _ => {}
    }
}

impl AioContext {
    /// How it polls before it waits. Any thread.
    #[must_use]
    pub fn poll_params(&self) -> PollParams {
        *self.inner().poll_params.lock()
    }

    /// Has it poll otherwise. Any thread; the home follows in its next turn, and begins anew with
    /// all handlers' times.
    ///
    /// # Errors
    /// A parameter is out of its range; nothing changes.
    #[doc(alias = "aio_context_set_poll_params")]
    pub fn set_poll_params(&self, params: PollParams) -> Result<(), Error> {
        params.check()?;
        *self.inner().poll_params.lock() = params;
        // What a home reads when it begins may have been older.
        self.schedule_oneshot("polling parameters", || {
            if let Some(local) = Local::current() {
                local.poll_otherwise(local.context().poll_params());
            }
        });
        Ok(())
    }
}

impl Local {
    /// Other parameters, with which every handler begins anew.
    fn poll_otherwise(&self, params: PollParams) {
        self.polling.set_params(params);
        for entry in self.handlers.all() {
            if let Some(state) = entry.poll.get() {
                state.time.set(PollTime::default());
            }
        }
    }

    /// After a change of what `entry` waits for.
    pub(in super::super) fn recount(&self, entry: &Entry) {
        self.polling.recount(entry);
    }

    pub(in super::super) fn set_poll(
        &self,
        entry: &Entry,
        poll: Box<dyn Fn() -> bool>,
        ready: Box<dyn Fn()>,
    ) {
        let state = entry.poll.get_or_init(Box::default);
        let callbacks = Rc::new(PollCallbacks { poll, ready });
        let before = state.callbacks.replace(Some(callbacks));
        self.recount(entry);
        drop(before); // It may own anything.
    }

    pub(in super::super) fn set_poll_notify(
        entry: &Entry,
        begin: Box<dyn Fn()>,
        end: Box<dyn Fn()>,
    ) {
        let state = entry.poll.get_or_init(Box::default);
        let before = state.around.replace(Some(Rc::new(Around { begin, end })));
        drop(before);
    }

    /// While it lives, a request for a file is in flight.
    pub(crate) fn note_request(&self) -> InFlight<'_> {
        let requests = &self.polling.requests;
        requests.set(requests.get() + 1);
        InFlight(requests)
    }

    /// Whether polling would let nobody starve who is watched in the kernel only (SPEC P4).
    pub(in super::super) fn may_poll(&self) -> bool {
        self.polling.obstacles.get() == 0
            || self.monitor.is_seen_from_user_space()
            || self.polling.asks_kernel() && !self.foreign().is_active()
    }

    /// Polls, as long as it may.
    pub(in super::super) fn busy_poll(&self) -> Polled {
        let polling = &self.polling;
        let began_ns = timer::now_ns();
        if self.monitor.is_seen_from_user_space() || polling.asks_kernel() {
            self.leave_idle(began_ns);
        }
        let (snapshot, time_ns) = self.snapshot();
        polling.is_hurried.set(false);
        // Till the next timer at most; 0 if there is something to do.
        let wait_ns = self.timeout_ns().unwrap_or(u64::MAX);
        let mut budget = polling.budget.get();
        let limit_ns = budget.allow(began_ns, time_ns.min(wait_ns));
        polling.budget.set(budget);
        if limit_ns == 0 {
            return Polled::Nothing;
        }
        if self.monitor.submit(self).is_err() {
            return Polled::Nothing; // The wait that follows meets it again, and reports it.
        }
        track::emit(Kind::PollBegin, self.context.id(), limit_ns, 0);
        let mut begun = Begun::new(&snapshot);
        let found = self.rounds(&snapshot, began_ns, limit_ns);
        begun.end();
        // What came after the last round, while its partner was quiet still.
        let found = match self.round(&snapshot, true) {
            true if found == Polled::Nothing => Polled::Something,
            _ => found,
        };
        let ended_ns = timer::now_ns();
        let taken_ns = ended_ns.saturating_sub(began_ns);
        let mut budget = polling.budget.get();
        budget.spend(taken_ns);
        polling.budget.set(budget);
        for (entry, _) in &snapshot {
            if let Some(state) = entry.poll.get()
                && !entry.poll_found.replace(false)
            {
                state.wasted_ns.set(state.wasted_ns.get() + taken_ns);
            }
        }
        match found {
            Polled::Nothing if self.must_stop(taken_ns) => Polled::Something,
            found => found,
        }
    }

    /// Those that are polled and wait for something, and the largest of their times and the
    /// kernel's.
    fn snapshot(&self) -> (Snapshot, u64) {
        let polling = &self.polling;
        // Not while requests are in flight: a disk takes longer.
        let mut time_ns = match polling.asks_kernel() && polling.requests.get() == 0 {
            true => polling.kernel_time.get().0,
            false => 0,
        };
        let polled = polling.polled.borrow();
        let each = polled.iter().filter_map(|entry| {
            let state = entry.poll.get()?;
            if entry.events() == 0 {
                return None;
            }
            time_ns = state.time.get().0.max(time_ns);
            entry.poll_found.set(false);
            Some((Rc::clone(entry), state.around.borrow().clone()))
        });
        let snapshot = each.collect();
        (snapshot, time_ns)
    }

    /// Until something is found, there is something else to do, or the time is up.
    fn rounds(&self, snapshot: &Snapshot, began_ns: u64, limit_ns: u64) -> Polled {
        // What user space can see need not be asked for.
        let asks_kernel = self.polling.asks_kernel() && !self.monitor.is_seen_from_user_space();
        loop {
            if self.round(snapshot, false) {
                return Polled::Something;
            }
            let taken_ns = timer::now_ns().saturating_sub(began_ns);
            if taken_ns >= limit_ns || self.must_stop(taken_ns) || self.polling.is_hurried.get() {
                return Polled::Nothing;
            }
            if asks_kernel && let Some(polled) = self.ask_kernel() {
                return polled;
            }
            core::hint::spin_loop();
        }
    }

    /// None: it has nothing to tell.
    fn ask_kernel(&self) -> Option<Polled> {
        if self.look_now().is_err() {
            return Some(Polled::Nothing); // The wait that follows meets it again, and reports it.
        }
        let has_arrived = self.ring_if_made().is_some_and(ContextRing::has_arrived);
        (has_arrived || !self.ready.is_empty()).then_some(Polled::Looked)
    }

    /// Asks each, but those that have been found already. True: one has something.
    fn round(&self, snapshot: &Snapshot, is_last: bool) -> bool {
        let mut found = false;
        for (entry, _) in snapshot {
            let Some(state) = entry.poll.get() else {
                continue;
            };
            if entry.events() == 0 || is_last && entry.poll_found.get() {
                continue;
            }
            let callbacks = state.callbacks.borrow().clone();
            if callbacks.is_some_and(|callbacks| (callbacks.poll)()) {
                entry.poll_found.set(true);
                state.hits.set(state.hits.get() + 1);
                self.ready.note_polled(entry.token);
                found = true;
            }
        }
        found
    }

    /// Looks at what there is to do, without asking the kernel (SPEC N5). What callbacks, and signal
    /// handlers of this thread, schedule meanwhile comes without a notification, as do idle bottom
    /// halves.
    fn must_stop(&self, elapsed_ns: u64) -> bool {
        let inner = self.context.inner();
        let limit_ns = inner.bottom_halves.timeout_ns();
        inner.notify.is_notified()
            || limit_ns.is_some_and(|limit_ns| limit_ns <= elapsed_ns)
            || self.has_home_work()
            || self.monitor.has_something(self)
    }

    /// Those that have had no event for long are polled no more, until their next (SPEC P3); nor is
    /// the kernel, if it has told of none.
    pub(super) fn leave_idle(&self, now_ns: u64) {
        let is_long_ago = |last_ns: u64| now_ns.saturating_sub(last_ns) > IDLE_NS;
        if is_long_ago(self.polling.kernel_last_ns.get()) {
            self.forget_kernel_time();
        }
        let is_idle = |entry: &&Rc<Entry>| {
            let last_ns = entry.poll.get().map(|state| state.last_event_ns.get());
            last_ns.is_some_and(is_long_ago)
        };
        let polled = self.polling.polled.borrow();
        let idle: SmallVec<[Rc<Entry>; 4]> = polled.iter().filter(is_idle).cloned().collect();
        drop(polled);
        for entry in idle {
            self.polling.leave(&self.context, &entry);
        }
    }

    /// A turn that began to wait at `began_ns` has found what is ready from `from` on.
    pub(in super::super) fn adjust_polling(&self, began_ns: u64, from: usize) {
        let now_ns = timer::now_ns();
        let waited_ns = now_ns.saturating_sub(began_ns);
        let tokens: SmallVec<[u64; 8]> = self.ready.tokens_from(from);
        let mut kernel_told = false;
        for token in tokens {
            let Some(entry) = self.handler(token) else {
                continue;
            };
            let Some(state) = entry.poll.get().filter(|state| state.can_poll()) else {
                kernel_told |= entry.own().is_none();
                continue;
            };
            if state.last_event_ns.replace(now_ns) == now_ns && state.is_polled.get() {
                continue; // Found by polling and by the monitor: one event.
            }
            if !state.is_polled.replace(true) {
                self.polling.polled.borrow_mut().push(Rc::clone(&entry));
                track::emit(Kind::PollAdd, number(&entry), self.context.id(), 0);
            }
            self.adjust_time(&state.time, waited_ns, number(&entry));
        }
        if !self.polling.asks_kernel() {
            return;
        }
        if self.polling.requests.get() > 0 {
            self.forget_kernel_time();
        } else if kernel_told {
            self.polling.kernel_last_ns.set(now_ns);
            self.adjust_time(&self.polling.kernel_time, waited_ns, self.context.id());
        }
    }

    /// The kernel is not worth asking until its next event.
    fn forget_kernel_time(&self) {
        let PollTime(old_ns) = self.polling.kernel_time.take();
        if old_ns > 0 {
            track::emit(Kind::PollShrink, self.context.id(), old_ns, 0);
        }
    }

    fn adjust_time(&self, time: &Cell<PollTime>, waited_ns: u64, number: u64) {
        let mut adjusted = time.get();
        let what = adjusted.adjust(waited_ns, &self.polling.params.get());
        time.set(adjusted);
        match what {
            Adjusted::Kept => {}
            Adjusted::Grown { old_ns, new_ns } => {
                track::emit(Kind::PollGrow, number, old_ns, new_ns);
            }
            Adjusted::Shrunk { old_ns, new_ns } => {
                track::emit(Kind::PollShrink, number, old_ns, new_ns);
            }
        }
    }
}

/// See [`Local::note_request`].
pub(crate) struct InFlight<'a>(&'a Cell<usize>);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Those whose `begin` has been called, and whose `end` is owed, also if a callback panics.
struct Begun<'a> {
    snapshot: &'a Snapshot,
    owed: usize,
}

impl<'a> Begun<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut begun = Self { snapshot, owed: 0 };
        for (entry, around) in snapshot {
            begun.owed += 1;
            if let Some(around) = around
                && !entry.removed.get()
            {
                (around.begin)();
            }
        }
        begun
    }

    fn end(&mut self) {
        while let Some(last) = self.owed.checked_sub(1) {
            self.owed = last;
            if let Some((entry, Some(around))) = self.snapshot.get(last)
                && !entry.removed.get()
            {
                (around.end)();
            }
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        while self.owed > 0 {
            // One panic is on its way already.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.end())) {
                core::mem::forget(payload);
            }
        }
    }
}
