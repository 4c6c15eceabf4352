//! RLIMIT_NOFILE: as many clients as were asked for must be able to connect.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::door::TOLD_AT_ONCE_MAX;

/// What the program itself has open, without clients: standard streams, image, listeners.
const FILES_BASE: u64 = 64;
/// Loops have an epoll descriptor, an eventfd, a ring, and helpers.
const FILES_PER_THREAD: u64 = 16;
/// A client's socket.
const FILES_PER_CLIENT: u64 = 1;

/// Raises the soft limit as far as needed and allowed. Returns a warning if that is not enough.
pub(crate) fn raise_open_files(connections: u32, iothreads: u32) -> Option<String> {
    let needed = files_needed(connections, iothreads);
    let limit = getrlimit(Resource::Nofile);
    let Some(raised) = raised(limit, needed) else {
        return shortage(
            limit.maximum,
            connections,
            needed,
            covers(limit.current, needed),
        );
    };
    let allowed = raised.current;
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => shortage(limit.maximum, connections, needed, covers(allowed, needed)),
        Err(_) => shortage(limit.current, connections, needed, false),
    }
}

fn files_needed(connections: u32, iothreads: u32) -> u64 {
    let clients = u64::from(connections) + u64::from(TOLD_AT_ONCE_MAX);
    FILES_BASE + FILES_PER_THREAD * u64::from(iothreads) + FILES_PER_CLIENT * clients
}

/// `None` stands for no limit.
fn covers(limit: Option<u64>, needed: u64) -> bool {
    limit.is_none_or(|limit| limit >= needed)
}

/// The limit to set, or `None` when the present one is enough or cannot be raised.
///
/// All the way to the hard limit, not just to what is needed: `FILES_*` are estimates, and a limit
/// reserves nothing.
fn raised(limit: Rlimit, needed: u64) -> Option<Rlimit> {
    if covers(limit.current, needed) || limit.current == limit.maximum {
        return None;
    }
    Some(Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    })
}

fn shortage(limit: Option<u64>, connections: u32, needed: u64, enough: bool) -> Option<String> {
    if enough {
        return None;
    }
    let limit = limit.unwrap_or(u64::MAX);
    Some(format!(
        "--connections {connections} may need {needed} open files and the limit is {limit}: \
         clients beyond it wait; raise it with ulimit -Hn or LimitNOFILE="
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(current: u64, maximum: u64) -> Rlimit {
        Rlimit {
            current: Some(current),
            maximum: Some(maximum),
        }
    }

    #[test]
    fn an_ample_limit_is_left_alone() {
        assert!(raised(limit(1024, 4096), 1000).is_none());
        assert!(raised(limit(1024, 4096), 1024).is_none());
        assert!(
            raised(
                Rlimit {
                    current: None,
                    maximum: None
                },
                1 << 40
            )
            .is_none()
        );
    }

    #[test]
    fn a_small_limit_goes_to_the_hard_one() {
        let got = raised(limit(1024, 4096), 1025).unwrap();
        assert_eq!((got.current, got.maximum), (Some(4096), Some(4096)));
        let unlimited = Rlimit {
            current: Some(1024),
            maximum: None,
        };
        assert_eq!(raised(unlimited, 1025).unwrap().current, None);
    }

    #[test]
    fn what_cannot_be_raised_is_said() {
        assert!(raised(limit(64, 64), 1000).is_none());
        let warning = shortage(Some(64), 500, 1000, false).unwrap();
        assert!(
            warning.contains("--connections 500") && warning.contains("is 64"),
            "{warning}"
        );
        assert!(shortage(Some(64), 500, 1000, true).is_none());
    }

    #[test]
    fn need_grows_with_clients_and_threads() {
        assert!(files_needed(100, 1) < files_needed(101, 1));
        assert!(files_needed(100, 1) < files_needed(100, 2));
        assert!(files_needed(u32::MAX, u32::MAX) > u64::from(u32::MAX));
    }
}
