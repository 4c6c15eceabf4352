//! Calls that wait for the end of a section (defer_call), with the disk requests made in it.
//!
//! Sections are the thread's: a coroutine that yields in one lets others into it, so the header
//! forbids that. Disk requests are gathered as by [`corio::engine::gather`].

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem;

use corio::raw::{self, EndOfGather};

use crate::abort;

type Function = unsafe extern "C" fn(*mut c_void);

/// This thread's section.
#[derive(Default)]
struct Section {
    depth: u32,
    /// Each once, in the order in which they came.
    calls: Vec<(Function, *mut c_void)>,
    /// The outermost section's; None also where there is no loop.
    gather: Option<EndOfGather>,
}

thread_local! {
    static SECTION: RefCell<Section> = RefCell::default();
}

/// Never across C's code.
#[inline(never)]
fn with<R>(f: impl FnOnce(&mut Section) -> R) -> R {
    SECTION.with_borrow_mut(f)
}

#[unsafe(no_mangle)]
extern "C" fn defer_call_begin() {
    abort::on_panic();
    with(|section| {
        match section.depth.checked_add(1) {
            Some(depth) => section.depth = depth,
            None => die!("defer_call_begin: too many sections in one another"),
        }
        if section.depth == 1 {
            section.gather = raw::begin_gather();
        }
    });
}

#[unsafe(no_mangle)]
extern "C" fn defer_call_end() {
    let (calls, gather) = with(|section| {
        match section.depth.checked_sub(1) {
            Some(depth) => section.depth = depth,
            None => die!("defer_call_end: there was no defer_call_begin"),
        }
        match section.depth {
            0 => (mem::take(&mut section.calls), section.gather.take()),
            _ => (Vec::new(), None),
        }
    });
    for (function, opaque) in calls {
        // SAFETY: the header's contract.
        unsafe { function(opaque) };
    }
    drop(gather); // What they have requested goes, too.
}

#[unsafe(no_mangle)]
unsafe extern "C" fn defer_call(function: Option<Function>, opaque: *mut c_void) {
    let function = function.unwrap_or_else(|| die!("defer_call: the function is NULL"));
    let now = with(|section| {
        if section.depth == 0 {
            return true;
        }
        let is_there = |&(other, with): &(Function, *mut c_void)| {
            with == opaque && std::ptr::fn_addr_eq(other, function)
        };
        if !section.calls.iter().any(is_there) {
            section.calls.push((function, opaque));
        }
        false
    });
    if now {
        // SAFETY: the header's contract.
        unsafe { function(opaque) };
    }
}
