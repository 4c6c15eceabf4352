//! What a loop's thread asks of the kernel.

#![allow(unsafe_code)] // Signal masks.

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::error::Error;

/// Blocks all signals that can be blocked, so that they go to the program's own threads, and asks
/// for timers without slack (SPEC I1, M4).
pub(crate) fn prepare_loop_thread() {
    block_signals();
    // SAFETY: PR_SET_TIMERSLACK takes a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Has this thread, and those that it starts from now on, run on these processors only.
pub(crate) fn set_cpus(cpus: &[usize]) -> Result<(), Error> {
    let mut set = CpuSet::new();
    // No kernel has one of a larger number, and `set` panics.
    for &cpu in cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).map_err(|errno| Error::Os {
        op: "sched_setaffinity: none of the processors can be used",
        source: errno.into(),
    })
}

/// How many processors this thread may run on; 1 where the kernel does not tell.
pub(crate) fn processors() -> u32 {
    sched_getaffinity(None).map_or(1, |set| set.count())
}

/// The processor on which this thread runs, or ran a moment ago.
#[inline]
pub(crate) fn processor() -> usize {
    sched_getcpu()
}

/// How many processors can be named.
pub(crate) const CPUS_MAX: usize = CpuSet::MAX_CPU;

/// Blocks all signals but those that report a fault of this very thread.
pub(crate) fn block_signals() {
    // SAFETY: the calls fill and read a `sigset_t` of ours.
    unsafe {
        let mut set: libc::sigset_t = core::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
            libc::SIGABRT,
        ] {
            libc::sigdelset(&raw mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, core::ptr::null_mut());
    }
}
