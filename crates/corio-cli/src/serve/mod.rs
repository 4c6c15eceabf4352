//! `corio serve`: one disk, served over NBD until a signal or the end of `--run`.
//!
//! ```text
//! start     signals -> limits -> TLS -> loops -> disk -> sockets -> accepting -> announce -> --run
//! serve     accept thread --client--> door --spawn--> a loop's thread: server (corio-nbd) -> node (corio-block)
//! stop      sockets closed -> server shut down -> requests done -> flushed -> loops joined
//! ```
//!
//! The order of the start matters: the signal thread is there before anything that would have to be
//! cleaned up; the disk is open before a client can connect; what tells others that we are ready
//! (lines, pid file, systemd) comes after we are. The main thread then only waits for events.
//!
//! I1. What is on disk because of us (sockets, pid file) is in [`Litter`] from the moment it
//! exists. I2. No step of the stop outlives the deadline set when the stop began: each is given
//! what is left, and what then remains is named, not waited for.

mod accept;
pub(crate) mod address;
mod announce;
mod disk;
mod door;
mod limits;
mod litter;
mod log;
mod pidfile;
mod run;
mod signals;
mod sockets;
mod stop;
mod systemd;
mod tcp;
mod tls;
mod unix;

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::{Context, Result};
use corio::IoThread;
use corio::context::MonitorChoice;
use corio::context::PollParams;
use corio::engine::EngineChoice;
use corio_block::Node;
use corio_nbd::server::Server;

use self::accept::Acceptor;
use self::door::Door;
use self::litter::Litter;
use self::run::Running;
use self::signals::Event;
use crate::args::{Engine, Monitor, ServeArgs};
use crate::report::Failure;

/// Connections the kernel may hold until they are accepted. It cuts this to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// All that runs while clients are served.
struct Service {
    server: Server,
    node: Arc<Node>,
    threads: Vec<IoThread>,
    acceptor: Acceptor,
    command: Option<Running>,
    litter: Litter,
}

/// Why serving ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A signal, by number.
    Signal(i32),
    /// The command of `--run` has ended with this status.
    CommandEnded(u8),
}

/// Serves until told to stop. Returns the program's exit status.
///
/// # Errors
/// Something could not be opened, listened on or started, or could not be ended in order.
pub(crate) fn run(args: &ServeArgs) -> Result<u8> {
    log::init(args.log);
    let litter = Litter::default();
    let events = signals::watch(litter.share()).context("cannot handle signals")?;
    let mut service = start(args, litter)?;
    let cause = wait(&events, service.command.as_mut())?;
    let why = stop::describe(cause);
    tracing::info!("{why}");
    systemd::stopping(&why);
    service.stop(cause, &events, Instant::now() + stop::GRACE)
}

/// Everything up to and with telling the world that we are ready.
fn start(args: &ServeArgs, litter: Litter) -> Result<Service> {
    if let Some(warning) = limits::raise_open_files(args.connections, args.iothreads) {
        tracing::warn!("{warning}");
    }
    // First: it can only be wrong, and nothing has been started yet.
    let tls = tls::load(args)?;
    let needs = tls::needs(args);
    let threads = start_threads(args)?;
    let node = disk::open(args)?;
    let server = disk::export(args, Arc::clone(&node), tls);
    let sockets = sockets::open(args, &litter)?;
    let door = Door::new(server.clone(), &threads, args.connections);
    let acceptor = Acceptor::start(sockets.listeners, door.into_admit())
        .context("cannot start accepting clients")?;
    // Before anything is said: it can fail.
    if let Some(path) = &args.pid_file {
        pidfile::write(path, &litter)?;
    }
    announce::addresses(&sockets.uris, needs.as_ref(), args.run.is_some());
    systemd::ready(&announce::status(&node, &sockets.uris));
    let uri = sockets.uris.first().map_or("", String::as_str);
    let uri = match &needs {
        None => uri.to_owned(),
        Some(needs) => needs.client_uri(uri),
    };
    let command = args
        .run
        .as_deref()
        .map(|command| run::start(command, &uri))
        .transpose()?;
    Ok(Service {
        server,
        node,
        threads,
        acceptor,
        command,
        litter,
    })
}

/// One loop a thread.
fn start_threads(args: &ServeArgs) -> Result<Vec<IoThread>> {
    // Sockets cannot be asked without the kernel.
    let polling = PollParams {
        max_ns: args.poll_max_ns,
        ask_kernel: true,
        ..PollParams::IO_THREAD
    };
    (0..args.iothreads)
        .map(|number| {
            let thread = IoThread::builder()
                .name(format!("io{number}"))
                .monitor(args.monitor.into())
                .engine(args.engine.into())
                .poll_params(polling)
                .spawn()
                .map_err(|error| cannot_start_thread(number, &error))?;
            if let Some(monitor) = thread.context().monitor() {
                tracing::info!("io{number}: {:?} monitor: {}", monitor.kind, monitor.reason);
            }
            Ok(thread)
        })
        .collect()
}

fn cannot_start_thread(number: u32, error: &corio::Error) -> Failure {
    Failure::new(format!("cannot start I/O thread io{number}"))
        .why(error.to_string())
        .advice("try --monitor epoll --engine threads, or fewer --iothreads")
}

/// Waits for what ends serving.
fn wait(events: &Receiver<Event>, mut command: Option<&mut Running>) -> Result<Cause> {
    loop {
        match events
            .recv()
            .context("the thread that handles signals is gone")?
        {
            Event::Stop(signal) => return Ok(Cause::Signal(signal)),
            Event::Child => {
                let Some(command) = command.as_deref_mut() else {
                    continue;
                };
                if let Some(status) = command.poll().context("cannot wait for --run's command")? {
                    return Ok(Cause::CommandEnded(status));
                }
            }
        }
    }
}

impl From<Engine> for EngineChoice {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Auto => Self::Auto,
            Engine::IoUring => Self::IoUring,
            Engine::LinuxAio => Self::LinuxAio,
            Engine::Threads => Self::Threads,
        }
    }
}

impl From<Monitor> for MonitorChoice {
    fn from(monitor: Monitor) -> Self {
        match monitor {
            Monitor::Auto => Self::Auto,
            Monitor::Epoll => Self::Epoll,
            Monitor::IoUring => Self::IoUring,
            Monitor::Poll => Self::Poll,
        }
    }
}
