//! `cargo xtask test`: the one test command.

use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::ahead::Ahead;
use crate::child::Stream;
use crate::jobs::{self, JOBS, Job, Runner, Unit};
use crate::say::Voice;
use crate::tally::Tally;
use crate::tools;
use crate::workspace::Workspace;

/// How many failed tests of a job its line in the table names.
const NAMES_MAX: usize = 8;

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Jobs to run; all if none is named
    jobs: Vec<String>,
    /// List the jobs and end
    #[arg(long)]
    list: bool,
    /// Do not install missing programs
    #[arg(long)]
    no_install: bool,
}

impl Arguments {
    /// As if these jobs alone had been asked for.
    pub(crate) fn only(jobs: &[&str]) -> Self {
        let jobs = jobs.iter().map(ToString::to_string).collect();
        Self {
            jobs,
            list: false,
            no_install: false,
        }
    }
}

/// What became of a job.
pub(crate) struct Report {
    pub(crate) name: &'static str,
    unit: Unit,
    tally: Tally,
    seen: u64,
    faults: Vec<String>,
    /// Why it did not run at all.
    skipped: Option<String>,
    seconds: f64,
    /// Of waiting for builds, which are not in `seconds`.
    waited: f64,
}

impl Report {
    pub(crate) fn ok(&self) -> bool {
        self.faults.is_empty() && self.tally.failed == 0
    }

    /// Tests passed; a check that counts no tests is one.
    fn passed(&self) -> u64 {
        match self.unit {
            Unit::Tests => self.tally.passed(),
            _ => u64::from(self.ok() && self.skipped.is_none()),
        }
    }

    /// Tests failed; a job that failed without one counts as one.
    fn failed(&self) -> u64 {
        self.tally.failed.max(u64::from(!self.ok()))
    }
}

/// Runs the jobs; true if none failed.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        for job in JOBS {
            println!("{:8} {}", job.name, job.about);
        }
        return Ok(true);
    }
    let jobs = select(JOBS, &arguments.jobs)?;
    run_jobs(workspace, &jobs, !arguments.no_install)
}

/// Runs these jobs, one after the other, and prints the table; true if none failed.
pub(crate) fn run_jobs(
    workspace: &Workspace,
    jobs: &[&'static Job],
    allow_install: bool,
) -> Result<bool> {
    let began = Instant::now();
    let mut wanted: Vec<_> = jobs.iter().flat_map(|job| job.tools.concat()).collect();
    wanted.dedup();
    let absent = tools::provide(&wanted, allow_install);
    let lacks = |job: &Job| {
        job.tools
            .concat()
            .into_iter()
            .find(|tool| absent.contains(tool))
    };
    let components = match jobs.iter().any(|job| matches!(job.name, "fmt" | "clippy")) {
        true => tools::provide_components(),
        false => Vec::new(),
    };

    let missing = |job: &Job| match job.name {
        "fmt" if components.contains(&"rustfmt") => Some("rustfmt"),
        "clippy" if components.contains(&"clippy") => Some("clippy"),
        _ if job.needs_tools => lacks(job).map(|tool| tool.program),
        _ => None,
    };
    let (able, unable): (Vec<_>, Vec<_>) =
        jobs.iter().copied().partition(|job| missing(job).is_none());
    let lanes = jobs::lanes(workspace, &able)?;
    let ahead = Ahead::new(workspace, jobs::packages(&able), &lanes);
    let mut reports = Vec::new();
    thread::scope(|scope| {
        let has_lanes = jobs::has_foreground(&able);
        let is_beside = |job: &Job| job.lane.is_some() && has_lanes;
        for (number, lane) in lanes.into_iter().enumerate() {
            let ahead = &ahead;
            scope.spawn(move || ahead.walk(number, lane));
        }
        for &job in able.iter().filter(|job| !is_beside(job)) {
            announce(job);
            let report = execute(job, &ahead);
            tell(&report);
            reports.push(report);
            reports.extend(hear(&ahead, false).unwrap_or_default());
        }
        while let Some(more) = hear(&ahead, true) {
            reports.extend(more);
        }
    });
    for job in unable {
        announce(job);
        let program = missing(job).unwrap_or_default();
        let report = skip(job, format!("{program} is absent"));
        tell(&report);
        reports.push(report);
    }
    reports.sort_by_key(|report| jobs.iter().position(|job| job.name == report.name));
    conclude(&reports, began);
    Ok(reports.iter().all(Report::ok))
}

fn announce(job: &Job) {
    println!("\n== {}: {}", job.name, job.about);
}

fn tell(report: &Report) {
    println!(
        "== {}: {} in {:.1} s, after {:.1} s of waiting for builds",
        report.name,
        verdict(report),
        report.seconds,
        report.waited
    );
}

/// Tells of the jobs that have ended beside the others; none once all have.
fn hear(ahead: &Ahead<'_>, wait: bool) -> Option<Vec<Report>> {
    let ended = ahead.ended(wait)?;
    let reports = ended.into_iter().map(|(report, said)| {
        println!("\n== {}, beside the others:", report.name);
        Voice::Aloud.pass_on(Stream::Out, &said);
        tell(&report);
        report
    });
    Some(reports.collect())
}

/// The jobs named of those there are; all if none is named.
pub(crate) fn select(jobs: &'static [Job], names: &[String]) -> Result<Vec<&'static Job>> {
    for name in names {
        if !jobs.iter().any(|job| job.name == name) {
            let known: Vec<_> = jobs.iter().map(|job| job.name).collect();
            bail!("no job {name}; there are: {}", known.join(" "));
        }
    }
    let wanted = |job: &&Job| names.is_empty() || names.iter().any(|name| name == job.name);
    Ok(jobs.iter().filter(wanted).collect())
}

fn skip(job: &'static Job, why: String) -> Report {
    let mut tally = Tally::default();
    tally.skip(format!("job {}: {why}", job.name));
    Report {
        name: job.name,
        unit: job.unit,
        tally,
        seen: 0,
        faults: Vec::new(),
        skipped: Some(why),
        seconds: 0.0,
        waited: 0.0,
    }
}

/// Does a job in the calling thread.
pub(crate) fn execute(job: &'static Job, ahead: &Ahead<'_>) -> Report {
    let began = Instant::now();
    ahead.finish(job.name);
    let waited = began.elapsed();
    let mut runner = Runner {
        workspace: ahead.workspace,
        ahead,
        packages: job.packages,
        deadline: Instant::now() + job.limit,
        waited,
        tally: Tally::default(),
        seen: 0,
        faults: Vec::new(),
        exclude: Vec::new(),
    };
    if !tools::absent(tools::COMPILER).is_empty() {
        // Its build script compiles libFuzzer.
        runner.exclude.push("corio-fuzz");
    }
    if !tools::absent(tools::GLIB).is_empty() {
        runner.exclude.push("corio-glib");
    }
    if let Err(error) = (job.work)(&mut runner) {
        runner.faults.push(format!("{error:#}"));
    }
    let Runner {
        tally,
        waited,
        mut seen,
        mut faults,
        ..
    } = runner;
    if job.unit == Unit::Tests {
        seen = tally.ran;
    }
    // A job that has failed already need not be told that it did not get far.
    if faults.is_empty() && tally.failed == 0 && seen < job.floor {
        faults.push(format!(
            "counted {seen} {}, its floor is {}",
            job.unit.name(),
            job.floor
        ));
    }
    let seconds = began.elapsed().saturating_sub(waited).as_secs_f64();
    Report {
        name: job.name,
        unit: job.unit,
        tally,
        seen,
        faults,
        skipped: None,
        seconds,
        waited: waited.as_secs_f64(),
    }
}

fn verdict(report: &Report) -> String {
    if let Some(why) = &report.skipped {
        return format!("skipped, {why}");
    }
    if report.ok() {
        return "ok".to_owned();
    }
    let mut reasons = report.faults.clone();
    let failures = &report.tally.failures;
    reasons.extend(
        failures
            .iter()
            .take(NAMES_MAX)
            .map(|name| format!("test {name}")),
    );
    if failures.len() > NAMES_MAX {
        reasons.push(format!("{} tests in all", failures.len()));
    }
    if reasons.is_empty() {
        reasons.push(format!("{} tests", report.tally.failed));
    }
    format!("FAILED: {}", reasons.join("; "))
}

/// Prints what failed tests had printed, once more, so that it stands at the end; what was skipped;
/// the table; and the sums alone on the last line.
fn conclude(reports: &[Report], began: Instant) {
    for report in reports {
        for (test, words) in &report.tally.words {
            println!("\nfailed: {}: {test}", report.name);
            words.iter().for_each(|line| println!("  {line}"));
        }
    }
    let skips: Vec<_> = reports
        .iter()
        .flat_map(|report| {
            report
                .tally
                .skips
                .iter()
                .map(move |what| (report.name, what))
        })
        .collect();
    if !skips.is_empty() {
        println!("\nskipped:");
        for (job, what) in &skips {
            println!("  {job}: {what}");
        }
    }
    println!(
        "\n{:8} {:>20} {:>6} {:>8}  result",
        "job", "counted", "skips", "seconds"
    );
    for report in reports {
        let counted = format!("{} {}", report.seen, report.unit.name());
        let (skips, seconds) = (report.tally.skipped(), report.seconds);
        println!(
            "{:8} {counted:>20} {skips:>6} {seconds:>8.1}  {}",
            report.name,
            verdict(report)
        );
    }
    println!("{:8} {:>36.1}", "all", began.elapsed().as_secs_f64());
    println!("{}", sums(reports));
}

fn sums(reports: &[Report]) -> String {
    let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    format!(
        "{} passed, {} failed, {} skipped",
        sum(Report::passed),
        sum(Report::failed),
        sum(|report| report.tally.skipped())
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn fake(
        unit: Unit,
        floor: u64,
        limit_s: u64,
        work: fn(&mut Runner<'_>) -> Result<()>,
    ) -> Report {
        let job = Box::leak(Box::new(Job {
            name: "fake",
            about: "",
            floor,
            limit: Duration::from_secs(limit_s),
            tools: &[],
            needs_tools: false,
            unit,
            packages: &[],
            lane: None,
            work,
        }));
        execute(
            job,
            &Ahead::new(&Workspace::find().unwrap(), Vec::new(), &[]),
        )
    }

    const OK: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
    const BAD: &str =
        "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn a_job_that_ran_nothing_fails() {
        let report = fake(Unit::Tests, 1, 60, |_| Ok(()));
        assert!(!report.ok());
        assert_eq!(verdict(&report), "FAILED: counted 0 tests, its floor is 1");
        assert_eq!((report.passed(), report.failed()), (0, 1));
    }

    #[test]
    fn a_job_below_its_floor_fails() {
        let report = fake(Unit::Tests, 4, 60, |r| {
            r.tally.line(OK);
            Ok(())
        });
        assert_eq!(verdict(&report), "FAILED: counted 3 tests, its floor is 4");
    }

    #[test]
    fn a_job_at_its_floor_passes() {
        let report = fake(Unit::Tests, 3, 60, |r| {
            r.tally.line(OK);
            Ok(())
        });
        assert!(report.ok());
        assert_eq!(sums(&[report]), "3 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn a_failed_test_fails_its_job_by_name() {
        let report = fake(Unit::Tests, 1, 60, |r| {
            r.tally.line("test reads_back ... FAILED");
            r.tally.line(BAD);
            Ok(())
        });
        assert_eq!(verdict(&report), "FAILED: test reads_back");
        assert_eq!(sums(&[report]), "2 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_check_counts_as_one() {
        let good = fake(Unit::Files, 2, 60, |r| {
            r.seen = 40;
            Ok(())
        });
        let bad = fake(Unit::Files, 2, 60, |r| {
            r.seen = 40;
            r.faults.push("cargo fmt: exit status: 1".into());
            Ok(())
        });
        assert_eq!(sums(&[good, bad]), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_skipped_job_is_counted_and_is_no_pass() {
        let report = skip(&JOBS[0], "rustfmt is absent".into());
        assert!(report.ok());
        assert_eq!(sums(&[report]), "0 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn jobs_are_found_by_name_and_keep_their_order() {
        let names = |wanted: &[&str]| -> Option<Vec<&str>> {
            let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            select(JOBS, &wanted)
                .ok()
                .map(|jobs| jobs.iter().map(|job| job.name).collect())
        };
        assert_eq!(names(&["loom", "fmt"]), Some(vec!["fmt", "loom"]));
        assert_eq!(names(&[]).map(|all| all.len()), Some(JOBS.len()));
        assert_eq!(names(&["nonsense"]), None);
    }

    #[test]
    fn every_job_has_a_floor_and_a_name_of_its_own() {
        for (index, job) in JOBS.iter().enumerate() {
            assert!(job.floor > 0, "{}", job.name);
            assert!(
                JOBS[..index].iter().all(|other| other.name != job.name),
                "{}",
                job.name
            );
        }
    }
}
