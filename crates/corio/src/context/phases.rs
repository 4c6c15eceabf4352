//! The parts of a turn one by one, for C programs that know them by name.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{AioContext, Local};

impl AioContext {
    #[track_caller]
    fn local_for(&self, what: &str) -> &Local {
        let local = Local::current().filter(|local| Arc::ptr_eq(&local.context().0, &self.0));
        let Some(local) = local else {
            panic!(
                "{what}: this thread is not the home of context `{}`",
                self.name()
            )
        };
        local
    }

    /// Runs the bottom halves that are scheduled. True: progress.
    pub(crate) fn run_bottom_halves(&self) -> bool {
        self.local_for("aio_bh_poll").run_bottom_halves()
    }

    /// Whether a turn would find something to do.
    pub(crate) fn has_work(&self) -> io::Result<bool> {
        self.local_for("aio_pending").look()
    }

    /// How long a wait may last for all that the context knows but descriptors.
    pub(crate) fn wait_ns_max(&self) -> Option<u64> {
        self.local_for("aio_compute_timeout").timeout_ns()
    }

    /// Another descriptor of the set that the loop waits in, if it waits in one.
    pub(crate) fn descriptor_set(&self) -> Option<io::Result<OwnedFd>> {
        self.local_for("aio_set_fd_handler").pollable()
    }

    /// A notification that has come is used up, as by a turn.
    pub(crate) fn accept_notification(&self) {
        self.inner().notify.accept();
    }
}
