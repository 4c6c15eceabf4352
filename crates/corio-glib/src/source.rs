//! A context as a GSource.
//!
//! GLib allocates the source, with room for a [`Raw`]; that holds a count of the [`Inner`], which
//! the Rust handle shares.
//!
//! Invariants
//! - I1 `Inner` is touched in the thread that attached it only. Whoever else iterates the main
//!   context, or drops the last reference to the source, finds a thread's id that is not its own,
//!   and touches nothing more.
//! - I2 No panic leaves a function that GLib calls.
//! - I3 `inner` owns one count from `attach` until `finalize`, which GLib calls once.

#![allow(unsafe_code)] // Functions that GLib calls, with a struct that GLib allocates.

use core::any::Any;
use core::cell::{Cell, RefCell};
use core::ptr::{self, NonNull};
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::thread::{self, ThreadId};

use corio::context::{Embedded, LocalContext};
use glib_sys as ffi;

use crate::MainContext;

/// What GLib allocates. Its first field is GLib's own, so that a pointer to one is a pointer to the
/// other.
#[repr(C)]
struct Raw {
    source: ffi::GSource,
    /// See I3.
    inner: *const Inner,
    /// See I1.
    thread: ThreadId,
}

struct Inner {
    embedded: Embedded,
    /// Names the descriptor to GLib.
    tag: Cell<ffi::gpointer>,
    /// What the loop was not told yet: the first of each.
    panic: RefCell<Option<Box<dyn Any + Send>>>,
    error: RefCell<Option<io::Error>>,
}

/// GLib's table of functions, which it only reads.
struct Functions(ffi::GSourceFuncs);

// SAFETY: pointers to functions, and never written.
unsafe impl Sync for Functions {}

static FUNCTIONS: Functions = Functions(ffi::GSourceFuncs {
    prepare: Some(prepare),
    check: Some(check),
    dispatch: Some(dispatch),
    finalize: Some(finalize),
    closure_callback: None,
    closure_marshal: None,
});

/// A context that is a source of a main context of GLib's. Dropping it takes it out; dropped by a
/// callback of its own, once that has returned.
///
/// Of the context's home thread (it is not `Send`), in which the main context has to be iterated: in
/// another thread nothing of the context runs.
///
/// ```
/// use std::{cell::Cell, rc::Rc};
/// use corio_glib::{MainContext, Source};
/// let context = corio::AioContext::new()?;
/// context.enter_home(|| {
///     let main = MainContext::new();
///     let source = Source::attach(context.local().expect("this is its home"), &main)?;
///     context.schedule_oneshot("hello", || println!("from a main loop of GLib's"));
///     assert!(main.iterate(true));
///     drop(source);
///     Ok::<_, std::io::Error>(())
/// })??;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it takes the context out of the main loop"]
pub struct Source {
    source: NonNull<ffi::GSource>,
    main: MainContext,
    inner: Rc<Inner>,
}

impl Source {
    /// Puts the context into `main`, with the default priority. It may recurse: a callback may
    /// iterate `main`.
    ///
    /// # Errors
    /// As of [`LocalContext::embed`]: the context's monitor is not epoll, no descriptors.
    ///
    /// # Panics
    /// If the context is in a foreign loop already; after its home has ended.
    #[doc(alias = "aio_get_g_source")]
    #[track_caller]
    pub fn attach(local: LocalContext<'_>, main: &MainContext) -> io::Result<Self> {
        let (source, inner) = create(local)?;
        // SAFETY: the source is ours, and in no main context yet.
        unsafe { ffi::g_source_attach(source.as_ptr(), main.as_ptr()) };
        Ok(Self {
            source,
            main: main.clone(),
            inner,
        })
    }

    /// Runs one iteration of the main context; see [`MainContext::iterate`].
    ///
    /// # Errors
    /// The context's monitor refused something.
    ///
    /// # Panics
    /// With a callback's panic.
    pub fn iterate(&self, may_block: bool) -> io::Result<bool> {
        let dispatched = self.main.iterate(may_block);
        self.resume_panic();
        match self.inner.error.take() {
            Some(error) => Err(error),
            None => Ok(dispatched),
        }
    }

    /// Raises a callback's panic that came while the main context was run by somebody else, if there
    /// was one: to be called where `g_main_loop_run` returns.
    ///
    /// # Panics
    /// With that panic.
    pub fn resume_panic(&self) {
        let panic = self.inner.panic.take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// The main context that it is in.
    #[must_use]
    pub fn main_context(&self) -> &MainContext {
        &self.main
    }

    /// Changes its priority among the sources of its main context; lower numbers come first, 0 is
    /// the default.
    pub fn set_priority(&self, priority: i32) {
        // SAFETY: the source lives as long as our reference.
        unsafe { ffi::g_source_set_priority(self.source.as_ptr(), priority) }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: `g_source_new` gave us the reference, which is given back once.
        unsafe {
            ffi::g_source_destroy(self.source.as_ptr());
            ffi::g_source_unref(self.source.as_ptr());
        }
    }
}

impl core::fmt::Debug for Source {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Source")
            .field("embedded", &self.inner.embedded)
            .finish_non_exhaustive()
    }
}

/// Makes a source that is in no main context yet; the one reference to it is the caller's.
#[track_caller]
fn create(local: LocalContext<'_>) -> io::Result<(NonNull<ffi::GSource>, Rc<Inner>)> {
    let inner = Rc::new(Inner {
        embedded: local.embed()?,
        tag: Cell::new(ptr::null_mut()),
        panic: RefCell::default(),
        error: RefCell::default(),
    });
    let functions = ptr::from_ref(&FUNCTIONS.0).cast_mut();
    let size = u32::try_from(size_of::<Raw>()).expect("it has some hundred bytes");
    // SAFETY: the table is static and GLib does not write to it; `size` is what is written
    // below.
    let source = unsafe { ffi::g_source_new(functions, size) };
    let source = NonNull::new(source).expect("GLib aborts when it has no memory");
    // SAFETY: GLib allocated a `Raw`, which nobody else knows yet; `inner`'s count is given back by
    // `finalize` (I3). The descriptor is open for as long as `embedded` is, which outlives the
    // source's use of it: `finalize` is the last that GLib does.
    unsafe {
        let raw = source.as_ptr().cast::<Raw>();
        (&raw mut (*raw).inner).write(Rc::into_raw(Rc::clone(&inner)));
        (&raw mut (*raw).thread).write(thread::current().id());
        ffi::g_source_set_name(source.as_ptr(), c"corio context".as_ptr());
        ffi::g_source_set_can_recurse(source.as_ptr(), ffi::GTRUE);
        let fd = inner.embedded.as_raw_fd();
        let tag = ffi::g_source_add_unix_fd(source.as_ptr(), fd, ffi::G_IO_IN);
        inner.tag.set(tag);
    }
    Ok((source, inner))
}

/// For the C interface: a source that is in no main context yet, the one reference to which is the
/// caller's. What goes wrong in it is logged, and a panic kept from everybody.
///
/// # Errors
/// As of [`Source::attach`].
///
/// # Panics
/// As of [`Source::attach`].
#[doc(hidden)]
#[track_caller]
pub fn detached_source(local: LocalContext<'_>) -> io::Result<NonNull<ffi::GSource>> {
    create(local).map(|(source, _)| source)
}

/// The source's own, in its own thread and while its home lives (I1). A count of its own, as the
/// callbacks that run may drop everybody else's.
///
/// # Safety
/// `source` is one that `attach` made, and is not finalized.
unsafe fn inner_of(source: *mut ffi::GSource) -> Option<Rc<Inner>> {
    let raw = source.cast::<Raw>();
    // SAFETY: written by `attach` before GLib knew the source, and not since.
    let (inner, thread) = unsafe { ((*raw).inner, (*raw).thread) };
    if thread != thread::current().id() {
        return None;
    }
    // SAFETY: I3: `inner` has a count until `finalize`; this is its thread.
    let inner = unsafe {
        Rc::increment_strong_count(inner);
        Rc::from_raw(inner)
    };
    inner.embedded.is_live().then_some(inner)
}

/// Runs what GLib called (I2). What a callback panics with is kept for the loop.
///
/// # Safety
/// As of `inner_of`.
unsafe fn guarded(
    source: *mut ffi::GSource,
    f: impl FnOnce(&Inner) -> ffi::gboolean,
    otherwise: ffi::gboolean,
) -> ffi::gboolean {
    // SAFETY: the caller's promise.
    let Some(inner) = (unsafe { inner_of(source) }) else {
        return otherwise;
    };
    match catch_unwind(AssertUnwindSafe(|| f(&inner))) {
        Ok(answer) => answer,
        Err(payload) => {
            tracing::error!(
                context = inner.embedded.context().name(),
                "a callback panicked in a main loop of GLib's, which goes on; \
                 Source::iterate or Source::resume_panic raises it"
            );
            let mut panic = inner.panic.borrow_mut();
            match &*panic {
                None => *panic = Some(payload),
                // Its destructor could panic.
                Some(_) => core::mem::forget(payload),
            }
            otherwise
        }
    }
}

/// GLib is about to wait. The descriptor tells of deadlines, in nanoseconds where GLib has
/// milliseconds.
unsafe extern "C" fn prepare(source: *mut ffi::GSource, timeout_ms: *mut i32) -> ffi::gboolean {
    let ready = |inner: &Inner| {
        let is_ready = inner.embedded.prepare().is_some_and(|wait| wait.is_zero());
        ffi::gboolean::from(is_ready)
    };
    // SAFETY: GLib calls this with a source of ours, and a place for a time-out.
    unsafe {
        timeout_ms.write(-1);
        guarded(source, ready, ffi::GFALSE)
    }
}

/// GLib has waited. May be left out after `prepare`.
unsafe extern "C" fn check(source: *mut ffi::GSource) -> ffi::gboolean {
    let ready = |inner: &Inner| {
        // SAFETY: the tag is the source's own, and its descriptor is never removed.
        let events = unsafe { ffi::g_source_query_unix_fd(source, inner.tag.get()) };
        ffi::gboolean::from(events != 0)
    };
    // SAFETY: GLib calls this with a source of ours.
    unsafe { guarded(source, ready, ffi::GFALSE) }
}

/// GLib found the source ready. It stays in the main context.
unsafe extern "C" fn dispatch(
    source: *mut ffi::GSource,
    _callback: ffi::GSourceFunc,
    _data: ffi::gpointer,
) -> ffi::gboolean {
    let turn = |inner: &Inner| {
        if let Err(error) = inner.embedded.dispatch() {
            tracing::error!(
                context = inner.embedded.context().name(),
                "the context's turn in a main loop of GLib's failed: {error}"
            );
            inner.error.borrow_mut().get_or_insert(error);
        }
        ffi::G_SOURCE_CONTINUE
    };
    // SAFETY: GLib calls this with a source of ours.
    unsafe { guarded(source, turn, ffi::G_SOURCE_CONTINUE) }
}

/// GLib lets go of the source. In another thread the context cannot be taken out of the loop, and
/// its descriptor is leaked.
unsafe extern "C" fn finalize(source: *mut ffi::GSource) {
    let raw = source.cast::<Raw>();
    // SAFETY: written by `attach`; GLib calls this once (I3).
    let (inner, thread) = unsafe { ((*raw).inner, (*raw).thread) };
    if thread != thread::current().id() {
        eprintln!("corio-glib: a source was finalized off its home thread and is leaked");
        return;
    }
    // SAFETY: the count that `attach` gave to the source, in its own thread (I1).
    let inner = unsafe { Rc::from_raw(inner) };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(inner))) {
        core::mem::forget(payload);
    }
}
