//! What becomes of a coroutine that runs off its stack, and of every other fault. Each test runs in
//! a process of its own, which it ends; its parent looks at what is left.

#![allow(unsafe_code)] // Faults, handlers and mappings made by hand.

use std::cell::Cell;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr;
use std::rc::Rc;

use corio::{Builder, Coroutine};

use super::{again, run};

const SMALL: usize = 64 * 1024;
const KINDS: [&[(&str, &str)]; 2] = [&[], &[("CORIO_STACK_GUARD", "mprotect")]];

/// Runs one test of this file, which asks [`is_child`], in a process of its own.
fn child(test: &str, what: &str, envs: &[(&str, &str)]) -> Output {
    let mut command = again(&format!("overflow::{test}"));
    command
        .env("CORIO_OVERFLOW_CHILD", test)
        .env("CORIO_OVERFLOW_WHAT", what)
        .envs(envs.iter().copied());
    run(&mut command)
}

/// In the child: what it is to do.
fn is_child(test: &str) -> Option<String> {
    (std::env::var("CORIO_OVERFLOW_CHILD").ok()? == test).then(|| {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: no core dumps of what dies on purpose.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
        std::env::var("CORIO_OVERFLOW_WHAT").unwrap()
    })
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Died of SIGSEGV after one line that names the coroutine.
#[track_caller]
fn assert_reported(output: &Output, name: &str, size: usize) {
    let said = said(output);
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{said}");
    let lines: Vec<_> = said.lines().filter(|at| at.starts_with("corio:")).collect();
    let [line] = lines[..] else {
        panic!("not one report: {said}")
    };
    for part in [
        format!("coroutine `{name}` (created at {}:", file!()),
        format!("has overflowed its stack of {size} bytes"),
        "`corio::Builder::stack_size`".into(),
    ] {
        assert!(line.contains(&part), "no {part:?} in {line:?}");
    }
}

#[inline(never)]
fn deeper(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    if depth == 0 {
        return frame[0];
    }
    deeper(depth - 1) + black_box(frame)[1]
}

#[inline(never)]
fn wide() -> usize {
    let frame = black_box([1_u8; 4 * SMALL]);
    black_box(&frame).iter().filter(|&&byte| byte == 1).count()
}

/// A coroutine that overflows, in a home of this thread.
fn overflow(name: Option<&str>) {
    corio::home(|| {
        let mut builder = Builder::new().stack_size(SMALL);
        if let Some(name) = name {
            builder = builder.name(name);
        }
        let co = builder.create(|| _ = black_box(deeper(100_000)));
        co.unwrap().enter();
    });
}

/// Creates coroutines with small stacks until two are neighbours; the lower one is suspended, the
/// higher one runs `f` when entered. With the address of the lower one's top page.
fn neighbours(f: fn()) -> (Coroutine, Coroutine, usize) {
    let mut all: Vec<(usize, Coroutine)> = Vec::new();
    let page = |address: usize| address & !0xfff;
    loop {
        let place = Rc::new(Cell::new(0));
        let tell = Rc::clone(&place);
        let co = Builder::new()
            .name("victim")
            .stack_size(SMALL)
            .create(move || {
                let canary = black_box([0xc0_u8; 64]);
                tell.set(page(canary.as_ptr().addr()));
                corio::suspend();
                f();
                assert_eq!(black_box(canary), [0xc0; 64]);
            })
            .unwrap();
        co.enter();
        let top = place.get();
        for step in [SMALL.wrapping_neg(), SMALL] {
            let other = top.wrapping_add(step);
            if let Some(at) = all.iter().position(|(place, _)| *place == other) {
                let (_, other_co) = all.swap_remove(at);
                // The others are never entered again.
                all.drain(..).for_each(|(_, co)| std::mem::forget(co));
                return if top < other {
                    (co, other_co, top)
                } else {
                    (other_co, co, other)
                };
            }
        }
        all.push((top, co));
        assert!(all.len() < 1000, "no neighbours");
    }
}

/// Puts the first page of `file` in the place of the page at `address`, with what is there; the
/// second page of the file keeps it too.
fn share(address: usize, file: &mut File) {
    let page = ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: the top page of a suspended coroutine's stack.
    let content = unsafe { std::slice::from_raw_parts(page, 4096) }.to_vec();
    file.write_all(&[&content[..], &content[..]].concat())
        .unwrap();
    // SAFETY: what replaces the page has the same content.
    let mapped = unsafe {
        libc::mmap(
            page.cast(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_eq!(mapped, page.cast());
}

// SPEC C7: the process dies with the message, and the neighbouring stack holds what it held.
#[test]
fn neither_recursion_nor_a_large_frame_reaches_the_neighbouring_stack() {
    const NAME: &str = "neither_recursion_nor_a_large_frame_reaches_the_neighbouring_stack";
    if let Some(what) = is_child(NAME) {
        let (what, path) = what.split_once(' ').unwrap();
        corio::home(|| {
            let (lower, higher, page) = neighbours(match what {
                "deep" => || _ = black_box(deeper(100_000)),
                _ => || _ = black_box(wide()),
            });
            share(
                page,
                &mut File::options().write(true).read(true).open(path).unwrap(),
            );
            higher.enter();
            lower.enter();
        });
        unreachable!("the stack held it");
    }
    if cfg!(feature = "asan") {
        return println!(
            "SKIPPED: a look at a suspended stack: AddressSanitizer takes it for a bug"
        );
    }
    for (what, kind) in ["deep", "wide"].into_iter().zip(KINDS.repeat(2)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = child(NAME, &format!("{what} {}", file.path().display()), kind);
        assert_reported(&output, "victim", SMALL);
        let content = std::fs::read(file.path()).unwrap();
        let (now, then) = content.split_at(4096);
        assert!(then.windows(64).any(|at| at == [0xc0; 64]), "no canary");
        assert!(now == then, "{what}: the neighbouring stack has changed");
    }
}

extern "C" fn on_plain_thread(_: *mut libc::c_void) -> *mut libc::c_void {
    overflow(Some("plain"));
    ptr::null_mut()
}

// SPEC C7: whoever made the thread, and with a name or without.
#[test]
fn an_overflow_is_reported_on_every_kind_of_thread() {
    const NAME: &str = "an_overflow_is_reported_on_every_kind_of_thread";
    match is_child(NAME).as_deref() {
        None => {}
        Some("test") => return overflow(Some("on the test's")),
        Some("std") => return std::thread::spawn(|| overflow(None)).join().unwrap(),
        Some("io") => {
            let io = corio::IoThread::builder().spawn().unwrap();
            let deep = io.context().spawn(|| _ = black_box(deeper(10_000_000)));
            return deep.join().unwrap();
        }
        Some(_) => {
            let mut thread = 0;
            // SAFETY: the thread takes nothing and is joined.
            unsafe {
                let (null, on) = (ptr::null(), on_plain_thread);
                libc::pthread_create(&raw mut thread, null, on, ptr::null_mut());
                libc::pthread_join(thread, ptr::null_mut());
            }
            return;
        }
    }
    for (what, name, kind) in [
        ("test", "on the test's", KINDS[0]),
        ("std", "unnamed", KINDS[1]),
        ("pthread", "plain", KINDS[0]),
        ("io", "unnamed", KINDS[0]),
    ] {
        let size = if what == "io" { 4 * SMALL } else { SMALL };
        assert_reported(&child(NAME, what, kind), name, size);
    }
}

fn handle(signal: libc::c_int, handler: usize, flags: libc::c_int) {
    // SAFETY: `handler` is a handler of the kind that the flags say.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(
            libc::sigaction(signal, &raw const action, ptr::null_mut()),
            0
        );
    }
}

extern "C" fn recursing(_: libc::c_int) {
    black_box(deeper(100_000));
}

extern "C" fn doing_nothing(_: libc::c_int) {}

/// Goes down to where less than a signal's frame is left, and takes a signal there.
#[inline(never)]
fn raise_at(limit: usize) -> usize {
    let frame = black_box([0_usize; 8]);
    if frame.as_ptr().addr() > limit {
        return raise_at(limit) + black_box(frame)[0];
    }
    // SAFETY: the handler does nothing.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            libc::gettid(),
            libc::SIGUSR1,
        )
    };
    black_box(frame)[1]
}

/// The lowest address of the running coroutine's slot, which is aligned to its size.
#[inline(never)]
fn low(size: usize) -> usize {
    let here = black_box([0_u8; 8]);
    here.as_ptr().addr() & !(size - 1)
}

// SPEC C7: a signal that is taken on a coroutine's stack needs room there.
#[test]
fn an_overflow_by_a_signal_is_reported() {
    const NAME: &str = "an_overflow_by_a_signal_is_reported";
    match is_child(NAME).as_deref() {
        None => {}
        Some("inside") => {
            handle(libc::SIGUSR1, recursing as *const () as usize, 0);
            return corio::home(|| {
                let co = Builder::new().name("hit").stack_size(SMALL);
                // SAFETY: the handler ends the process.
                co.create(|| _ = unsafe { libc::raise(libc::SIGUSR1) })
                    .unwrap()
                    .enter();
            });
        }
        Some(_) => {
            handle(libc::SIGUSR1, doing_nothing as *const () as usize, 0);
            return corio::home(|| {
                let co = Builder::new().name("full").stack_size(SMALL);
                co.create(|| _ = black_box(raise_at(low(SMALL) + SMALL / 16 + 400)))
                    .unwrap()
                    .enter();
            });
        }
    }
    assert_reported(&child(NAME, "inside", KINDS[0]), "hit", SMALL);
    assert_reported(&child(NAME, "no room", KINDS[0]), "full", SMALL);
}

// SPEC C7: C code that does not probe its frames meets a guard of more than one page.
#[test]
fn the_lowest_byte_of_a_stack_is_guarded() {
    const NAME: &str = "the_lowest_byte_of_a_stack_is_guarded";
    if is_child(NAME).is_some() {
        return corio::home(|| {
            Builder::new()
                .name("jumps")
                .create(|| {
                    let lowest = ptr::with_exposed_provenance_mut::<u8>(low(4 * SMALL));
                    // SAFETY: the guard: the write does not happen.
                    unsafe { lowest.write_volatile(1) };
                })
                .unwrap()
                .enter();
        });
    }
    for kind in KINDS {
        assert_reported(&child(NAME, "", kind), "jumps", 4 * SMALL);
    }
}

/// Where [`mend`] has been told to put memory.
const NOWHERE: usize = 0x1000_0000_0000;

extern "C" fn leave_short(signal: libc::c_int) {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(100 + signal) };
}

extern "C" fn mend(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: maps what nobody uses, where the fault was.
    unsafe {
        let address = (*info).si_addr();
        assert_eq!(address.addr(), NOWHERE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        libc::mmap(
            address,
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        );
    }
}

/// Writes where nothing is mapped, or where [`mend`] maps something.
fn write_nowhere() {
    // SAFETY: not memory of Rust's.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(NOWHERE).write_volatile(7) };
}

fn send(signal: libc::c_int) {
    // SAFETY: to this very thread.
    unsafe { libc::raise(signal) };
}

fn in_coroutine(f: fn()) {
    corio::home(|| Coroutine::new(f).enter());
}

#[allow(unconditional_recursion)] // That is the point.
#[inline(never)]
fn endless(depth: u64) -> u64 {
    let frame = black_box([depth; 512]);
    deeper(frame[0] & 1) + endless(depth + 1) + black_box(frame)[1]
}

/// What the child of the next test does. It ends in its own way, or by exiting with 0.
fn fault(what: &str) {
    let (leave, mend) = (
        leave_short as *const () as usize,
        mend as *const () as usize,
    );
    let once = libc::SA_RESETHAND;
    match what {
        "std" => in_coroutine(write_nowhere),
        "std overflow" => {
            in_coroutine(|| ());
            let native = std::thread::Builder::new().name("native".into());
            _ = native.spawn(|| endless(0)).unwrap().join();
        }
        "default" => {
            handle(libc::SIGSEGV, libc::SIG_DFL, 0);
            in_coroutine(write_nowhere);
        }
        "default sent" => {
            handle(libc::SIGBUS, libc::SIG_DFL, 0);
            in_coroutine(|| send(libc::SIGBUS));
        }
        "ignored" => {
            handle(libc::SIGSEGV, libc::SIG_IGN, 0);
            in_coroutine(write_nowhere);
        }
        "ignored sent" => {
            handle(libc::SIGSEGV, libc::SIG_IGN, 0);
            in_coroutine(|| send(libc::SIGSEGV));
            in_coroutine(|| send(libc::SIGSEGV));
        }
        "short" => {
            handle(libc::SIGSEGV, leave, 0);
            in_coroutine(write_nowhere);
        }
        "short sent" => {
            handle(libc::SIGBUS, leave, libc::SA_ONSTACK);
            in_coroutine(|| send(libc::SIGBUS));
        }
        "mended" => {
            handle(libc::SIGSEGV, mend, libc::SA_SIGINFO);
            in_coroutine(write_nowhere);
        }
        "once" => {
            handle(libc::SIGSEGV, mend, libc::SA_SIGINFO | once);
            in_coroutine(write_nowhere);
            in_coroutine(|| {
                // SAFETY: the page that `mend` has mapped.
                unsafe { libc::munmap(ptr::with_exposed_provenance_mut(NOWHERE), 4096) };
                write_nowhere();
            });
        }
        "later" => {
            in_coroutine(|| ());
            handle(libc::SIGSEGV, leave, libc::SA_ONSTACK);
            overflow(None);
        }
        "overflow" => {
            handle(libc::SIGSEGV, leave, 0);
            overflow(Some("ours"));
        }
        _ => unreachable!("{what}"),
    }
    std::process::exit(0);
}

// SPEC C7: what is no overflow of ours goes to whoever handled it before.
#[test]
fn every_other_fault_goes_to_the_handler_that_was_there() {
    const NAME: &str = "every_other_fault_goes_to_the_handler_that_was_there";
    if let Some(what) = is_child(NAME) {
        return fault(&what);
    }
    if cfg!(feature = "asan") {
        return println!("SKIPPED: other faults: AddressSanitizer reports them");
    }
    let (segv, bus) = (libc::SIGSEGV, libc::SIGBUS);
    for (what, code, signal) in [
        ("std", None, Some(segv)),
        ("std overflow", None, Some(libc::SIGABRT)),
        ("default", None, Some(segv)),
        ("default sent", None, Some(bus)),
        ("ignored", None, Some(segv)),
        ("ignored sent", Some(0), None),
        ("short", Some(100 + segv), None),
        ("short sent", Some(100 + bus), None),
        ("mended", Some(0), None),
        ("once", None, Some(segv)),
        // Whoever installs a handler later has the last word.
        ("later", Some(100 + segv), None),
    ] {
        let output = child(NAME, what, &[]);
        let said = said(&output);
        assert_eq!(output.status.code(), code, "{what}: {said}");
        assert_eq!(output.status.signal(), signal, "{what}: {said}");
        assert!(!said.contains("corio: coroutine"), "{what}: {said}");
        let is_std = said.contains("thread 'native'") && said.contains("overflowed its stack");
        assert_eq!(is_std, what == "std overflow", "{what}: {said}");
    }
    assert_reported(&child(NAME, "overflow", &[]), "ours", SMALL);
}

fn alternate() -> (usize, usize, libc::c_int) {
    // SAFETY: asks only.
    unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(ptr::null(), &raw mut stack), 0);
        (stack.ss_sp.addr(), stack.ss_size, stack.ss_flags)
    }
}

// SPEC C7: a home leaves the thread's alternate signal stack as it was.
#[test]
fn an_alternate_stack_is_used_if_it_is_large_enough_and_put_back_if_not() {
    let check = |before: (usize, usize, libc::c_int), is_kept: bool| {
        assert_eq!(alternate(), before);
        corio::home(|| {
            let inside = alternate();
            assert_eq!(inside == before, is_kept, "{before:?}, inside {inside:?}");
            assert_eq!(inside.2 & libc::SS_DISABLE, 0);
            corio::home(|| assert_eq!(alternate(), inside));
            assert_eq!(alternate(), inside);
        });
        assert_eq!(alternate(), before);
    };
    std::thread::spawn(move || {
        let set = |memory: Option<&mut Vec<u8>>| {
            let stack = libc::stack_t {
                ss_flags: if memory.is_some() {
                    0
                } else {
                    libc::SS_DISABLE
                },
                ss_size: memory.as_ref().map_or(0, |memory| memory.len()),
                ss_sp: memory.map_or(ptr::null_mut(), |memory| memory.as_mut_ptr().cast()),
            };
            // SAFETY: the memory outlives its use: the last call takes it away.
            let done = unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
            assert_eq!(done, 0);
            (stack.ss_sp.addr(), stack.ss_size, stack.ss_flags)
        };
        let std = alternate();
        // SAFETY: reads the auxiliary vector.
        let least = usize::try_from(unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) }).unwrap();
        let (mut small, mut large) = (vec![0; least.max(2048) + 512], vec![0; least + 65_536]);
        check(set(Some(&mut small)), false);
        check(set(Some(&mut large)), true);
        set(None);
        check(alternate(), false);
        let back = libc::stack_t {
            ss_sp: ptr::with_exposed_provenance_mut(std.0),
            ss_size: std.1,
            ss_flags: std.2,
        };
        // SAFETY: what was there.
        unsafe { libc::sigaltstack(&raw const back, ptr::null_mut()) };
    })
    .join()
    .unwrap();
}
