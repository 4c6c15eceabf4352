//! An IoThread whose loop is GLib's.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

use corio::context::LocalContext;
use corio::{AioContext, IoThreadBuilder, Turn};

use crate::main_context::Owned;
use crate::{MainContext, Source};

/// Where other threads find the main context that an IoThread runs.
#[derive(Default)]
struct Slot(Mutex<Option<MainContext>>);

impl Slot {
    fn set(&self, main: Option<MainContext>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = main;
    }

    fn get(&self) -> Option<MainContext> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What this crate adds to [`IoThreadBuilder`].
///
/// ```
/// use corio_glib::IoThreadExt;
/// let io = corio::IoThread::builder().name("io0").glib().spawn()?;
/// assert_eq!(io.context().spawn(|| 1 + 2).join().unwrap(), 3);
/// let main = corio_glib::main_context_of(io.context()).expect("it runs");
/// main.wake();
/// # Ok::<(), corio::Error>(())
/// ```
pub trait IoThreadExt {
    /// Has the thread run a main context of GLib's, with the IoThread's context in it; it is also
    /// that thread's default for sources that libraries make there. A callback's panic is logged
    /// and the loop goes on, as in any IoThread.
    #[must_use]
    fn glib(self) -> Self;
}

impl IoThreadExt for IoThreadBuilder {
    fn glib(self) -> Self {
        self.turn_by(make_turn)
    }
}

/// The main context that the IoThread of this context runs, for sources of other libraries; None
/// unless it was built with [`IoThreadExt::glib`], and once it has ended. Any thread.
#[doc(alias = "iothread_get_g_main_context")]
#[must_use]
pub fn main_context_of(context: &AioContext) -> Option<MainContext> {
    context.attachment(Slot::default).get()
}

fn make_turn(local: LocalContext<'_>) -> io::Result<Turn> {
    let main = MainContext::new();
    let owned = main
        .own()
        .ok_or_else(|| io::Error::other("the new main context is run by another thread"))?;
    let running = Running {
        source: Source::attach(local, &main)?,
        context: local.context().clone(),
        _owned: owned,
    };
    local.context().attachment(Slot::default).set(Some(main));
    Ok(Box::new(move || running.source.iterate(true).map(drop)))
}

/// Fields are dropped in order: the source first, while its main context is still this thread's.
struct Running {
    source: Source,
    context: AioContext,
    _owned: Owned,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.context.attachment(Slot::default).set(None);
    }
}
