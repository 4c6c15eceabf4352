//! Suite `nbd`: what serving a disk costs, with real clients, beside real servers.
//!
//! All servers that only read run from beginning to end on the same file, which is held in the page
//! cache, and take turns: in each round every server is loaded once, beginning with another one each
//! round, so that a noisy minute hits all of them. The client runs on the same CPUs as the server,
//! which is why CPU time a request is told beside IOPS: it is what the server decides.
//!
//! The floor has to prove that it is one: where it costs more than half of qemu-nbd's CPU a request
//! in the same run, the bench fails. `rr4k_qd1` is excepted. With one request in flight every
//! server sleeps and is woken once a request, and that switch of context, which no server can save,
//! is most of what either costs: the floor was seen at 33.6 of qemu-nbd's 64.7 us, 0.52 of it, and
//! a limit there would tell how dear the machine's switches are and nothing of the floor. From
//! depth 32 up the requests share their switches, and the floor's part was seen at a fifth to two
//! fifths.
//!
//! `rw4k_qd32` writes as often as it reads, to one file in the page cache as well. Servers lock what
//! they write to, so that each is started for its turn and ended after it; with a file each, they
//! would be measured by how its pages came to lie there, which is up to half of what a write costs.
//! The floor is not held against anything there: it tells what the kernel's part is, which all pay
//! alike.
//!
//! Ours polls before it sleeps, which the others do not. What that takes and gives is told by one more
//! contestant, `sleeping`: ours with `--poll-max-ns 0`. Each round of polling is a system call, so that
//! a figure of ours in calls a request is to be read beside that one's.
//!
//! What a request takes in system calls and context switches is counted in runs of its own, in
//! turns too, and is the median of the rounds like all else.

pub(crate) mod disk;
mod fio;
pub(crate) mod floor;
pub(crate) mod proc;
pub(crate) mod servers;

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::Plan;
use crate::report::{Figure, Metric, Report};
use crate::stats::{Better, Samples};
use fio::{Load, Until};
use servers::{FLOOR, OURS, QEMU, Recipe, Server};

const SUITE: &str = "nbd";

const IOPS: Metric = Metric {
    unit: "IOPS",
    better: Better::Higher,
};
const CPU: Metric = Metric {
    unit: "us/request",
    better: Better::Lower,
};
const LATENCY: Metric = Metric {
    unit: "us",
    better: Better::Lower,
};
const COPY: Metric = Metric {
    unit: "MiB/s",
    better: Better::Higher,
};
const CALLS: Metric = Metric {
    unit: "/request",
    better: Better::Lower,
};

/// Requests of each round that counts what a request takes. Under strace they are few, as each is
/// slow.
const SWITCHES_REQUESTS: u64 = 50_000;
const SYSCALLS_REQUESTS: u64 = 10_000;
/// Above this part of QEMU's CPU a request the floor is no floor.
const FLOOR_MAX: f64 = 0.5;

struct Workload {
    name: &'static str,
    writes: bool,
    depth: u32,
    jobs: u32,
    /// Whether the floor has to prove here that it is one; the module says why not everywhere.
    floor_checked: bool,
}

const WORKLOADS: [Workload; 3] = [
    Workload {
        name: "rr4k_qd1",
        writes: false,
        depth: 1,
        jobs: 1,
        floor_checked: false,
    },
    Workload {
        name: "rr4k_qd32",
        writes: false,
        depth: 32,
        jobs: 1,
        floor_checked: true,
    },
    Workload {
        name: "rr4k_qd64x2",
        writes: false,
        depth: 64,
        jobs: 2,
        floor_checked: true,
    },
];
/// To servers that are written to.
const WRITING: Workload = Workload {
    name: "rw4k_qd32",
    writes: true,
    depth: 32,
    jobs: 1,
    floor_checked: false,
};
/// The reading workload whose requests are taken apart into system calls and context switches.
const DETAILED: &Workload = &WORKLOADS[1];

/// The servers, and what a run on them needs.
struct Arena<'a> {
    servers: Servers,
    scratch: &'a Path,
    size: u64,
    rounds: usize,
    run_time: Duration,
    quick: bool,
}

/// The contestants.
enum Servers {
    /// All run.
    AtOnce(Vec<Server>),
    /// Each runs while it is measured.
    InTurns(Vec<Recipe>),
}

impl Servers {
    fn names(&self) -> Vec<&'static str> {
        match self {
            Self::AtOnce(servers) => servers.iter().map(|server| server.name).collect(),
            Self::InTurns(recipes) => recipes.iter().map(|recipe| recipe.name).collect(),
        }
    }
}

/// Runs the suite.
pub(crate) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    servers::require_tools()?;
    let corio = servers::corio_program(plan.corio.as_deref())?;
    let scratch = disk::Scratch::new()?;
    let image = scratch.data.join("disk.raw");
    let size: u64 = if plan.quick { 128 << 20 } else { 1 << 30 };
    disk::create(&image, size)?;
    let _pinned = disk::Pinned::new(&image)?;

    let mut servers = Vec::new();
    for recipe in &servers::readers(&corio, &image, &scratch.sockets)? {
        report.note(&recipe.line())?;
        servers.push(recipe.start(&scratch.data)?);
    }
    let arena = Arena::new(Servers::AtOnce(servers), &scratch, size, plan);
    let mut not_a_floor = Vec::new();
    for workload in &WORKLOADS {
        let cpu = arena.measure_requests(workload, report)?;
        if workload.floor_checked {
            not_a_floor.extend(floor_fault(workload.name, &arena.servers.names(), &cpu));
        }
    }
    arena.measure_latency(&WORKLOADS[0], report)?;
    arena.measure_copy(report)?;
    arena.count_switches(DETAILED, report)?;
    // Last, as attaching disturbs: it interrupts the calls that the servers wait in.
    arena.count_syscalls(DETAILED, report)?;
    drop(arena);
    measure_writing(&corio, &scratch, plan, report)?;
    ensure!(not_a_floor.is_empty(), "{}", not_a_floor.join("; "));
    Ok(())
}

/// The workload that writes.
fn measure_writing(
    corio: &Path,
    scratch: &disk::Scratch,
    plan: &Plan,
    report: &mut Report,
) -> anyhow::Result<()> {
    let size: u64 = if plan.quick { 32 << 20 } else { 256 << 20 };
    let image = scratch.data.join("written.raw");
    disk::create(&image, size)?;
    let _pinned = disk::Pinned::new(&image)?;
    let recipes = servers::writers(corio, &image, &scratch.sockets)?;
    for recipe in &recipes {
        report.note(&recipe.line())?;
    }
    let arena = Arena::new(Servers::InTurns(recipes.into()), scratch, size, plan);
    arena.measure_requests(&WRITING, report)?;
    arena.count_switches(&WRITING, report)?;
    arena.count_syscalls(&WRITING, report)
}

/// What is wrong with the floor, if it costs too much to be one.
fn floor_fault(workload: &str, servers: &[&str], cpu: &[Samples]) -> Option<String> {
    let median_of = |name| {
        let index = servers.iter().position(|server| *server == name)?;
        cpu.get(index).map(Samples::median)
    };
    let (floor, qemu) = (median_of(FLOOR)?, median_of(QEMU)?);
    (floor > FLOOR_MAX * qemu).then(|| {
        format!(
            "{workload}: the floor costs {floor:.2} us a request, more than {FLOOR_MAX} of {QEMU}'s \
             {qemu:.2}: it is no floor"
        )
    })
}

impl<'a> Arena<'a> {
    fn new(servers: Servers, scratch: &'a disk::Scratch, size: u64, plan: &Plan) -> Self {
        Self {
            servers,
            scratch: &scratch.data,
            size,
            rounds: plan.rounds,
            run_time: Duration::from_secs(if plan.quick { 1 } else { 3 }),
            quick: plan.quick,
        }
    }

    /// Calls `measure` with every server's index, in an order that begins elsewhere each round.
    fn each_round(
        &self,
        mut measure: impl FnMut(usize, &Server) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let count = self.servers.names().len();
        for turn in 0..self.rounds * count {
            let index = (turn / count + turn) % count;
            let (server, started);
            match &self.servers {
                Servers::AtOnce(servers) => server = &servers[index],
                Servers::InTurns(recipes) => {
                    started = recipes[index].start(self.scratch)?;
                    server = &started;
                }
            }
            measure(index, server).with_context(|| format!("measuring {}", server.name))?;
        }
        Ok(())
    }

    fn samples(&self) -> Vec<Samples> {
        vec![Samples::default(); self.servers.names().len()]
    }

    /// Reports ours against each other server's.
    fn push(
        &self,
        report: &mut Report,
        name: &str,
        metric: Metric,
        samples: &[Samples],
    ) -> anyhow::Result<()> {
        let servers = self.servers.names();
        let of_ours = servers.iter().position(|server| *server == OURS);
        let ours = &samples[of_ours.context("corio is not among the servers")?];
        for (server, theirs) in servers.into_iter().zip(samples) {
            if server != OURS {
                report.push(Figure::new(SUITE, name, metric, ours, server, theirs))?;
            }
        }
        Ok(())
    }

    /// IOPS and CPU of one workload; returns the CPU samples of each server.
    fn measure_requests(
        &self,
        workload: &Workload,
        report: &mut Report,
    ) -> anyhow::Result<Vec<Samples>> {
        let load = workload.load(Until::Elapsed(self.run_time));
        report.note(&format!(
            "{}: fio {}",
            workload.name,
            load.options().join(" ")
        ))?;
        let (mut iops, mut cpu) = (self.samples(), self.samples());
        self.each_round(|index, server| {
            let before = proc::cpu_us(server.pid())?;
            let outcome = fio::run(&load, &server.uri, self.size, self.scratch, || {})?;
            let spent = proc::cpu_us(server.pid())? - before;
            ensure!(
                spent > 0.0,
                "process {} served without CPU time: another process must be doing its work",
                server.pid()
            );
            iops[index].push(outcome.iops);
            cpu[index].push(spent / count(outcome.requests));
            Ok(())
        })?;
        self.push(report, &format!("{}_iops", workload.name), IOPS, &iops)?;
        self.push(report, &format!("{}_cpu", workload.name), CPU, &cpu)?;
        Ok(cpu)
    }

    /// What half of the requests take no longer than, in runs of its own, as to measure it costs.
    fn measure_latency(&self, workload: &Workload, report: &mut Report) -> anyhow::Result<()> {
        let load = Load {
            latencies: true,
            ..workload.load(Until::Elapsed(self.run_time))
        };
        let name = format!("{}_p50", workload.name);
        report.note(&format!("{name}: fio {}", load.options().join(" ")))?;
        let mut latencies = self.samples();
        self.each_round(|index, server| {
            let outcome = fio::run(&load, &server.uri, self.size, self.scratch, || {})?;
            let ns = outcome.read_p50_ns.context("fio told no latencies")?;
            latencies[index].push(ns / 1000.0);
            Ok(())
        })?;
        self.push(report, &name, LATENCY, &latencies)
    }

    /// nbdcopy of the whole disk to nowhere, with its default options.
    fn measure_copy(&self, report: &mut Report) -> anyhow::Result<()> {
        report.note("copy_out: nbdcopy URI null:")?;
        let mut rates = self.samples();
        self.each_round(|index, server| {
            let errors = self.scratch.join("nbdcopy.err");
            let mut copy = servers::bound("nbdcopy");
            copy.args([&server.uri, "null:"])
                .stdout(Stdio::null())
                .stderr(File::create(&errors)?);
            let start = Instant::now();
            let status = copy.status()?;
            let elapsed = start.elapsed();
            ensure!(
                status.success(),
                "nbdcopy failed: {}",
                std::fs::read_to_string(&errors)?
            );
            rates[index].push(count(self.size >> 20) / elapsed.as_secs_f64());
            Ok(())
        })?;
        self.push(report, "copy_out", COPY, &rates)
    }

    fn count_switches(&self, workload: &Workload, report: &mut Report) -> anyhow::Result<()> {
        let requests = if self.quick {
            SWITCHES_REQUESTS / 10
        } else {
            SWITCHES_REQUESTS
        };
        let load = workload.load(Until::Requests(requests));
        let mut switches = self.samples();
        self.each_round(|index, server| {
            let mut seen = proc::Switches::begin(server.pid());
            let look = || seen.look(server.pid());
            let outcome = fio::run(&load, &server.uri, self.size, self.scratch, look)?;
            switches[index].push(count(seen.count()) / count(outcome.requests));
            Ok(())
        })?;
        self.push(
            report,
            &format!("{}_switches_per_req", workload.name),
            CALLS,
            &switches,
        )
    }

    /// strace slows what it watches, which may bring fewer or more requests a call than otherwise.
    fn count_syscalls(&self, workload: &Workload, report: &mut Report) -> anyhow::Result<()> {
        let load = workload.load(Until::Requests(SYSCALLS_REQUESTS));
        let table = self.scratch.join("strace.txt");
        let mut calls = self.samples();
        self.each_round(|index, server| {
            let strace = proc::Strace::attach(server.pid(), &table)?;
            let outcome = fio::run(&load, &server.uri, self.size, self.scratch, || {})?;
            calls[index].push(count(strace.finish(&table)?) / count(outcome.requests));
            Ok(())
        })?;
        self.push(
            report,
            &format!("{}_syscalls_per_req", workload.name),
            CALLS,
            &calls,
        )
    }
}

impl Workload {
    fn load(&self, until: Until) -> Load {
        Load {
            writes: self.writes,
            depth: self.depth,
            jobs: self.jobs,
            latencies: false,
            until,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a run are far below 2^52"
)]
fn count(n: u64) -> f64 {
    n as f64
}
