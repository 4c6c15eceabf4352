//! The limits the figures are held to. One table: a later issue that tightens a limit changes it
//! here.

use crate::report::Figure;

/// A limit on a ratio, in which below 1 is better whatever the unit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtMost(f64),
    Below(f64),
}

impl Limit {
    pub(crate) fn value(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::Below(limit) => limit,
        }
    }

    pub(crate) fn met_by(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(limit) => ratio <= limit,
            Self::Below(limit) => ratio < limit,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "<= {limit}"),
            Self::Below(limit) => write!(f, "< {limit}"),
        }
    }
}

/// The ratio of one figure to one peer, and its limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) suite: &'static str,
    pub(crate) name: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) limit: Limit,
}

impl Target {
    pub(crate) fn is_of(&self, figure: &Figure) -> bool {
        self.suite == figure.suite && self.name == figure.name && self.peer == figure.peer
    }
}

const fn target(
    suite: &'static str,
    name: &'static str,
    peer: &'static str,
    limit: Limit,
) -> Target {
    Target {
        suite,
        name,
        peer,
        limit,
    }
}

/// All targets.
pub(crate) const TARGETS: &[Target] = &[
    target("coroutine", "enter_yield", "corosensei", Limit::AtMost(2.5)),
    target(
        "coroutine",
        "enter_yield_deep",
        "corosensei",
        Limit::AtMost(1.5),
    ),
    target(
        "coroutine",
        "create_run_end",
        "corosensei",
        Limit::AtMost(4.0),
    ),
    target("nbd", "rr4k_qd32_iops", "qemu-nbd", Limit::Below(1.0)),
    target("nbd", "rr4k_qd32_iops", "nbdkit", Limit::Below(1.0)),
    target("nbd", "rr4k_qd32_cpu", "qemu-nbd", Limit::Below(1.0)),
    target("nbd", "rr4k_qd32_cpu", "nbdkit", Limit::Below(1.0)),
    target("nbd", "rr4k_qd32_cpu", "floor", Limit::AtMost(1.5)),
    target("nbd", "rr4k_qd64x2_iops", "qemu-nbd", Limit::Below(1.0)),
    target("nbd", "rr4k_qd64x2_iops", "nbdkit", Limit::Below(1.0)),
    target("nbd", "rr4k_qd64x2_cpu", "qemu-nbd", Limit::Below(1.0)),
    target("nbd", "rr4k_qd64x2_cpu", "nbdkit", Limit::Below(1.0)),
    target("nbd", "rr4k_qd64x2_cpu", "floor", Limit::AtMost(1.5)),
];

#[cfg(test)]
mod tests {
    use super::{Limit, TARGETS};

    #[test]
    fn a_limit_is_met_at_itself_only_when_it_says_at_most() {
        assert!(Limit::AtMost(1.5).met_by(1.5));
        assert!(!Limit::AtMost(1.5).met_by(1.51));
        assert!(Limit::Below(1.0).met_by(0.99));
        assert!(!Limit::Below(1.0).met_by(1.0));
    }

    #[test]
    fn nan_meets_no_limit() {
        assert!(!Limit::AtMost(1.5).met_by(f64::NAN));
        assert!(!Limit::Below(1.0).met_by(f64::NAN));
    }

    #[test]
    fn no_figure_has_two_targets() {
        for (i, a) in TARGETS.iter().enumerate() {
            for b in &TARGETS[i + 1..] {
                assert!((a.suite, a.name, a.peer) != (b.suite, b.name, b.peer));
            }
        }
    }
}
