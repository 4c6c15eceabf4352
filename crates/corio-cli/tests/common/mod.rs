//! What the black-box tests of the program share.
//!
//! - [`serve`]: starts `corio serve`, reads the addresses it prints, ends it with the test;
//! - [`tool`]: runs the real clients under a deadline, or says which of them is missing;
//! - [`nbd`]: a small client that speaks the protocol's bytes by hand. It shares no code with
//!   the project's codec, so that one mistake cannot hide on both sides;
//! - [`data`]: patterns, files and their sums;
//! - [`ledger`]: a write load that keeps book of what must survive a crash;
//! - [`tls`]: certificates, and the bridge by which [`nbd`] speaks TLS;
//! - [`Combo`]: the monitor and the engine the server is run with, and whether through TLS.
//!
//! Skips and figures are printed: `cargo xtask test` runs the tests with `--show-output`, shows
//! them and counts the skips.

// Each test binary compiles this module for itself and uses a part of it.
#![allow(dead_code, unused_macros, unused_imports)]

pub(crate) mod data;
pub(crate) mod ledger;
pub(crate) mod nbd;
pub(crate) mod serve;
pub(crate) mod tls;
pub(crate) mod tool;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One way of running the server: what its loops wait with, what does its disk I/O, and whether
/// clients are to speak TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Combo {
    pub(crate) monitor: &'static str,
    pub(crate) engine: &'static str,
    pub(crate) tls: bool,
}

impl Combo {
    pub(crate) const EPOLL_URING: Combo = Combo {
        monitor: "epoll",
        engine: "io_uring",
        tls: false,
    };
    pub(crate) const EPOLL_THREADS: Combo = Combo {
        monitor: "epoll",
        engine: "threads",
        tls: false,
    };
    pub(crate) const URING_URING: Combo = Combo {
        monitor: "io_uring",
        engine: "io_uring",
        tls: false,
    };
    pub(crate) const URING_THREADS: Combo = Combo {
        monitor: "io_uring",
        engine: "threads",
        tls: false,
    };
    pub(crate) const POLL_URING: Combo = Combo {
        monitor: "poll",
        engine: "io_uring",
        tls: false,
    };
    /// For images past the page cache only.
    pub(crate) const EPOLL_AIO: Combo = Combo {
        monitor: "epoll",
        engine: "linux-aio",
        tls: false,
    };
    /// As that.
    pub(crate) const URING_AIO: Combo = Combo {
        monitor: "io_uring",
        engine: "linux-aio",
        tls: false,
    };
    /// What a user gets who asks for nothing.
    pub(crate) const AUTO: Combo = Combo {
        monitor: "auto",
        engine: "auto",
        tls: false,
    };

    /// What a user gets who asks for TLS alone.
    pub(crate) const TLS: Combo = Combo {
        tls: true,
        ..Combo::AUTO
    };

    /// True where images are past the page cache, and memory disks have another engine.
    pub(crate) fn is_direct(self) -> bool {
        self.engine == "linux-aio"
    }

    /// True where the server needs a ring.
    pub(crate) fn uses_io_uring(self) -> bool {
        self.monitor == "io_uring" || self.engine == "io_uring"
    }
}

impl fmt::Display for Combo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "monitor {}, engine {}", self.monitor, self.engine)?;
        f.write_str(if self.tls { ", through TLS" } else { "" })
    }
}

/// Makes four tests of each function `fn(Combo)`: both monitors with both engines.
macro_rules! matrix {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::common::Combo;

            #[test]
            fn on_epoll_with_io_uring() {
                super::$name(Combo::EPOLL_URING);
            }

            #[test]
            fn on_epoll_with_threads() {
                super::$name(Combo::EPOLL_THREADS);
            }

            #[test]
            fn on_io_uring_with_io_uring() {
                super::$name(Combo::URING_URING);
            }

            #[test]
            fn on_io_uring_with_threads() {
                super::$name(Combo::URING_THREADS);
            }
        }
    )+};
}
pub(crate) use matrix;

/// Makes a test of each function `fn(Combo)`: the list again, through TLS.
macro_rules! again_through_tls {
    ($($name:ident),+ $(,)?) => {
        mod through_tls {
            $(
                #[test]
                fn $name() {
                    super::$name(crate::common::Combo::TLS);
                }
            )+
        }
    };
}
pub(crate) use again_through_tls;

/// Makes a test of each function `fn(Combo)`: the list again, on Linux AIO, and so with images past
/// the page cache.
macro_rules! again_on_linux_aio {
    ($($name:ident),+ $(,)?) => {
        mod on_linux_aio {
            $(
                #[test]
                fn $name() {
                    super::$name(crate::common::Combo::EPOLL_AIO);
                }
            )+
        }
    };
}
pub(crate) use again_on_linux_aio;

/// Makes tests of each function `fn(Combo)` in all of these ways.
macro_rules! everywhere {
    ($($name:ident),+ $(,)?) => {
        crate::common::matrix!($($name),+);
        crate::common::again_through_tls!($($name),+);
        crate::common::again_on_linux_aio!($($name),+);
    };
}
pub(crate) use everywhere;

/// Ends the test as skipped, out loud: `skip!("no loop device: {e}")`.
macro_rules! skip {
    ($($why:tt)+) => {{
        fn here() {}
        $crate::common::say_skipped(std::any::type_name_of_val(&here), format_args!($($why)+));
        return;
    }};
}
pub(crate) use skip;

/// Skips the test unless every program named is installed and, given a [`Combo`], unless the
/// machine has what that needs: `need!(combo, "fio", "nbdinfo")`.
macro_rules! need {
    ($combo:expr $(, $tool:literal)* $(,)?) => {{
        let wanted: &[&str] = &[$($tool),*];
        if let Some(missing) = wanted.iter().find(|tool| !$crate::common::tool::exists(tool)) {
            $crate::common::skip!("{missing} missing");
        }
        if $crate::common::Combo::uses_io_uring($combo) && !$crate::common::tool::io_uring_works() {
            $crate::common::skip!("io_uring refused by this machine");
        }
    }};
}
pub(crate) use need;

/// Prints the line that `cargo xtask test` counts. `here` is the path of an item in the test.
pub(crate) fn say_skipped(here: &str, why: fmt::Arguments<'_>) {
    let test = here.strip_suffix("::here").unwrap_or(here);
    println!("SKIPPED: {test}: {why}");
}

/// Held by a test that needs the machine to itself, as far as its own binary goes: one that
/// measures, or that fills the page cache.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks at `condition` until it holds. Panics with `what` when `limit` has passed.
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
