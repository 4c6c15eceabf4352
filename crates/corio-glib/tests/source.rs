//! A context as a source of GLib's: what is GLib's own about it (SPEC G1, I2).

#![allow(unsafe_code)] // Calls of GLib's.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use corio::context::{MonitorChoice, MonitorKind};
use corio::{AioContext, IoThread};
use corio_glib::{IoThreadExt, MainContext, Source, main_context_of};
use glib_sys as ffi;

/// Runs a test in a home, with a source in a main context of its own.
fn attached<R>(test: impl FnOnce(&AioContext, Source) -> R) -> R {
    let context = AioContext::new().unwrap();
    let run = || {
        let local = context.local().unwrap();
        test(
            &context,
            Source::attach(local, &MainContext::new()).unwrap(),
        )
    };
    context.enter_home(run).unwrap()
}

/// A source of GLib's own that is always ready, before all others.
fn add_busy_source(main: &MainContext, counter: &'static AtomicUsize) -> u32 {
    unsafe extern "C" fn count(data: ffi::gpointer) -> ffi::gboolean {
        // SAFETY: `data` is the static counter given below.
        unsafe { &*data.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
        ffi::G_SOURCE_CONTINUE
    }
    // SAFETY: the main context lives, and the counter is static.
    unsafe {
        let source = ffi::g_idle_source_new();
        ffi::g_source_set_priority(source, ffi::G_PRIORITY_HIGH);
        let data = ptr::from_ref(counter).cast_mut().cast();
        ffi::g_source_set_callback(source, Some(count), data, None);
        let id = ffi::g_source_attach(source, main.as_ptr());
        ffi::g_source_unref(source);
        id
    }
}

// SPEC G1: GLib prepares every source, and checks none below the priority of one that is ready.
#[test]
fn prepare_without_check_loses_nothing() {
    static BUSY: AtomicUsize = AtomicUsize::new(0);
    attached(|context, source| {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let half = context.bottom_half("count", move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let main = source.main_context().clone();
        for round in 1..=20 {
            let busy = add_busy_source(&main, &BUSY);
            let before = BUSY.load(Ordering::Relaxed);
            for _ in 0..5 {
                assert!(source.iterate(true).unwrap());
            }
            assert_eq!(BUSY.load(Ordering::Relaxed), before + 5);
            assert_eq!(runs.load(Ordering::Relaxed), round - 1);
            // Prepared five times, and not checked since.
            std::thread::scope(|scope| {
                scope.spawn(|| half.schedule());
            });
            // SAFETY: of this main context, attached above.
            unsafe {
                ffi::g_source_destroy(ffi::g_main_context_find_source_by_id(main.as_ptr(), busy))
            };
            while runs.load(Ordering::Relaxed) < round {
                source.iterate(true).unwrap();
            }
        }
    });
}

// SPEC G1: a main loop that others run, by `g_main_loop_run`.
#[test]
fn a_main_loop_runs_the_context_and_keeps_its_panics() {
    attached(|context, source| {
        // SAFETY: the main context lives; the loop is unreferenced below.
        let main_loop = unsafe { ffi::g_main_loop_new(source.main_context().as_ptr(), 0) };
        let shared = Arc::new(AtomicPtr::new(main_loop));
        context.schedule_oneshot("fails", || panic!("this one fails"));
        let child = context.spawn(move || {
            corio::time::sleep(Duration::from_millis(2));
            // SAFETY: the loop lives until it has been quit.
            unsafe { ffi::g_main_loop_quit(shared.load(Ordering::Relaxed)) };
        });
        // SAFETY: as above; runs in the context's home thread.
        unsafe {
            ffi::g_main_loop_run(main_loop);
            ffi::g_main_loop_unref(main_loop);
        }
        // The loop went on after the panic, or it would not have been quit.
        assert!(child.is_finished());
        let panic = catch_unwind(AssertUnwindSafe(|| source.resume_panic())).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"this one fails"));
        source.resume_panic(); // Raised once.
    });
}

// SPEC G1: finalised; the context goes on without GLib, and may come back.
#[test]
fn a_dropped_source_is_out_of_the_main_loop() {
    attached(|context, source| {
        let main = source.main_context().clone();
        drop(source);
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        context.schedule_oneshot("count", move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert!(!main.iterate(false));
        assert_eq!(runs.load(Ordering::Relaxed), 0);
        context.poll(true).unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let again = Source::attach(context.local().unwrap(), &main).unwrap();
        context.notify();
        assert!(again.iterate(true).unwrap());
    });
}

// SPEC G1: a source that outlives its home is not ready any more, and does no harm.
#[test]
fn a_source_after_its_home_is_inert() {
    let context = AioContext::new().unwrap();
    let main = MainContext::new();
    let attach = || Source::attach(context.local().unwrap(), &main).unwrap();
    let source = context.enter_home(attach).unwrap();
    context.schedule_oneshot("later", || unreachable!("there is no home"));
    assert!(!source.iterate(false).unwrap());
}

// SPEC G1, A1: another thread that iterates the main context does not run the context.
#[test]
fn off_its_home_thread_a_source_runs_nothing() {
    attached(|context, source| {
        let main = source.main_context().clone();
        let ran_in = Arc::new(std::sync::Mutex::new(None));
        let note = Arc::clone(&ran_in);
        context.schedule_oneshot("where", move || {
            *note.lock().unwrap() = Some(std::thread::current().id());
        });
        let other = std::thread::spawn(move || main.iterate(false));
        other.join().unwrap();
        assert_eq!(*ran_in.lock().unwrap(), None);
        assert!(source.iterate(true).unwrap());
        assert_eq!(*ran_in.lock().unwrap(), Some(std::thread::current().id()));
    });
}

// SPEC G2
#[test]
fn io_uring_monitoring_is_refused() {
    let context = AioContext::builder()
        .monitor(MonitorChoice::IoUring)
        .build()
        .unwrap();
    let test = || {
        if context.monitor().unwrap().kind != MonitorKind::IoUring {
            println!("SKIPPED: io_uring monitoring in GLib: no io_uring here");
            return;
        }
        let local = context.local().unwrap();
        let refused = Source::attach(local, &MainContext::new()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    };
    context.enter_home(test).unwrap();
    let refused = IoThread::builder()
        .monitor(MonitorChoice::IoUring)
        .glib()
        .spawn();
    if context.monitor().unwrap().kind == MonitorKind::IoUring {
        let error = refused.unwrap_err();
        assert!(error.to_string().contains("setting up the loop"), "{error}");
    }
}

// SPEC I1, I2
#[test]
fn an_io_thread_runs_a_main_context_and_stops() {
    let io = IoThread::builder().name("glib0").glib().spawn().unwrap();
    let context = io.context().clone();
    let main = main_context_of(&context).expect("it runs");
    let default = context.run_in_bottom_half("default", || {
        // SAFETY: no arguments.
        unsafe { ffi::g_main_context_get_thread_default() }.addr()
    });
    assert_eq!(default.unwrap(), main.as_ptr().addr());
    let name = context.spawn(|| {
        corio::time::sleep(Duration::from_millis(1));
        std::thread::current().name().map(str::to_owned)
    });
    assert_eq!(name.join().unwrap().as_deref(), Some("glib0"));
    // A source of GLib's own, from another thread, beside the context.
    static IDLE: AtomicUsize = AtomicUsize::new(0);
    add_busy_source(&main, &IDLE);
    while IDLE.load(Ordering::Relaxed) < 100 {
        std::thread::yield_now();
    }
    assert!(!main.iterate(false), "that thread runs it, and no other");
    io.join();
    assert!(main_context_of(&context).is_none());
}

// SPEC I2, A3
#[test]
fn an_io_thread_goes_on_after_a_callbacks_panic() {
    let io = IoThread::builder().glib().spawn().unwrap();
    let (tell, told) = mpsc::channel();
    io.context()
        .schedule_oneshot("fails", || panic!("this one fails"));
    io.context()
        .schedule_oneshot("after", move || tell.send(7).unwrap());
    assert_eq!(told.recv().unwrap(), 7);
}

// SPEC I2, C12: what is still there when it stops is cancelled and reaped.
#[test]
fn stopping_an_io_thread_reaps_its_coroutines() {
    let io = IoThread::builder().glib().spawn().unwrap();
    let (tell, told) = mpsc::channel();
    let started = io.context().spawn(move || {
        let _tells = Tells(tell.clone());
        tell.send("started").unwrap();
        corio::time::sleep(Duration::from_secs(3600));
    });
    assert_eq!(told.recv().unwrap(), "started");
    io.join();
    assert_eq!(told.recv().unwrap(), "unwound");
    let ended = started.join().unwrap_err();
    assert!(matches!(ended, corio::JoinError::Cancelled), "{ended:?}");
}

struct Tells(mpsc::Sender<&'static str>);

impl Drop for Tells {
    fn drop(&mut self) {
        let _ = self.0.send("unwound");
    }
}

// SPEC G1: priorities are GLib's.
#[test]
fn a_source_of_higher_priority_comes_first() {
    static BUSY: AtomicUsize = AtomicUsize::new(0);
    attached(|context, source| {
        add_busy_source(source.main_context(), &BUSY);
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        context.schedule_oneshot("count", move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let turns = Cell::new(0);
        for _ in 0..10 {
            turns.set(turns.get() + 1);
            source.iterate(true).unwrap();
        }
        assert_eq!(runs.load(Ordering::Relaxed), 0, "the other is always ready");
        source.set_priority(ffi::G_PRIORITY_HIGH - 1);
        source.iterate(true).unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    });
}
