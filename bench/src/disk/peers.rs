//! The other sides: fio and `qemu-img bench` on the same files.
//!
//! fio tells its job's CPU time itself. qemu-img's is that of the process, less what one takes that
//! makes a single request; it reads and writes one block after another, not at random.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use super::load::Done;
use super::{BLOCK, DEPTH, Workload};
use crate::nbd::{proc, servers};

/// What fio is told beside the engine, the file and the time. Statistics by request are off and
/// offsets are not remembered: what they cost is not the engine's.
pub(super) fn fio_options(workload: &Workload) -> Vec<String> {
    let rw = if workload.write {
        "randwrite"
    } else {
        "randread"
    };
    let mut options: Vec<String> = [
        "--name=load",
        "--norandommap",
        "--randrepeat=1",
        "--gtod_reduce=1",
        "--output-format=json",
        "--time_based",
    ]
    .map(str::to_owned)
    .into();
    options.push(format!("--rw={rw}"));
    options.push(format!("--bs={BLOCK}"));
    options.push(format!("--iodepth={DEPTH}"));
    options.push(format!("--direct={}", u8::from(workload.direct)));
    options
}

pub(super) fn fio(
    workload: &Workload,
    engine: &str,
    (file, size): (&Path, u64),
    ms: u64,
    scratch: &Path,
) -> anyhow::Result<Done> {
    let (output, errors) = (scratch.join("fio.json"), scratch.join("fio.err"));
    let mut command = servers::bound("fio");
    command
        .args(fio_options(workload))
        .arg(format!("--ioengine={engine}"))
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--size={size}"))
        .arg(format!("--runtime={ms}ms"))
        .arg(format!("--output={}", output.display()));
    // fio leaves state files in its working directory.
    command.current_dir(scratch);
    command.stdout(Stdio::null()).stderr(File::create(&errors)?);
    let status = command.status().context("cannot run fio")?;
    ensure!(
        status.success(),
        "fio failed ({status}): {}",
        fs::read_to_string(&errors)?.trim()
    );
    parse(&fs::read_to_string(&output)?)
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
    /// Milliseconds, of which the next two are parts in percent.
    job_runtime: f64,
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    total_ios: u64,
}

/// Reads fio's JSON, before which it may have written warnings.
fn parse(text: &str) -> anyhow::Result<Done> {
    let start = text.find('{').context("fio wrote no JSON")?;
    let output: Output = serde_json::from_str(&text[start..]).context("unknown JSON of fio's")?;
    let [job] = &output.jobs[..] else {
        anyhow::bail!("fio ran {} jobs", output.jobs.len());
    };
    ensure!(job.error == 0, "fio ended with error {}", job.error);
    let requests = job.read.total_ios + job.write.total_ios;
    ensure!(requests > 0, "fio made no request");
    Ok(Done {
        requests,
        elapsed_s: super::count(requests) / (job.read.iops + job.write.iops),
        cpu_s: (job.usr_cpu + job.sys_cpu) / 100.0 * job.job_runtime / 1000.0,
    })
}

/// `qemu-img bench` of so many requests, with an engine of QEMU's.
pub(super) fn qemu_img(
    workload: &Workload,
    engine: &str,
    file: &Path,
    requests: u64,
) -> anyhow::Result<Done> {
    let (one, one_cpu) = qemu_img_raw(workload, engine, file, 1)?;
    let (all, all_cpu) = qemu_img_raw(workload, engine, file, requests)?;
    Ok(Done {
        requests,
        elapsed_s: all - one,
        cpu_s: all_cpu - one_cpu,
    })
}

/// Seconds and CPU seconds of the whole process.
fn qemu_img_raw(
    workload: &Workload,
    engine: &str,
    file: &Path,
    requests: u64,
) -> anyhow::Result<(f64, f64)> {
    let cache = if workload.direct { "none" } else { "writeback" };
    let mut command = servers::bound("qemu-img");
    command.args(["bench", "-f", "raw", "-t", cache, "-i", engine]);
    command.args(["-d", &DEPTH.to_string(), "-s", &BLOCK.to_string()]);
    command.args(["-c", &requests.to_string()]);
    if workload.write {
        command.arg("-w");
    }
    command
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let (began, before) = (Instant::now(), proc::children_cpu_us()?);
    let output = command.output().context("cannot run qemu-img")?;
    let elapsed = began.elapsed().as_secs_f64();
    ensure!(
        output.status.success(),
        "qemu-img bench failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok((elapsed, (proc::children_cpu_us()? - before) / 1e6))
}

#[cfg(test)]
mod tests {
    use super::parse;

    const TEXT: &str = "fio: a warning\n{\"jobs\":[{\"error\":0,\"read\":{\"iops\":500.0,\
        \"total_ios\":1000,\"bw\":1},\"write\":{\"iops\":0.0,\"total_ios\":0},\
        \"job_runtime\":2000,\"usr_cpu\":10.0,\"sys_cpu\":15.0}]}";

    #[test]
    fn time_and_cpu_time_are_found() {
        let done = parse(TEXT).unwrap();
        assert_eq!(done.requests, 1000);
        assert!((done.elapsed_s - 2.0).abs() < 1e-9);
        assert!((done.cpu_s - 0.5).abs() < 1e-9);
    }

    #[test]
    fn an_error_and_nothing_done_are_errors() {
        let failed = TEXT.replace("\"error\":0", "\"error\":5");
        assert!(parse(&failed).unwrap_err().to_string().contains("error 5"));
        assert!(parse(&TEXT.replace(":1000,", ":0,")).is_err());
        assert!(parse("{\"jobs\":[]}").is_err());
        assert!(parse("").is_err());
    }
}
