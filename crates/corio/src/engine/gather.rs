//! Requests that are handed to the kernel together (SPEC E1).

use core::cell::Cell;
use std::rc::Rc;

use super::HomeEngine;
use crate::context::Local;

/// How deep this home is in [`gather`].
#[derive(Default)]
pub(super) struct Gathering(Cell<usize>);

impl Gathering {
    pub(super) fn is_on(&self) -> bool {
        self.0.get() > 0
    }
}

/// Holds back the disk requests that coroutines of this home make while `f` runs, and hands them to
/// the kernel together when it returns: for a handler that starts many coroutines, of which each
/// makes a request. Nested, the outermost one hands over.
///
/// More than [`request_batch_max`](crate::AioContext::request_batch_max) are handed over as they
/// come, by so many at once. A loop that turns meanwhile, because `f` parks its coroutine, hands
/// over what there is: nothing waits for the end. Any thread: where there is no loop, or the engine
/// is worker threads, `f` is just called.
///
/// ```
/// use corio::{engine::gather, fs::File};
/// let io = corio::IoThread::builder().spawn()?;
/// let sum = io.context().spawn(|| {
///     let reads = gather(|| {
///         [0, 1, 2, 3].map(|at| corio::spawn(move || {
///             let mut byte = [0];
///             File::open("Cargo.toml")?.read_exact_at(&mut byte, at)?;
///             Ok::<_, std::io::Error>(u64::from(byte[0]))
///         }))
///     });
///     reads.into_iter().map(|read| read.join().expect("it does not panic")).sum::<Result<u64, _>>()
/// });
/// assert!(sum.join().expect("it does not panic")? > 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[doc(alias = "defer_call_begin")]
#[doc(alias = "defer_call_end")]
pub fn gather<R>(f: impl FnOnce() -> R) -> R {
    let _end = begin();
    f()
}

/// Begins what ends when its end is dropped; None where there is no loop.
pub(crate) fn begin() -> Option<End> {
    let local = Local::current()?;
    let depth = of_home(local);
    depth.0.set(depth.0.get() + 1);
    Some(End(local.context().id()))
}

/// How deep this home is in [`gather`]. Apart from its engine, which is chosen, and its ring made, at
/// the first request.
pub(super) fn of_home(local: &Local) -> Rc<Gathering> {
    local.attachment(|_| Gathering::default())
}

/// The end of a gather of the context's home. By its number: `f` may have moved its coroutine to
/// another home, or have been left behind by its own.
#[derive(Debug)]
pub(crate) struct End(u64);

impl Drop for End {
    fn drop(&mut self) {
        let Some(local) = Local::current().filter(|local| local.context().id() == self.0) else {
            return;
        };
        let gathering = of_home(local);
        let depth = gathering.0.get().saturating_sub(1);
        gathering.0.set(depth);
        if depth == 0 {
            hand_over(local);
        }
    }
}

fn hand_over(local: &Local) {
    if let Some(ring) = local.ring_if_made() {
        // A failure is met again, and reported, by the loop's own submission.
        let _ = ring.submit();
    }
    if let Some(engine) = local.attached::<HomeEngine>()
        && let Some(aio) = engine.aio()
    {
        aio.submit();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use super::*;
    use crate::context::AioContext;
    use crate::coroutine::Coroutine;
    use crate::engine::{EngineChoice, EngineKind};
    use crate::fs::{AlignedBuf, File, OpenOptions};

    /// Starts `count` coroutines, each of which makes a request.
    fn start(file: &Arc<File>, count: usize) -> Vec<Coroutine> {
        let one = |_| {
            let file = Arc::clone(file);
            let reader = Coroutine::new(move || {
                let mut block = AlignedBuf::zeroed(4096, 4096).unwrap();
                file.read_exact_at(&mut block, 0).unwrap();
            });
            reader.enter();
            reader
        };
        (0..count).map(one).collect()
    }

    /// Runs `test` at home with a file of 4096 bytes in an engine, then waits for its coroutines;
    /// `queued` says how many requests wait to be handed over.
    fn check(choice: EngineChoice, file: File, kind: EngineKind, queued: impl Fn(&Local) -> usize) {
        let (context, file) = (AioContext::new().unwrap(), Arc::new(file));
        context.set_engine(choice);
        let test = || {
            let local = Local::current().unwrap();
            let mut all = start(&file, 1);
            let used = context
                .direct_engine()
                .unwrap_or_else(|| context.engine().unwrap());
            if used.kind != kind {
                return println!("SKIPPED: gathered requests: {}", used.reason);
            }
            context.poll(false).unwrap();
            gather(|| {
                all.extend(start(&file, 5));
                gather(|| all.extend(start(&file, 5)));
                assert_eq!(queued(local), 10, "{kind:?}: the inner end hands over");
            });
            assert_eq!(queued(local), 0, "{kind:?}: the end does not");
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                gather(|| {
                    all.extend(start(&file, 5));
                    panic!("expected by the test");
                })
            }));
            caught.unwrap_err();
            assert_eq!(queued(local), 0, "{kind:?}: a panic is no end");
            while all.iter().any(|reader| !reader.is_done()) {
                context.poll(true).unwrap();
            }
        };
        context.enter_home(test).unwrap();
    }

    // SPEC E1: a home that makes no request has no ring.
    #[test]
    fn a_gather_without_a_request_chooses_no_engine() {
        let context = AioContext::new().unwrap();
        let ring_is_made = || {
            gather(|| ());
            Local::current().unwrap().ring_if_made().is_some()
        };
        assert!(!context.enter_home(ring_is_made).unwrap());
        assert!(context.engine().is_none());
    }

    // SPEC E1
    #[test]
    fn the_outermost_gather_hands_all_requests_over() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (ring, kind) = (EngineChoice::IoUring, EngineKind::IoUring);
        check(ring, OwnedFd::from(file).into(), kind, |local| {
            local.ring_if_made().map_or(0, |ring| ring.pending())
        });
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(4096).unwrap();
        let file = match OpenOptions::new().read(true).direct(true).open(&named) {
            Ok(file) => file,
            Err(error) => return println!("SKIPPED: gathered direct requests: {error}"),
        };
        let (aio, kind) = (EngineChoice::LinuxAio, EngineKind::LinuxAio);
        check(aio, file, kind, |local| {
            let engine = super::super::of_home(local);
            engine.aio().map_or(0, |aio| aio.queued())
        });
    }
}
