//! The client of the request figures: fio with its NBD engine.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Elapsed(Duration),
    Requests(u64),
}

/// A run of random 4 KiB requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Half of the requests are writes; else all are reads.
    pub(super) writes: bool,
    pub(super) depth: u32,
    /// Connections, each with its own process of fio and `depth` requests under way.
    pub(super) jobs: u32,
    /// How long each request takes is told, too.
    pub(super) latencies: bool,
    pub(super) until: Until,
}

impl Load {
    /// The options that are the same for every server. Statistics by request are off unless asked
    /// for and offsets are not remembered, as on a small machine what fio spends is missing for
    /// the server.
    pub(super) fn options(&self) -> Vec<String> {
        let mut options: Vec<String> = [
            "--name=load",
            "--ioengine=nbd",
            "--bs=4k",
            "--norandommap",
            "--randrepeat=1",
            "--group_reporting",
            "--output-format=json",
        ]
        .map(str::to_owned)
        .into();
        let statistics: &[&str] = if self.latencies {
            &["--lat_percentiles=1", "--clat_percentiles=0"]
        } else {
            &["--gtod_reduce=1"]
        };
        options.extend(statistics.iter().map(|option| (*option).to_owned()));
        let rw = if self.writes { "randrw" } else { "randread" };
        options.push(format!("--rw={rw}"));
        options.push(format!("--iodepth={}", self.depth));
        options.push(format!("--numjobs={}", self.jobs));
        match self.until {
            Until::Elapsed(time) => {
                options.push("--time_based".to_owned());
                options.push(format!("--runtime={}ms", time.as_millis()));
            }
            Until::Requests(total) => {
                options.push(format!("--number_ios={}", total / u64::from(self.jobs)));
            }
        }
        options
    }
}

/// What a run achieved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) iops: f64,
    pub(super) requests: u64,
    /// Half of the reads of the first job took no longer, in nanoseconds; None unless asked for.
    pub(super) read_p50_ns: Option<f64>,
}

/// fio at work; killed if it is dropped before its end.
pub(super) struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs fio against `uri`, calling `meanwhile` every few milliseconds.
pub(super) fn run(
    load: &Load,
    uri: &str,
    size: u64,
    scratch: &Path,
    mut meanwhile: impl FnMut(),
) -> anyhow::Result<Outcome> {
    let (output, errors) = (scratch.join("fio.json"), scratch.join("fio.err"));
    let mut command = super::servers::bound("fio");
    command
        .args(load.options())
        .arg(format!("--uri={uri}"))
        .arg(format!("--size={size}"));
    command.arg(format!("--output={}", output.display()));
    // fio leaves state files in its working directory.
    command.current_dir(scratch);
    command.stdout(Stdio::null()).stderr(File::create(&errors)?);
    let mut running = Running {
        child: command.spawn().context("cannot run fio")?,
    };
    let status = loop {
        if let Some(status) = running.child.try_wait()? {
            break status;
        }
        meanwhile();
        std::thread::sleep(Duration::from_millis(5));
    };
    if !status.success() {
        bail!(
            "fio failed on {uri} ({status}): {}",
            fs::read_to_string(&errors)?.trim()
        );
    }
    let text = fs::read_to_string(&output)?;
    parse(&text).with_context(|| format!("fio on {uri}"))
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    total_ios: u64,
    #[serde(default)]
    lat_ns: Latency,
}

/// Of requests, with their submission.
#[derive(Default, Deserialize)]
struct Latency {
    #[serde(default)]
    percentile: HashMap<String, f64>,
}

/// As fio writes the half.
const HALF: &str = "50.000000";

/// Reads fio's JSON, before which it may have written warnings.
fn parse(text: &str) -> anyhow::Result<Outcome> {
    let start = text.find('{').context("no JSON was written")?;
    let output: Output = serde_json::from_str(&text[start..]).context("unknown JSON")?;
    let mut outcome = Outcome {
        iops: 0.0,
        requests: 0,
        read_p50_ns: None,
    };
    if let [job, ..] = &output.jobs[..] {
        outcome.read_p50_ns = job.read.lat_ns.percentile.get(HALF).copied();
    }
    for job in &output.jobs {
        ensure!(job.error == 0, "ended with error {}", job.error);
        for direction in [&job.read, &job.write] {
            outcome.iops += direction.iops;
            outcome.requests += direction.total_ios;
        }
    }
    ensure!(outcome.requests > 0, "no request was served");
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::{Outcome, parse};

    #[test]
    fn jobs_add_up_and_warnings_are_skipped() {
        let text = "fio: some warning\n{\"jobs\":[\
            {\"error\":0,\"read\":{\"iops\":10.5,\"total_ios\":20,\"bw\":1},\
            \"write\":{\"iops\":4.0,\"total_ios\":8}},\
            {\"error\":0,\"read\":{\"iops\":1.5,\"total_ios\":2},\
            \"write\":{\"iops\":0.0,\"total_ios\":0}}]}";
        assert_eq!(
            parse(text).unwrap(),
            Outcome {
                iops: 16.0,
                requests: 30,
                read_p50_ns: None,
            }
        );
    }

    #[test]
    fn the_median_latency_is_read() {
        let text = "{\"jobs\":[{\"error\":0,\"read\":{\"iops\":10.5,\"total_ios\":20,\"lat_ns\":\
            {\"min\":1,\"percentile\":{\"1.000000\":7,\"50.000000\":45824,\"99.000000\":90000}}},\
            \"write\":{\"iops\":0.0,\"total_ios\":0,\"lat_ns\":{\"min\":0}}}]}";
        assert_eq!(parse(text).unwrap().read_p50_ns, Some(45_824.0));
    }

    #[test]
    fn an_error_of_a_job_is_an_error() {
        let text = "{\"jobs\":[{\"error\":5,\"read\":{\"iops\":1.0,\"total_ios\":2},\
            \"write\":{\"iops\":0.0,\"total_ios\":0}}]}";
        assert!(parse(text).unwrap_err().to_string().contains("error 5"));
    }

    #[test]
    fn nothing_served_is_an_error() {
        assert!(parse("{\"jobs\":[]}").is_err());
        assert!(parse("").is_err());
    }
}
