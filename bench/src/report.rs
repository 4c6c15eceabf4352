//! Where figures go: one JSON object a line, a table, a picture.
//!
//! A line leaves as soon as it is known, so that a later failure takes none along:
//!
//! ```text
//! {"suite":"coroutine","name":"enter_yield","value":3.1,"unit":"ns","peer":"corosensei","peer_value":2.3,"ratio":1.348}
//! ```
//!
//! A figure without a peer has `null` in the last three.

mod picture;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::stats::{self, Better, Samples};
use crate::targets::{Of, TARGETS, Target};

/// What is measured: the name's suffix, the unit, and which way it is better.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// One figure of ours, mostly against one peer's.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) suite: &'static str,
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) peer: Option<Peer>,
    /// The larger of both sides' [`Samples::spread`].
    pub(crate) spread: f64,
}

/// What a figure is compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    /// Below 1 is better, whatever the unit.
    pub(crate) ratio: f64,
}

/// A figure as a JSON line. Field order is the order in the line.
#[derive(Serialize)]
struct Line<'a> {
    suite: &'static str,
    name: &'a str,
    value: f64,
    unit: &'static str,
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
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
        let mut figure = Self::alone(suite, name, metric, ours);
        let value = theirs.median();
        figure.peer = Some(Peer {
            name: peer,
            value,
            ratio: ours.ratio(metric.better, theirs),
        });
        figure.spread = figure.spread.max(theirs.spread());
        figure
    }

    /// A figure without a peer.
    pub(crate) fn alone(suite: &'static str, name: &str, metric: Metric, ours: &Samples) -> Self {
        Self {
            suite,
            name: name.to_owned(),
            value: ours.median(),
            unit: metric.unit,
            peer: None,
            spread: ours.spread(),
        }
    }

    fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(&Line {
            suite: self.suite,
            name: &self.name,
            value: stats::rounded(self.value),
            unit: self.unit,
            peer: self.peer.map(|peer| peer.name),
            peer_value: self.peer.map(|peer| stats::rounded(peer.value)),
            ratio: self.peer.map(|peer| stats::rounded(peer.ratio)),
        })
    }

    /// Its target, if it has one.
    fn target(&self) -> Option<&'static Target> {
        TARGETS
            .iter()
            .find(|target| target.measured(self).is_some())
    }

    /// `SUITE/NAME`.
    fn title(&self) -> String {
        format!("{}/{}", self.suite, self.name)
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
        let mut line = figure.json()?;
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
        writeln!(self.prose, "\n{}", head())?;
        for figure in &self.figures {
            writeln!(self.prose, "{}", row(figure))?;
        }
        writeln!(
            self.prose,
            "ratio: median of the rounds' ratios; below 1 is better. spread: width of the middle half / median, of the noisier side."
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

/// The table's first line.
fn head() -> String {
    format!(
        "{:<34} {:>11} {:<11} {:>11} {:<15} {:>7} {:>7}  target",
        "figure", "corio", "unit", "theirs", "peer", "ratio", "spread",
    )
}

/// A figure's line in the table.
fn row(figure: &Figure) -> String {
    let (theirs, peer, ratio) = match &figure.peer {
        Some(peer) => (
            stats::rounded(peer.value).to_string(),
            peer.name,
            format!("{:.3}", peer.ratio),
        ),
        None => Default::default(),
    };
    let target = figure.target().map(Target::to_string);
    format!(
        "{:<34} {:>11} {:<11} {:>11} {:<15} {:>7} {:>6.0}%  {}",
        figure.title(),
        stats::rounded(figure.value),
        figure.unit,
        theirs,
        peer,
        ratio,
        figure.spread * 100.0,
        target.unwrap_or_default(),
    )
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
            let found = figures.iter().find_map(|figure| target.measured(figure));
            let met = found.is_some_and(|found| target.limit.met_by(found));
            let found = found.map_or("not measured".to_owned(), |found| format!("{found:.3}"));
            let Target {
                suite, name, of, ..
            } = target;
            let to = match of {
                Of::RatioTo(peer) => format!(" to {peer}"),
                Of::Value { .. } => String::new(),
            };
            let word = if met { "met    " } else { "not met" };
            let text = format!("target {word}  {suite}/{name}{to}: {found} (limit {target})");
            Verdict { met, text }
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Figure, Metric, head, row, verdicts};
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

    pub(crate) fn alone(name: &str, value: f64) -> Figure {
        let metric = Metric {
            unit: "KiB",
            better: Better::Lower,
        };
        Figure::alone("coroutine", name, metric, &std::iter::once(value).collect())
    }

    #[test]
    fn a_line_has_the_documented_fields_in_order() {
        let figure = figure("enter_yield", Better::Lower, 3.1, 2.3);
        assert_eq!(
            figure.json().unwrap(),
            "{\"suite\":\"coroutine\",\"name\":\"enter_yield\",\"value\":3.1,\"unit\":\"ns\",\
             \"peer\":\"corosensei\",\"peer_value\":2.3,\"ratio\":1.348}"
        );
    }

    #[test]
    fn a_line_without_a_peer_has_nulls() {
        assert_eq!(
            alone("million_kib", 5.25).json().unwrap(),
            "{\"suite\":\"coroutine\",\"name\":\"million_kib\",\"value\":5.25,\"unit\":\"KiB\",\
             \"peer\":null,\"peer_value\":null,\"ratio\":null}"
        );
    }

    #[test]
    fn rates_are_turned_round() {
        let ratio = |better| figure("x", better, 200.0, 100.0).peer.unwrap().ratio;
        assert_eq!(ratio(Better::Higher), 0.5);
        assert_eq!(ratio(Better::Lower), 2.0);
    }

    #[test]
    fn rows_stand_below_their_heads() {
        let head = head();
        let with = row(&figure("enter_yield", Better::Lower, 3.1, 2.3));
        let without = row(&alone("million_kib", 5.25));
        let end = |text: &str, word| text.find(word).unwrap() + str::len(word);
        let start = |text: &str, word| text.find(word).unwrap();
        for (line, value, unit) in [(&with, "3.1", "ns"), (&without, "5.25", "KiB")] {
            assert_eq!(end(line, value), end(&head, "corio"), "{line}");
            assert_eq!(start(line, unit), start(&head, "unit"), "{line}");
            assert_eq!(start(line, "<="), start(&head, "target"), "{line}");
        }
        assert_eq!(end(&with, "2.3"), end(&head, "theirs"));
        assert_eq!(start(&with, "corosensei"), start(&head, "peer"));
        assert_eq!(end(&with, "1.348"), end(&head, "ratio"));
    }

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let figures = [
            figure("enter_yield", Better::Lower, 1.7, 1.0),
            figure("create_run_end", Better::Lower, 3.1, 1.0),
            alone("million_kib", 6.0),
        ];
        let verdicts = verdicts(&figures);
        let of = |name: &str| {
            let has_name = |text: &str| text.contains(&format!("/{name}"));
            verdicts
                .iter()
                .find(|verdict| has_name(&verdict.text))
                .unwrap()
        };
        assert!(of("enter_yield to corosensei: 1.700 (limit <= 1.7)").met);
        assert!(!of("create_run_end to corosensei: 3.100").met);
        assert!(of("million_kib: 6.000 (limit <= 6 KiB)").met);
        assert!(!of("spawn_join to tokio: not measured").met);
    }

    #[test]
    fn a_suite_that_did_not_run_has_no_verdict() {
        assert!(verdicts(&[]).is_empty());
    }
}
