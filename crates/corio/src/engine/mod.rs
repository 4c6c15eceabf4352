//! Disk engines: how a request gets to the kernel while its coroutine is parked (SPEC E1 to E5).
//!
//! ```text
//!   fs::File ── request ──> uring    the context's ring; the completion enters the coroutine
//!                      └──> threads  a worker makes the blocking call and wakes the coroutine
//! ```
//!
//! Both borrow the caller's buffers: the coroutine parks uninterruptibly, so its frame, and what it
//! borrows, cannot go before the kernel or the worker is done (DESIGN "Ownership in flight").

mod parameters;
mod pool;
mod request;
mod threads;
mod uring;

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

pub use threads::unblock;

pub(crate) use request::Request;

use crate::context::{AioContext, Local};
use crate::schedule::IoThreadBuilder;

/// Which engine disk requests use.
///
/// ```
/// use corio::{IoThread, engine::{EngineChoice, EngineKind}};
/// let io = IoThread::builder().engine(EngineChoice::Threads).spawn()?;
/// let read = io.context().spawn(|| corio::fs::File::open("Cargo.toml")?.read_at(&mut [0; 16], 0));
/// assert_eq!(read.join().expect("it does not panic")?, 16);
/// assert_eq!(io.context().engine().map(|engine| engine.kind), Some(EngineKind::Threads));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineChoice {
    /// The best that works: io_uring, else worker threads.
    #[default]
    Auto,
    /// io_uring, on the context's ring.
    IoUring,
    /// Worker threads.
    Threads,
}

/// Which engine a context uses.
///
/// ```
/// use corio::engine::EngineKind;
/// let context = corio::AioContext::new()?;
/// let uses_ring = || context.engine().is_some_and(|engine| engine.kind == EngineKind::IoUring);
/// assert!(!uses_ring(), "there has been no request yet");
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// Worker threads.
    Threads,
}

/// What a context's engine is, and why.
///
/// ```
/// let io = corio::IoThread::builder().spawn()?;
/// let read = io.context().spawn(|| corio::fs::File::open("Cargo.toml")?.sync_data());
/// read.join().expect("it does not panic")?;
/// let engine = io.context().engine().expect("there was a request");
/// println!("requests go by {:?}: {}", engine.kind, engine.reason);
/// # assert!(!engine.reason.is_empty());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The engine in use.
    pub kind: EngineKind,
    /// Why it and no other, in words.
    pub reason: String,
}

/// What a context was told, and what came of it. Any thread.
#[derive(Default)]
struct Setting {
    choice: Mutex<EngineChoice>,
    info: Mutex<Option<EngineInfo>>,
    /// How many requests gather; 0: as many as the engine likes.
    batch_max: AtomicUsize,
}

/// How many requests gather at most: as many as fit in a ring.
const BATCH_LIMIT: usize = 256;

/// What a home uses.
struct HomeEngine {
    kind: EngineKind,
    setting: Arc<Setting>,
}

impl IoThreadBuilder {
    /// Which engine its disk requests use; the default takes the best that works.
    #[must_use]
    pub fn engine(self, choice: EngineChoice) -> Self {
        self.setup(move |context| context.set_engine(choice))
    }
}

impl AioContext {
    /// Chooses the engine for disk requests. Takes effect when the context next gets a home. Any
    /// thread.
    pub fn set_engine(&self, choice: EngineChoice) {
        *self.attachment(Setting::default).choice.lock() = choice;
    }

    /// Which engine its disk requests use, and why; None before the first request.
    #[must_use]
    pub fn engine(&self) -> Option<EngineInfo> {
        self.attachment(Setting::default).info.lock().clone()
    }
}

/// The engine of this home, chosen at its first request, and how many requests gather at present
/// (0: as many as it likes).
fn of_home(local: &Local) -> (EngineKind, usize) {
    let engine = local.attachment(choose);
    (
        engine.kind,
        engine.setting.batch_max.load(Ordering::Relaxed),
    )
}

fn choose(local: &Local) -> HomeEngine {
    let setting: Arc<Setting> = local.context().attachment(Setting::default);
    let choice = *setting.choice.lock();
    let threads = |reason: String| EngineInfo {
        kind: EngineKind::Threads,
        reason,
    };
    let info = match choice {
        EngineChoice::Threads => threads("asked for".into()),
        EngineChoice::Auto | EngineChoice::IoUring => match local.ring() {
            Ok(_) if choice == EngineChoice::IoUring => EngineInfo {
                kind: EngineKind::IoUring,
                reason: "asked for".into(),
            },
            Ok(_) => EngineInfo {
                kind: EngineKind::IoUring,
                reason: "io_uring works and is best".into(),
            },
            Err(error) => {
                if choice == EngineChoice::IoUring {
                    tracing::warn!(
                        "the io_uring engine is refused ({error}): worker threads are used"
                    );
                }
                threads(format!("io_uring is refused: {error}"))
            }
        },
    };
    tracing::debug!(context = local.context().name(), engine = ?info.kind, "{}", info.reason);
    let kind = info.kind;
    *setting.info.lock() = Some(info);
    HomeEngine { kind, setting }
}
