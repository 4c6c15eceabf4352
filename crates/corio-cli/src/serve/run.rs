//! `--run`: a command that lives with the server.
//!
//! The command's processes are to end with the server, and not only the shell that runs them, so
//! they get a process group of their own, which is signalled as one. Not where standard input is a
//! terminal: a group of its own could not read from it, and Ctrl-C would not reach it.

use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::systemd;
use crate::report::Failure;

/// The command while it runs. Not stopped when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// Whether it leads a process group of its own.
    leads_group: bool,
}

/// Starts `sh -c command` with `uri` in its environment.
///
/// # Errors
/// There is no shell, or no process can be made.
pub(crate) fn start(command: &str, uri: &str) -> Result<Running, Failure> {
    start_in(command, uri, !io::stdin().is_terminal())
}

fn start_in(command: &str, uri: &str, own_group: bool) -> Result<Running, Failure> {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(command)
        .env("uri", uri)
        .env("CORIO_URI", uri);
    for name in systemd::ENVIRONMENT {
        shell.env_remove(name);
    }
    if own_group {
        shell.process_group(0);
    }
    let child = shell.spawn().map_err(|error| {
        Failure::new(format!("cannot run '{command}'"))
            .io(&error)
            .advice("--run needs sh in PATH and a free process")
    })?;
    Ok(Running {
        child,
        leads_group: own_group,
    })
}

impl Running {
    /// The exit status for this program if the command has ended.
    ///
    /// # Errors
    /// The kernel does not know the child, which is a bug.
    pub(crate) fn poll(&mut self) -> io::Result<Option<u8>> {
        Ok(self.child.try_wait()?.map(status_code))
    }

    /// Asks the command to end.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Ends the command without asking.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    fn signal(&mut self, signal: Signal) {
        // Only what has not been waited for still owns its number. That it ends meanwhile is fine.
        if let Ok(None) = self.child.try_wait() {
            let pid = Pid::from_child(&self.child);
            let _ = if self.leads_group {
                kill_process_group(pid, signal)
            } else {
                kill_process(pid, signal)
            };
        }
    }

    /// The command's process number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

/// A shell's convention: 128 + N for death by signal N.
fn status_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(mut running: Running) -> u8 {
        status_code(running.child.wait().unwrap())
    }

    #[test]
    fn the_commands_status_is_ours() {
        assert_eq!(wait(start("exit 0", "").unwrap()), 0);
        assert_eq!(wait(start("exit 42", "").unwrap()), 42);
        assert_eq!(wait(start("kill -9 $$", "").unwrap()), 137);
        assert_eq!(
            wait(start("no-such-command-at-all 2>/dev/null", "").unwrap()),
            127
        );
    }

    #[test]
    fn the_uri_arrives_unharmed() {
        let uri = "nbd+unix:///a%20b?socket=/tmp/'x$y";
        let same = "test \"$uri\" = \"$CORIO_URI\" && test \"$uri\" = 'nbd+unix:///a%20b?socket=/tmp/'\\''x$y'";
        assert_eq!(wait(start(same, uri).unwrap()), 0);
    }

    #[test]
    fn the_service_managers_variables_stay_here() {
        let unset = "test -z \"$LISTEN_FDS$LISTEN_PID$NOTIFY_SOCKET\"";
        assert_eq!(wait(start(unset, "").unwrap()), 0);
    }

    #[test]
    fn terminate_and_kill_end_it_in_either_group() {
        for own_group in [false, true] {
            let mut running = start_in("exec sleep 1000", "", own_group).unwrap();
            assert_eq!(running.poll().unwrap(), None);
            running.terminate();
            assert_eq!(wait(running), 128 + 15);
            let deaf = "trap '' TERM; exec sleep 1000";
            let mut running = start_in(deaf, "", own_group).unwrap();
            running.kill();
            assert_eq!(wait(running), 128 + 9);
        }
    }

    #[test]
    fn what_the_shell_has_started_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        // A grandchild holds the fifo open for writing; its end is the end of the file.
        let command = format!("(echo up; exec sleep 1000) >'{}'; true", fifo.display());
        let mut running = start_in(&command, "", true).unwrap();
        let mut reader = std::io::BufReader::new(std::fs::File::open(&fifo).unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        assert_eq!(line, "up\n");
        running.terminate();
        assert_eq!(wait(running), 128 + 15);
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
    }
}
