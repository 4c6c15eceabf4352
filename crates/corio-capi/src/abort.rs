//! How misuse and panics end the process: one line on standard error, then SIGABRT.
//!
//! No panic can be answered by C, and none may unwind its frames. So the first of them is the end:
//! the hook prints it and aborts, before anything unwinds. It is installed by whatever makes the
//! first object (`abort::on_panic`). Should one come earlier, it aborts where it would leave the
//! `extern "C"` function.

use std::fmt::Arguments;
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::sync::Once;

/// Ends the process with a line on standard error, `corio: ` and what is given as to `format!`.
macro_rules! die {
    ($($message:tt)*) => {
        $crate::abort::die(format_args!($($message)*))
    };
}

#[cold]
#[inline(never)]
pub(crate) fn die(message: Arguments<'_>) -> ! {
    // In one piece, and without the lock of std's handle, which this thread may hold.
    let mut line = Vec::new();
    let _ = writeln!(line, "corio: {message}");
    // SAFETY: the bytes are there. What cannot be written is lost.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    std::process::abort()
}

/// Has every panic from now on end the process.
#[inline]
pub(crate) fn on_panic() {
    static INSTALLED: Once = Once::new();
    // The tests of this crate are Rust's, whose panics are failures to be reported.
    if !cfg!(test) {
        INSTALLED.call_once(|| std::panic::set_hook(Box::new(end)));
    }
}

fn end(panic: &PanicHookInfo<'_>) {
    match panic.payload_as_str() {
        Some(message) => die!("{message}"),
        None => die!("a panic without a message"),
    }
}
