//! Disk engines: how a request gets to the kernel while its coroutine is parked (SPEC E1 to E5).
//!
//! ```text
//!   fs::File ── request ──> uring      the context's ring; the completion enters the coroutine
//!                      ├──> linux_aio  O_DIRECT only: an eventfd tells of completions, which do so, too
//!                      └──> threads    a worker makes the blocking call and wakes the coroutine
//! ```
//!
//! Which one is chosen when a home makes its first request, and read back with
//! [`AioContext::engine`](crate::AioContext::engine): io_uring carries all files. Where it does not
//! work Linux AIO carries those opened with O_DIRECT
//! ([`AioContext::direct_engine`](crate::AioContext::direct_engine)), and worker threads the rest:
//! on a file of the page cache Linux AIO would block the loop, so it is never used for one.
//!
//! All borrow the caller's buffers: the coroutine parks uninterruptibly, so its frame, and what it
//! borrows, cannot go before the kernel or the worker is done (DESIGN "Ownership in flight").

mod cached;
mod gather;
mod job;
mod linux_aio;
mod parameters;
mod pool;
mod request;
mod threads;
mod uring;

use core::cell::OnceCell;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;

pub use gather::gather;
pub(crate) use gather::{End as EndOfGather, begin as begin_gather};
pub use job::BlockingJob;
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
    /// The best that works: io_uring, else Linux AIO for files opened with O_DIRECT, else worker
    /// threads.
    #[default]
    Auto,
    /// io_uring, on the context's ring.
    IoUring,
    /// Linux AIO for files opened with O_DIRECT, and worker threads for all others.
    LinuxAio,
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
    /// Linux AIO (io_setup(2)).
    LinuxAio,
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
    /// The same for files opened with O_DIRECT.
    direct_info: Mutex<Option<EngineInfo>>,
    /// How many requests gather; 0: as many as the engine likes.
    batch_max: AtomicUsize,
    /// How many bytes are read from the page cache in a row; 0: none.
    cached_read_max: AtomicUsize,
}

/// How many requests gather at most: as many as fit in a ring.
const BATCH_LIMIT: usize = 256;

/// What a home uses.
struct HomeEngine {
    choice: EngineChoice,
    kind: EngineKind,
    /// For files opened with O_DIRECT, from the first request for one on.
    direct_kind: OnceCell<EngineKind>,
    aio: OnceCell<linux_aio::LinuxAio>,
    gathering: Rc<gather::Gathering>,
    cached_reads: cached::CachedReads,
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

    /// Which engine its disk requests use, and why; None before the first request. For files
    /// opened with O_DIRECT it may be another one, see [`direct_engine`](Self::direct_engine). Any
    /// thread.
    #[must_use]
    pub fn engine(&self) -> Option<EngineInfo> {
        self.attachment(Setting::default).info.lock().clone()
    }

    /// Which engine its requests for files opened with O_DIRECT use, and why; None before the first
    /// of them. Any thread.
    ///
    /// ```
    /// use corio::{IoThread, engine::EngineChoice, fs::{AlignedBuf, OpenOptions}};
    /// let io = IoThread::builder().engine(EngineChoice::LinuxAio).spawn()?;
    /// let read = io.context().spawn(|| {
    ///     let file = OpenOptions::new().read(true).direct(true).open("Cargo.toml")?;
    ///     file.read_at(&mut AlignedBuf::zeroed(4096, 4096)?, 0)
    /// });
    /// match read.join().expect("it does not panic") {
    ///     Ok(_) => {
    ///         let engine = io.context().direct_engine().expect("there was a request");
    ///         println!("direct requests go by {:?}: {}", engine.kind, engine.reason);
    ///     }
    ///     Err(error) => println!("no O_DIRECT here: {error}"),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn direct_engine(&self) -> Option<EngineInfo> {
        self.attachment(Setting::default).direct_info.lock().clone()
    }
}

/// The engine of this home, chosen at its first request.
fn of_home(local: &Local) -> Rc<HomeEngine> {
    local.attachment(choose)
}

impl HomeEngine {
    /// How many requests gather at present; 0: as many as the engine likes.
    fn batch_max(&self) -> usize {
        self.setting.batch_max.load(Ordering::Relaxed)
    }

    /// How many bytes may be read from the page cache in a row at present.
    fn cached_read_max(&self) -> usize {
        self.setting.cached_read_max.load(Ordering::Relaxed)
    }

    /// What carries a request, for a file opened with O_DIRECT or not.
    #[inline]
    fn kind_for(&self, local: &Local, direct: bool) -> EngineKind {
        if !direct || self.kind == EngineKind::IoUring {
            return self.kind;
        }
        *self
            .direct_kind
            .get_or_init(|| self.choose_for_direct(local))
    }

    /// Sees to it that a request can be made by an engine that its maker has named.
    fn prepare(&self, local: &Local, kind: EngineKind, direct: bool) -> io::Result<()> {
        match kind {
            EngineKind::Threads => {}
            EngineKind::IoUring => drop(local.ring()?),
            // It would block on any other file.
            EngineKind::LinuxAio if !direct => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            EngineKind::LinuxAio if self.aio.get().is_none() => {
                let aio = linux_aio::LinuxAio::new(local)?;
                self.aio.get_or_init(|| aio);
            }
            EngineKind::LinuxAio => {}
        }
        Ok(())
    }

    fn aio(&self) -> Option<&linux_aio::LinuxAio> {
        self.aio.get()
    }

    /// At the first request for such a file: a context of Linux AIO counts against a limit of the
    /// whole machine, so that none is made before.
    #[cold]
    fn choose_for_direct(&self, local: &Local) -> EngineKind {
        let choice = self.choice;
        let of_others = self.setting.info.lock().clone();
        let why_not_ring = of_others.map_or_else(String::new, |info| info.reason);
        let info = match choice {
            EngineChoice::Threads | EngineChoice::IoUring => threads_because(why_not_ring),
            EngineChoice::Auto | EngineChoice::LinuxAio => match linux_aio::LinuxAio::new(local) {
                Ok(aio) => {
                    self.aio.get_or_init(|| aio);
                    EngineInfo {
                        kind: EngineKind::LinuxAio,
                        reason: match choice {
                            EngineChoice::LinuxAio => "asked for".into(),
                            _ => format!("{why_not_ring}; Linux AIO works"),
                        },
                    }
                }
                Err(error) if choice == EngineChoice::LinuxAio => {
                    tracing::warn!("Linux AIO is refused ({error}): worker threads are used");
                    threads_because(format!("Linux AIO is refused: {error}"))
                }
                Err(error) => {
                    threads_because(format!("{why_not_ring}; Linux AIO is refused: {error}"))
                }
            },
        };
        let kind = info.kind;
        tracing::debug!(
            context = local.context().name(), engine = ?kind, "direct files: {}", info.reason
        );
        *self.setting.direct_info.lock() = Some(info);
        kind
    }
}

fn threads_because(reason: String) -> EngineInfo {
    EngineInfo {
        kind: EngineKind::Threads,
        reason,
    }
}

fn choose(local: &Local) -> HomeEngine {
    let setting: Arc<Setting> = local.context().attachment(Setting::default);
    let choice = *setting.choice.lock();
    let by_ring = |reason: &str| EngineInfo {
        kind: EngineKind::IoUring,
        reason: reason.to_owned(),
    };
    let info = match choice {
        EngineChoice::Threads => threads_because("asked for".into()),
        EngineChoice::LinuxAio => threads_because(
            "Linux AIO, which is asked for, is for files opened with O_DIRECT".into(),
        ),
        EngineChoice::Auto | EngineChoice::IoUring => match local.ring() {
            Ok(_) if choice == EngineChoice::IoUring => by_ring("asked for"),
            Ok(_) => by_ring("io_uring works and is best"),
            Err(error) => {
                if choice == EngineChoice::IoUring {
                    tracing::warn!(
                        "the io_uring engine is refused ({error}): worker threads are used"
                    );
                }
                threads_because(format!("io_uring is refused: {error}"))
            }
        },
    };
    tracing::debug!(context = local.context().name(), engine = ?info.kind, "{}", info.reason);
    let kind = info.kind;
    // The ring is for all files; what else is for direct ones is seen at the first of them.
    *setting.direct_info.lock() = (kind == EngineKind::IoUring).then(|| info.clone());
    *setting.info.lock() = Some(info);
    HomeEngine {
        choice,
        kind,
        direct_kind: OnceCell::new(),
        aio: OnceCell::new(),
        gathering: gather::of_home(local),
        cached_reads: cached::CachedReads::default(),
        setting,
    }
}
