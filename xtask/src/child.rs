//! Child processes that are watched: their output is passed on as it comes, read line by line, and
//! ended at a deadline.
//!
//! Two threads read the child's stdout and stderr, write each piece on at once (a test that hangs
//! shows how far it got) and send it to the caller's thread, which splits it into lines. At the
//! deadline the child and everything it started are killed: they are stopped first, top down, so
//! that none can fork away or be adopted by init while the tree is being walked.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::say::Voice;

/// How often the watcher looks at the clock while the child is silent.
const TICK: Duration = Duration::from_millis(200);
/// A child silent for this long is mentioned.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a pipe may stay open after the child has ended: a daemon it left behind may hold it for
/// ever.
const DRAIN_MAX: Duration = Duration::from_secs(3);
/// A longer line is cut into pieces: memory stays bounded whatever the child prints.
const LINE_MAX: usize = 64 * 1024;

/// Which of its two outputs the child wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// How a child ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Exited(ExitStatus),
    TimedOut,
    /// Nobody wanted to hear more of it.
    Stopped,
}

impl Ended {
    /// Whether the child ended by itself and reported success.
    pub(crate) fn success(&self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }

    /// The end in words, for a failure's reason.
    pub(crate) fn describe(&self, what: &str) -> String {
        match self {
            Self::Exited(status) => format!("{what}: {status}"),
            Self::TimedOut => format!("{what}: killed at the time limit"),
            Self::Stopped => format!("{what}: stopped"),
        }
    }
}

/// Runs `command` until it ends or `deadline` passes, and gives each line of its output to
/// `on_line`.
///
/// Stderr is always passed on; stdout only if `show_stdout`.
///
/// # Errors
///
/// When the command cannot be started, or not be waited for.
pub(crate) fn watch(
    command: &mut Command,
    deadline: Instant,
    show_stdout: bool,
    on_line: &mut dyn FnMut(Stream, &str),
) -> Result<Ended> {
    watch_until(command, deadline, show_stdout, &mut |stream, line| {
        on_line(stream, line);
        ControlFlow::Continue(())
    })
}

/// As [`watch`], and kills the command once `on_line` breaks, after which it may be given some
/// lines more.
///
/// # Errors
///
/// As [`watch`].
pub(crate) fn watch_until(
    command: &mut Command,
    deadline: Instant,
    show_stdout: bool,
    on_line: &mut dyn FnMut(Stream, &str) -> ControlFlow<()>,
) -> Result<Ended> {
    let stopped = Cell::new(false);
    let on_line: &mut dyn FnMut(Stream, &str) = &mut |stream, line| {
        if on_line(stream, line).is_break() {
            stopped.set(true);
        }
    };
    let program = Path::new(command.get_program());
    let name = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let (sender, receiver) = mpsc::sync_channel(64);
    if let Some(out) = child.stdout.take() {
        let voice = show_stdout.then(Voice::own);
        pass_on(out, Stream::Out, voice, sender.clone());
    }
    if let Some(err) = child.stderr.take() {
        pass_on(err, Stream::Err, Some(Voice::own()), sender.clone());
    }
    drop(sender);

    let mut lines = [Lines::default(), Lines::default()];
    let mut heard = Instant::now();
    let mut exited: Option<(ExitStatus, Instant)> = None;
    let mut killed = None;
    loop {
        match receiver.recv_timeout(TICK) {
            Ok((stream, bytes)) => {
                heard = Instant::now();
                lines[usize::from(stream == Stream::Err)]
                    .push(&bytes, &mut |line| on_line(stream, line));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK / 20),
        }
        if exited.is_none() {
            exited = child
                .try_wait()
                .context("waiting for a child")?
                .map(|s| (s, Instant::now()));
        }
        if let Some((_, since)) = exited
            && (channel_is_done(&receiver, &mut lines, on_line) || since.elapsed() > DRAIN_MAX)
        {
            break;
        }
        if exited.is_none() && killed.is_none() {
            killed = match () {
                () if stopped.get() => Some(Ended::Stopped),
                () if Instant::now() >= deadline => Some(Ended::TimedOut),
                () => None,
            };
            if killed.is_some() {
                kill_tree(Pid::from_child(&child));
            }
        }
        if heard.elapsed() > SILENCE_MAX && exited.is_none() {
            heard = Instant::now();
            let left = deadline.saturating_duration_since(heard).as_secs();
            let words = format!("xtask: {name} is silent but runs; {left} s left\n");
            Voice::own().pass_on(Stream::Err, words.as_bytes());
        }
    }
    lines[0].finish(&mut |line| on_line(Stream::Out, line));
    lines[1].finish(&mut |line| on_line(Stream::Err, line));
    Ok(match (killed, exited) {
        (Some(killed), _) => killed,
        (None, Some((status, _))) => Ended::Exited(status),
        (None, None) => Ended::TimedOut,
    })
}

type Piece = (Stream, Vec<u8>);

/// Takes what is queued; true once both readers have seen the end of their pipes.
fn channel_is_done(
    receiver: &mpsc::Receiver<Piece>,
    lines: &mut [Lines; 2],
    on_line: &mut dyn FnMut(Stream, &str),
) -> bool {
    loop {
        match receiver.try_recv() {
            Ok((stream, bytes)) => lines[usize::from(stream == Stream::Err)]
                .push(&bytes, &mut |line| on_line(stream, line)),
            Err(mpsc::TryRecvError::Empty) => return false,
            Err(mpsc::TryRecvError::Disconnected) => return true,
        }
    }
}

/// Starts the thread that reads one pipe to its end.
fn pass_on(
    mut pipe: impl Read + Send + 'static,
    stream: Stream,
    voice: Option<Voice>,
    sender: SyncSender<Piece>,
) {
    std::thread::spawn(move || {
        let mut buffer = [0u8; 8192];
        while let Ok(count) = pipe.read(&mut buffer) {
            if count == 0 {
                break;
            }
            let bytes = &buffer[..count];
            if let Some(voice) = &voice {
                voice.pass_on(stream, bytes);
            }
            if sender.send((stream, bytes.to_vec())).is_err() {
                break;
            }
        }
    });
}

/// Splits a byte stream into lines of text.
#[derive(Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], on_line: &mut dyn FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() >= LINE_MAX {
                self.finish(on_line);
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }

    fn finish(&mut self, on_line: &mut dyn FnMut(&str)) {
        if !self.partial.is_empty() {
            on_line(String::from_utf8_lossy(&self.partial).trim_end());
            self.partial.clear();
        }
    }
}

/// Kills `root` and all its descendants.
pub(crate) fn kill_tree(root: Pid) {
    let mut stopped = HashSet::new();
    loop {
        let fresh: Vec<Pid> = descendants(root)
            .into_iter()
            .filter(|pid| stopped.insert(*pid))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            // It may have ended since: then there is nothing to stop.
            let _ = kill_process(pid, Signal::STOP);
        }
    }
    for pid in stopped {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// `root` and the processes below it, from /proc.
fn descendants(root: Pid) -> Vec<Pid> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let stat = std::fs::read_to_string(entry.path().join("stat"));
        if let (Some(pid), Ok(stat)) = (pid, stat)
            && let (Some(pid), Some(parent)) = (Pid::from_raw(pid), parent_of(&stat))
        {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        found.extend(
            parents
                .iter()
                .filter(|(_, p)| *p == parent)
                .map(|(pid, _)| *pid),
        );
    }
    found
}

/// The parent in a line of /proc/PID/stat: the second field after the name, which may hold spaces
/// and parentheses (proc_pid_stat(5)).
fn parent_of(stat: &str) -> Option<Pid> {
    let (_, fields) = stat.rsplit_once(')')?;
    Pid::from_raw(fields.split_whitespace().nth(1)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn soon(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[test]
    fn lines_of_both_streams_arrive() {
        let mut seen = Vec::new();
        let ended = watch(
            &mut shell("printf 'a\\nb'; echo c >&2; exit 3"),
            soon(20_000),
            false,
            &mut |s, l| seen.push((s, l.to_owned())),
        );
        seen.sort_by_key(|(_, line)| line.clone());
        assert_eq!(
            seen,
            [
                (Stream::Out, "a".to_owned()),
                (Stream::Out, "b".to_owned()),
                (Stream::Err, "c".to_owned())
            ]
        );
        assert!(matches!(ended, Ok(Ended::Exited(status)) if status.code() == Some(3)));
    }

    #[test]
    fn a_child_past_its_deadline_is_killed_with_its_children() {
        let mut grandchild = None;
        let began = Instant::now();
        let ended = watch(
            &mut shell("sleep 600 & echo $!; wait"),
            soon(500),
            false,
            &mut |_, line| grandchild = line.parse().ok().and_then(Pid::from_raw),
        );
        assert!(matches!(ended, Ok(Ended::TimedOut)));
        assert!(began.elapsed() < Duration::from_secs(20));
        let grandchild = grandchild.expect("the shell printed its child's id");
        let state = std::fs::read_to_string(format!("/proc/{}/stat", grandchild.as_raw_pid()));
        assert!(
            state.as_ref().map_or(true, |stat| stat.contains(") Z ")),
            "still there: {state:?}"
        );
    }

    #[test]
    fn a_child_that_has_said_enough_is_killed() {
        let began = Instant::now();
        let ended = watch_until(
            &mut shell("echo a; echo b; sleep 600"),
            soon(60_000),
            false,
            &mut |_, line| match line {
                "b" => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            },
        );
        assert!(matches!(ended, Ok(Ended::Stopped)));
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_does_not_hang_the_watcher() {
        let began = Instant::now();
        let ended = watch(
            &mut shell("sleep 15 & exit 0"),
            soon(60_000),
            false,
            &mut |_, _| {},
        );
        assert!(ended.is_ok_and(|e| e.success()));
        assert!(began.elapsed() < Duration::from_secs(12));
    }

    #[test]
    fn a_long_line_is_cut() {
        let mut lengths = Vec::new();
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LINE_MAX + 5], &mut |line| {
            lengths.push(line.len())
        });
        lines.finish(&mut |line| lengths.push(line.len()));
        assert_eq!(lengths, [LINE_MAX, 5]);
    }

    #[test]
    fn the_parent_is_found_behind_a_strange_name() {
        let parent = parent_of("17 (a) (b c) S 42 17 17 0 -1");
        assert_eq!(parent.map(Pid::as_raw_pid), Some(42));
        assert_eq!(parent_of("17 (x"), None);
    }
}
