//! Backtraces in coroutines (SPEC C11).

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use corio::Coroutine;

/// The names in a backtrace, innermost first.
fn trace() -> Vec<String> {
    let text = Backtrace::force_capture().to_string();
    let name = |line: &str| {
        let (number, name) = line.trim().split_once(": ")?;
        number.parse::<u32>().ok().map(|_| name.to_owned())
    };
    text.lines().filter_map(name).collect()
}

#[inline(never)]
fn first_resumer(co: &Coroutine) {
    co.enter();
    std::hint::black_box(());
}

#[inline(never)]
fn second_resumer(co: &Coroutine) {
    co.enter();
    std::hint::black_box(());
}

#[inline(never)]
fn deep_in_a_coroutine(depth: u32, traces: &RefCell<Vec<Vec<String>>>) {
    if depth > 0 {
        deep_in_a_coroutine(depth - 1, traces);
    } else {
        for _ in 0..2 {
            traces.borrow_mut().push(trace());
            corio::suspend();
        }
    }
    std::hint::black_box(());
}

// SPEC C11: a backtrace shows all frames of the coroutine, goes on with whoever runs it now, and
// ends where the thread begins.
#[test]
fn a_backtrace_goes_through_a_coroutine_to_whoever_runs_it() {
    corio::home(|| {
        let traces = Rc::new(RefCell::new(Vec::new()));
        let theirs = Rc::clone(&traces);
        let co = Coroutine::new(move || deep_in_a_coroutine(3, &theirs));
        first_resumer(&co);
        second_resumer(&co);
        drop(co);
        let traces = traces.borrow();
        assert_eq!(traces.len(), 2);
        for (names, resumer) in traces.iter().zip(["first_resumer", "second_resumer"]) {
            let place = |what: &str| names.iter().position(|name| name.contains(what));
            let count = |what: &str| names.iter().filter(|name| name.contains(what)).count();
            let whole = names.join("\n");
            assert_eq!(count("deep_in_a_coroutine"), 4, "{whole}");
            let (inside, outside) = (place("deep_in_a_coroutine"), place(resumer));
            assert!(inside.is_some() && inside < outside, "{whole}");
            assert_eq!(count("_resumer"), 1, "{whole}");
            // The thread's own beginning.
            assert!(outside < place("__rust_begin_short_backtrace"), "{whole}");
        }
    });
}

// SPEC C11: in a coroutine within a coroutine it goes through both.
#[test]
fn a_backtrace_goes_through_coroutines_that_are_nested() {
    corio::home(|| {
        let seen = Rc::new(Cell::new(0));
        let theirs = Rc::clone(&seen);
        let outer = Coroutine::new(move || {
            let inner = Coroutine::new(move || {
                let names = trace();
                theirs.set(
                    names
                        .iter()
                        .filter(|name| name.contains("_resumer"))
                        .count(),
                );
            });
            second_resumer(&inner);
        });
        first_resumer(&outer);
        assert_eq!(seen.get(), 2);
    });
}
