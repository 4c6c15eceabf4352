//! Signals, turned into events for the main thread.
//!
//! A thread of their own waits for them, because the main thread may be busy stopping when the
//! second one comes, which must end the program at once.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::litter::SharedLitter;

/// What the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first SIGTERM, SIGINT or SIGHUP.
    Stop(i32),
    /// A child may have ended.
    Child,
}

/// What a signal calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Tell(Event),
    /// Leave now, with this status.
    Exit(i32),
    Ignore,
}

/// Takes over the signals and starts the thread. To be called before any other thread is started.
///
/// On a second SIGTERM or SIGINT the thread sweeps `litter` and exits with 128 + signal.
///
/// # Errors
/// The kernel refuses a handler, a pipe or the thread.
pub(crate) fn watch(litter: SharedLitter) -> io::Result<Receiver<Event>> {
    let mut watched = vec![SIGTERM, SIGINT, SIGCHLD];
    // nohup ignores it for us: keep it so.
    if !ignored_at_start(SIGHUP) {
        watched.push(SIGHUP);
    }
    let mut signals = Signals::new(watched)?;
    let (events, receiver) = mpsc::channel();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut stopping = false;
            for signal in signals.forever() {
                obey(decide(signal, &mut stopping), &events, &litter);
            }
        })?;
    Ok(receiver)
}

/// What to do about `signal`.
///
/// SIGHUP never counts as the second: it comes along with others when a terminal closes, and from
/// systemd with SendSIGHUP=.
fn decide(signal: i32, stopping: &mut bool) -> Action {
    match signal {
        SIGCHLD => Action::Tell(Event::Child),
        SIGTERM | SIGINT | SIGHUP if !*stopping => {
            *stopping = true;
            Action::Tell(Event::Stop(signal))
        }
        SIGTERM | SIGINT => Action::Exit(128 + signal),
        _ => Action::Ignore,
    }
}

fn obey(action: Action, events: &Sender<Event>, litter: &SharedLitter) {
    match action {
        // If nobody listens any more, the program is about to end anyway.
        Action::Tell(event) => drop(events.send(event)),
        Action::Exit(status) => {
            litter.sweep();
            low_level::exit(status)
        }
        Action::Ignore => {}
    }
}

/// Whether our parent has set `signal` to be ignored.
fn ignored_at_start(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, signal))
}

/// Looks `signal` up in the mask `SigIgn:` of a /proc/PID/status text.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let bit = u32::try_from(signal - 1)
        .ok()
        .and_then(|shift| 1u64.checked_shl(shift));
    matches!((mask, bit), (Some(mask), Some(bit)) if mask & bit != 0)
}

/// The name of a signal that [`Event::Stop`] carries.
pub(crate) fn name(signal: i32) -> &'static str {
    low_level::signal_name(signal).unwrap_or("a signal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stops_and_the_second_exits() {
        let mut stopping = false;
        assert_eq!(
            decide(SIGTERM, &mut stopping),
            Action::Tell(Event::Stop(SIGTERM))
        );
        assert_eq!(decide(SIGINT, &mut stopping), Action::Exit(130));
        assert_eq!(decide(SIGTERM, &mut stopping), Action::Exit(143));
    }

    #[test]
    fn hangup_stops_but_never_cuts_a_stop_short() {
        let mut stopping = false;
        assert_eq!(
            decide(SIGHUP, &mut stopping),
            Action::Tell(Event::Stop(SIGHUP))
        );
        assert_eq!(decide(SIGHUP, &mut stopping), Action::Ignore);
        assert_eq!(decide(SIGTERM, &mut stopping), Action::Exit(143));
    }

    #[test]
    fn children_are_reported_before_and_during_a_stop() {
        let mut stopping = false;
        assert_eq!(decide(SIGCHLD, &mut stopping), Action::Tell(Event::Child));
        assert!(!stopping);
        stopping = true;
        assert_eq!(decide(SIGCHLD, &mut stopping), Action::Tell(Event::Child));
    }

    #[test]
    fn the_mask_of_ignored_signals_is_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, SIGHUP));
        assert!(ignores(status, 13));
        assert!(!ignores(status, SIGINT));
        assert!(!ignores("SigIgn:\tgarbage\n", SIGHUP));
        assert!(!ignores("", SIGHUP));
        assert!(!ignores(status, 0) && !ignores(status, 1000));
    }
}
