//! A Corio context in a GLib main loop (SPEC G1, I2).
//!
//! ```text
//!   GMainContext, iterated in the context's home thread
//!   ----------------------------------------------------
//!   prepare    Embedded::prepare: ready at once if there is work
//!   poll       the context's one descriptor, among those of the other sources
//!   check      is that descriptor readable?
//!   dispatch   Embedded::dispatch: one turn that does not block
//!   finalize   the context is out of the loop
//! ```
//!
//! [`Source::attach`] puts a context into a [`MainContext`] of GLib's; whoever runs that, by
//! `g_main_loop_run` or [`Source::iterate`], runs the context too. [`IoThreadExt::glib`] makes an
//! IoThread whose loop is GLib's, for libraries that bring sources of their own.
//!
//! A callback's panic does not cross GLib's frames. It is kept in the source, logged, and raised
//! again by [`Source::iterate`] or [`Source::resume_panic`], whichever is called first; a loop that
//! calls neither goes on, as an IoThread's does.
//!
//! ```
//! use corio_glib::{MainContext, Source};
//! let context = corio::AioContext::new()?;
//! context.enter_home(|| {
//!     let local = context.local().expect("this thread is its home");
//!     let child = local.spawn(|| corio::time::sleep(std::time::Duration::from_millis(1)));
//!     let source = Source::attach(local, &MainContext::new())?;
//!     while !child.is_finished() {
//!         source.iterate(true)?;
//!     }
//!     Ok::<_, std::io::Error>(())
//! })??;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod io_thread;
mod main_context;
mod source;

pub use io_thread::{IoThreadExt, main_context_of};
pub use main_context::MainContext;
pub use source::Source;
#[doc(hidden)]
pub use source::detached_source;
