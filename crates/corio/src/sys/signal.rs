//! sigaction(2) and sigaltstack(2): hearing of faults before the process dies of them.
//!
//! ```text
//!   SIGSEGV, SIGBUS --> on_signal (on the thread's alternate stack)
//!                          | report(fault) says it was ours        | it was not
//!                          v                                       v
//!                       default action: the process dies      the handler that was there before
//! ```
//!
//! Invariants
//! - I1 Whatever `report` does not claim reaches who handled it before, as if nobody had come
//!   between: its mask and its SA_NODEFER, SA_RESTART and SA_RESETHAND are kept.
//! - I2 A handler neither allocates, nor locks, nor unwinds, and leaves errno as it was.

#![allow(unsafe_code)] // Signal handlers and their stacks; SAFETY comments name the invariants.

use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};
use std::io::IoSlice;
use std::sync::OnceLock;

use super::mem;

/// What a thread's alternate stack must hold besides the kernel's frame for our handler and the
/// one that it passes a fault on to, in bytes. std's own stacks are of 8 KiB, frame included.
const ALTERNATE_ROOM: usize = 4 * 1024;
/// The alternate stack that a thread without one is given, in bytes, besides the kernel's frame.
const ALTERNATE_SIZE: usize = 64 * 1024;
/// `si_code` when the kernel could not say which access it was: among others, when a signal's frame
/// did not fit on the stack.
const SI_KERNEL: libc::c_int = 0x80;

/// The signals that a fault is told by.
const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// A fault of this thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// What could not be accessed; None where the kernel does not know.
    pub(crate) address: Option<usize>,
    /// The stack pointer at that time; 0 where the architecture is not known to us.
    pub(crate) stack_pointer: usize,
}

/// Says whether a fault is its own, and then tells of it: the process dies. Runs in a signal
/// handler: I2.
type Report = fn(&Fault) -> bool;

static REPORT: OnceLock<Report> = OnceLock::new();
/// Who handled each of [`SIGNALS`] before; null for the default action. What is pointed to is never
/// freed, as a handler may be reading it.
static BEFORE: [AtomicPtr<libc::sigaction>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

/// Has `report` asked at each SIGSEGV and SIGBUS that is a fault, once for the process: later calls
/// do nothing. A handler that is installed later by others replaces this one.
pub(crate) fn on_fault(report: Report) {
    let mut is_first = false;
    REPORT.get_or_init(|| {
        is_first = true;
        report
    });
    if is_first {
        for (signal, before) in SIGNALS.into_iter().zip(&BEFORE) {
            install(signal, before);
        }
    }
}

fn install(signal: libc::c_int, before: &AtomicPtr<libc::sigaction>) {
    // SAFETY: all zeroes is a `sigaction`: the default action.
    let mut found: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: reads the action into a variable of ours.
    if unsafe { libc::sigaction(signal, ptr::null(), &raw mut found) } != 0 {
        return;
    }
    let mut ours = found; // Its mask: I1.
    if matches!(found.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
        ours.sa_flags = 0;
    }
    ours.sa_flags &= libc::SA_NODEFER | libc::SA_RESTART;
    ours.sa_flags |= libc::SA_SIGINFO | libc::SA_ONSTACK;
    ours.sa_sigaction = on_signal as *const () as usize;
    // Known before ours is in place, so that no fault finds nobody. Release: pairs with `chain`.
    before.store(Box::into_raw(Box::new(found)), Ordering::Release);
    // SAFETY: the handler is one, and keeps to I2.
    unsafe { libc::sigaction(signal, &raw const ours, ptr::null_mut()) };
}

/// The handler.
extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: errno is this thread's own.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel hands over a siginfo and a ucontext that live as long as the handler runs.
    let (code, address, stack_pointer) =
        unsafe { ((*info).si_code, (*info).si_addr().addr(), sp(context)) };
    let is_fault = code > 0;
    let fault = Fault {
        address: (code != SI_KERNEL).then_some(address),
        stack_pointer,
    };
    if is_fault && REPORT.get().is_some_and(|report| report(&fault)) {
        die(signal, code);
    } else {
        chain(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// The stack pointer of what was interrupted.
///
/// # Safety
/// `context` is the `ucontext_t` that the kernel gave a handler.
unsafe fn sp(context: *mut libc::c_void) -> usize {
    let context = context.cast::<libc::ucontext_t>();
    #[cfg(target_arch = "x86_64")]
    {
        let index = usize::try_from(libc::REG_RSP).unwrap_or_default();
        // SAFETY: the caller's promise.
        let sp = unsafe { (*context).uc_mcontext.gregs[index] };
        sp.cast_unsigned().try_into().unwrap_or_default()
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: the caller's promise.
        unsafe { (*context).uc_mcontext.sp }
            .try_into()
            .unwrap_or_default()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        _ = context;
        0
    }
}

/// The default action once the handler returns: the fault happens again, so that a core dump shows
/// where. What would not happen again is raised.
fn die(signal: libc::c_int, code: libc::c_int) {
    // SAFETY: all zeroes is the default action; `raise` sends this thread a signal that is blocked
    // until the handler returns, or taken at once.
    unsafe {
        let default: libc::sigaction = core::mem::zeroed();
        libc::sigaction(signal, &raw const default, ptr::null_mut());
        if code <= 0 || code == SI_KERNEL {
            libc::raise(signal);
        }
    }
}

/// I1.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = &BEFORE[usize::from(signal == SIGNALS[1])];
    // Acquire: pairs with the store in `install`.
    let action = before.load(Ordering::Acquire);
    // SAFETY: null, or what `install` leaked.
    let action = unsafe { action.as_ref() };
    // SAFETY: `info` is the kernel's.
    let code = unsafe { (*info).si_code };
    match action.map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        libc::SIG_DFL => die(signal, code),
        // The kernel ignores what was sent, and a fault never.
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_IGN => die(signal, code),
        handler => {
            let flags = action.map_or(0, |action| action.sa_flags);
            if flags & libc::SA_RESETHAND != 0 {
                before.store(ptr::null_mut(), Ordering::Release); // Pairs with the load above.
            }
            // SAFETY: the address of a handler of the kind that the flag says, which its owner gave
            // to sigaction.
            unsafe {
                if flags & libc::SA_SIGINFO != 0 {
                    type Long = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                    core::mem::transmute::<usize, Long>(handler)(signal, info, context);
                } else {
                    type Short = extern "C" fn(libc::c_int);
                    core::mem::transmute::<usize, Short>(handler)(signal);
                }
            }
        }
    }
}

/// Writes `pieces` to standard error in one call, where other threads' output cannot come between.
/// May be called in a signal handler. A piece that cannot be read ends the message.
pub(crate) fn write_error<const N: usize>(pieces: &[&[u8]; N]) {
    let pieces = pieces.map(IoSlice::new);
    let count = libc::c_int::try_from(N).unwrap_or_default();
    // What cannot be written to anybody is lost.
    // SAFETY: an IoSlice is an iovec; writev only reads what it refers to.
    _ = unsafe { libc::writev(libc::STDERR_FILENO, pieces.as_ptr().cast(), count) };
}

/// This thread's alternate signal stack, for as long as the value lives: one that was there, if it
/// is large enough, or ours, with a guard below it.
#[derive(Debug)]
pub(crate) struct AlternateStack {
    ours: Option<Ours>,
    /// It is put back on its own thread.
    not_send: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Ours {
    mapping: NonNull<u8>,
    len: usize,
    before: libc::stack_t,
}

impl AlternateStack {
    /// Where none can be had, faults on a coroutine's stack end the process unreported.
    pub(crate) fn ensure() -> Self {
        Self {
            ours: provide(),
            not_send: PhantomData,
        }
    }
}

/// None: there is one, or none is to be had.
fn provide() -> Option<Ours> {
    let before = exchange(None)?;
    let frame = mem::min_signal_stack();
    if before.ss_flags & libc::SS_DISABLE == 0 && before.ss_size >= frame + ALTERNATE_ROOM {
        return None;
    }
    let page = mem::page_size();
    let len = (frame + ALTERNATE_SIZE).next_multiple_of(page) + page;
    let mapping = mem::reserve(len, page, mem::Access::ReadWrite).ok()?;
    // SAFETY: the lowest page of a reservation that nobody else knows.
    let guarded = unsafe { mem::protect_none(mapping, page) };
    let stack = libc::stack_t {
        // SAFETY: the reservation is longer than a page.
        ss_sp: unsafe { mapping.add(page) }.as_ptr().cast(),
        ss_flags: 0,
        ss_size: len - page,
    };
    if guarded.is_err() || exchange(Some(&stack)).is_none() {
        // SAFETY: nothing uses it.
        unsafe { mem::release(mapping, len) };
        return None;
    }
    Some(Ours {
        mapping,
        len,
        before,
    })
}

/// The alternate stack that was there; None if the kernel refuses, as it does on that stack.
fn exchange(new: Option<&libc::stack_t>) -> Option<libc::stack_t> {
    let mut old = libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: reads and fills variables of ours. A stack that is set stays until it is replaced:
    // `Ours` sees to that, and who made `before` is told so by the documentation of homes.
    (unsafe { libc::sigaltstack(new, &raw mut old) } == 0).then_some(old)
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        let Some(ours) = self.ours.take() else { return };
        let Some(now) = exchange(None) else { return };
        // Someone else's by now is left as it is.
        if now.ss_sp.addr() == ours.mapping.addr().get() + mem::page_size() {
            let mut before = ours.before;
            if before.ss_flags & libc::SS_DISABLE != 0 {
                before.ss_flags = libc::SS_DISABLE; // The kernel takes no other flag beside it.
            }
            if exchange(Some(&before)).is_none() {
                return; // It runs on it at this moment: leaked.
            }
        }
        // SAFETY: no thread's alternate stack any more.
        unsafe { mem::release(ours.mapping, ours.len) };
    }
}
