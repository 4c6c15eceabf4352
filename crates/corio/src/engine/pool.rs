//! Worker threads for what would block the loop (SPEC E3).
//!
//! ```text
//!   submit ──▶ queue (FIFO) ──▶ worker: run
//!                │                │ queue empty: look again for some microseconds, then
//!     cancel ◀───┘                ▼
//!                            asleep (a stack: the last to fall asleep is the first to be woken)
//!                                 │ asleep for `idle`, more than `min` threads
//!                                 ▼
//!                               leaves
//! ```
//!
//! A worker without a job that is not asleep is *searching*: it looks at the queue before it
//! sleeps. A submitter wakes a worker, or makes one, only if more jobs are queued than workers
//! searching, so that a stream of jobs costs no wake-up each. Waking the last one first lets the
//! others' idle time run, so that a pool which is larger than its load shrinks.
//!
//! For how long a worker searches before it sleeps is what jobs so far have taught the pool, and
//! what waking a worker has been seen to take: see `patience`. One worker does so at a time, and
//! none that has but one processor to run on, or runs on the one on which the last job was
//! submitted: whoever has the next job needs that.
//!
//! A job whose submitter waits for it ends in two steps: it runs, and then its end is told ([`End`]),
//! when its worker searches again. Who has another job as soon as it is told finds that worker, and
//! does not wake a second one.
//!
//! Lock order: the state lock is the only one; no job runs under it. Threads are made under it, as
//! only then "there is a worker" can be relied on by a submitter whose own thread was refused.
//!
//! Invariants
//! - I1. `queued <= searching`, or nobody is asleep and `threads == max` (or the system refused the
//!   last attempt to make one).
//! - I2. While a job is queued there is a worker.
//! - I3. Ids in the queue ascend.
//! - I4. The end of a job is told before its worker begins with another one, sleeps or leaves, and
//!   not under the lock.

// A job is a pointer and a function, which its maker promises are fit for another thread.
#![allow(unsafe_code)]

mod parts;
mod patience;

use core::ptr::NonNull;
use core::time::Duration;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use self::parts::{Condvar, JoinHandle, Mutex, MutexGuard, monotonic_ns};
use self::patience::{MeetTime, SearchTime};
use crate::atomic::{AtomicUsize, Ordering};
use crate::error::Error;

/// The most threads a pool may have.
pub(crate) const THREADS_MAX: usize = 64;

/// How long a worker above the minimum stays without a job.
pub(crate) const IDLE: Duration = Duration::from_secs(10);

/// Looks at what is awaited between two at the clock.
const SPIN_LOOKS: u32 = 16;

/// How many places of cancelled jobs the queue may hold besides as many as there are jobs.
const HOLES_MAX: usize = 32;

/// The longest name Linux keeps for a thread, in bytes.
const THREAD_NAME_MAX: usize = 15;

/// Something to run on a worker: a pointer to whatever the maker likes, and the functions that are
/// called with it, once each. Dropping one does nothing.
#[derive(Debug)]
pub(crate) struct RawJob {
    data: NonNull<()>,
    run: unsafe fn(NonNull<()>),
    end: Option<unsafe fn(NonNull<()>)>,
}

// SAFETY: the contract of `new` and `with_end`: whoever made it promised that another thread may
// run it.
unsafe impl Send for RawJob {}

impl RawJob {
    /// # Safety
    /// Until `run` has been called, or the job was cancelled, refused or handed back, `data` stays
    /// valid for one call of `run`, from any thread. A panic that leaves `run` aborts the process:
    /// a job that may panic catches it and makes it its caller's error.
    pub(crate) unsafe fn new(data: NonNull<()>, run: unsafe fn(NonNull<()>)) -> RawJob {
        let end = None;
        RawJob { data, run, end }
    }

    /// One whose end is told by `end`, which is called after `run` in the same thread, once the
    /// worker may be found by who is told.
    ///
    /// # Safety
    /// As of [`new`](Self::new), for both functions.
    pub(crate) unsafe fn with_end(
        data: NonNull<()>,
        run: unsafe fn(NonNull<()>),
        end: unsafe fn(NonNull<()>),
    ) -> RawJob {
        let end = Some(end);
        RawJob { data, run, end }
    }

    /// The pointer it was made with.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn data(&self) -> NonNull<()> {
        self.data
    }

    fn run(self) -> Option<End> {
        let bomb = AbortOnUnwind;
        // SAFETY: the maker's promise in `new`; `self` is consumed, so it is called once.
        unsafe { (self.run)(self.data) };
        core::mem::forget(bomb);
        let data = self.data;
        self.end.map(|tell| End { data, tell })
    }
}

/// The end of a job that has run, still to be told.
#[must_use]
struct End {
    data: NonNull<()>,
    tell: unsafe fn(NonNull<()>),
}

impl End {
    fn tell(self) {
        let bomb = AbortOnUnwind;
        // SAFETY: the maker's promise in `with_end`; `run` has been called in this thread, and
        // `self` is consumed, so this is called once.
        unsafe { (self.tell)(self.data) };
        core::mem::forget(bomb);
    }
}

/// Nobody knows what a job that panicked left behind in the frame that waits for it.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!("corio: a thread pool job let a panic escape; it has to catch it");
        std::process::abort();
    }
}

/// Names a job of one pool; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobId(u64);

/// A job that was queued.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Submitted {
    pub(crate) id: JobId,
    /// A worker is on a processor of its own and looks for one.
    pub(crate) is_awaited: bool,
}

/// What a pool does with the jobs that are queued when it is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtShutdown {
    /// They are run first.
    RunQueued,
    /// They are given to the caller.
    HandBack,
}

/// A pool's figures at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolStats {
    /// Workers there are.
    pub(crate) threads: usize,
    /// Workers asleep.
    pub(crate) asleep: usize,
    /// Jobs that wait for a worker.
    pub(crate) queued: usize,
}

/// A pool of worker threads. Dropping it runs what is queued and joins the workers.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    meet_time: MeetTime,
}

#[derive(Debug)]
struct Shared {
    name: String,
    idle: Duration,
    state: Mutex<State>,
    // `State::queued`, for who spins.
    queued_hint: AtomicUsize,
    // By slot; a worker sleeps on its own, so that a certain one can be woken.
    wakes: [Condvar; THREADS_MAX],
    // A size that the system refuses lets tests see a failure.
    #[cfg(test)]
    stack_bytes: AtomicUsize,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Queued>,
    // Places in the queue that have a job.
    queued: usize,
    next_id: u64,
    min: usize,
    max: usize,
    threads: usize,
    searching: usize,
    asleep: Vec<usize>,
    search_time: SearchTime,
    // The workers are not confined to one processor.
    may_spin: bool,
    // Where the last job was submitted.
    submitter: usize,
    slots: [Slot; THREADS_MAX],
    // Workers that left and are not joined yet.
    left: Vec<JoinHandle<()>>,
    stopping: bool,
}

#[derive(Debug)]
struct Queued {
    id: u64,
    // None: cancelled.
    job: Option<RawJob>,
}

#[derive(Debug, Default)]
struct Slot {
    // None: no worker has this slot, or shutdown has taken its handle.
    handle: Option<JoinHandle<()>>,
    used: bool,
    asleep: bool,
    // When it was woken for a job that it has not got yet.
    woken_at_ns: Option<u64>,
}

impl Pool {
    /// A pool without threads; they come with jobs. `name` begins their names.
    ///
    /// # Errors
    /// As `set_limits`.
    pub(crate) fn new(name: &str, min: usize, max: usize, idle: Duration) -> Result<Pool, Error> {
        check_limits(min, max)?;
        let state = State {
            queue: VecDeque::new(),
            queued: 0,
            next_id: 0,
            min,
            max,
            threads: 0,
            searching: 0,
            asleep: Vec::with_capacity(THREADS_MAX),
            search_time: SearchTime::new(),
            may_spin: false,
            submitter: 0,
            slots: core::array::from_fn(|_| Slot::default()),
            left: Vec::new(),
            stopping: false,
        };
        let shared = Shared {
            name: name.to_owned(),
            idle,
            state: Mutex::new(state),
            queued_hint: AtomicUsize::new(0),
            wakes: core::array::from_fn(|_| Condvar::new()),
            #[cfg(test)]
            stack_bytes: AtomicUsize::new(1 << 20),
        };
        Ok(Pool {
            shared: Arc::new(shared),
            meet_time: MeetTime::new(),
        })
    }

    /// Queues a job. Never waits for a job, but may make a thread. From any thread, jobs included.
    ///
    /// # Errors
    /// When the system refuses a thread while the pool has none, there is no memory for the queue,
    /// or the pool was shut down. The job was not run then and will not be.
    pub(crate) fn submit(&self, job: RawJob) -> Result<Submitted, Error> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        if state.stopping {
            return Err(refused(libc::ESHUTDOWN));
        }
        state
            .queue
            .try_reserve(1)
            .map_err(|_| refused(libc::ENOMEM))?;
        state.submitter = parts::processor();
        let id = state.next_id;
        state.next_id += 1;
        state.queue.push_back(Queued { id, job: Some(job) });
        let queued = state.queued + 1;
        state.set_queued(shared, queued);
        let mut submitted = Submitted {
            id: JobId(id),
            is_awaited: false,
        };
        if state.queued <= state.searching {
            submitted.is_awaited = state.may_spin;
            return Ok(submitted);
        }
        if let Some(slot) = state.wake_one() {
            drop(state);
            shared.wakes[slot].notify_one();
        } else if let Err(error) = state.add_worker(shared)
            && state.threads == 0
        {
            state.withdraw(shared, id);
            return Err(error);
        }
        Ok(submitted)
    }

    /// Looks for a moment whether a job is done that was [awaited](Submitted::is_awaited), unless
    /// that has been in vain of late. Sleeping until a worker wakes who waits takes many times what a
    /// short job does.
    pub(crate) fn meet(&self, is_done: impl Fn() -> bool) {
        let Some(ns) = self.meet_time.next_ns() else {
            return;
        };
        let until_ns = monotonic_ns().saturating_add(ns);
        let is_met = spin(until_ns, is_done);
        self.meet_time.adjust(is_met);
    }

    /// Takes a job out of the queue. False if it has started or ended; if true it will not run, and
    /// its data is the caller's again.
    pub(crate) fn cancel(&self, id: JobId) -> bool {
        self.shared
            .state
            .lock()
            .withdraw(&self.shared, id.0)
            .is_some()
    }

    /// Changes how many threads there may be. A worker that is too many leaves when its job is
    /// done.
    ///
    /// # Errors
    /// When `max` is not 1 to 64 or `min` is above `max`; nothing is changed then.
    pub(crate) fn set_limits(&self, min: usize, max: usize) -> Result<(), Error> {
        check_limits(min, max)?;
        let shared = &self.shared;
        let mut state = shared.state.lock();
        state.min = min;
        state.max = max;
        state.staff(shared);
        // Who sleeps looks whether it is too many now.
        for &slot in &state.asleep {
            shared.wakes[slot].notify_one();
        }
        Ok(())
    }

    /// The least and the most threads, as set.
    pub(crate) fn limits(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        (state.min, state.max)
    }

    /// The pool's figures.
    #[cfg_attr(not(test), expect(dead_code, reason = "nobody counts jobs yet"))]
    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.shared.state.lock();
        PoolStats {
            threads: state.threads,
            asleep: state.asleep.len(),
            queued: state.queued,
        }
    }

    /// Refuses jobs from now on, lets the running ones end, and joins the workers; called from one
    /// of them, all but that one. Blocks the thread. A second call finds nothing to do.
    pub(crate) fn shutdown(&self, queued: AtShutdown) -> Vec<RawJob> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        state.stopping = true;
        let mut back = Vec::new();
        if queued == AtShutdown::HandBack {
            back.extend(state.queue.drain(..).filter_map(|queued| queued.job));
            state.set_queued(shared, 0);
        }
        for &slot in &state.asleep {
            shared.wakes[slot].notify_one();
        }
        let mut handles = core::mem::take(&mut state.left);
        handles.extend(state.slots.iter_mut().filter_map(|slot| slot.handle.take()));
        drop(state);
        let me = parts::current().id();
        for handle in handles
            .into_iter()
            .filter(|handle| handle.thread().id() != me)
        {
            join(handle);
        }
        back
    }
}

/// Until `is_over`, which it says then, or the time.
fn spin(until_ns: u64, is_over: impl Fn() -> bool) -> bool {
    loop {
        for _ in 0..SPIN_LOOKS {
            if is_over() {
                return true;
            }
            core::hint::spin_loop();
        }
        if monotonic_ns() >= until_ns {
            return false;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shutdown(AtShutdown::RunQueued);
    }
}

fn check_limits(min: usize, max: usize) -> Result<(), Error> {
    let refuse = |name, value: usize, expected| {
        Err(Error::Parameter {
            name,
            value: value.to_string(),
            expected,
        })
    };
    if !(1..=THREADS_MAX).contains(&max) {
        return refuse("thread_pool_max", max, "1 to 64");
    }
    if min > max {
        return refuse("thread_pool_min", min, "at most thread_pool_max");
    }
    Ok(())
}

fn refused(errno: i32) -> Error {
    Error::Os {
        op: "handing a job to the thread pool",
        source: io::Error::from_raw_os_error(errno),
    }
}

/// A worker does not unwind, see `RawJob::run`.
fn join(handle: JoinHandle<()>) {
    let _ = handle.join();
}

impl State {
    fn set_queued(&mut self, shared: &Shared, queued: usize) {
        self.queued = queued;
        // A hint: who spins takes the lock before it acts on it.
        shared.queued_hint.store(queued, Ordering::Relaxed);
    }

    fn pop(&mut self, shared: &Shared) -> Option<RawJob> {
        while let Some(queued) = self.queue.pop_front() {
            if queued.job.is_some() {
                self.set_queued(shared, self.queued - 1);
                return queued.job;
            }
        }
        None
    }

    fn withdraw(&mut self, shared: &Shared, id: u64) -> Option<RawJob> {
        let place = self
            .queue
            .binary_search_by_key(&id, |queued| queued.id)
            .ok()?;
        let job = self.queue[place].job.take()?;
        self.set_queued(shared, self.queued - 1);
        if self.queue.len() > 2 * self.queued + HOLES_MAX {
            self.queue.retain(|queued| queued.job.is_some());
        }
        Some(job)
    }

    /// Makes a sleeper a searcher; the caller notifies it.
    #[must_use]
    fn wake_one(&mut self) -> Option<usize> {
        let slot = self.asleep.pop()?;
        self.slots[slot].asleep = false;
        self.slots[slot].woken_at_ns = Some(monotonic_ns());
        self.searching += 1;
        Some(slot)
    }

    /// Wakes and makes workers until there are enough for what is queued, or no more to be had
    /// (I1).
    fn staff(&mut self, shared: &Arc<Shared>) {
        while self.queued > self.searching && !self.stopping {
            if let Some(slot) = self.wake_one() {
                shared.wakes[slot].notify_one();
            } else if self.threads >= self.max || self.add_worker(shared).is_err() {
                break;
            }
        }
    }

    /// Makes a worker if there may be one more; it begins as a searcher.
    fn add_worker(&mut self, shared: &Arc<Shared>) -> Result<(), Error> {
        if self.threads >= self.max {
            return Ok(());
        }
        let free = self.slots.iter().position(|slot| !slot.used);
        let slot = free.expect("fewer workers than slots");
        let worker = Worker {
            shared: Arc::clone(shared),
            slot,
            may_spin: false,
        };
        let builder = parts::Builder::new().name(thread_name(&shared.name, slot));
        #[cfg(test)]
        let builder = builder.stack_size(shared.stack_bytes.load(Ordering::Relaxed));
        let spawned = builder.spawn(move || worker.work());
        let handle = spawned.map_err(|source| Error::Os {
            op: "making a thread for the thread pool",
            source,
        })?;
        self.slots[slot].handle = Some(handle);
        self.slots[slot].used = true;
        self.threads += 1;
        self.searching += 1;
        Ok(())
    }
}

fn thread_name(prefix: &str, slot: usize) -> String {
    let suffix = format!("-w{slot}");
    let prefix_max = prefix.floor_char_boundary(THREAD_NAME_MAX - suffix.len());
    format!("{}{suffix}", &prefix[..prefix_max])
}

fn tell(end: &mut Option<End>) {
    if let Some(end) = end.take() {
        end.tell();
    }
}

/// A worker thread's own view.
struct Worker {
    shared: Arc<Shared>,
    slot: usize,
    /// There is a processor for whoever has the next job, too. Seen by the worker itself, which may
    /// be confined as its maker is.
    may_spin: bool,
}

impl Worker {
    fn work(mut self) {
        parts::block_signals();
        self.may_spin = parts::processors() > 1;
        // Counted in `threads` and `searching` by who made it.
        let mut state = self.shared.state.lock();
        state.may_spin = self.may_spin;
        let mut end = None;
        while let Some(job) = self.search(&mut state, &mut end) {
            state.searching -= 1;
            MutexGuard::unlocked(&mut state, || {
                tell(&mut end);
                end = job.run();
            });
            state.searching += 1;
        }
        self.leave(state);
    }

    /// The next job, or `None` if this worker is to leave. It is a searcher before and after. The
    /// last one's end is told if there is none at once (I4).
    fn search(&self, state: &mut MutexGuard<'_, State>, end: &mut Option<End>) -> Option<RawJob> {
        let mut spun = false;
        let mut idle_since_ns = None;
        loop {
            let is_surplus = state.threads > state.max && !state.stopping;
            if !is_surplus && let Some(job) = state.pop(&self.shared) {
                if let Some(since_ns) = idle_since_ns {
                    self.learn(state, since_ns);
                }
                return Some(job);
            }
            if is_surplus || state.stopping {
                if end.is_none() {
                    return None;
                }
                // Whether it is too many is decided anew: another one may leave meanwhile.
                MutexGuard::unlocked(state, || tell(end));
                continue;
            }
            state.slots[self.slot].woken_at_ns = None; // Another one has got what it was woken for.
            let since_ns = *idle_since_ns.get_or_insert_with(monotonic_ns);
            let may_spin = self.may_spin
                && !spun
                && state.searching == 1
                && parts::processor() != state.submitter;
            let spin_ns = may_spin.then(|| state.search_time.next_ns()).flatten();
            spun |= may_spin;
            if spin_ns.is_some() || end.is_some() {
                MutexGuard::unlocked(state, || {
                    tell(end);
                    if let Some(spin_ns) = spin_ns {
                        let is_queued = || self.shared.queued_hint.load(Ordering::Relaxed) > 0;
                        spin(since_ns.saturating_add(spin_ns), is_queued);
                    }
                });
                // Planted: what came meanwhile relies on this worker, which counts as a searcher.
                if !planted!("pool_sleeps_unlooked") {
                    continue;
                }
            }
            if !self.sleep(state) {
                return None;
            }
        }
    }

    /// It got a job, for the first time since `idle_since_ns`.
    fn learn(&self, state: &mut State, idle_since_ns: u64) {
        let now_ns = monotonic_ns();
        let woken_at_ns = state.slots[self.slot].woken_at_ns.take();
        if let Some(woken_at_ns) = woken_at_ns {
            let wake_ns = now_ns.saturating_sub(woken_at_ns);
            state.search_time.learn_wake(wake_ns);
        }
        // What a search has to last for: waking is what it saves.
        let came_at_ns = woken_at_ns.unwrap_or(now_ns);
        state
            .search_time
            .adjust(came_at_ns.saturating_sub(idle_since_ns));
    }

    /// Sleeps until there may be something to do: true to search again, false to leave.
    fn sleep(&self, state: &mut MutexGuard<'_, State>) -> bool {
        state.searching -= 1;
        state.asleep.push(self.slot);
        state.slots[self.slot].asleep = true;
        let wake = &self.shared.wakes[self.slot];
        let mut idled = false;
        loop {
            let surplus = state.threads > state.min;
            if state.stopping || state.threads > state.max || (idled && surplus) {
                break;
            }
            if surplus {
                idled = wake.wait_for(state, self.shared.idle).timed_out();
            } else {
                wake.wait(state);
            }
            if !state.slots[self.slot].asleep {
                // Woken for a job, and counted as a searcher by who did it.
                return true;
            }
        }
        let slot = self.slot;
        state.asleep.retain(|&sleeper| sleeper != slot);
        state.slots[slot].asleep = false;
        state.searching += 1;
        // Who stops looks at the queue once more: there may be jobs to run.
        state.stopping
    }

    fn leave(&self, mut state: MutexGuard<'_, State>) {
        state.searching -= 1;
        state.threads -= 1;
        // If it left because there were too many, others have to see to what it searched for.
        // Planted: they do not.
        if !planted!("pool_leaves_unstaffed") {
            state.staff(&self.shared);
        }
        let earlier = core::mem::take(&mut state.left);
        let slot = &mut state.slots[self.slot];
        slot.used = false;
        slot.woken_at_ns = None;
        let own = slot.handle.take();
        state.left.extend(own);
        drop(state);
        earlier.into_iter().for_each(join);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
