//! Handlers of descriptors.
//!
//! ```text
//!   any thread:  Watched (by descriptor: what C wants) ── home: at once; else a bottom half ──▶ apply
//!   home only:   Watches (by descriptor: what is watched)                                       ◀┘
//! ```
//!
//! What a removed handler would be called with may be freed as soon as `aio_set_fd_handler` returns
//! in the home thread. From another thread the home may be calling it at that moment, and C has to
//! see to it that what it uses stays until the home has turned. The descriptor may be closed, and its
//! number be another's, at once in either case.
//!
//! Invariants
//! - I1 What was removed and set again has another serial, so that the home never takes a new file
//!   for the old one of the same number.
//! - I2 The home registers a descriptor under the lock of `Watched`, and another thread that removes
//!   one takes it out of the home's epoll set under it: no registration outlives the removal. (The
//!   set knows files, not descriptors: one that has a duplicate would stay when it is closed, and
//!   could not be taken out any more.)

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Mutex;

use corio::context::{Handler, Interest, LocalContext, Readiness};
use corio::raw;

use crate::context::Context;

pub(crate) type IoHandler = unsafe extern "C" fn(*mut c_void);
pub(crate) type AioPollFn = unsafe extern "C" fn(*mut c_void) -> bool;

/// What C wants of a descriptor.
#[derive(Clone, Copy, PartialEq)]
#[allow(unpredictable_function_pointer_comparisons)] // A difference that is none costs a call.
pub(crate) struct Calls {
    pub(crate) read: Option<IoHandler>,
    pub(crate) write: Option<IoHandler>,
    pub(crate) poll: Option<AioPollFn>,
    pub(crate) poll_ready: Option<IoHandler>,
    pub(crate) poll_begin: Option<IoHandler>,
    pub(crate) poll_end: Option<IoHandler>,
    pub(crate) opaque: *mut c_void,
}

// SAFETY: which thread they are called in is what C asks for.
unsafe impl Send for Calls {}

impl Calls {
    fn interest(&self) -> Interest {
        Interest {
            read: self.read.is_some(),
            write: self.write.is_some(),
        }
    }

    fn is_polled(&self) -> bool {
        self.poll.is_some() && self.poll_ready.is_some()
    }
}

/// What C wants watched.
#[derive(Default)]
pub(crate) struct Watched(Mutex<All>);

#[derive(Default)]
struct All {
    by_fd: HashMap<c_int, Wanted>,
    /// The last one given out (I1).
    serial: u64,
    /// A duplicate of the home's epoll set, if it has one: for other threads (I2).
    set: Option<OwnedFd>,
}

/// What C wants of a descriptor, since when.
#[derive(Clone, Copy)]
struct Wanted {
    calls: Calls,
    serial: u64,
}

impl Watched {
    /// In a new home: watches everything.
    pub(crate) fn apply_all(&self, ctx: &Context) {
        let mut all = crate::locked(&self.0);
        all.set = None; // The last home's.
        let fds: Vec<_> = all.by_fd.keys().copied().collect();
        for fd in fds {
            apply(ctx, &mut all, fd);
        }
    }
}

impl All {
    fn insert(&mut self, fd: c_int, calls: Calls) {
        if let Some(wanted) = self.by_fd.get_mut(&fd) {
            wanted.calls = calls;
            return;
        }
        self.serial += 1;
        let serial = self.serial;
        self.by_fd.insert(fd, Wanted { calls, serial });
    }

    /// Takes a descriptor out of the home's set, off its thread (I2).
    fn forget(&self, fd: c_int) {
        if let Some(set) = &self.set {
            // It is not in there if the home has not got to it, or does without the set by now.
            // SAFETY: numbers; the set is open.
            unsafe {
                libc::epoll_ctl(
                    set.as_raw_fd(),
                    libc::EPOLL_CTL_DEL,
                    fd,
                    std::ptr::null_mut(),
                )
            };
        }
    }
}

/// What the home watches, by descriptor.
type Watches = RefCell<HashMap<c_int, Rc<Watch>>>;

struct Watch {
    /// None once it is removed.
    calls: Rc<Cell<Option<Calls>>>,
    handler: Handler<BorrowedFd<'static>>,
    is_polled: bool,
    serial: u64,
}

/// Has `fd` watched in `ctx` as `wanted` says, or not at all. Any thread.
pub(crate) fn set(ctx: &Context, fd: c_int, wanted: Option<Calls>) {
    set_if(ctx, fd, |_| Some(wanted));
}

/// The same, as `wanted` says when it is told what is wanted at present; None: as at present.
pub(crate) fn set_if(
    ctx: &Context,
    fd: c_int,
    wanted: impl FnOnce(Option<&Calls>) -> Option<Option<Calls>>,
) {
    let mut all = crate::locked(&ctx.watched.0);
    let is_home = ctx.rust().is_home();
    match wanted(all.by_fd.get(&fd).map(|wanted| &wanted.calls)) {
        None => return,
        Some(Some(calls)) => all.insert(fd, calls),
        Some(None) if all.by_fd.remove(&fd).is_none() => return,
        Some(None) if is_home => {}
        Some(None) => all.forget(fd),
    }
    if is_home {
        return apply(ctx, &mut all, fd);
    }
    drop(all);
    // What is there keeps the context: it may be freed before the bottom half runs.
    let address = std::ptr::from_ref(ctx).addr();
    ctx.rust().schedule_oneshot("aio_set_fd_handler", move || {
        // The context that runs it is this thread's, if C has not freed it.
        let ctx = Context::current();
        if ctx.addr() == address {
            // SAFETY: the thread's current context is there.
            let ctx = unsafe { &*ctx };
            apply(ctx, &mut crate::locked(&ctx.watched.0), fd);
        }
    });
}

/// Changes what is wanted of a descriptor that is watched. False: it is not.
pub(crate) fn change(ctx: &Context, fd: c_int, change: impl FnOnce(&mut Calls)) -> bool {
    let mut is_there = false;
    set_if(ctx, fd, |present| {
        let mut calls = *present?;
        is_there = true;
        change(&mut calls);
        Some(Some(calls))
    });
    is_there
}

/// Watches a descriptor as is wanted. The home thread. Nothing of C's runs in here, under the lock.
fn apply(ctx: &Context, all: &mut All, fd: c_int) {
    let Some(local) = ctx.rust().local() else {
        return;
    };
    let watches = local.attachment(Watches::default);
    let wanted = all.by_fd.get(&fd).copied();
    let found = watches.borrow().get(&fd).cloned();
    if let (Some(watch), Some(Wanted { calls, serial })) = (&found, wanted)
        && watch.is_polled == calls.is_polled()
        && watch.serial == serial
    {
        watch.calls.set(Some(calls));
        if let Err(error) = watch.handler.set_interest(calls.interest()) {
            die!("aio_set_fd_handler: descriptor {fd}: {error}");
        }
        return;
    }
    if let Some(watch) = found {
        watch.calls.set(None);
        watches.borrow_mut().remove(&fd);
    }
    if let Some(wanted) = wanted {
        let watch = Rc::new(watch(local, fd, wanted));
        watches.borrow_mut().insert(fd, watch);
        if all.set.is_none() {
            // Without it (it may be refused) other threads leave it to the home.
            all.set = raw::descriptor_set(ctx.rust()).and_then(Result::ok);
        }
    }
}

fn watch(local: LocalContext<'_>, fd: c_int, Wanted { calls, serial }: Wanted) -> Watch {
    if fd < 0 {
        die!("aio_set_fd_handler: {fd} is no descriptor");
    }
    // SAFETY: the header asks for one that is open until it is removed.
    let borrowed: BorrowedFd<'static> = unsafe { BorrowedFd::borrow_raw(fd) };
    let shared = Rc::new(Cell::new(Some(calls)));
    let ready = Rc::clone(&shared);
    let added = local.add_handler(borrowed, calls.interest(), move |why| dispatch(&ready, why));
    let handler = match added {
        Ok(handler) => handler,
        Err(error) => die!("aio_set_fd_handler: descriptor {fd}: {error}"),
    };
    let is_polled = calls.is_polled();
    if is_polled {
        let (asked, found) = (Rc::clone(&shared), Rc::clone(&shared));
        let poll = move || {
            let calls = asked.get();
            let poll = calls.and_then(|calls| Some((calls.poll?, calls.opaque)));
            // SAFETY: the header's contract.
            poll.is_some_and(|(poll, opaque)| unsafe { poll(opaque) })
        };
        handler.set_poll(poll, move || call(&found, |calls| calls.poll_ready));
        let (begins, ends) = (Rc::clone(&shared), Rc::clone(&shared));
        handler.set_poll_notify(
            move || call(&begins, |calls| calls.poll_begin),
            move || call(&ends, |calls| calls.poll_end),
        );
    }
    Watch {
        calls: shared,
        handler,
        is_polled,
        serial,
    }
}

#[inline]
fn dispatch(calls: &Cell<Option<Calls>>, why: Readiness) {
    if why.read {
        call(calls, |calls| calls.read);
    }
    if why.write {
        call(calls, |calls| calls.write); // Which the first may have changed.
    }
}

/// Calls one of them, if it is wanted still.
#[inline]
fn call(calls: &Cell<Option<Calls>>, which: impl FnOnce(&Calls) -> Option<IoHandler>) {
    if let Some(calls) = calls.get()
        && let Some(function) = which(&calls)
    {
        // SAFETY: the header's contract.
        unsafe { function(calls.opaque) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_set_fd_handler(
    ctx: *mut Context,
    fd: c_int,
    io_read: Option<IoHandler>,
    io_write: Option<IoHandler>,
    io_poll: Option<AioPollFn>,
    io_poll_ready: Option<IoHandler>,
    opaque: *mut c_void,
) {
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, "aio_set_fd_handler") };
    if io_poll.is_some() && io_poll_ready.is_none() {
        die!("aio_set_fd_handler: io_poll without io_poll_ready");
    }
    let calls = Calls {
        read: io_read,
        write: io_write,
        poll: io_poll,
        poll_ready: io_poll_ready,
        poll_begin: None,
        poll_end: None,
        opaque,
    };
    let is_wanted = io_read.is_some() || io_write.is_some() || io_poll.is_some();
    set(ctx, fd, is_wanted.then_some(calls));
}
