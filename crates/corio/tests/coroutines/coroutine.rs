//! Raw coroutines: create, enter, suspend, who is running, and what misuse says (SPEC section 1).

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use corio::sync::Mutex;
use corio::{Builder, Coroutine, CoroutineId};

type Log = Rc<RefCell<Vec<&'static str>>>;

/// What `f` panics with.
fn panic_of(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it panics");
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().expect("a message")).to_owned(),
    }
}

/// Fails unless the message says all of that.
#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

// SPEC C1
#[test]
fn creating_runs_nothing_and_entering_runs_it_until_it_suspends_or_ends() {
    corio::home(|| {
        let log: Log = Rc::default();
        let co = Coroutine::new({
            let log = Rc::clone(&log);
            move || {
                log.borrow_mut().push("begins");
                corio::suspend();
                log.borrow_mut().push("ends");
            }
        });
        assert!(log.borrow().is_empty() && !co.is_done());
        co.enter();
        assert_eq!(*log.borrow(), ["begins"]);
        assert!(!co.is_done());
        co.enter();
        assert_eq!(*log.borrow(), ["begins", "ends"]);
        assert!(co.is_done());
    });
}

// SPEC C1: it runs nested in the caller, on the caller's thread, and gives control back to whoever
// entered it last, not to whoever did first or made it.
#[test]
fn suspending_returns_to_whoever_entered_it_last() {
    corio::home(|| {
        let log: Log = Rc::default();
        let note = |what| {
            let log = Rc::clone(&log);
            move || log.borrow_mut().push(what)
        };
        let thread = std::thread::current().id();
        let (begun, again) = (note("entered"), note("entered again"));
        let shared = Rc::new(Coroutine::new(move || {
            assert_eq!(std::thread::current().id(), thread);
            begun();
            corio::suspend();
            again();
            corio::suspend();
        }));
        let enters = |back: &'static str| {
            let (shared, back) = (Rc::clone(&shared), note(back));
            Coroutine::new(move || {
                shared.enter();
                back();
            })
        };
        enters("back in the first").enter();
        enters("back in the second").enter();
        let expected = [
            "entered",
            "back in the first",
            "entered again",
            "back in the second",
        ];
        assert_eq!(*log.borrow(), expected);
    });
}

// SPEC C1: to any depth.
#[test]
fn coroutines_enter_coroutines_a_thousand_deep() {
    fn nested(depth: usize, deepest: &Rc<Cell<usize>>) {
        deepest.set(deepest.get().max(depth));
        if depth < 1000 {
            let inner = Rc::clone(deepest);
            let co = Coroutine::new(move || nested(depth + 1, &inner));
            co.enter();
            co.enter(); // It has suspended below.
            assert!(co.is_done());
        }
        corio::suspend();
    }
    corio::home(|| {
        let deepest = Rc::new(Cell::new(0));
        let inner = Rc::clone(&deepest);
        let outermost = Coroutine::new(move || nested(1, &inner));
        outermost.enter();
        assert_eq!(deepest.get(), 1000);
        outermost.enter();
        assert!(outermost.is_done());
    });
}

// SPEC C2: entered from being entered to the next suspension, also while it has entered another;
// the one that runs is the innermost.
#[test]
fn who_runs_and_who_is_entered_are_known() {
    type Found = Rc<RefCell<Vec<(bool, bool, Option<CoroutineId>)>>>;
    corio::home(|| {
        let found: Found = Rc::default();
        let pair: Rc<RefCell<Vec<Coroutine>>> = Rc::default();
        let look = {
            let (found, pair) = (Rc::clone(&found), Rc::clone(&pair));
            move || {
                let pair = pair.borrow();
                let entered = (pair[0].is_entered(), pair[1].is_entered());
                found
                    .borrow_mut()
                    .push((entered.0, entered.1, corio::current()));
            }
        };
        let inner = Coroutine::new({
            let look = look.clone();
            move || {
                look();
                assert!(corio::in_coroutine());
                corio::suspend();
            }
        });
        let outer = Coroutine::new({
            let (look, pair) = (look.clone(), Rc::clone(&pair));
            move || {
                look();
                pair.borrow()[1].enter();
                look();
                corio::suspend();
            }
        });
        let (outer_id, inner_id) = (outer.id(), inner.id());
        pair.borrow_mut().extend([outer, inner]);
        look();
        pair.borrow()[0].enter();
        look();
        pair.borrow()[0].enter();
        look();
        assert!(!corio::in_coroutine() && corio::current().is_none());
        assert_ne!(outer_id, inner_id);
        let expected = [
            (false, false, None),
            (true, false, Some(outer_id)),
            (true, true, Some(inner_id)),
            (true, false, Some(outer_id)),
            (false, false, None), // Suspended, both.
            (false, false, None), // The outer one has ended.
        ];
        assert_eq!(*found.borrow(), expected);
    });
}

// SPEC C3: the message says which, where it was made, and what to do.
#[test]
fn entering_what_is_entered_names_it() {
    corio::home(|| {
        let own: Rc<RefCell<Option<Coroutine>>> = Rc::default();
        let message = Rc::new(RefCell::new(String::new()));
        let (inner, heard) = (Rc::clone(&own), Rc::clone(&message));
        let made_at = line!() + 1;
        let co = Builder::new().name("snake").create(move || {
            heard.replace(panic_of(|| inner.borrow().as_ref().unwrap().enter()));
        });
        own.replace(Some(co.unwrap()));
        own.borrow().as_ref().unwrap().enter();
        let made_at = format!("created at {}:{made_at}:", file!());
        says(
            &message.borrow(),
            &["`snake`", &made_at, "is entered already", "must suspend"],
        );
    });
}

// SPEC C3
#[test]
fn suspending_outside_a_coroutine_is_caught() {
    let advice = [
        "suspend was called outside a coroutine",
        "call it from a coroutine's body",
    ];
    says(&panic_of(corio::suspend), &advice);
    says(&panic_of(|| corio::home(corio::suspend)), &advice);
}

// SPEC C3
#[test]
fn ending_with_a_lock_names_who_did() {
    corio::home(|| {
        let mutex: &'static Mutex<()> = Box::leak(Box::new(Mutex::new(())));
        let how = Builder::new().name("hoarder");
        let made_at = line!() + 1;
        let co = how.create(move || std::mem::forget(mutex.lock()));
        let message = panic_of(|| co.unwrap().enter());
        let made_at = format!("created at {}:{made_at}:", file!());
        let parts = [
            "`hoarder`",
            &made_at,
            "while holding 1 coroutine lock",
            "do not forget them",
        ];
        says(&message, &parts);
    });
}
