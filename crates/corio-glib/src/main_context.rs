//! GLib's GMainContext, as much of it as a source needs.

#![allow(unsafe_code)] // Calls of GLib's.

use core::marker::PhantomData;
use core::ptr::NonNull;

use glib_sys as ffi;

/// A reference to a GMainContext. Clones name the same one.
///
/// ```
/// use corio_glib::MainContext;
/// let main = MainContext::new();
/// assert!(!main.iterate(false), "there is nothing in it yet");
/// ```
#[derive(Debug)]
pub struct MainContext(NonNull<ffi::GMainContext>);

// SAFETY: GLib's main contexts are counted atomically and have a lock of their own; what is called
// here may be called from any thread, by GLib's documentation ("GMainContext").
unsafe impl Send for MainContext {}
// SAFETY: as above.
unsafe impl Sync for MainContext {}

impl MainContext {
    /// A new one, which nobody runs yet.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: takes nothing; the reference that it returns is ours.
        Self::owned(unsafe { ffi::g_main_context_new() })
    }

    /// The process's default one, which `g_main_loop_new(NULL, ..)` runs.
    #[must_use]
    pub fn global_default() -> Self {
        // SAFETY: takes nothing; the default context is never freed, and the reference is ours.
        Self::owned(unsafe { ffi::g_main_context_ref(ffi::g_main_context_default()) })
    }

    /// One that another binding of GLib made.
    ///
    /// # Safety
    /// `context` points to a living GMainContext. A reference to it is taken.
    #[must_use]
    pub unsafe fn from_raw(context: NonNull<ffi::GMainContext>) -> Self {
        // SAFETY: the caller's promise.
        Self::owned(unsafe { ffi::g_main_context_ref(context.as_ptr()) })
    }

    fn owned(context: *mut ffi::GMainContext) -> Self {
        Self(NonNull::new(context).expect("GLib aborts when it has no memory, and returns no null"))
    }

    /// For calls of GLib's own; valid as long as this is.
    #[must_use]
    pub fn as_ptr(&self) -> *mut ffi::GMainContext {
        self.0.as_ptr()
    }

    /// Runs one iteration: waits if `may_block` and nothing is ready, then dispatches what is. True:
    /// something was dispatched. False, at once, while another thread runs it.
    ///
    /// A panic of a Corio context's callback is kept in its [`Source`](crate::Source), whose own
    /// `iterate` raises it.
    pub fn iterate(&self, may_block: bool) -> bool {
        // SAFETY: the context lives; its callbacks are their makers'.
        unsafe { ffi::g_main_context_iteration(self.as_ptr(), i32::from(may_block)) != 0 }
    }

    /// Ends the wait that is in progress, or else the next one. Any thread.
    pub fn wake(&self) {
        // SAFETY: the context lives.
        unsafe { ffi::g_main_context_wakeup(self.as_ptr()) }
    }

    /// Makes this thread the one that runs it, and it the default of this thread's new sources. None
    /// if another thread runs it.
    pub(crate) fn own(&self) -> Option<Owned> {
        // SAFETY: the context lives; released by `Owned` in this thread, as it is not `Send`.
        if unsafe { ffi::g_main_context_acquire(self.as_ptr()) } == 0 {
            return None;
        }
        // SAFETY: as above; popped by `Owned`.
        unsafe { ffi::g_main_context_push_thread_default(self.as_ptr()) };
        Some(Owned {
            main: self.clone(),
            not_send: PhantomData,
        })
    }
}

impl Clone for MainContext {
    fn clone(&self) -> Self {
        // SAFETY: the context lives as long as our reference.
        Self::owned(unsafe { ffi::g_main_context_ref(self.as_ptr()) })
    }
}

impl Drop for MainContext {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and given back once.
        unsafe { ffi::g_main_context_unref(self.as_ptr()) }
    }
}

impl Default for MainContext {
    fn default() -> Self {
        Self::new()
    }
}

/// A thread's hold on a main context; of that thread.
pub(crate) struct Owned {
    main: MainContext,
    not_send: PhantomData<*const ()>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `own` pushed and acquired it in this thread, and nothing else of ours pushes.
        unsafe {
            ffi::g_main_context_pop_thread_default(self.main.as_ptr());
            ffi::g_main_context_release(self.main.as_ptr());
        }
    }
}
