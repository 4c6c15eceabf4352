//! Our side of a disk figure: coroutines that read or write 4 KiB at random places, one request
//! each at a time, in a process of its own, so that its CPU time is the load's and nothing else's.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use corio::IoThread;
use corio::context::PollParams;
use corio::engine::{EngineChoice, EngineKind};
use corio::fs::{AlignedBuf, File, OpenOptions};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::BLOCK;

/// Which engine carries the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Uring,
    Aio,
    Threads,
}

impl Engine {
    fn choice(self) -> EngineChoice {
        match self {
            Self::Uring => EngineChoice::IoUring,
            Self::Aio => EngineChoice::LinuxAio,
            Self::Threads => EngineChoice::Threads,
        }
    }

    fn kind(self) -> EngineKind {
        match self {
            Self::Uring => EngineKind::IoUring,
            Self::Aio => EngineKind::LinuxAio,
            Self::Threads => EngineKind::Threads,
        }
    }
}

/// What is to be done.
#[derive(Args, Debug)]
pub(crate) struct Load {
    /// The raw file
    pub(crate) file: PathBuf,
    #[arg(long)]
    pub(crate) engine: Engine,
    /// Write instead of reading
    #[arg(long)]
    pub(crate) write: bool,
    /// Past the page cache
    #[arg(long)]
    pub(crate) direct: bool,
    /// Bytes that may be read from the page cache without the engine, in a row
    #[arg(long, default_value_t = 0)]
    pub(crate) cached_read_max: usize,
    /// Requests that gather before they are handed over; 0: as many as the engine likes
    #[arg(long, default_value_t = 0)]
    pub(crate) batch_max: usize,
    /// Requests under way
    #[arg(long)]
    pub(crate) depth: u32,
    /// For how long, in milliseconds
    #[arg(long)]
    pub(crate) ms: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Done {
    pub(crate) requests: u64,
    pub(crate) elapsed_s: f64,
    /// Of all threads, the kernel's workers for them included.
    pub(crate) cpu_s: f64,
}

impl Load {
    /// Does it, and fails where another engine did it.
    pub(crate) fn run(&self) -> anyhow::Result<Done> {
        let file = OpenOptions::new()
            .read(true)
            .write(self.write)
            .direct(self.direct)
            .open(&self.file)
            .with_context(|| format!("cannot open {}", self.file.display()))?;
        let blocks = file.size()? / BLOCK as u64;
        ensure!(blocks > 0, "the file is smaller than a block");
        let file = Arc::new(file);
        // The peers do not poll either.
        let io = IoThread::builder()
            .name("load")
            .engine(self.engine.choice())
            .poll_params(PollParams {
                max_ns: 0,
                ..PollParams::IO_THREAD
            })
            .spawn()?;
        io.context().set_cached_read_max(self.cached_read_max)?;
        io.context().set_request_batch_max(self.batch_max)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (began, cpu_before) = (Instant::now(), cpu());
        let workers: Vec<_> = (0..self.depth)
            .map(|number| {
                let (file, stop) = (Arc::clone(&file), Arc::clone(&stop));
                let write = self.write;
                io.context()
                    .spawn(move || work(&file, write, Places::new(number, blocks), &stop))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(self.ms));
        stop.store(true, Ordering::Relaxed);
        let mut requests = 0;
        for worker in workers {
            requests += worker
                .join()
                .map_err(|error| anyhow::anyhow!("{error}"))??;
        }
        let (elapsed, cpu_after) = (began.elapsed(), cpu());
        let engine = if self.direct {
            io.context().direct_engine()
        } else {
            io.context().engine()
        };
        let engine = engine.context("no request was made")?;
        ensure!(
            engine.kind == self.engine.kind(),
            "{:?} carried the requests: {}",
            engine.kind,
            engine.reason
        );
        Ok(Done {
            requests,
            elapsed_s: elapsed.as_secs_f64(),
            cpu_s: (cpu_after - cpu_before).as_secs_f64(),
        })
    }
}

/// One request after another until it is to stop; how many.
fn work(file: &File, write: bool, mut places: Places, stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut block = AlignedBuf::zeroed(BLOCK, BLOCK)?;
    let mut requests = 0;
    while !stop.load(Ordering::Relaxed) {
        let place = places.next();
        if write {
            file.write_all_at(&block, place)?;
        } else {
            file.read_exact_at(&mut block, place)?;
        }
        requests += 1;
    }
    Ok(requests)
}

/// Random places of whole blocks.
struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    fn new(number: u32, blocks: u64) -> Self {
        let state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(number) + 1);
        Self { state, blocks }
    }

    fn next(&mut self) -> u64 {
        // xorshift64, and its upper bits scaled.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 32) * self.blocks / (1 << 32) * BLOCK as u64
    }
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::{Engine, Load, Places};
    use crate::disk::BLOCK;

    #[test]
    fn places_are_blocks_of_the_file_and_reach_both_ends() {
        let mut places = Places::new(3, 4);
        let mut seen = [0; 4];
        for _ in 0..1000 {
            let place = usize::try_from(places.next()).unwrap();
            assert_eq!(place % BLOCK, 0);
            seen[place / BLOCK] += 1;
        }
        assert!(seen.iter().all(|&count| count > 150), "{seen:?}");
        assert_ne!(
            Places::new(0, 1 << 20).next(),
            Places::new(1, 1 << 20).next()
        );
    }

    #[test]
    fn a_load_does_requests_and_writes_what_it_is_told() {
        let name = format!("corio-bench-load-{}", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, vec![1; 2 * BLOCK]).unwrap();
        let load = |write| Load {
            file: file.clone(),
            engine: Engine::Threads,
            write,
            direct: false,
            cached_read_max: 0,
            batch_max: 0,
            depth: 4,
            ms: 20,
        };
        assert!(load(false).run().unwrap().requests > 0);
        assert!(std::fs::read(&file).unwrap().iter().all(|&byte| byte == 1));
        assert!(load(true).run().unwrap().requests > 0);
        assert!(std::fs::read(&file).unwrap().contains(&0));
        std::fs::remove_file(&file).unwrap();
    }
}
