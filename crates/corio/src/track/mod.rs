//! Tracking: what the runtime did, recorded per thread (SPEC K1).
//!
//! ```text
//!   call site ── ON? ──no──▶ goes on            (a relaxed load and a branch that is predicted)
//!                 │yes
//!                 ▼
//!               record ──▶ this thread's ring   (no lock, no allocation; overwrites the oldest)
//!                              ▲
//!               snapshot ──────┘                (any thread, while the writers run)
//! ```
//!
//! A thread's ring is allocated at its first event and entered in the registry, which is the only
//! lock here and is not taken again by that thread. The ring outlives its thread so that a snapshot
//! shows what the thread did last; of ended threads the last `ENDED_RINGS_MAX` are kept.
//!
//! Nothing here may be called from a signal handler: it would interrupt a push (ring.rs, I1).

mod event;
mod ring;

pub use event::Event;
pub(crate) use event::Kind;

use core::cell::OnceCell;
use core::panic::Location;
use std::sync::{Arc, OnceLock};

// Statics and no protocol, so not through `crate::atomic`.
use core::sync::atomic::{AtomicBool, Ordering};

use crate::sys::clock::monotonic_ns;
use crate::tls;
use parking_lot::Mutex;
use ring::Ring;

/// Records a thread's ring holds (256 KiB); a later one overwrites the oldest.
const RING_RECORDS: usize = 8192;

/// How many rings of ended threads are kept; the ring of the thread that was registered first goes
/// first.
const ENDED_RINGS_MAX: usize = 64;

static ON: AtomicBool = AtomicBool::new(false);
static ORIGIN_NS: OnceLock<u64> = OnceLock::new();
static THREADS: Mutex<Vec<Arc<Thread>>> = Mutex::new(Vec::new());

/// A thread that has recorded something.
struct Thread {
    id: i32,
    name: String,
    ended: AtomicBool,
    ring: Ring,
}

/// This thread's entry in the registry; dropped with the thread.
struct Mine(OnceCell<Arc<Thread>>);

impl Drop for Mine {
    fn drop(&mut self) {
        if let Some(thread) = self.0.get() {
            thread.ended.store(true, Ordering::Relaxed);
        }
    }
}

thread_local! {
    static MINE: Mine = const { Mine(OnceCell::new()) };
}

/// What one thread recorded.
///
/// ```
/// corio::track::enable();
/// corio::home(|| corio::Coroutine::new(|| ()).enter());
/// corio::track::disable();
/// let mine = std::thread::current().name().unwrap_or_default().to_owned();
/// for thread in corio::track::snapshot() {
///     println!("{} of {mine}: {} lost", thread.records.len(), thread.lost);
///     assert!(thread.thread_id > 0 && thread.records.len() >= 3);
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ThreadRecords {
    /// The kernel's number of the thread.
    pub thread_id: i32,
    /// The thread's name, or nothing.
    pub thread_name: String,
    /// How many records are lost: older than the first of `records`, and overwritten.
    pub lost: u64,
    /// What is left, oldest first.
    pub records: Vec<Record>,
}

/// One event and when it was.
///
/// ```
/// corio::track::enable();
/// corio::home(|| corio::Coroutine::new(|| ()).enter());
/// corio::track::disable();
/// for thread in corio::track::snapshot() {
///     assert!(thread.records.is_sorted_by_key(|record| record.time_ns));
///     for record in &thread.records {
///         println!("{} {:?}", record.time_ns, record.event);
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Nanoseconds on CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// What happened.
    pub event: Event,
}

/// Begins to record, on all threads. What was recorded earlier stays. From any thread.
///
/// Other threads note that runs of coroutines are to be told when they begin a home or a turn of
/// their loop, or make a coroutine.
///
/// # Examples
/// ```
/// corio::track::enable();
/// // ... run coroutines ...
/// corio::track::disable();
/// for thread in corio::track::snapshot() {
///     println!("{}: {} events, {} lost", thread.thread_name, thread.records.len(), thread.lost);
/// }
/// ```
pub fn enable() {
    ORIGIN_NS.get_or_init(monotonic_ns);
    ON.store(true, Ordering::Relaxed);
    notice(tls::thread());
}

/// Stops recording. A thread that is just recording an event finishes it. From any thread.
pub fn disable() {
    ON.store(false, Ordering::Relaxed);
    notice(tls::thread());
}

/// Has this thread, whose state it is given, note whether events are recorded; true if so. A switch
/// looks at the note: it has the thread's state at hand anyway, and one more load would be felt
/// there.
#[inline(always)]
pub(crate) fn notice(thread: &tls::ThreadState) -> bool {
    let on = is_enabled();
    thread.traced.set(u64::from(on));
    if on {
        thread.place.set(0); // Nobody is entered without a look at `traced`.
    }
    on
}

/// Whether events are being recorded.
#[inline(always)]
pub fn is_enabled() -> bool {
    ON.load(Ordering::Relaxed)
}

/// What the threads recorded, as far as it is not overwritten yet. From any thread, while the
/// others go on: each record is whole, but two threads are not looked at in the same instant.
// Reading records back relies on how they were written, both of which is in this module.
#[allow(unsafe_code)]
pub fn snapshot() -> Vec<ThreadRecords> {
    let threads = THREADS.lock().clone();
    let origin_ns = *ORIGIN_NS.get_or_init(monotonic_ns);
    threads
        .iter()
        .map(|thread| {
            let copied = thread.ring.copy();
            let records = copied.records.iter().filter_map(|&words| {
                // SAFETY: `copy` gives whole records only, and only `record` and `record_scheduled`
                // below push any, as event.rs made them.
                let (since_origin_ns, event) = unsafe { event::decode(words) }?;
                Some(Record {
                    time_ns: origin_ns.saturating_add(since_origin_ns),
                    event,
                })
            });
            ThreadRecords {
                thread_id: thread.id,
                thread_name: thread.name.clone(),
                lost: copied.lost,
                records: records.collect(),
            }
        })
        .collect()
}

/// Records an event, if tracking is on. What the arguments mean stands at the `Kind`. Not from a
/// signal handler.
#[inline(always)]
pub(crate) fn emit(kind: Kind, a: u64, b: u64, c: u64) {
    if ON.load(Ordering::Relaxed) {
        record(kind, a, b, c);
    }
}

/// Records that a bottom half is run in this thread's context.
#[inline(always)]
pub(crate) fn emit_bottom_half(bottom_half: u64, name: &'static str) {
    if ON.load(Ordering::Relaxed) {
        record_bottom_half(bottom_half, name);
    }
}

/// Records that `by` queued `coroutine` on its context, and from which line.
#[inline(always)]
pub(crate) fn emit_scheduled(coroutine: u64, by: u64, at: Option<&'static Location<'static>>) {
    if ON.load(Ordering::Relaxed) {
        record_scheduled(coroutine, by, at);
    }
}

#[cold]
#[inline(never)]
fn record(kind: Kind, a: u64, b: u64, c: u64) {
    // What happens on a context's thread is told without its context: whoever tells it may lie in a
    // layer that knows none, and looking it up costs nothing here, where tracking is on.
    let here = tls::thread().context_id.get();
    let c = match kind {
        Kind::Entered => here,
        _ => c,
    };
    push(|since_origin_ns| event::words(kind, since_origin_ns, a, b, c));
}

#[cold]
#[inline(never)]
fn record_bottom_half(bottom_half: u64, name: &'static str) {
    let here = tls::thread().context_id.get();
    push(|since_origin_ns| event::bottom_half_words(since_origin_ns, bottom_half, here, name));
}

#[cold]
#[inline(never)]
fn record_scheduled(coroutine: u64, by: u64, at: Option<&'static Location<'static>>) {
    push(|since_origin_ns| event::scheduled_words(since_origin_ns, coroutine, by, at));
}

/// No coroutine switch happens in here, so the thread-local needs no care.
#[inline]
fn push(words: impl FnOnce(u64) -> event::Words) {
    let now_ns = monotonic_ns();
    let since_origin_ns = now_ns.saturating_sub(*ORIGIN_NS.get_or_init(|| now_ns));
    // While the thread's locals are being destroyed there is no ring, and what happens then is not
    // recorded.
    let _ = MINE.try_with(|mine| {
        mine.0
            .get_or_init(register)
            .ring
            .push(words(since_origin_ns));
    });
}

#[cold]
fn register() -> Arc<Thread> {
    let thread = Arc::new(Thread {
        id: rustix::thread::gettid().as_raw_nonzero().get(),
        name: std::thread::current().name().unwrap_or_default().to_owned(),
        ended: AtomicBool::new(false),
        ring: Ring::new(RING_RECORDS),
    });
    let mut threads = THREADS.lock();
    let ended = threads
        .iter()
        .filter(|thread| thread.ended.load(Ordering::Relaxed))
        .count();
    let mut surplus = ended.saturating_sub(ENDED_RINGS_MAX);
    threads.retain(|thread| {
        let goes = surplus > 0 && thread.ended.load(Ordering::Relaxed);
        surplus -= usize::from(goes);
        !goes
    });
    threads.push(Arc::clone(&thread));
    thread
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Tests that switch tracking, one at a time.
    static SWITCH: Mutex<()> = Mutex::new(());

    fn mine() -> Option<ThreadRecords> {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        snapshot().into_iter().find(|thread| thread.thread_id == id)
    }

    #[test]
    fn nothing_is_recorded_while_off() {
        // SPEC K1
        let _switch = SWITCH.lock();
        disable();
        assert!(!is_enabled());
        std::thread::scope(|s| {
            s.spawn(|| {
                emit(Kind::LockWait, 1, 2, 0);
                emit_scheduled(1, 2, None);
                assert!(mine().is_none());
            });
        });
    }

    #[test]
    fn events_come_back_in_order_with_their_times() {
        // SPEC K1
        let _switch = SWITCH.lock();
        enable();
        assert!(is_enabled());
        let here = Location::caller();
        let before_ns = monotonic_ns();
        let body = move || {
            emit(Kind::Entered, 0, 7, 0);
            tls::thread().context_id.set(5);
            emit(Kind::Entered, 7, 9, 0);
            emit_scheduled(8, 7, Some(here));
            emit(Kind::Yielded, 7, 0, 0);
            mine().unwrap()
        };
        let thread = std::thread::Builder::new()
            .name("tracked".into())
            .spawn(body);
        let got = thread.unwrap().join().unwrap();
        disable();
        assert_eq!((got.thread_name.as_str(), got.lost), ("tracked", 0));
        let events: Vec<Event> = got.records.iter().map(|record| record.event).collect();
        let expected = [
            Event::Entered {
                from: 0,
                to: 7,
                context: 0,
            },
            Event::Entered {
                from: 7,
                to: 9,
                context: 5,
            },
            Event::Scheduled {
                coroutine: 8,
                by: 7,
                at: Some(here),
            },
            Event::Yielded {
                coroutine: 7,
                to: 0,
            },
        ];
        assert_eq!(events, expected);
        let times: Vec<u64> = got.records.iter().map(|record| record.time_ns).collect();
        assert!(times.is_sorted() && before_ns <= times[0] && times[3] <= monotonic_ns());
    }

    #[test]
    fn records_of_an_ended_thread_are_kept_up_to_a_limit() {
        // SPEC K1
        let _switch = SWITCH.lock();
        enable();
        let record_on_a_thread = || std::thread::spawn(|| emit(Kind::LockWait, 4242, 1, 0)).join();
        let kept = || {
            let event = Event::LockWait {
                lock: 4242,
                coroutine: 1,
            };
            let is_ours = |t: &ThreadRecords| t.records.first().is_some_and(|r| r.event == event);
            snapshot().iter().filter(|thread| is_ours(thread)).count()
        };
        record_on_a_thread().unwrap();
        assert_eq!(kept(), 1);
        for _ in 0..2 * ENDED_RINGS_MAX {
            record_on_a_thread().unwrap();
        }
        disable();
        let kept = kept();
        // Other tests' threads may end meanwhile and take a place.
        assert!(
            (1..=ENDED_RINGS_MAX + 1).contains(&kept),
            "{kept} rings kept"
        );
    }
}
