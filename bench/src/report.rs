//! Where figures go: one JSON object a line, a table, a picture.
//!
//! A line leaves as soon as it is known, so that a later failure takes none along:
//!
//! ```text
//! {"suite":"coroutine","name":"enter_yield","value":3.1,"unit":"ns","peer":"corosensei","peer_value":2.3,"ratio":1.348}
//! ```

mod picture;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use serde::{Serialize, Serializer};

use crate::stats::{self, Better, Samples};
use crate::targets::{TARGETS, Target};

/// What is measured: the name's suffix, the unit, and which way it is better.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// One figure of ours against one peer's. Field order is the order in the JSON line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) suite: &'static str,
    pub(crate) name: String,
    #[serde(serialize_with = "four_digits")]
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) peer: &'static str,
    #[serde(serialize_with = "four_digits")]
    pub(crate) peer_value: f64,
    /// Below 1 is better, whatever the unit.
    #[serde(serialize_with = "four_digits")]
    pub(crate) ratio: f64,
    /// The larger of both sides' [`Samples::spread`].
    #[serde(skip)]
    pub(crate) spread: f64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields by reference"
)]
fn four_digits<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(stats::rounded(*value))
}

impl Figure {
    pub(crate) fn new(
        suite: &'static str,
        name: &str,
        metric: Metric,
        ours: &Samples,
        peer: &'static str,
        theirs: &Samples,
    ) -> Self {
        let (value, peer_value) = (ours.median(), theirs.median());
        Self {
            suite,
            name: name.to_owned(),
            value,
            unit: metric.unit,
            peer,
            peer_value,
            ratio: stats::ratio(metric.better, value, peer_value),
            spread: ours.spread().max(theirs.spread()),
        }
    }

    fn target(&self) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.is_of(self))
    }
}

/// Collects figures and writes them out.
pub(crate) struct Report {
    lines: Box<dyn Write>,
    prose: Box<dyn Write>,
    figures: Vec<Figure>,
}

impl Report {
    /// Lines go to `json` and prose to stdout, or else lines to stdout and prose to stderr.
    pub(crate) fn new(json: Option<&Path>) -> anyhow::Result<Self> {
        let (lines, prose): (Box<dyn Write>, Box<dyn Write>) = match json {
            Some(path) => {
                let file = File::create(path)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                (Box::new(file), Box::new(io::stdout()))
            }
            None => (Box::new(io::stdout()), Box::new(io::stderr())),
        };
        Ok(Self {
            lines,
            prose,
            figures: Vec::new(),
        })
    }

    /// Says something that is no figure.
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.prose, "{text}")
    }

    /// Keeps a figure and writes its line at once.
    pub(crate) fn push(&mut self, figure: Figure) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(&figure)?;
        line.push('\n');
        self.lines.write_all(line.as_bytes())?;
        self.lines.flush()?;
        self.figures.push(figure);
        Ok(())
    }

    /// Prints all figures for people.
    pub(crate) fn print_table(&mut self) -> io::Result<()> {
        if self.figures.is_empty() {
            return Ok(());
        }
        writeln!(
            self.prose,
            "\n{:<34} {:>11} {:<11} {:>11} {:<10} {:>7} {:>7}  target",
            "figure", "corio", "unit", "theirs", "peer", "ratio", "spread"
        )?;
        for figure in &self.figures {
            let target = figure.target().map(|target| target.limit.to_string());
            writeln!(
                self.prose,
                "{:<34} {:>11} {:<11} {:>11} {:<10} {:>7.3} {:>6.0}%  {}",
                format!("{}/{}", figure.suite, figure.name),
                stats::rounded(figure.value),
                figure.unit,
                stats::rounded(figure.peer_value),
                figure.peer,
                figure.ratio,
                figure.spread * 100.0,
                target.unwrap_or_default(),
            )?;
        }
        writeln!(
            self.prose,
            "ratio: below 1 is better. spread: width of the middle half / median, of the noisier side."
        )
    }

    /// Says of each target of the suites that ran whether it is met; returns how many are not.
    pub(crate) fn print_targets(&mut self) -> io::Result<usize> {
        let mut missed = 0;
        for verdict in verdicts(&self.figures) {
            missed += usize::from(!verdict.met);
            writeln!(self.prose, "{}", verdict.text)?;
        }
        Ok(missed)
    }

    /// Draws all ratios into one SVG.
    pub(crate) fn draw(&self, path: &Path) -> anyhow::Result<()> {
        if self.figures.is_empty() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        picture::draw(path, &self.figures)
    }
}

struct Verdict {
    met: bool,
    text: String,
}

/// A target whose suite ran and whose figure is missing is not met: silence is no success.
fn verdicts(figures: &[Figure]) -> Vec<Verdict> {
    TARGETS
        .iter()
        .filter(|target| figures.iter().any(|figure| figure.suite == target.suite))
        .map(|target| {
            let ratio = figures
                .iter()
                .find(|figure| target.is_of(figure))
                .map(|figure| figure.ratio);
            let met = ratio.is_some_and(|ratio| target.limit.met_by(ratio));
            let found = ratio.map_or("not measured".to_owned(), |ratio| format!("{ratio:.3}"));
            let Target {
                suite,
                name,
                peer,
                limit,
            } = target;
            let word = if met { "met    " } else { "not met" };
            let text = format!("target {word}  {suite}/{name} to {peer}: {found} (limit {limit})");
            Verdict { met, text }
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Figure, Metric, verdicts};
    use crate::stats::{Better, Samples};

    pub(crate) fn figure(name: &str, better: Better, ours: f64, theirs: f64) -> Figure {
        let one = |value| -> Samples { std::iter::once(value).collect() };
        let metric = Metric { unit: "ns", better };
        Figure::new(
            "coroutine",
            name,
            metric,
            &one(ours),
            "corosensei",
            &one(theirs),
        )
    }

    #[test]
    fn a_line_has_the_documented_fields_in_order() {
        let figure = figure("enter_yield", Better::Lower, 3.1, 2.3);
        assert_eq!(
            serde_json::to_string(&figure).unwrap(),
            "{\"suite\":\"coroutine\",\"name\":\"enter_yield\",\"value\":3.1,\"unit\":\"ns\",\
             \"peer\":\"corosensei\",\"peer_value\":2.3,\"ratio\":1.348}"
        );
    }

    #[test]
    fn rates_are_turned_round() {
        assert_eq!(figure("x", Better::Higher, 200.0, 100.0).ratio, 0.5);
        assert_eq!(figure("x", Better::Lower, 200.0, 100.0).ratio, 2.0);
    }

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let figures = [
            figure("enter_yield", Better::Lower, 2.0, 1.0),
            figure("create_run_end", Better::Lower, 4.1, 1.0),
        ];
        let met: Vec<_> = verdicts(&figures)
            .iter()
            .map(|verdict| verdict.met)
            .collect();
        assert_eq!(met, [true, false, false]);
        assert!(verdicts(&figures)[1].text.contains("not measured"));
    }

    #[test]
    fn a_suite_that_did_not_run_has_no_verdict() {
        assert!(verdicts(&[]).is_empty());
    }
}
