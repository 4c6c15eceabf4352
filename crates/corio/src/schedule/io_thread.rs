//! IoThreads: a thread that runs a context (SPEC I1), or another loop with the context in it (I2).

use core::sync::atomic::{AtomicBool, Ordering};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;

use crate::context::{AioContext, LocalContext, MonitorChoice, PollParams};
use crate::error::Error;
use crate::sys;

type Setup = Box<dyn FnOnce(&AioContext)>;

/// One turn of the loop that an IoThread runs in place of its own; see
/// [`IoThreadBuilder::turn_by`].
///
/// ```
/// let mut turns = 0;
/// let mut turn: corio::Turn = Box::new(move || {
///     turns += 1;
///     if turns < 3 { Ok(()) } else { Err(std::io::Error::other("three turns")) }
/// });
/// assert!(turn().is_ok());
/// ```
pub type Turn = Box<dyn FnMut() -> io::Result<()>>;
type MakeTurn = Box<dyn FnOnce(LocalContext<'_>) -> io::Result<Turn> + Send>;

/// Makes [`IoThread`]s.
///
/// ```
/// use corio::{IoThread, context::MonitorChoice, engine::EngineChoice};
/// let io = IoThread::builder()
///     .name("io0")
///     .monitor(MonitorChoice::Auto)
///     .engine(EngineChoice::Auto)
///     .spawn()?;
/// assert_eq!(io.context().name(), "io0");
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Default)]
pub struct IoThreadBuilder {
    name: Option<String>,
    monitor: MonitorChoice,
    poll_params: Option<PollParams>,
    /// What higher layers set up on the context before its thread starts.
    setup: Vec<Setup>,
    /// What runs the loop, if the context does not run by itself.
    make_turn: Option<MakeTurn>,
    /// The processors that it may run on; None: all that its maker may.
    cpus: Option<Vec<usize>>,
}

impl IoThreadBuilder {
    /// The thread's and the context's name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Which monitor its loop uses; the default takes the best that works.
    #[must_use]
    pub fn monitor(mut self, choice: MonitorChoice) -> Self {
        self.monitor = choice;
        self
    }

    /// How its loop polls before it waits; the default is [`PollParams::IO_THREAD`]. To be changed
    /// at any time by [`AioContext::set_poll_params`].
    #[must_use]
    pub fn poll_params(mut self, params: PollParams) -> Self {
        self.poll_params = Some(params);
        self
    }

    /// Which processors its thread may run on, by the kernel's numbers from 0 up; by default those
    /// that the thread may which makes it. The worker threads of its context, which it starts, may
    /// run on these only, too.
    ///
    /// ```
    /// let allowed = rustix::thread::sched_getaffinity(None)?;
    /// let first = (0..).find(|&cpu| allowed.is_set(cpu)).expect("this thread runs somewhere");
    /// let io = corio::IoThread::builder().name("io0").cpus([first]).spawn()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = usize>) -> Self {
        self.cpus = Some(cpus.into_iter().collect());
        self
    }

    /// Has another loop, in which the context is [embedded](LocalContext::embed), run in the
    /// thread: `make` is called there and makes what turns it, once a call. That is called again
    /// and again until the IoThread is stopped, and is dropped before the home ends.
    ///
    /// A turn may wait, but not beyond a notification of the context: the embedded context's
    /// descriptor tells of it, and stopping sends one. A turn's error, or its panic, is logged and
    /// the next turn made.
    ///
    /// ```
    /// use rustix::event::{PollFd, PollFlags, poll};
    /// let io = corio::IoThread::builder()
    ///     .turn_by(|local| {
    ///         let embedded = local.embed()?;
    ///         Ok(Box::new(move || {
    ///             poll(&mut [PollFd::new(&embedded, PollFlags::IN)], None)?;
    ///             embedded.dispatch().map(drop)
    ///         }))
    ///     })
    ///     .spawn()?;
    /// assert_eq!(io.context().spawn(|| 1 + 2).join().unwrap(), 3);
    /// # Ok::<(), corio::Error>(())
    /// ```
    #[must_use]
    pub fn turn_by(
        mut self,
        make: impl FnOnce(LocalContext<'_>) -> io::Result<Turn> + Send + 'static,
    ) -> Self {
        self.make_turn = Some(Box::new(make));
        self
    }

    /// For layers above: runs on the context before its thread starts.
    pub(crate) fn setup(mut self, f: impl FnOnce(&AioContext) + 'static) -> Self {
        self.setup.push(Box::new(f));
        self
    }

    /// Starts the thread and returns once its loop runs.
    ///
    /// # Errors
    /// No descriptors, no memory for the thread; a parameter out of its range; no processor given
    /// that may be used; what was given to [`turn_by`](Self::turn_by) refuses.
    pub fn spawn(self) -> Result<IoThread, Error> {
        if let Some(cpus) = &self.cpus
            && (cpus.is_empty() || cpus.iter().any(|&cpu| cpu >= sys::thread::CPUS_MAX))
        {
            return Err(Error::Parameter {
                name: "cpus",
                value: format!("{cpus:?}"),
                expected: "one or more numbers of processors, below 1024",
            });
        }
        let mut builder = AioContext::builder()
            .monitor(self.monitor)
            .poll_params(self.poll_params.unwrap_or(PollParams::IO_THREAD));
        if let Some(name) = &self.name {
            builder = builder.name(name.clone());
        }
        let context = builder.build()?;
        for setup in self.setup {
            setup(&context);
        }
        let (make_turn, cpus) = (self.make_turn, self.cpus);
        let stopping = Arc::new(AtomicBool::new(false));
        let (started, start) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name(context.name().to_owned())
            .spawn({
                let (context, stopping) = (context.clone(), Arc::clone(&stopping));
                move || {
                    let _ends = EndsContext(&context);
                    match cpus.map_or(Ok(()), |cpus| sys::thread::set_cpus(&cpus)) {
                        Ok(()) => run(&context, make_turn, &stopping, &started),
                        Err(error) => drop(started.send(Err(error))),
                    }
                }
            })
            .map_err(|source| Error::Os {
                op: "starting an IoThread",
                source,
            })?;
        match start.recv() {
            Ok(Ok(())) => Ok(IoThread {
                context,
                stopping,
                thread: Some(thread),
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Os {
                op: "starting an IoThread",
                source: io::Error::other("the thread ended before its loop ran"),
            }),
        }
    }
}

fn run(
    context: &AioContext,
    make_turn: Option<MakeTurn>,
    stopping: &AtomicBool,
    started: &mpsc::SyncSender<Result<(), Error>>,
) {
    sys::thread::prepare_loop_thread();
    let result = context.enter_home(|| {
        let mut turn = match make_turn.zip(context.local()) {
            None => None,
            Some((make, local)) => match make(local) {
                Ok(turn) => Some(turn),
                Err(source) => {
                    let op = "setting up the loop of an IoThread";
                    let _ = started.send(Err(Error::Os { op, source }));
                    return;
                }
            },
        };
        let mut turn = || match &mut turn {
            None => context.poll(true).map(drop),
            Some(turn) => turn(),
        };
        let _ = started.send(Ok(()));
        while !stopping.load(Ordering::Acquire) {
            match catch_unwind(AssertUnwindSafe(&mut turn)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(context = context.name(), "the loop's wait failed: {error}");
                    // Not at full speed, and not for ever quiet: the next one may work.
                    thread::sleep(std::time::Duration::from_millis(10));
                }
                Err(payload) => {
                    tracing::error!(
                        context = context.name(),
                        "a callback panicked; the loop goes on without what it was doing"
                    );
                    core::mem::forget(payload); // Its destructor could panic again.
                }
            }
        }
    });
    if let Err(error) = result {
        let _ = started.send(Err(error));
    }
}

/// However the thread ends, its context will have no home unless the user makes one.
struct EndsContext<'a>(&'a AioContext);

impl Drop for EndsContext<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl core::fmt::Debug for IoThreadBuilder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("IoThreadBuilder")
            .field("name", &self.name)
            .field("monitor", &self.monitor)
            .finish_non_exhaustive()
    }
}

/// A named thread that runs an [`AioContext`], with all signals blocked.
///
/// Dropping it stops it and waits for it; on its own thread, which cannot wait for itself, it only
/// stops it.
///
/// ```
/// let io = corio::IoThread::builder().name("io0").spawn()?;
/// let name = io.context().spawn(|| std::thread::current().name().map(str::to_owned));
/// assert_eq!(name.join().unwrap().as_deref(), Some("io0"));
/// # Ok::<(), corio::Error>(())
/// ```
#[doc(alias = "IOThread")]
#[derive(Debug)]
pub struct IoThread {
    context: AioContext,
    stopping: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl IoThread {
    /// A thread whose name, monitor and engine can be chosen.
    #[must_use]
    pub fn builder() -> IoThreadBuilder {
        IoThreadBuilder::default()
    }

    /// The context that it runs.
    #[must_use]
    #[doc(alias = "iothread_get_aio_context")]
    pub fn context(&self) -> &AioContext {
        &self.context
    }

    /// Asks it to stop and returns at once: coroutines that are still there are cancelled and
    /// reaped. Any thread.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.context.notify();
    }

    /// Stops it and waits until it has ended.
    ///
    /// # Panics
    /// On the thread itself, which cannot wait for its own end.
    pub fn join(mut self) {
        assert!(
            !self.is_current(),
            "an IoThread was joined on itself: give the handle to another thread"
        );
        self.end();
    }

    fn is_current(&self) -> bool {
        let id = self.thread.as_ref().map(|thread| thread.thread().id());
        id == Some(thread::current().id())
    }

    fn end(&mut self) {
        self.stop();
        let is_current = self.is_current();
        if let Some(thread) = self.thread.take().filter(|_| !is_current)
            && thread.join().is_err()
        {
            tracing::error!(
                context = self.context.name(),
                "an IoThread ended by a panic"
            );
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.end();
    }
}
