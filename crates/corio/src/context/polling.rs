//! Adaptive polling: before a turn waits for descriptors, it asks those handlers that can be asked
//! from user space whether they have something, for a while that their own past decides (SPEC P1
//! to P7). If it is to, it asks the kernel, too, which then is as one handler more (ADR 0021).
//!
//! Here is the arithmetic, which knows neither handlers nor a clock; `phase` does the polling.
//!
//! ```text
//!   an event came after t ns of waiting; the handler's time is T
//!     t ≤ T         polling would have caught it, or has: T stays
//!     t > max_ns    no polling could: T / shrink, or 0
//!     else          a little longer would have caught it: T × grow, at least 4 us, at most max_ns
//! ```

mod phase;

pub(super) use phase::{PollState, Polled, Polling};

use crate::error::Error;

/// A handler's first time that is not zero.
const FIRST_NS: u64 = 4_000;
/// How long a handler may be without an event before it is not polled any more.
const IDLE_NS: u64 = 7_000_000_000;
/// The largest `max_ns`: nothing else runs on the loop's thread meanwhile.
const MAX_NS_MAX: u64 = 1_000_000_000;
/// Over how long the budget may be saved up.
const BUDGET_WINDOW_NS: u64 = 100_000_000;

/// How a context polls before it waits.
///
/// ```
/// use corio::context::PollParams;
/// let context = corio::AioContext::new()?;
/// assert_eq!(context.poll_params(), PollParams::default()); // It does not.
/// context.set_poll_params(PollParams { max_ns: 50_000, ..PollParams::IO_THREAD })?;
/// let refused = context.set_poll_params(PollParams { grow: 1, ..PollParams::IO_THREAD });
/// assert!(refused.unwrap_err().to_string().starts_with("poll_grow is 1"));
/// # Ok::<(), corio::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollParams {
    /// For how long one turn polls at most, in nanoseconds, up to a second; 0: not at all.
    pub max_ns: u64,
    /// What a handler's time is multiplied with when it was too short; at least 2.
    pub grow: u32,
    /// What it is divided by when no polling would have been long enough; 0: to zero at once.
    pub shrink: u32,
    /// Which share of a core polling may take, in percent, from 1 to 100. What is not used is saved
    /// up for a tenth of a second.
    pub budget_percent: u32,
    /// Whether the kernel is asked as well, by a system call a round that tells of all descriptors:
    /// for how long is decided by what it has told of, as by a handler's events. Those without a
    /// callback to be polled by then do not keep the others from it. While requests for files are in
    /// flight it is not asked, as a disk takes longer.
    ///
    /// For loops whose peers answer within some microseconds, where to sleep and be woken takes
    /// longer than the answer; it suits a `max_ns` above the two together.
    pub ask_kernel: bool,
}

impl PollParams {
    /// Those of an [`IoThread`](crate::IoThread).
    pub const IO_THREAD: Self = Self {
        max_ns: 32_768,
        grow: 2,
        shrink: 0,
        budget_percent: 100,
        ask_kernel: false,
    };

    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |name, value: u64, expected| {
            Err(Error::Parameter {
                name,
                value: value.to_string(),
                expected,
            })
        };
        if self.max_ns > MAX_NS_MAX {
            return refuse("poll_max_ns", self.max_ns, "at most 1000000000, a second");
        }
        if self.grow < 2 {
            return refuse("poll_grow", self.grow.into(), "2 or more");
        }
        if !(1..=100).contains(&self.budget_percent) {
            return refuse(
                "poll_budget_percent",
                self.budget_percent.into(),
                "1 to 100",
            );
        }
        Ok(())
    }
}

impl Default for PollParams {
    /// No polling, as on a bare context.
    fn default() -> Self {
        Self {
            max_ns: 0,
            ..Self::IO_THREAD
        }
    }
}

/// What polling has made of a handler.
///
/// ```
/// use corio::context::{Interest, PollStats};
/// use std::os::unix::net::UnixStream;
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let local = context.local().expect("this thread is its home");
///     let (ours, _theirs) = UnixStream::pair()?;
///     let handler = local.add_handler(ours, Interest::READ, |_| ())?;
///     handler.set_poll(|| false, || ());
///     assert_eq!(handler.poll_stats(), PollStats::default());
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollStats {
    /// Whether it is polled: it has had an event, and not been idle for long since.
    pub is_polled: bool,
    /// How long it would be polled now.
    pub time_ns: u64,
    /// How often polling found it ready.
    pub hits: u64,
    /// How long it was polled in turns that did not find it ready so.
    pub wasted_ns: u64,
}

/// For how long a handler is worth polling, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PollTime(u64);

/// What became of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
enum Adjusted {
    Kept,
    Grown { old_ns: u64, new_ns: u64 },
    Shrunk { old_ns: u64, new_ns: u64 },
}

impl PollTime {
    /// An event came after `waited_ns` (SPEC P2).
    fn adjust(&mut self, waited_ns: u64, params: &PollParams) -> Adjusted {
        let old_ns = self.0;
        if waited_ns <= old_ns {
            return Adjusted::Kept;
        }
        let shrinks = waited_ns > params.max_ns;
        let new_ns = if shrinks {
            // By 0: to zero.
            old_ns.checked_div(params.shrink.into()).unwrap_or(0)
        } else {
            let grown = old_ns.saturating_mul(params.grow.into());
            grown.max(FIRST_NS).min(params.max_ns)
        };
        self.0 = new_ns;
        match new_ns == old_ns {
            true => Adjusted::Kept,
            false if shrinks => Adjusted::Shrunk { old_ns, new_ns },
            false => Adjusted::Grown { old_ns, new_ns },
        }
    }
}

/// What polling may still take of a core (SPEC P7).
#[derive(Clone, Copy, Debug)]
struct Budget {
    percent: u64,
    /// Saved up; below zero after a round that took longer than there was.
    left_ns: i64,
    filled_ns: u64,
}

impl Budget {
    fn new(percent: u32, now_ns: u64) -> Self {
        Self {
            percent: percent.into(),
            left_ns: 0,
            filled_ns: now_ns,
        }
    }

    /// How much of `wanted_ns` there is.
    fn allow(&mut self, now_ns: u64, wanted_ns: u64) -> u64 {
        if self.percent >= 100 {
            return wanted_ns;
        }
        // What is older than the window does not count; a clock that stands still earns nothing.
        let elapsed_ns = now_ns.saturating_sub(self.filled_ns).min(BUDGET_WINDOW_NS);
        let share_ns = |ns: u64| i64::try_from(ns * self.percent / 100).unwrap_or(i64::MAX);
        let earned_ns = share_ns(elapsed_ns);
        if earned_ns > 0 {
            // Only then, or often asking would lose the fractions.
            self.left_ns = (self.left_ns + earned_ns).min(share_ns(BUDGET_WINDOW_NS));
            self.filled_ns = now_ns;
        }
        wanted_ns.min(u64::try_from(self.left_ns).unwrap_or(0))
    }

    fn spend(&mut self, ns: u64) {
        self.left_ns = self.left_ns.saturating_sub_unsigned(ns);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
