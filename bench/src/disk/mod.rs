//! Suite `disk`: 4 KiB requests to a file, 32 at a time, by each engine, beside fio and
//! `qemu-img bench`; and what a job for the worker threads takes there and back.
//!
//! Each side is a process of its own on the same file, one at a time, in turns. IOPS and CPU time
//! a request are told apart: past the page cache the device decides the one, and the engine only
//! the other. What the device decides takes more rounds to see. `read4k_cached_qd32` is of a file
//! that is held in the page cache, with leave to read there on the spot
//! (`AioContext::set_cached_read_max`); `read4k_engine_qd32` is of the same file without, so that
//! each request goes through the engine.
//!
//! Without a suffix a figure is of io_uring; `_aio` is Linux AIO, which carries only requests past
//! the page cache, and `_threads` worker threads. fio has no engine like the latter, and is then
//! left out. `fio psync` makes plain system calls, one at a time.

pub(crate) mod load;
mod peers;
mod round_trip;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use clap::ValueEnum as _;
use rustix::fs::Advice;

use crate::Plan;
use crate::contest::{self, Contest, Size};
use crate::nbd::{disk as image, servers};
use crate::report::{Figure, Metric, Report};
use crate::stats::{Better, Samples};
use load::{Done, Engine};

const SUITE: &str = "disk";

/// Bytes a request.
const BLOCK: usize = 4096;
/// Requests under way.
const DEPTH: u32 = 32;
/// Rounds of what the device decides, whose share differs from second to second.
const DEVICE_ROUNDS_MIN: usize = 15;

const IOPS: Metric = Metric {
    unit: "IOPS",
    better: Better::Higher,
};
const CPU: Metric = Metric {
    unit: "us/request",
    better: Better::Lower,
};

struct Workload {
    name: &'static str,
    write: bool,
    direct: bool,
    /// Bytes that may be read from the page cache without the engine, in a row.
    cached_read_max: usize,
}

const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "read4k_cached_qd32",
        write: false,
        direct: false,
        cached_read_max: 128 << 10,
    },
    Workload {
        name: "read4k_engine_qd32",
        write: false,
        direct: false,
        cached_read_max: 0,
    },
    Workload {
        name: "read4k_direct_qd32",
        write: false,
        direct: true,
        cached_read_max: 0,
    },
    Workload {
        name: "write4k_direct_qd32",
        write: true,
        direct: true,
        cached_read_max: 0,
    },
];

/// Somebody that our engine is measured beside, and by what it does the same.
#[derive(Clone, Copy)]
enum Peer {
    Fio(&'static str),
    QemuImg(&'static str),
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::Fio("psync") => "fio psync",
            Self::Fio(_) => "fio",
            Self::QemuImg(_) => "qemu-img",
        }
    }
}

/// The peers of an engine.
fn peers(workload: &Workload, engine: Engine) -> Vec<Peer> {
    match engine {
        Engine::Uring if workload.direct => vec![Peer::Fio("io_uring"), Peer::QemuImg("io_uring")],
        Engine::Uring => vec![
            Peer::Fio("io_uring"),
            Peer::QemuImg("io_uring"),
            Peer::Fio("psync"),
        ],
        Engine::Aio if workload.direct => vec![Peer::Fio("libaio"), Peer::QemuImg("native")],
        Engine::Aio => Vec::new(),
        Engine::Threads if workload.cached_read_max > 0 => Vec::new(),
        Engine::Threads => vec![Peer::QemuImg("threads")],
    }
}

fn suffix(engine: Engine) -> &'static str {
    match engine {
        Engine::Uring => "",
        Engine::Aio => "_aio",
        Engine::Threads => "_threads",
    }
}

/// Runs the suite.
pub(crate) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    servers::require_tools()?;
    contest::run(SUITE, &CONTESTS, plan, report)?;
    let scratch = image::Scratch::new()?;
    let size: u64 = if plan.quick { 64 << 20 } else { 512 << 20 };
    // Two files, as what is past the page cache would have to put the other's pages out of it.
    let [cached, direct] = ["cached.raw", "direct.raw"].map(|name| scratch.data.join(name));
    for file in [&cached, &direct] {
        image::create(file, size)?;
    }
    let _pinned = image::Pinned::new(&cached)?;
    // A direct write to a page that is cached cannot be made without waiting, and goes to a worker
    // of the kernel's: a figure of that, until each page has been written once.
    rustix::fs::fadvise(File::open(&direct)?, 0, None, Advice::DontNeed)?;
    let arena = Arena {
        scratch: &scratch.data,
        cached,
        direct,
        size,
        plan,
        ms: if plan.quick { 200 } else { 1000 },
    };
    for workload in &WORKLOADS {
        let options = peers::fio_options(workload).join(" ");
        report.note(&format!("{}: fio {options}", workload.name))?;
        for engine in Engine::value_variants() {
            let peers = peers(workload, *engine);
            if !peers.is_empty() {
                arena.measure(workload, *engine, &peers, report)?;
            }
        }
    }
    Ok(())
}

/// What a run needs.
struct Arena<'a> {
    scratch: &'a Path,
    cached: PathBuf,
    direct: PathBuf,
    size: u64,
    plan: &'a Plan,
    ms: u64,
}

/// IOPS and CPU time a request, a sample a round.
#[derive(Default)]
struct Seen {
    iops: Samples,
    cpu: Samples,
}

impl Seen {
    fn push(&mut self, done: Done) {
        let requests = count(done.requests);
        self.iops.push(requests / done.elapsed_s);
        self.cpu.push(done.cpu_s * 1e6 / requests);
    }
}

impl Arena<'_> {
    /// One workload by one of our engines and by its peers, in turns.
    fn measure(
        &self,
        workload: &Workload,
        engine: Engine,
        peers: &[Peer],
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let mut ours = Seen::default();
        let mut theirs: Vec<Seen> = peers.iter().map(|_| Seen::default()).collect();
        let is_devices = workload.direct && matches!(engine, Engine::Uring | Engine::Aio);
        let rounds = if is_devices && !self.plan.quick {
            self.plan.rounds.max(DEVICE_ROUNDS_MIN)
        } else {
            self.plan.rounds
        };
        for _ in 0..rounds {
            let done = self.ours(workload, engine)?;
            ours.push(done);
            for (peer, seen) in peers.iter().zip(&mut theirs) {
                seen.push(self.theirs(workload, *peer, done)?);
            }
        }
        let name = format!("{}{}", workload.name, suffix(engine));
        let cpu_name = format!("{name}_cpu");
        for (peer, seen) in peers.iter().zip(&theirs) {
            let peer = peer.name();
            report.push(Figure::new(
                SUITE, &name, IOPS, &ours.iops, peer, &seen.iops,
            ))?;
            report.push(Figure::new(
                SUITE, &cpu_name, CPU, &ours.cpu, peer, &seen.cpu,
            ))?;
        }
        Ok(())
    }

    fn file(&self, workload: &Workload) -> &Path {
        if workload.direct {
            &self.direct
        } else {
            &self.cached
        }
    }

    /// This program once more, as `disk-load`.
    fn ours(&self, workload: &Workload, engine: Engine) -> anyhow::Result<Done> {
        let mut command = servers::bound(std::env::current_exe()?);
        command.arg("disk-load").arg(self.file(workload));
        let engine = engine.to_possible_value().context("an engine has a name")?;
        command.args(["--engine", engine.get_name()]);
        command.args(["--depth", &DEPTH.to_string(), "--ms", &self.ms.to_string()]);
        command.args(["--cached-read-max", &workload.cached_read_max.to_string()]);
        for (flag, wanted) in [("--write", workload.write), ("--direct", workload.direct)] {
            if wanted {
                command.arg(flag);
            }
        }
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(
            output.status.success(),
            "{} by {} failed ({})",
            workload.name,
            engine.get_name(),
            output.status
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// A peer, for about as long as we took.
    fn theirs(&self, workload: &Workload, peer: Peer, ours: Done) -> anyhow::Result<Done> {
        let file = self.file(workload);
        match peer {
            Peer::Fio(engine) => {
                peers::fio(workload, engine, (file, self.size), self.ms, self.scratch)
            }
            // It takes a number of requests, and more time for each.
            Peer::QemuImg(engine) => {
                let requests = (ours.requests / 2).max(1000);
                peers::qemu_img(workload, engine, file, requests)
            }
        }
        .with_context(|| format!("measuring {} of {}", workload.name, peer.name()))
    }
}

const CONTESTS: [Contest; 1] = [Contest {
    name: "thread_pool_round_trip",
    size: Size {
        rounds: 1000,
        repeats: 10,
    },
    ours: round_trip::corio,
    theirs: &[("tokio", round_trip::tokio)],
}];

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a run are far below 2^52"
)]
fn count(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::{CONTESTS, Engine, WORKLOADS, peers};
    use crate::contest;
    use clap::ValueEnum as _;

    #[test]
    fn every_contest_does_as_many_rounds_as_asked() {
        contest::tests::all_do_as_many_rounds_as_asked(&CONTESTS);
    }

    #[test]
    fn no_peer_is_measured_twice_in_a_figure() {
        for workload in &WORKLOADS {
            for engine in Engine::value_variants() {
                let mut names: Vec<_> = peers(workload, *engine)
                    .iter()
                    .map(|peer| peer.name())
                    .collect();
                let count = names.len();
                names.sort_unstable();
                names.dedup();
                assert_eq!(names.len(), count);
            }
        }
    }
}
