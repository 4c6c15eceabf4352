//! `SharedResource`: a number of units that coroutines take and give back.

use std::mem;

use corio::raw;
use corio::sync::Semaphore;

use crate::abort;

/// The one at `s`; dies if it is null.
///
/// # Safety
/// `s` is null or one of `shres_create`.
unsafe fn at<'a>(s: *mut Semaphore, function: &str) -> &'a Semaphore {
    // SAFETY: the caller's promise.
    match unsafe { s.as_ref() } {
        Some(s) => s,
        None => die!("{function}: the resource is NULL"),
    }
}

/// A number of units, of which there are so many; dies if there are not.
fn amount(s: &Semaphore, n: u64, function: &str) -> usize {
    match usize::try_from(n) {
        Ok(n) if n <= s.total() => n,
        _ => die!("{function}: {n} of a resource of {}", s.total()),
    }
}

#[unsafe(no_mangle)]
extern "C" fn shres_create(total: u64) -> *mut Semaphore {
    abort::on_panic();
    let Ok(total) = usize::try_from(total) else {
        die!("shres_create: {total} are too many")
    };
    Box::into_raw(Box::new(Semaphore::new(total)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn shres_destroy(s: *mut Semaphore) {
    if s.is_null() {
        return;
    }
    // SAFETY: the header asks for one that nobody uses any more.
    unsafe {
        raw::settle_semaphore(&*s);
        let taken = (*s).total() - (*s).available();
        if taken > 0 {
            die!("shres_destroy: {taken} were not given back");
        }
        drop(Box::from_raw(s));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn co_get_from_shres(s: *mut Semaphore, n: u64) {
    const NAME: &str = "co_get_from_shres";
    // SAFETY: the header asks for a resource.
    let s = unsafe { at(s, NAME) };
    let n = amount(s, n, NAME);
    if !corio::in_coroutine() {
        die!("{NAME}: called outside a coroutine");
    }
    mem::forget(s.acquire(n));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn co_try_get_from_shres(s: *mut Semaphore, n: u64) -> bool {
    const NAME: &str = "co_try_get_from_shres";
    // SAFETY: the header asks for a resource.
    let s = unsafe { at(s, NAME) };
    match s.try_acquire(amount(s, n, NAME)) {
        Some(permit) => {
            mem::forget(permit);
            true
        }
        None => false,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn co_put_to_shres(s: *mut Semaphore, n: u64) {
    const NAME: &str = "co_put_to_shres";
    // SAFETY: the header asks for a resource.
    let s = unsafe { at(s, NAME) };
    let n = amount(s, n, NAME);
    let taken = s.total() - s.available();
    if n > taken {
        die!("{NAME}: {n} are given back of {taken} that were taken");
    }
    raw::give_back(s, n);
}
