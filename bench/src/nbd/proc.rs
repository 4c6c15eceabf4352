//! What a server costs, as the kernel counts it: CPU time, context switches, system calls.
//!
//! CPU time is the process's own utime + stime of `/proc/PID/stat`, which includes threads that
//! have ended and kernel workers of its rings. The kernel scales the pair so that the sum is the
//! exact run time; only printing it cuts each to a clock tick (10 ms), so a difference is off by
//! less than 20 ms. `schedstat` would be finer but forgets a thread when it ends, and some servers
//! end one a connection.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

/// CPU time of a process so far, in microseconds.
pub(super) fn cpu_us(pid: u32) -> anyhow::Result<f64> {
    us_of(&format!("/proc/{pid}/stat"), OWN)
}

/// CPU time of all children of this process that have ended and been waited for, in microseconds.
pub(crate) fn children_cpu_us() -> anyhow::Result<f64> {
    us_of("/proc/self/stat", CHILDREN)
}

/// Where proc(5) puts utime, which stime follows.
const OWN: usize = 14;
/// The same of children.
const CHILDREN: usize = 16;

fn us_of(path: &str, field: usize) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&stat, field).with_context(|| format!("{path} has no CPU times"))?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 ticks")]
    let us = ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64;
    Ok(us)
}

/// A field of a line of `/proc/PID/stat` and the next: user and system time.
fn ticks(stat: &str, field: usize) -> Option<u64> {
    // The command's name, in parentheses, may hold anything, parentheses and spaces too.
    let (_, fields) = stat.rsplit_once(')')?;
    // proc(5) numbers fields from 1; the state, first here, is number 3.
    let mut times = fields.split_ascii_whitespace().skip(field - 3);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    user.checked_add(system)
}

/// Context switches of all threads of a process.
///
/// A thread's count is gone with the thread, so the last one seen is kept: call [`Switches::look`]
/// often while there is work.
#[derive(Default)]
pub(super) struct Switches {
    of_thread: HashMap<String, u64>,
    at_start: u64,
}

impl Switches {
    pub(super) fn begin(pid: u32) -> Self {
        let mut switches = Self::default();
        switches.look(pid);
        switches.at_start = switches.of_thread.values().sum();
        switches
    }

    pub(super) fn look(&mut self, pid: u32) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
            return;
        };
        for task in tasks.flatten() {
            // A thread may end in between; what was seen last stays.
            if let Ok(status) = fs::read_to_string(task.path().join("status")) {
                let thread = task.file_name().to_string_lossy().into_owned();
                self.of_thread.insert(thread, switches(&status));
            }
        }
    }

    /// Switches since [`Switches::begin`].
    pub(super) fn count(&self) -> u64 {
        self.of_thread.values().sum::<u64>() - self.at_start
    }
}

/// Voluntary and involuntary switches of a `/proc/PID/task/TID/status`.
fn switches(status: &str) -> u64 {
    status
        .lines()
        .filter_map(|line| line.split_once("ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .sum()
}

/// strace at work on a server. It stops with this.
pub(super) struct Strace {
    child: Child,
}

impl Strace {
    /// Attaches to all threads of `pid`, to those to come too; the counts go to `output`.
    pub(super) fn attach(pid: u32, output: &Path) -> anyhow::Result<Self> {
        let mut command = super::servers::bound("strace");
        command
            .args(["-c", "-f", "-U", "calls,name", "-o"])
            .arg(output);
        command.args(["-p", &pid.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().context("cannot run strace")?;
        let mut strace = Self { child };
        let stderr = strace.child.stderr.take().context("strace has no stderr")?;
        let (sender, attached) = mpsc::channel();
        // Read to its end: strace goes on to name every new thread, and dies if nobody listens.
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("attached") {
                    // Only the first is waited for.
                    let _ = sender.send(());
                }
                said.push_str(&line);
            }
            said
        });
        // The sender is gone when strace is.
        if attached.recv().is_err() {
            let said = said.join().unwrap_or_default();
            bail!("strace cannot attach to process {pid}: {said}");
        }
        Ok(strace)
    }

    /// Detaches, and returns how many system calls were made.
    pub(super) fn finish(mut self, output: &Path) -> anyhow::Result<u64> {
        self.interrupt();
        // It dies of the signal once it has written its table.
        self.child.wait()?;
        let table = fs::read_to_string(output)?;
        total(&table).with_context(|| format!("strace wrote no total:\n{table}"))
    }

    fn interrupt(&self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::INT);
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Interrupted, it detaches and leaves the server running; killed, it would too.
            self.interrupt();
            let _ = self.child.wait();
        }
    }
}

/// The total of a table of `strace -c -U calls,name`.
fn total(table: &str) -> Option<u64> {
    let line = table
        .lines()
        .rev()
        .find(|line| line.trim_end().ends_with(" total"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{CHILDREN, OWN, cpu_us, switches, ticks, total};

    #[test]
    fn ticks_are_found_behind_a_hostile_name() {
        let stat = "9032 (a) S 1) (b) S 1 2 3 0 -1 4194560 435 0 11 0 18 49 7 7 20 0 2";
        assert_eq!(ticks(stat, OWN), Some(18 + 49));
        assert_eq!(ticks(stat, CHILDREN), Some(7 + 7));
    }

    #[test]
    fn a_short_stat_is_none() {
        assert_eq!(ticks("9032 (x) S 1 2", OWN), None);
        assert_eq!(ticks("", OWN), None);
    }

    #[test]
    fn own_cpu_time_is_readable() {
        assert!(cpu_us(std::process::id()).unwrap() >= 0.0);
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t5\n";
        assert_eq!(switches(status), 155);
    }

    #[test]
    fn the_total_of_strace_is_found() {
        let table = "    calls syscall\n--------- ------\n     5018 sendmsg\n    10 total_x\n\
                     --------- ------\n    43015 total\n";
        assert_eq!(total(table), Some(43015));
        assert_eq!(total("nothing"), None);
    }
}
