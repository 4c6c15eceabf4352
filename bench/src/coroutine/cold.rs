//! Figures `suspend_cold` and `million_kib`: what coroutines cost that nobody had before them.
//!
//! Stacks of ended coroutines stay warm in pools, so each measurement is a process of its own, this
//! program's hidden command `alone`, in which no coroutine was before.
//!
//! `suspend_cold`: 20,000 coroutines are made, each entered, and each suspends at once; all of them
//! stay. The peer is what stacks cost on this kernel whatever runs on them: for each stack one
//! guard page (MADV_GUARD_INSTALL) and the first touch of one page, at its top, in mappings laid
//! out as ours are, 64 guards and then 64 touches at a time. Making the mappings is not in the
//! peer's time, and is in ours.
//!
//! `million_kib`: VmRSS and VmPTE of a process that holds a million suspended coroutines, less what
//! they were before the first, for each. Their handles count too. Memory is no matter of luck, so
//! it is measured once, and has a limit of its own instead of a peer.
#![allow(unsafe_code)] // The peer's mappings.

use std::fs;
use std::process::Command;
use std::ptr::NonNull;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use corio::Coroutine;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::SUITE;
use crate::Plan;
use crate::contest::NS;
use crate::report::{Figure, Metric, Report};
use crate::stats::{Better, Samples};
use crate::tally::Tally;

/// Address space of a stack of Corio's by default, guard included, in bytes.
const STACK: usize = 256 << 10;
/// Stacks in one mapping of Corio's.
const STACKS_A_MAPPING: usize = 64;
/// MADV_GUARD_INSTALL, Linux 6.13, which the libraries do not name yet.
const MADV_GUARD_INSTALL: i32 = 102;

/// Coroutines of a measurement of `suspend_cold`.
const COLD: u32 = 20_000;
/// Measurements of each side of `suspend_cold` a round of the plan.
const REPEATS: usize = 5;
/// Coroutines of `million_kib`.
const MILLION: u32 = 1_000_000;
/// What each may take before the machine has too little memory to try: more than the limit, so that
/// a figure that misses it is measured all the same.
const NEEDED_KIB: u64 = 10;

const MEMORY: Metric = Metric {
    unit: "KiB",
    better: Better::Lower,
};

/// What is measured in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Alone {
    /// Time of a coroutine that is made, entered and suspended, in ns
    Suspend,
    /// Time of a guard page and the first touch of another, in ns
    Bare,
    /// Memory of a suspended coroutine, in KiB
    Memory,
}

impl Alone {
    /// Measures in this process.
    pub(crate) fn measure(self, count: u32) -> anyhow::Result<f64> {
        match self {
            Self::Suspend => Ok(suspend(count)),
            Self::Bare => bare(count),
            Self::Memory => memory(count),
        }
    }

    /// Measures in a new process.
    fn in_child(self, count: u32) -> anyhow::Result<f64> {
        let name = clap::ValueEnum::to_possible_value(&self).context("it has a name")?;
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut command = Command::new(program);
        command.args(["alone", name.get_name(), &count.to_string()]);
        // The peer's guards are of the kind that ours are by default.
        command.env_remove("CORIO_STACK_GUARD");
        let output = command.output().context("cannot run this program again")?;
        let (said, complaint) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            output.status.success(),
            "measuring `{}` alone failed ({}): {}",
            name.get_name(),
            output.status,
            complaint.trim()
        );
        said.trim()
            .parse()
            .with_context(|| format!("`{}` alone said {said:?}", name.get_name()))
    }
}

/// Measures both figures.
pub(super) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let (cold, repeats, million) = if plan.quick {
        (COLD / 10, 1, MILLION / 50)
    } else {
        (COLD, REPEATS, MILLION)
    };
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for _ in 0..plan.rounds * repeats {
        ours.push(Alone::Suspend.in_child(cold)?);
        theirs.push(Alone::Bare.in_child(cold)?);
    }
    report.push(Figure::new(
        SUITE,
        "suspend_cold",
        NS,
        &ours,
        "bare",
        &theirs,
    ))?;

    let needed = NEEDED_KIB * u64::from(million);
    let available = kib(
        &fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?,
        "MemAvailable",
    )?;
    if available < needed {
        report.note(&format!(
            "million_kib is not measured: {million} coroutines may need {} MiB, and {} are available",
            needed >> 10,
            available >> 10
        ))?;
        return Ok(());
    }
    let each: Samples = std::iter::once(Alone::Memory.in_child(million)?).collect();
    report.push(Figure::alone(SUITE, "million_kib", MEMORY, &each))
}

/// Coroutines that have suspended once, and end when they are entered again.
struct Suspended {
    all: Vec<Coroutine>,
    tally: &'static Tally,
}

impl Suspended {
    fn with_room_for(count: u32) -> Self {
        Self {
            all: Vec::with_capacity(usize_of(count)),
            tally: Tally::leak(),
        }
    }

    #[inline]
    fn add(&mut self) {
        let tally = self.tally;
        let coroutine = Coroutine::new(move || {
            tally.work();
            corio::suspend();
        });
        coroutine.enter();
        self.all.push(coroutine);
    }

    /// Shows that as many as asked were there, and ends them.
    fn end(self, count: u32) {
        assert_eq!(self.tally.count(), count);
        for coroutine in &self.all {
            assert!(!coroutine.is_done());
            coroutine.enter();
            assert!(coroutine.is_done());
        }
    }
}

fn suspend(count: u32) -> f64 {
    corio::home(|| {
        let mut suspended = Suspended::with_room_for(count);
        let start = Instant::now();
        for _ in 0..count {
            suspended.add();
        }
        let elapsed = start.elapsed();
        suspended.end(count);
        elapsed.as_secs_f64() * 1e9 / f64::from(count)
    })
}

fn memory(count: u32) -> anyhow::Result<f64> {
    corio::home(|| {
        let before = own_kib()?;
        let mut suspended = Suspended::with_room_for(count);
        for _ in 0..count {
            suspended.add();
        }
        let after = own_kib()?;
        suspended.end(count);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
        let grown = after.saturating_sub(before) as f64;
        Ok(grown / f64::from(count))
    })
}

/// Pages of this process, and the page tables for them.
fn own_kib() -> anyhow::Result<u64> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    Ok(kib(&status, "VmRSS")? + kib(&status, "VmPTE")?)
}

/// The value of a line `FIELD: VALUE kB`.
fn kib(text: &str, field: &str) -> anyhow::Result<u64> {
    text.lines()
        .filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .find_map(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("the kernel does not say {field}"))
}

fn bare(count: u32) -> anyhow::Result<f64> {
    let count = usize_of(count);
    let mappings = (0..count.div_ceil(STACKS_A_MAPPING))
        .map(|_| Mapping::new())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut left = count;
    let start = Instant::now();
    for mapping in &mappings {
        let stacks = left.min(STACKS_A_MAPPING);
        for stack in 0..stacks {
            mapping.guard(stack)?;
        }
        for stack in 0..stacks {
            mapping.touch(stack);
        }
        left -= stacks;
    }
    let elapsed = start.elapsed();
    ensure!(left == 0, "{left} stacks were left out");
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count as f64;
    Ok(elapsed.as_secs_f64() * 1e9 / count)
}

/// Room for as many stacks as Corio puts into one mapping.
///
/// I1: `start` is from a successful `mmap` of `LEN` readable and writable bytes, which nothing else
/// refers to, and which are unmapped once, on drop.
struct Mapping {
    start: NonNull<u8>,
}

impl Mapping {
    const LEN: usize = STACKS_A_MAPPING * STACK;

    fn new() -> anyhow::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice, of nobody's memory (I1).
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                Self::LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK,
            )
        }
        .context("no room for stacks")?;
        let start = NonNull::new(start.cast()).context("a mapping at address 0")?;
        let mapping = Self { start };
        // SAFETY: the range is the mapping's (I1), whose bytes this does not change.
        let advised = unsafe {
            rustix::mm::madvise(start.as_ptr().cast(), Self::LEN, Advice::LinuxNoHugepage)
        };
        advised.context("huge pages cannot be turned off")?;
        Ok(mapping)
    }

    fn stack(&self, stack: usize) -> NonNull<u8> {
        assert!(stack < STACKS_A_MAPPING);
        // SAFETY: as the assertion says, it is within the mapping (I1).
        unsafe { self.start.add(stack * STACK) }
    }

    fn guard(&self, stack: usize) -> anyhow::Result<()> {
        let low = self.stack(stack).as_ptr().cast();
        // SAFETY: the lowest page of a stack, which is the mapping's (I1); nothing reads it.
        match unsafe { libc::madvise(low, page_size(), MADV_GUARD_INSTALL) } {
            0 => Ok(()),
            _ => bail!(
                "this kernel installs no guards (Linux 6.13 does): {}",
                std::io::Error::last_os_error()
            ),
        }
    }

    fn touch(&self, stack: usize) {
        // SAFETY: the last word of a stack, which is the mapping's (I1) and not in its guard.
        unsafe {
            self.stack(stack)
                .add(STACK - size_of::<u64>())
                .cast::<u64>()
                .write_volatile(1)
        };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, into which nothing points (I1).
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), Self::LEN) };
        debug_assert!(unmapped.is_ok());
    }
}

fn page_size() -> usize {
    rustix::param::page_size()
}

fn usize_of(count: u32) -> usize {
    usize::try_from(count).expect("Linux has addresses of 32 bits at least")
}

#[cfg(test)]
mod tests {
    use super::{Alone, kib};

    #[test]
    fn each_measures_something() {
        // Each asserts its own count. More than one mapping, and not a whole number of them.
        assert!(Alone::Suspend.measure(100).unwrap() > 0.0);
        assert!(Alone::Memory.measure(1000).unwrap() > 0.0);
        match Alone::Bare.measure(100) {
            Ok(ns) => assert!(ns > 0.0),
            Err(error) => assert!(format!("{error:#}").contains("6.13"), "{error:#}"),
        }
    }

    #[test]
    fn memory_is_read_by_the_whole_name() {
        let text = "VmRSSx:\t1 kB\nVmRSS:\t  4012 kB\nVmPTE:\t84 kB\n";
        assert_eq!(kib(text, "VmRSS").unwrap(), 4012);
        assert_eq!(kib(text, "VmPTE").unwrap(), 84);
        assert!(kib(text, "Vm").is_err());
    }
}
