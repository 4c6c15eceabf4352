//! The stop: in order, and on time.
//!
//! Every step gets what is left until the deadline. A step that waits for something that may never
//! come (a disk that hangs in fdatasync, a loop that does not turn) runs on a thread of its own,
//! which is left behind when time is up: the process is about to end, and says what it left.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use corio::IoThread;

use super::run::Running;
use super::signals::{self, Event};
use super::{Cause, Service};
use crate::report::Failure;

/// From the signal to the exit. Half a second under the 5 s promised: exiting takes time too.
pub(crate) const GRACE: Duration = Duration::from_millis(4500);

/// What of it is kept for the flush when requests do not finish.
const FLUSH_RESERVE: Duration = Duration::from_millis(1000);

/// What did not end in time.
#[derive(Debug, Default)]
struct HeldUp {
    what: Vec<String>,
    /// Whether what clients wrote depends on it.
    data: bool,
}

impl Service {
    /// Ends everything. Returns the program's exit status.
    ///
    /// # Errors
    /// The flush failed, or something did not end before `deadline`: it is named.
    pub(super) fn stop(
        self,
        cause: Cause,
        events: &Receiver<Event>,
        deadline: Instant,
    ) -> Result<u8> {
        let Self {
            server,
            node,
            threads,
            acceptor,
            mut command,
            litter,
        } = self;
        let mut held_up = HeldUp::default();
        // First: whoever sees that nobody is let in any more may take it that no request is begun.
        server.shutdown();
        acceptor.stop();
        if let (Some(command), Cause::Signal(_)) = (&mut command, cause) {
            command.terminate();
        }
        let busy = server.wait_idle(left(deadline).saturating_sub(FLUSH_RESERVE));
        held_up.add_data(busy.iter().map(ToString::to_string));
        let mut flushed = Ok(());
        if !node.read_only() {
            let flushing = Arc::clone(&node);
            match within(deadline, "flush", move || flushing.flush())? {
                Some(result) => flushed = result,
                None => held_up.add_data(Some(format!("the flush of {}", node.name()))),
            }
        }
        if let (Some(command), Cause::Signal(_)) = (&mut command, cause) {
            held_up
                .what
                .extend(await_command(command, events, deadline)?);
        }
        let joined = within(deadline, "join", move || join(threads))?;
        if joined.is_none() && held_up.what.is_empty() {
            held_up.what.push("an I/O thread".to_owned());
        }
        drop(litter);
        // It names the image, says that writes may be lost, and what to do.
        flushed?;
        held_up.into_result()?;
        Ok(match cause {
            Cause::Signal(_) => 0,
            Cause::CommandEnded(status) => status,
        })
    }
}

/// Ends the loops. Joining one that does not turn takes forever.
fn join(threads: Vec<IoThread>) {
    threads.iter().for_each(IoThread::stop);
    threads.into_iter().for_each(IoThread::join);
}

impl HeldUp {
    /// Adds what may keep data from the disk.
    fn add_data(&mut self, what: impl IntoIterator<Item = String>) {
        let before = self.what.len();
        self.what.extend(what);
        self.data |= self.what.len() > before;
    }

    fn into_result(self) -> Result<(), Failure> {
        if self.what.is_empty() {
            return Ok(());
        }
        let failure = Failure::new("could not stop within 5 s")
            .why(format!("still busy: {}", self.what.join(", ")));
        Err(if self.data {
            failure.advice("check what was written last, it may not be on the disk")
        } else {
            failure
        })
    }
}

/// Waits for `--run`'s command, which has been asked to end; kills it when time is up.
fn await_command(
    command: &mut Running,
    events: &Receiver<Event>,
    deadline: Instant,
) -> Result<Option<String>> {
    while command
        .poll()
        .context("cannot wait for --run's command")?
        .is_none()
    {
        if events.recv_timeout(left(deadline)).is_err() {
            command.kill();
            return Ok(Some(format!(
                "--run's command (pid {}, now killed)",
                command.id()
            )));
        }
    }
    Ok(None)
}

/// Runs `step` on a thread of its own until `deadline`. `None`: it goes on without us.
fn within<T: Send + 'static>(
    deadline: Instant,
    name: &str,
    step: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (sender, result) = mpsc::channel();
    thread::Builder::new()
        .name(name.to_owned())
        // If nobody waits any more, the result is of no use.
        .spawn(move || drop(sender.send(step())))
        .context("cannot start a thread to stop with")?;
    match result.recv_timeout(left(deadline)) {
        Ok(value) => Ok(Some(value)),
        Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(anyhow::anyhow!("{name} panicked")),
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Why serving ends, for the log.
pub(super) fn describe(cause: Cause) -> String {
    match cause {
        Cause::Signal(signal) => format!("stopping on {}", signals::name(signal)),
        Cause::CommandEnded(status) => {
            format!("stopping, as --run's command has ended with status {status}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::run;

    fn soon(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[test]
    fn a_step_that_ends_in_time_gives_its_result() {
        assert_eq!(within(soon(10_000), "step", || 7).unwrap(), Some(7));
    }

    #[test]
    fn a_step_that_hangs_is_left_behind() {
        let (release, wait) = mpsc::channel::<()>();
        let left_behind = within(soon(20), "step", move || wait.recv()).unwrap();
        assert!(left_behind.is_none());
        drop(release);
    }

    #[test]
    fn a_step_that_panics_is_an_error() {
        let panicking = || -> () { std::panic::resume_unwind(Box::new(())) };
        let error = within(soon(10_000), "flush", panicking).unwrap_err();
        assert_eq!(error.to_string(), "flush panicked");
    }

    #[test]
    fn what_held_the_stop_up_is_named_in_one_line() {
        assert!(HeldUp::default().into_result().is_ok());
        let mut held_up = HeldUp::default();
        held_up.add_data(Vec::new());
        held_up.what.push("an I/O thread".to_owned());
        assert!(!held_up.data);
        held_up.add_data(vec!["127.0.0.1:5: 2 requests not finished".to_owned()]);
        assert_eq!(
            held_up.into_result().unwrap_err().to_string(),
            "could not stop within 5 s: still busy: an I/O thread, 127.0.0.1:5: 2 requests not \
             finished; check what was written last, it may not be on the disk"
        );
        let command = HeldUp {
            what: vec!["--run's command".to_owned()],
            data: false,
        };
        assert_eq!(
            command.into_result().unwrap_err().to_string(),
            "could not stop within 5 s: still busy: --run's command"
        );
    }

    #[test]
    fn a_command_that_ends_is_awaited_without_delay() {
        let (sender, events) = mpsc::channel();
        let mut command = run::start("exit 3", "").unwrap();
        // Stands for the SIGCHLD of some child: the wait looks again each time.
        let ticks = thread::spawn(move || while sender.send(Event::Child).is_ok() {});
        assert_eq!(
            await_command(&mut command, &events, soon(10_000)).unwrap(),
            None
        );
        drop(events);
        ticks.join().unwrap();
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_and_named() {
        let (_sender, events) = mpsc::channel();
        let mut command = run::start("trap '' TERM; exec sleep 1000", "").unwrap();
        let named = await_command(&mut command, &events, soon(20))
            .unwrap()
            .unwrap();
        assert_eq!(
            named,
            format!("--run's command (pid {}, now killed)", command.id())
        );
        while command.poll().unwrap().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn causes_read_well() {
        assert_eq!(describe(Cause::Signal(15)), "stopping on SIGTERM");
        assert!(describe(Cause::CommandEnded(3)).ends_with("with status 3"));
    }
}
