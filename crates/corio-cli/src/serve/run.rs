//! `--run`: a command that lives with the server.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};

use super::systemd;
use crate::report::Failure;

/// The command while it runs. Not stopped when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

/// Starts `sh -c command` with `uri` in its environment.
///
/// It stays in this process's group, so that Ctrl-C reaches it too.
///
/// # Errors
/// There is no shell, or no process can be made.
pub(crate) fn start(command: &str, uri: &str) -> Result<Running, Failure> {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(command)
        .env("uri", uri)
        .env("CORIO_URI", uri);
    for name in systemd::ENVIRONMENT {
        shell.env_remove(name);
    }
    let child = shell.spawn().map_err(|error| {
        Failure::new(format!("cannot run '{command}'"))
            .io(&error)
            .advice("--run needs sh in PATH and a free process")
    })?;
    Ok(Running { child })
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
        // Only what has not been waited for still owns its number.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        }
    }

    /// Ends the command without asking.
    pub(crate) fn kill(&mut self) {
        // It has ended already: nothing to do.
        let _ = self.child.kill();
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
    fn terminate_ends_it() {
        let mut running = start("exec sleep 1000", "").unwrap();
        assert_eq!(running.poll().unwrap(), None);
        running.terminate();
        assert_eq!(wait(running), 128 + 15);
    }

    #[test]
    fn kill_ends_what_does_not_listen() {
        let mut running = start("trap '' TERM; exec sleep 1000", "").unwrap();
        running.kill();
        assert_eq!(wait(running), 128 + 9);
    }
}
