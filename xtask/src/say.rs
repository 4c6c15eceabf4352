//! Where a job's words go: to stdout as they come, or, of one that runs beside others, into a
//! buffer that is printed as a whole when it has ended, so that lines of two are never mixed.

use std::cell::RefCell;
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use crate::child::Stream;

/// What is kept of one job's words. It is much more than any of them says; the rest is left out,
/// and that is said.
const KEPT_MAX: usize = 32 << 20;

/// Says a line, as `println!` does, where the thread's words go.
macro_rules! say {
    ($($what:tt)*) => {
        $crate::say::line(format_args!($($what)*))
    };
}
pub(crate) use say;

/// Where words go.
#[derive(Clone, Default)]
pub(crate) enum Voice {
    #[default]
    Aloud,
    Kept(Arc<Mutex<Vec<u8>>>),
}

thread_local! {
    static VOICE: RefCell<Voice> = const { RefCell::new(Voice::Aloud) };
}

impl Voice {
    /// The calling thread's.
    pub(crate) fn own() -> Voice {
        VOICE.with_borrow(Voice::clone)
    }

    /// Passes on what a child wrote.
    pub(crate) fn pass_on(&self, stream: Stream, bytes: &[u8]) {
        // A closed stdout must not stop the run: its verdict is the exit code.
        let _ = match (self, stream) {
            (Self::Kept(kept), _) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = KEPT_MAX.saturating_sub(kept.len()).min(bytes.len());
                kept.write_all(bytes.get(..room).unwrap_or_default())
            }
            (Self::Aloud, Stream::Out) => std::io::stdout().write_all(bytes),
            (Self::Aloud, Stream::Err) => std::io::stderr().write_all(bytes),
        };
        let _ = std::io::stdout().flush();
    }
}

/// Says a line; see [`say!`].
pub(crate) fn line(what: fmt::Arguments<'_>) {
    Voice::own().pass_on(Stream::Out, format!("{what}\n").as_bytes());
}

/// Keeps what `f` and the children that it watches say in this thread.
pub(crate) fn kept<T>(f: impl FnOnce() -> T) -> (T, Vec<u8>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let before = VOICE.replace(Voice::Kept(Arc::clone(&kept)));
    let result = f();
    VOICE.set(before);
    let mut said = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
    if said.len() >= KEPT_MAX {
        said.extend_from_slice(b"\nxtask: what it said after this is left out\n");
    }
    (result, said)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::child;

    #[test]
    fn what_is_said_in_a_thread_and_by_its_children_is_kept_in_order() {
        let ((), said) = kept(|| {
            say!("a {}", 1);
            let mut echo = Command::new("echo");
            let soon = Instant::now() + Duration::from_secs(20);
            child::watch(echo.arg("b"), soon, true, &mut |_, _| ()).unwrap();
            say!("c");
        });
        assert_eq!(String::from_utf8(said).unwrap(), "a 1\nb\nc\n");
        assert!(matches!(Voice::own(), Voice::Aloud));
    }

    #[test]
    fn what_is_too_long_is_cut_and_that_is_said() {
        let ((), said) = kept(|| {
            for _ in 0..33 {
                Voice::own().pass_on(Stream::Err, &vec![b'x'; 1 << 20]);
            }
        });
        assert!(said.starts_with(b"xx") && said.len() < KEPT_MAX + 100);
        assert!(said.ends_with(b"is left out\n"));
    }
}
