//! A context as a GSource of GLib's.
//!
//! Each home has at most one, made when it is first asked for, of which it keeps a reference. What
//! has been destroyed is replaced, once C has given up its own references to it.

use std::cell::RefCell;
use std::ptr::NonNull;

use corio_glib::detached_source;
use glib_sys as ffi;

use crate::abort;
use crate::context::Context;

/// A home's source.
struct Kept(NonNull<ffi::GSource>);

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: the reference is ours. What C has attached goes with the home.
        unsafe {
            ffi::g_source_destroy(self.0.as_ptr());
            ffi::g_source_unref(self.0.as_ptr());
        }
    }
}

impl Kept {
    fn is_destroyed(&self) -> bool {
        // SAFETY: the reference is ours.
        unsafe { ffi::g_source_is_destroyed(self.0.as_ptr()) != 0 }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn aio_get_g_source(ctx: *mut Context) -> *mut ffi::GSource {
    const NAME: &str = "aio_get_g_source";
    abort::on_panic();
    // SAFETY: the header asks for a context to which the caller has a reference.
    let ctx = unsafe { Context::at(ctx, NAME) };
    ctx.check_home(NAME);
    let Some(local) = ctx.rust().local() else {
        unreachable!("this thread is its home");
    };
    let kept = local.attachment(RefCell::<Option<Kept>>::default);
    let destroyed = kept.borrow_mut().take_if(|kept| kept.is_destroyed());
    drop(destroyed); // Which calls GLib, with nothing borrowed.
    let of_before = kept.borrow().as_ref().map(|kept| kept.0);
    let source = match of_before.map_or_else(|| detached_source(local), Ok) {
        Ok(source) => source,
        Err(error) => die!("{NAME}: {error}"),
    };
    if of_before.is_none() {
        kept.replace(Some(Kept(source)));
    }
    // SAFETY: the source is there; C gets a reference of its own.
    unsafe { ffi::g_source_ref(source.as_ptr()) }
}
