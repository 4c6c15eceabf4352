//! What stacks cost, and that they give it back. Tests of the whole process's memory, limits or
//! pools run in a process of their own.

#![allow(unsafe_code)] // Limits, locked memory and a look at which pages are there.

use std::cell::Cell;
use std::collections::HashSet;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::rc::Rc;
use std::time::Instant;

use corio::{Builder, Coroutine, Error, IoThread, stack_pool, stack_usage};

use super::{again, run};

const DEFAULT: usize = 256 * 1024;
const PAGE: usize = 4096;

/// Runs one test of this file, which asks [`is_child`], in a process of its own; what it printed.
fn child(test: &str, what: &str) -> Output {
    let mut command = again(&format!("stacks::{test}"));
    command
        .env("CORIO_STACKS_CHILD", test)
        .env("CORIO_STACKS_WHAT", what);
    run(&mut command)
}

#[track_caller]
fn child_succeeds(test: &str, what: &str) {
    let output = child(test, what);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    for line in said.lines().filter(|line| line.contains(": ")) {
        println!("{line}");
    }
}

fn is_child(test: &str) -> Option<String> {
    (std::env::var("CORIO_STACKS_CHILD").ok()? == test)
        .then(|| std::env::var("CORIO_STACKS_WHAT").unwrap())
}

/// A figure in KiB of /proc's.
fn kib(file: &str, name: &str) -> usize {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Memory and page tables of this process, in KiB.
fn used_kib() -> usize {
    kib("/proc/self/status", "VmRSS:") + kib("/proc/self/status", "VmPTE:")
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

fn max_map_count() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    text.trim().parse().unwrap()
}

/// An address in the running coroutine's top page.
#[inline(never)]
fn here() -> usize {
    let frame = black_box([0_u8; 8]);
    frame.as_ptr().addr()
}

/// Pages that are there in the stack of `size` bytes that holds `address`, and that is aligned to
/// its size, or to 2 MiB if it is larger.
fn resident(address: usize, size: usize) -> usize {
    let top = (address + 1).next_multiple_of(size.min(2 << 20));
    let mut pages = vec![0_u8; size / PAGE];
    // SAFETY: asks about a stack's pages.
    let done = unsafe {
        libc::mincore(
            std::ptr::with_exposed_provenance_mut(top - size),
            size,
            pages.as_mut_ptr(),
        )
    };
    assert_eq!(done, 0);
    pages.iter().filter(|&&page| page & 1 == 1).count()
}

/// Uses so many bytes of stack.
fn recurse(bytes: usize) -> usize {
    #[inline(never)]
    fn down_to(lowest: usize) -> usize {
        let frame = black_box([1_u8; 256]);
        if frame.as_ptr().addr() < lowest {
            return usize::from(frame[0]);
        }
        down_to(lowest) + usize::from(black_box(frame)[1])
    }
    down_to(here() - bytes)
}

#[inline(never)]
fn buffer() -> usize {
    black_box([0_u8; 80 * 1024]).len()
}

/// The pages that a coroutine which runs `body` has in its stack while it does, and after its end.
fn pages_of(size: usize, body: impl FnOnce() + 'static) -> (usize, usize) {
    let seen = Rc::new(Cell::new((0, 0)));
    let tell = Rc::clone(&seen);
    let co = Builder::new().stack_size(size).create(move || {
        body();
        tell.set((here(), resident(here(), size)));
    });
    co.unwrap().enter();
    let (address, during) = seen.get();
    (during, resident(address, size))
}

// SPEC C5: one deep recursion does not pin memory, wherever its stack goes.
#[test]
fn a_deep_stack_is_trimmed_when_its_coroutine_ends() {
    const KEPT: usize = 4;
    corio::home(|| {
        let recursion = |bytes: usize| move || _ = black_box(recurse(bytes));
        for (size, deep) in [
            (DEFAULT, 200 << 10),
            (64 << 10, 50 << 10),
            (16 << 20, 10 << 20),
        ] {
            for _ in 0..3 {
                let (during, after) = pages_of(size, recursion(deep));
                assert!(during >= deep / PAGE, "{during} pages for {deep} bytes");
                assert!(after <= KEPT, "{after} pages of {size} bytes");
            }
            // What is often needed stays.
            let (during, after) = pages_of(size, recursion(6 << 10));
            assert!(
                (2..=KEPT).contains(&after) && during <= KEPT,
                "{during} {after}"
            );
        }
        let (during, after) = pages_of(DEFAULT, || _ = black_box(buffer()));
        assert!(
            during >= 20 && after <= KEPT,
            "a large frame: {during} {after}"
        );
    });
}

// SPEC C5
#[test]
fn stacks_are_reused() {
    corio::home(|| {
        let seen = Rc::new(Cell::new(0));
        for size in [DEFAULT, 64 << 10, 1 << 20] {
            let mut addresses = HashSet::new();
            for _ in 0..10_000 {
                let tell = Rc::clone(&seen);
                let co = Builder::new()
                    .stack_size(size)
                    .create(move || tell.set(here()));
                co.unwrap().enter();
                addresses.insert(seen.get());
            }
            // Other tests' threads may take one from the global pool meanwhile.
            assert!(addresses.len() < 100, "{} stacks", addresses.len());
        }
    });
}

/// So many suspended coroutines.
fn suspended(count: usize) -> Vec<Coroutine> {
    let make = |_| {
        let co = Coroutine::new(corio::suspend);
        co.enter();
        co
    };
    (0..count).map(make).collect()
}

// SPEC C5: the global pool keeps what it is asked to, and gives the rest back.
#[test]
fn the_pool_is_bounded_and_the_bound_moves() {
    const NAME: &str = "the_pool_is_bounded_and_the_bound_moves";
    if is_child(NAME).is_none() {
        return child_succeeds(NAME, "");
    }
    assert_eq!((stack_pool::limit(), stack_pool::len()), (1024, 0));
    let end_with = |count: usize| {
        corio::home(|| suspended(count).iter().for_each(Coroutine::enter));
        stack_pool::len()
    };
    assert_eq!(end_with(5000), 1024);
    let bounded_kib = used_kib();
    stack_pool::raise(1000).unwrap();
    assert_eq!((stack_pool::limit(), end_with(5000)), (2024, 2024));
    let raised_kib = used_kib();
    assert!(
        raised_kib > bounded_kib + 3000,
        "{bounded_kib} {raised_kib}"
    );
    for nonsense in [1001, usize::MAX] {
        let error = stack_pool::lower(nonsense).unwrap_err();
        assert!(matches!(error, Error::Parameter { .. }), "{error}");
        assert!(error.to_string().contains(&nonsense.to_string()), "{error}");
    }
    for nonsense in [1 << 26, usize::MAX] {
        let error = stack_pool::raise(nonsense).unwrap_err();
        assert!(matches!(error, Error::Parameter { .. }), "{error}");
    }
    assert_eq!(stack_pool::limit(), 2024);
    stack_pool::lower(400).unwrap();
    stack_pool::lower(600).unwrap();
    assert_eq!((stack_pool::limit(), stack_pool::len()), (1024, 1024));
    assert!(
        used_kib() < bounded_kib + 1000,
        "{bounded_kib} {}",
        used_kib()
    );
    // What was given back is as good as new.
    assert_eq!(end_with(5000), 1024);
}

// SPEC C6
#[test]
fn a_million_coroutines_live_in_one_process_and_give_their_memory_back() {
    const NAME: &str = "a_million_coroutines_live_in_one_process_and_give_their_memory_back";
    const COUNT: usize = 1_000_000;
    if is_child(NAME).is_none() {
        let available = kib("/proc/meminfo", "MemAvailable:") / 1024;
        if cfg!(feature = "asan") || available < 7 * 1024 {
            let why = "it takes 5 GiB of memory without a sanitizer";
            return println!("SKIPPED: a million coroutines: {why}, and {available} MiB are free");
        }
        if !has_guard_install() {
            return println!("SKIPPED: a million coroutines: the kernel has no MADV_GUARD_INSTALL");
        }
        return child_succeeds(NAME, "");
    }
    corio::home(|| Coroutine::new(|| ()).enter());
    let before = used_kib();
    let start = Instant::now();
    corio::home(|| {
        let all = suspended(COUNT);
        let each = (used_kib() - before) as f64 / COUNT as f64;
        let (mappings, made) = (mappings(), start.elapsed());
        println!("1,000,000 suspended: {each:.2} KiB each, {mappings} mappings, after {made:.1?}");
        assert!(each <= 6.0, "{each} KiB each");
        assert!(mappings < 1000, "{mappings}");
        all.iter().for_each(Coroutine::enter);
        assert!(all.iter().all(Coroutine::is_done));
    });
    let left = used_kib().saturating_sub(before) / 1024;
    println!("all ended: {left} MiB left, after {:.1?}", start.elapsed());
    assert!(left <= 64, "{left} MiB left");
}

/// Tries it on a page.
fn has_guard_install() -> bool {
    // SAFETY: a mapping of its own.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ, flags, -1, 0);
        assert_ne!(page, libc::MAP_FAILED);
        let done = libc::madvise(page, PAGE, 102);
        libc::munmap(page, PAGE);
        done == 0
    }
}

extern "C" fn on_signal(_: libc::c_int) {
    black_box([1_u8; 1024]);
}

// SPEC C6: AT_MINSIGSTKSZ + 16 KiB are there at least, so that a signal can be taken.
#[test]
fn the_smallest_stack_has_room_for_a_signal() {
    // SAFETY: a handler that does nothing, on the stack that is interrupted.
    unsafe { libc::signal(libc::SIGURG, on_signal as *const () as libc::sighandler_t) };
    corio::home(|| {
        for size in [0, 1, 4096] {
            let co = Builder::new().stack_size(size).create(|| {
                #[inline(never)]
                fn used() -> usize {
                    let frame = black_box([1_u8; 14 * 1024]);
                    // SAFETY: to this thread, at once.
                    unsafe { libc::raise(libc::SIGURG) };
                    black_box(frame).len()
                }
                assert_eq!(used(), 14 * 1024);
            });
            co.unwrap().enter();
        }
    });
}

fn limit(resource: libc::__rlimit_resource_t, to: u64) {
    let limit = libc::rlimit {
        rlim_cur: to,
        rlim_max: to,
    };
    // SAFETY: reads the limit.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limit) }, 0);
}

// SPEC C6, section 7: where address space or commitment is limited, creation goes as far as it can
// and says what stopped it.
#[test]
fn without_memory_for_stacks_creation_is_refused_and_the_rest_goes_on() {
    const NAME: &str = "without_memory_for_stacks_creation_is_refused_and_the_rest_goes_on";
    const ROOM: usize = 100 << 20;
    if cfg!(feature = "asan") {
        return println!("SKIPPED: limited address space: a sanitizer needs terabytes of it");
    }
    if is_child(NAME).is_none() {
        return child_succeeds(NAME, "");
    }
    corio::home(|| drop(suspended(1)));
    corio::home(|| {
        let mut all = Vec::with_capacity(1000);
        limit(
            libc::RLIMIT_AS,
            (kib("/proc/self/status", "VmSize:") * 1024 + ROOM) as u64,
        );
        let error = loop {
            match Builder::new().create(corio::suspend) {
                Ok(co) => all.push(co),
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error}");
        assert!(
            error.to_string().contains("mmap of coroutine stacks"),
            "{error}"
        );
        // The first region is there already.
        let count = all.len();
        let most = ROOM / DEFAULT + 64;
        assert!((most - 8..=most).contains(&count), "{count} of {most}");
        all.iter().for_each(Coroutine::enter);
        all.truncate(count - 10);
        all.extend((0..10).map(|_| Builder::new().create(corio::suspend).unwrap()));
        assert!(Builder::new().create(|| ()).is_err());
        all.iter().for_each(Coroutine::enter);
    });
}

// SPEC C6: locked memory takes no installed guards, from the start or from some time on.
#[test]
fn locked_memory_has_guards_made_by_mprotect() {
    const NAME: &str = "locked_memory_has_guards_made_by_mprotect";
    if cfg!(feature = "asan") {
        return println!("SKIPPED: guards in locked memory: AddressSanitizer ignores mlockall");
    }
    let Some(what) = is_child(NAME) else {
        for what in ["before", "between", "overflow"] {
            let output = child(NAME, what);
            let said = String::from_utf8_lossy(&output.stdout);
            if let Some(line) = said.lines().find(|line| line.starts_with("SKIPPED")) {
                return println!("{line}");
            }
            let told = String::from_utf8_lossy(&output.stderr);
            if what == "overflow" {
                assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{said}{told}");
                assert!(told.contains("coroutine `locked`"), "{told}");
            } else {
                assert!(output.status.success(), "{said}{told}");
            }
        }
        return;
    };
    let lock = || {
        // SAFETY: concerns this process only, which is about to end.
        let done = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
        if done != 0 {
            println!("SKIPPED: guards in locked memory: mlockall is refused");
            std::process::exit(0);
        }
    };
    if what != "between" {
        lock();
    }
    corio::home(|| {
        let mut all = suspended(20);
        if what == "between" {
            lock();
        }
        let before = mappings();
        all.extend(suspended(100));
        assert!(
            mappings() >= before + 100,
            "{before} mappings, then {}",
            mappings()
        );
        if what == "overflow" {
            let co = Builder::new().name("locked");
            let co = co.create(|| _ = black_box(recurse(1 << 20)));
            co.unwrap().enter();
        }
        all.iter().for_each(Coroutine::enter);
    });
    println!("mappings, of {}: {}", max_map_count(), mappings());
}

/// The line of its caller, and a coroutine made there that uses so many bytes of stack.
#[track_caller]
fn measured(name: &str, size: usize, bytes: usize) -> u32 {
    let co = Builder::new().name(name).stack_size(size);
    let co = co.create(move || _ = black_box(recurse(bytes)));
    co.unwrap().enter();
    std::panic::Location::caller().line()
}

// Issue 3: high-water marks of each entry point's stack.
#[test]
fn the_deepest_use_of_each_entry_points_stacks_is_kept() {
    const NAME: &str = "the_deepest_use_of_each_entry_points_stacks_is_kept";
    if is_child(NAME).is_none() {
        return child_succeeds(NAME, "");
    }
    let find = |line: u32| {
        let usage = stack_usage::snapshot();
        let at = |at: &&stack_usage::EntryPoint| {
            at.location.file() == file!() && at.location.line() == line
        };
        usage.entry_points.iter().find(at).cloned()
    };
    let is_of = |used: usize, bytes: usize| (bytes..bytes + 3 * PAGE).contains(&used);
    corio::home(|| {
        let line = measured("off", DEFAULT, 100_000);
        assert!(find(line).is_none(), "it is off by default");
        // Neither what was there before, nor what ran before on the same stack, is counted.
        let early = Coroutine::new(corio::suspend);
        early.enter();
        stack_usage::enable();
        early.enter();
        drop(early);
        assert!(stack_usage::snapshot().entry_points.is_empty());
        for (nth, bytes) in (1..).zip([5_000, 120_000, 60_000]) {
            let line = measured(&format!("{bytes}"), DEFAULT, bytes);
            let found = find(line).unwrap();
            assert_eq!((found.count, found.stack_size), (nth, DEFAULT));
            let most = if nth == 1 { 5_000 } else { 120_000 };
            assert!(is_of(found.used_max, most), "{found:?}");
            assert_eq!(found.name, Some(most.to_string()));
        }
        for _ in 0..1000 {
            Coroutine::new(|| ()).enter();
        }
        let usage = stack_usage::snapshot();
        let small = usage
            .entry_points
            .iter()
            .find(|at| at.count == 1000)
            .unwrap();
        assert_eq!((small.used_max, small.name.as_deref()), (PAGE, None));
        assert!(
            usage.entry_points[0].used_max >= 120_000,
            "the deepest comes first"
        );
        let found = find(measured(&"é".repeat(50), 16 << 20, 10 << 20)).unwrap();
        assert!(is_of(found.used_max, 10 << 20) && found.stack_size == 16 << 20);
        assert_eq!(found.name, Some("é".repeat(32)));
    });
    let io = IoThread::builder().spawn().unwrap();
    let line = line!() + 1;
    let spawned = io.context().spawn(|| black_box(recurse(50_000)));
    spawned.join().unwrap();
    drop(io);
    assert!(is_of(find(line).unwrap().used_max, 50_000));
    stack_usage::disable();
    corio::home(|| {
        let before = stack_usage::snapshot().entry_points.len();
        measured("off again", DEFAULT, 100_000);
        assert_eq!(stack_usage::snapshot().entry_points.len(), before);
        let (_, after) = pages_of(DEFAULT, || _ = black_box(recurse(100_000)));
        assert!(after <= 4, "{after} pages");
    });
    stack_usage::clear();
    assert!(stack_usage::snapshot().entry_points.is_empty());
}
