//! The limits the figures are held to. One table: a later issue that tightens a limit changes it
//! here.

use crate::report::Figure;

/// A limit on what is better the less it is.
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

    pub(crate) fn met_by(self, found: f64) -> bool {
        match self {
            Self::AtMost(limit) => found <= limit,
            Self::Below(limit) => found < limit,
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

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The ratio to this peer, in which below 1 is better whatever the unit.
    RatioTo(&'static str),
    /// Our own value, which is in this unit.
    Value { unit: &'static str },
}

/// One figure's limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) suite: &'static str,
    pub(crate) name: &'static str,
    pub(crate) of: Of,
    pub(crate) limit: Limit,
}

impl Target {
    /// What the figure has that is limited here, if anything.
    pub(crate) fn measured(&self, figure: &Figure) -> Option<f64> {
        if self.suite != figure.suite || self.name != figure.name {
            return None;
        }
        match (self.of, &figure.peer) {
            (Of::RatioTo(name), Some(peer)) => (peer.name == name).then_some(peer.ratio),
            (Of::RatioTo(_), None) => None,
            (Of::Value { .. }, _) => Some(figure.value),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.of {
            Of::RatioTo(_) => self.limit.fmt(f),
            Of::Value { unit } => write!(f, "{} {unit}", self.limit),
        }
    }
}

/// A limit on the ratio to a peer.
const fn target(
    suite: &'static str,
    name: &'static str,
    peer: &'static str,
    limit: Limit,
) -> Target {
    Target {
        suite,
        name,
        of: Of::RatioTo(peer),
        limit,
    }
}

/// A limit on our own value.
const fn target_value(
    suite: &'static str,
    name: &'static str,
    unit: &'static str,
    limit: Limit,
) -> Target {
    Target {
        suite,
        name,
        of: Of::Value { unit },
        limit,
    }
}

/// All targets.
pub(crate) const TARGETS: &[Target] = &[
    target("coroutine", "enter_yield", "corosensei", Limit::AtMost(1.7)),
    target(
        "coroutine",
        "enter_yield_deep",
        "corosensei",
        Limit::AtMost(1.3),
    ),
    target(
        "coroutine",
        "create_run_end",
        "corosensei",
        Limit::AtMost(3.0),
    ),
    target(
        "coroutine",
        "park_wake",
        "corosensei+2cas",
        Limit::AtMost(1.3),
    ),
    target("coroutine", "spawn_join", "tokio", Limit::AtMost(0.5)),
    target("coroutine", "yield_loop", "tokio", Limit::AtMost(0.5)),
    target("coroutine", "channel_pingpong", "tokio", Limit::AtMost(0.5)),
    target("coroutine", "suspend_cold", "bare", Limit::AtMost(1.6)),
    target_value("coroutine", "million_kib", "KiB", Limit::AtMost(6.0)),
    target(
        "sync",
        "mutex_uncontended",
        "parking_lot",
        Limit::AtMost(1.5),
    ),
    target_value("sync", "spawn_allocs", "/op", Limit::AtMost(0.0)),
    target_value("sync", "wake_allocs", "/op", Limit::AtMost(0.0)),
    target_value("sync", "lock_allocs", "/op", Limit::AtMost(0.0)),
    target_value("sync", "lock_wait_allocs", "/op", Limit::AtMost(0.0)),
    target_value("sync", "channel_allocs", "/op", Limit::AtMost(0.0)),
    target(
        "loop",
        "bh_schedule_dispatch",
        "SegQueue",
        Limit::AtMost(0.5),
    ),
    target("loop", "bh_poll", "SegQueue", Limit::AtMost(1.5)),
    target("loop", "bh_oneshot", "SegQueue", Limit::AtMost(1.5)),
    target("loop", "bh_remote_schedule", "SegQueue", Limit::AtMost(1.0)),
    target("loop", "fd_ready_1", "mio", Limit::AtMost(1.05)),
    target("loop", "fd_ready_63", "mio", Limit::AtMost(1.05)),
    target("loop", "fd_ready_4000", "mio", Limit::AtMost(1.05)),
    target("loop", "fd_ready_1_reads", "mio", Limit::AtMost(1.05)),
    target("loop", "fd_ready_63_reads", "mio", Limit::AtMost(1.05)),
    target("loop", "fd_ready_4000_reads", "mio", Limit::AtMost(1.05)),
    target("loop", "timer_arm_20k", "BTreeMap", Limit::AtMost(0.3)),
    target("loop", "timer_cancel_20k", "BTreeMap", Limit::AtMost(0.3)),
    target("loop", "timer_arm_1m", "BTreeMap", Limit::AtMost(0.3)),
    target("loop", "timer_cancel_1m", "BTreeMap", Limit::AtMost(0.3)),
    target("loop", "hop", "tokio", Limit::AtMost(0.8)),
    target("loop", "hop_polled", "tokio", Limit::AtMost(0.8)),
    target("loop", "remote_bh", "tokio", Limit::AtMost(0.8)),
    target("loop", "remote_bh_polled", "tokio", Limit::AtMost(0.8)),
    target("loop", "remote_wake", "tokio", Limit::AtMost(0.8)),
    target("loop", "remote_wake_polled", "tokio", Limit::AtMost(0.8)),
    target("capi", "enter_yield", "rust", Limit::AtMost(1.5)),
    target("capi", "create_run_end", "rust", Limit::AtMost(1.5)),
    target("capi", "bh_schedule_dispatch", "rust", Limit::AtMost(1.5)),
    target("capi", "fd_ready_1", "rust", Limit::AtMost(1.5)),
    target(
        "disk",
        "thread_pool_round_trip",
        "tokio",
        Limit::AtMost(0.8),
    ),
    target("disk", "read4k_cached_qd32", "fio", Limit::AtMost(0.9)),
    target("disk", "read4k_direct_qd32", "fio", Limit::AtMost(1.03)),
    target("disk", "write4k_direct_qd32", "fio", Limit::AtMost(1.03)),
    target("nbd", "rr4k_qd32_iops", "floor", Limit::AtMost(1.1)),
    target("nbd", "rr4k_qd32_iops", "qemu-nbd", Limit::AtMost(0.5)),
    target("nbd", "rr4k_qd32_iops", "nbdkit", Limit::Below(1.0)),
    target("nbd", "rr4k_qd32_cpu", "floor", Limit::AtMost(1.15)),
    target("nbd", "rr4k_qd32_cpu", "qemu-nbd", Limit::AtMost(0.4)),
    target("nbd", "rr4k_qd32_cpu", "nbdkit", Limit::Below(1.0)),
    target("nbd", "rr4k_qd64x2_iops", "floor", Limit::AtMost(1.1)),
    target("nbd", "rr4k_qd64x2_iops", "qemu-nbd", Limit::AtMost(0.5)),
    target("nbd", "rr4k_qd64x2_iops", "nbdkit", Limit::Below(1.0)),
    target("nbd", "rr4k_qd64x2_cpu", "floor", Limit::AtMost(1.15)),
    target("nbd", "rr4k_qd64x2_cpu", "qemu-nbd", Limit::AtMost(0.4)),
    target("nbd", "rr4k_qd64x2_cpu", "nbdkit", Limit::Below(1.0)),
    target("nbd", "copy_out", "nbdkit", Limit::AtMost(1.0)),
    target("nbd", "rw4k_qd32_iops", "qemu-nbd", Limit::AtMost(0.5)),
    target("nbd", "rw4k_qd32_iops", "nbdkit", Limit::AtMost(1.0)),
    target("nbd", "rw4k_qd32_cpu", "qemu-nbd", Limit::AtMost(0.4)),
    target("nbd", "rw4k_qd32_cpu", "nbdkit", Limit::AtMost(1.0)),
];

#[cfg(test)]
mod tests {
    use super::{Limit, TARGETS, target, target_value};
    use crate::report::tests::{alone, figure};
    use crate::stats::Better;

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
                assert!((a.suite, a.name, a.of) != (b.suite, b.name, b.of));
            }
        }
    }

    #[test]
    fn a_target_looks_at_its_own_figure_only() {
        let ratio = target("coroutine", "a", "corosensei", Limit::AtMost(1.0));
        let value = target_value("coroutine", "a", "ns", Limit::AtMost(1.0));
        let a = figure("a", Better::Lower, 6.0, 3.0);
        assert_eq!(
            (ratio.measured(&a), value.measured(&a)),
            (Some(2.0), Some(6.0))
        );
        let b = figure("b", Better::Lower, 6.0, 3.0);
        assert_eq!((ratio.measured(&b), value.measured(&b)), (None, None));
        let other_peer = target("coroutine", "a", "tokio", Limit::AtMost(1.0));
        assert_eq!(other_peer.measured(&a), None);
        assert_eq!(
            (
                ratio.measured(&alone("a", 5.0)),
                value.measured(&alone("a", 5.0))
            ),
            (None, Some(5.0))
        );
    }
}
