//! Counts tests from what libtest prints.
//!
//! Cargo's tests speak in lines: `test NAME ... ok|FAILED|ignored`, one `test result:` a binary,
//! and, as the jobs run them with `--show-output`, the printed lines of each passing test below a
//! `---- NAME stdout ----`. A test that cannot run here prints `SKIPPED: WHAT: WHY` and returns;
//! libtest calls that a pass, this module does not.

use std::collections::BTreeSet;

/// What a job's output has shown so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that libtest ran and found good, the skipped among them.
    pub(crate) ran: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests marked `#[ignore]`.
    pub(crate) ignored: u64,
    /// `WHAT: WHY` of each skip, in order.
    pub(crate) skips: Vec<String>,
    /// The names of failed tests.
    pub(crate) failures: BTreeSet<String>,
    skipping: BTreeSet<String>,
    nameless_skips: u64,
    section: Option<String>,
}

impl Tally {
    /// Reads one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim();
        if let Some(what) = skip(line) {
            self.skips.push(what.to_owned());
            match &self.section {
                Some(test) => _ = self.skipping.insert(test.clone()),
                None => self.nameless_skips += 1,
            }
        } else if let Some(counts) = Counts::parse(line) {
            self.ran += counts.passed;
            self.failed += counts.failed;
            self.ignored += counts.ignored;
            self.section = None;
            // The same name may come again in the next binary.
            self.nameless_skips += u64::try_from(self.skipping.len()).unwrap_or(u64::MAX);
            self.skipping.clear();
        } else if let Some(name) = section(line) {
            self.section = Some(name.to_owned());
        } else if matches!(line, "successes:" | "failures:") {
            self.section = None;
        } else if let Some((name, verdict)) = verdict(line) {
            if verdict.starts_with("FAILED") {
                self.failures.insert(name.to_owned());
            } else if verdict.starts_with("ignored") {
                let why = verdict
                    .strip_prefix("ignored, ")
                    .unwrap_or("marked as ignored");
                self.skips.push(format!("{name}: {why}"));
            }
        }
    }

    /// Notes that something was skipped which never printed anything, such as a whole job.
    pub(crate) fn skip(&mut self, what: String) {
        self.skips.push(what);
        self.nameless_skips += 1;
    }

    /// Notes that something is not even tried, and so is in no count of what ran.
    pub(crate) fn leave_out(&mut self, what: String) {
        self.skips.push(what);
    }

    /// Tests that ran to a good end: those that printed a skip are none.
    pub(crate) fn passed(&self) -> u64 {
        let skipping = u64::try_from(self.skipping.len()).unwrap_or(u64::MAX);
        self.ran
            .saturating_sub(skipping.saturating_add(self.nameless_skips))
    }

    /// How many skips were announced.
    pub(crate) fn skipped(&self) -> u64 {
        u64::try_from(self.skips.len()).unwrap_or(u64::MAX)
    }
}

/// The numbers of one `test result:` line.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("test result: ")?;
        let (_, numbers) = rest.split_once(". ")?;
        let mut counts = Self {
            passed: 0,
            failed: 0,
            ignored: 0,
        };
        for part in numbers.split(';') {
            match part.trim().split_once(' ') {
                Some((n, "passed")) => counts.passed = n.parse().ok()?,
                Some((n, "failed")) => counts.failed = n.parse().ok()?,
                Some((n, "ignored")) => counts.ignored = n.parse().ok()?,
                _ => {}
            }
        }
        Some(counts)
    }
}

fn skip(line: &str) -> Option<&str> {
    line.strip_prefix("SKIPPED: ")
        .map(str::trim)
        .filter(|what| !what.is_empty())
}

/// The test whose output begins with this line.
pub(crate) fn section(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// The test whose end this line tells, and how it ended.
pub(crate) fn verdict(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("test ")?.rsplit_once(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::default();
        text.lines().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn results_of_several_binaries_add_up() {
        let t = tally(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
             test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.20s\n",
        );
        assert_eq!((t.ran, t.failed, t.ignored), (5, 1, 2));
        assert_eq!(t.passed(), 5);
    }

    #[test]
    fn failures_are_named() {
        let t = tally("test wire::round_trip ... FAILED\ntest x ... ok\n");
        assert_eq!(t.failures.iter().collect::<Vec<_>>(), ["wire::round_trip"]);
    }

    #[test]
    fn a_skipping_test_is_no_pass_however_often_it_says_so() {
        let t = tally(
            "successes:\n\n---- fio_verify stdout ----\nSKIPPED: fio: not installed\nSKIPPED: fio again: no\n\n\
             ---- other stdout ----\nhello\n\nsuccesses:\n    fio_verify\n    other\n\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((t.ran, t.passed(), t.skipped()), (2, 1, 2));
        assert_eq!(t.skips[0], "fio: not installed");
    }

    #[test]
    fn skips_of_two_binaries_with_one_name_both_count() {
        let one = "---- same stdout ----\nSKIPPED: a: b\n\
                   test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let t = tally(&format!("{one}{one}"));
        assert_eq!((t.ran, t.passed(), t.skipped()), (2, 0, 2));
    }

    #[test]
    fn a_skip_outside_any_section_takes_one_pass() {
        let t = tally(
            "SKIPPED: io_uring: refused\n\
             test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((t.ran, t.passed(), t.skipped()), (4, 3, 1));
    }

    #[test]
    fn ignored_tests_are_skips_with_their_reason() {
        let t = tally(
            "test big ... ignored, needs 64 GiB\ntest crates/corio/src/lib.rs - (line 9) ... ignored\n\
             test result: ok. 0 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(t.skips[0], "big: needs 64 GiB");
        assert_eq!(
            t.skips[1],
            "crates/corio/src/lib.rs - (line 9): marked as ignored"
        );
        assert_eq!((t.skipped(), t.passed()), (2, 0));
    }

    #[test]
    fn other_text_counts_nothing() {
        let t = tally("test result: nonsense\nSKIPPED:\nthe test passed ... well\n---- broken\n");
        assert_eq!(t, Tally::default());
    }
}
