//! Suite `capi`: what is reached through C's functions, beside the same through Rust's.
//!
//! `rounds.c` does what the Rust exercises of these names do. `cargo xtask bench` installs the C
//! library, builds that file against it, and names the result in CORIO_CAPI_ROUNDS; it is loaded
//! into this process, so that the sides take turns on one thread. It has a Corio of its own, whose
//! main loop's home this thread is.

#![allow(unsafe_code)] // A library that is loaded, and a function of it.

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStringExt as _;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::Plan;
use crate::contest::{self, Contest, Lap, SWITCHES};
use crate::coroutine::switch;
use crate::event_loop::{BATCHES, WAITS, bottom_half, fd};
use crate::report::Report;

const SUITE: &str = "capi";

const CONTESTS: [Contest; 4] = [
    Contest {
        name: "enter_yield",
        size: SWITCHES,
        ours: |rounds| through_c(c"enter_yield", rounds),
        theirs: &[("rust", switch::ours_in_body)],
    },
    Contest {
        name: "create_run_end",
        size: SWITCHES,
        ours: |rounds| through_c(c"create_run_end", rounds),
        theirs: &[("rust", switch::ours_created)],
    },
    Contest {
        name: "bh_schedule_dispatch",
        size: BATCHES,
        ours: |rounds| through_c(c"bh_schedule_dispatch", rounds),
        theirs: &[("rust", bottom_half::ours_schedule_dispatch)],
    },
    Contest {
        name: "fd_ready_1",
        size: WAITS,
        ours: |rounds| through_c(c"fd_ready_1", rounds),
        theirs: &[("rust", fd::ours::<1>)],
    },
];

type Rounds = unsafe extern "C" fn(*const c_char, u32) -> u64;

static ROUNDS: OnceLock<Rounds> = OnceLock::new();

/// The C function that does the rounds.
fn load() -> anyhow::Result<Rounds> {
    let path = std::env::var_os("CORIO_CAPI_ROUNDS").context(
        "the C library is built by `cargo xtask bench capi`: CORIO_CAPI_ROUNDS is not set",
    )?;
    let path = CString::new(path.into_vec())?;
    // SAFETY: a path; what is loaded is of our making, and stays.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    ensure!(!library.is_null(), "cannot load {path:?}: {}", reason());
    // SAFETY: a library that is loaded.
    let function = unsafe { libc::dlsym(library, c"corio_rounds".as_ptr()) };
    ensure!(!function.is_null(), "{path:?} is not ours: {}", reason());
    // SAFETY: `rounds.c` declares it so.
    Ok(unsafe { std::mem::transmute::<*mut libc::c_void, Rounds>(function) })
}

/// What the loader has to say.
fn reason() -> String {
    // SAFETY: null, or a string that stays until the loader is called again.
    match unsafe { libc::dlerror().cast_const().as_ref() } {
        // SAFETY: as above.
        Some(text) => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
        None => String::new(),
    }
}

fn through_c(name: &CStr, rounds: u32) -> Lap {
    let function = ROUNDS.get().expect("it is loaded before the contests");
    // SAFETY: it is ours, and this thread is its home.
    let took_ns = unsafe { function(name.as_ptr(), rounds) };
    assert_ne!(took_ns, 0, "the C side knows no {name:?}");
    Lap::of_threads(Duration::from_nanos(took_ns))
}

/// Runs the suite.
pub(crate) fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let function = load()?;
    ROUNDS.get_or_init(|| function);
    contest::run(SUITE, &CONTESTS, plan, report)
}
