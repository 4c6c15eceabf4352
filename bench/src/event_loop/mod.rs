//! Suite `loop`: what a turn of the event loop costs, and what it is given to do.
//!
//! Bottom halves are beside crossbeam's `SegQueue`, which queues and does nothing else; descriptors
//! beside mio; timers beside a `BTreeMap` of (deadline, number); what crosses threads beside tokio,
//! a current_thread runtime on each of two threads and an unbounded channel between them, and beside
//! the kernel alone.
//!
//! Files: `bottom_half` queues and runs, `fd` writes one eventfd among idle ones while `reads` reads a
//! file, `timer` arms, cancels and expires, `remote` crosses threads.

pub(crate) mod bottom_half;
pub(crate) mod fd;
mod reads;
mod remote;
mod timer;

use crate::Plan;
use crate::contest::{self, Contest, Size};
use crate::report::Report;

const SUITE: &str = "loop";

/// For rounds of some ten nanoseconds; rounds are done in batches of a hundred or a thousand.
pub(crate) const BATCHES: Size = Size {
    rounds: 20_000,
    repeats: 20,
};
/// For rounds of a microsecond.
pub(crate) const WAITS: Size = Size {
    rounds: 20_000,
    repeats: 8,
};
/// For rounds of several microseconds, in which two threads wait for each other.
const HOPS: Size = Size {
    rounds: 5_000,
    repeats: 4,
};
const MILLIONS: Size = Size {
    rounds: 2_000_000,
    repeats: 3,
};

const CONTESTS: [Contest; 16] = [
    Contest {
        name: "bh_schedule_dispatch",
        size: BATCHES,
        ours: bottom_half::ours_schedule_dispatch,
        theirs: &[("SegQueue", bottom_half::theirs_in_hundreds)],
    },
    Contest {
        name: "bh_poll",
        size: BATCHES,
        ours: bottom_half::ours_poll,
        theirs: &[("SegQueue", bottom_half::theirs_one_by_one)],
    },
    Contest {
        name: "bh_oneshot",
        size: BATCHES,
        ours: bottom_half::ours_oneshot,
        theirs: &[("SegQueue", bottom_half::theirs_in_hundreds)],
    },
    Contest {
        name: "bh_remote_schedule",
        size: BATCHES,
        ours: bottom_half::ours_remote,
        theirs: &[("SegQueue", bottom_half::theirs_in_thousands)],
    },
    Contest {
        name: "fd_ready_1",
        size: WAITS,
        ours: fd::ours::<1>,
        theirs: &[("mio", fd::mio::<1>)],
    },
    Contest {
        name: "fd_ready_63",
        size: WAITS,
        ours: fd::ours::<63>,
        theirs: &[("mio", fd::mio::<63>)],
    },
    Contest {
        name: "fd_ready_4000",
        size: WAITS,
        ours: fd::ours::<4000>,
        theirs: &[("mio", fd::mio::<4000>)],
    },
    Contest {
        name: "fd_ready_1_reads",
        size: WAITS,
        ours: fd::ours_beside_reads::<1>,
        theirs: &[("mio", fd::mio_beside_reads::<1>)],
    },
    Contest {
        name: "fd_ready_63_reads",
        size: WAITS,
        ours: fd::ours_beside_reads::<63>,
        theirs: &[("mio", fd::mio_beside_reads::<63>)],
    },
    Contest {
        name: "fd_ready_4000_reads",
        size: WAITS,
        ours: fd::ours_beside_reads::<4000>,
        theirs: &[("mio", fd::mio_beside_reads::<4000>)],
    },
    Contest {
        name: "hop",
        size: HOPS,
        ours: remote::ours_hop,
        theirs: &[("tokio", remote::tokio_hop), ("bare", remote::bare)],
    },
    Contest {
        name: "hop_polled",
        size: HOPS,
        ours: remote::ours_hop_polled,
        theirs: &[("tokio", remote::tokio_hop)],
    },
    Contest {
        name: "remote_bh",
        size: MILLIONS,
        ours: remote::ours_oneshots,
        theirs: &[("tokio", remote::tokio_oneshots)],
    },
    Contest {
        name: "remote_bh_polled",
        size: MILLIONS,
        ours: remote::ours_oneshots_polled,
        theirs: &[("tokio", remote::tokio_oneshots)],
    },
    Contest {
        name: "remote_wake",
        size: HOPS,
        ours: remote::ours_wake,
        theirs: &[("tokio", remote::tokio_wake), ("bare", remote::bare)],
    },
    Contest {
        name: "remote_wake_polled",
        size: HOPS,
        ours: remote::ours_wake_polled,
        theirs: &[("tokio", remote::tokio_wake)],
    },
];

/// Runs the suite.
pub(crate) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    contest::run(SUITE, &CONTESTS, plan, report)?;
    timer::run(plan, report)
}

#[cfg(test)]
mod tests {
    use super::CONTESTS;

    #[test]
    fn all_sides_do_as_many_rounds_as_asked() {
        crate::contest::tests::all_do_as_many_rounds_as_asked(&CONTESTS);
    }
}
