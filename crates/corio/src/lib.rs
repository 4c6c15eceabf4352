//! Corio: stackful coroutines, the AioContext event loop, and disk and network engines on it.
//!
//! A coroutine is a function with a stack of its own. Where it would wait for a disk, a socket, a
//! lock or a clock it *parks*, and its thread goes on with others; what it had on its stack,
//! borrowed buffers included, stays where it is. So storage software is written as straight-line
//! code, at a few nanoseconds a switch and some KiB a coroutine. The model is that of QEMU's block
//! layer, whose names find their counterparts in the search here (`qemu_coroutine_create`,
//! `aio_co_wake`, ..).
//!
//! ```
//! use std::io::{self, Read, Write};
//! use corio::{IoThread, fs::File, net::{TcpListener, TcpStream}};
//!
//! let io = IoThread::builder().name("io0").spawn()?; // A thread with an event loop.
//! let received = io.context().spawn(|| {
//!     let listener = TcpListener::bind("127.0.0.1:0")?;
//!     let address = listener.local_addr()?;
//!     let server = corio::spawn(move || {
//!         let mut block = [0u8; 512]; // On the coroutine's own stack.
//!         let count = File::open("Cargo.toml")?.read_at(&mut block, 0)?; // Parks it.
//!         listener.accept()?.0.write_all(&block[..count])
//!     });
//!     let mut text = String::new();
//!     TcpStream::connect(address)?.read_to_string(&mut text)?;
//!     server.join().expect("the server does not panic")?;
//!     io::Result::Ok(text)
//! });
//! assert!(received.join().expect("the client does not panic")?.starts_with("[package]"));
//! # Ok::<(), io::Error>(())
//! ```
//!
//! The chapters below go from the bare coroutine to what to beware of; each item's own page says
//! who may call it from where, and whether it may park.
//!
//! 1. [Homes and raw coroutines](#homes-and-raw-coroutines)
//! 2. [Contexts and spawning](#contexts-and-spawning)
//! 3. [Waiting and waking](#waiting-and-waking)
//! 4. [Cancellation](#cancellation)
//! 5. [Locks](#locks)
//! 6. [Files, sockets and clocks](#files-sockets-and-clocks)
//! 7. [Moving between threads](#moving-between-threads)
//! 8. [Stacks and limits](#stacks-and-limits)
//! 9. [Hazards](#hazards)
//!
//! # Homes and raw coroutines
//!
//! A coroutine lives in a *home*, a scope on one thread. [`home`] is the plain one, without a loop:
//! in it a [`Coroutine`] is made, entered by hand, and gives control back to whoever entered it by
//! [`suspend`]. It may enter others, to any depth.
//!
//! ```
//! corio::home(|| {
//!     let numbers = std::rc::Rc::new(std::cell::Cell::new(0));
//!     let next = std::rc::Rc::clone(&numbers);
//!     let counter = corio::Coroutine::new(move || {
//!         loop {
//!             next.set(next.get() + 1);
//!             corio::suspend();
//!         }
//!     });
//!     counter.enter();
//!     counter.enter();
//!     assert_eq!(numbers.get(), 2);
//! }); // It is suspended still: it is unwound here, destructors and all.
//! ```
//!
//! When the scope ends, what is suspended in it is unwound, and what will not be is leaked and
//! named in the log: a frame that had borrowed a thread-local must not outlive it. Handles that
//! outlive their home are inert. A panic in a coroutine reaches whoever entered it.
//!
//! Misuse panics where it happens, and says of which coroutine: entering one that is entered,
//! scheduled or has ended; suspending outside of any; ending with a lock.
//!
//! # Contexts and spawning
//!
//! An [`AioContext`] is an event loop; the thread that runs it is its home. An [`IoThread`] is a
//! thread that does nothing else; [`AioContext::enter_home`] makes any thread one for a while, and
//! [`AioContext::poll`] turns the loop by hand. [`AioContext::spawn`] starts a coroutine there from
//! any thread, [`spawn`] on the context at hand, [`spawn_local`] one whose closure need not be
//! `Send`, and [`Builder`] one with a name or another stack. First spawned, first run.
//!
//! [`JoinHandle`] gives the result, and is a `Future` too; [`block_on`] waits for any future, and
//! [`block_on_within`] for one that needs a runtime such as tokio to be entered. A panic is kept in
//! the handle for whoever joins, and reported if nobody does. [`AioContext::run`] runs a closure in
//! another context and waits for it.
//!
//! ```
//! let io = corio::IoThread::builder().spawn()?;
//! let sum = io.context().spawn(|| {
//!     let parts = [1..=10, 11..=20].map(|part| corio::spawn(move || part.sum::<i32>()));
//!     parts.into_iter().map(|part| part.join().unwrap()).sum::<i32>()
//! });
//! assert_eq!(sum.join().unwrap(), 210);
//! # Ok::<(), corio::Error>(())
//! ```
//!
//! Children that borrow from the frame of the coroutine that starts them are spawned in a
//! [`scope()`], which waits until all have ended:
//!
//! ```
//! let io = corio::IoThread::builder().spawn()?;
//! let longest = io.context().spawn(|| {
//!     let (words, mut longest) = (["on", "this", "stack"], 0);
//!     corio::scope(|s| {
//!         s.spawn(|| longest = words.iter().map(|word| word.len()).max().unwrap());
//!     });
//!     longest
//! });
//! assert_eq!(longest.join().unwrap(), 5);
//! # Ok::<(), corio::Error>(())
//! ```
//!
//! Below coroutines, a context has bottom halves ([`context::BottomHalf`]), timers
//! ([`context::Timer`]) and handlers of descriptors ([`context::LocalContext::add_handler`]).
//!
//! A loop that is not ours can turn a context, too: [`context::LocalContext::embed`] gives it one
//! descriptor, which is readable when the context has work. So it lives inside tokio or mio (the
//! crate's examples show both) and, with the crate `corio-glib`, in a main loop of GLib's.
//!
//! # Waiting and waking
//!
//! All waits come down to two calls: [`park`], and the wake of a token, [`CoWaker`]. A token may be
//! fired from any thread, any number of times, early and late. A wake that comes before the park
//! keeps it from waiting, one that comes after the coroutine's end does nothing, and none runs the
//! coroutine: it is queued in its home thread. A wake is a hint, so whoever parks looks at its own
//! condition.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! let io = corio::IoThread::builder().spawn()?;
//! let mailbox = Arc::new(Mutex::new((None, None)));
//! let reader = io.context().spawn({
//!     let mailbox = Arc::clone(&mailbox);
//!     move || loop {
//!         let mut inside = mailbox.lock().unwrap();
//!         if let Some(letter) = inside.0.take() {
//!             return letter;
//!         }
//!         inside.1 = corio::CoWaker::current();
//!         drop(inside); // Nothing of the thread's is held across a park.
//!         corio::park();
//!     }
//! });
//! let mut inside = mailbox.lock().unwrap();
//! inside.0 = Some("hello");
//! if let Some(waker) = inside.1.take() {
//!     waker.wake();
//! }
//! drop(inside);
//! assert_eq!(reader.join().unwrap(), "hello");
//! # Ok::<(), corio::Error>(())
//! ```
//!
//! What a coroutine wakes in its own home runs when the waker parks, suspends or ends, in the order
//! woken, before what was pending earlier. [`yield_now`] gives all others and the loop a turn.
//!
//! # Cancellation
//!
//! [`JoinHandle::cancel`] asks a coroutine to end. Where it is parked, or next parks, it unwinds as
//! by a panic, destructors and all, and joining it gives [`JoinError::Cancelled`]. It does so only
//! once nothing of it is in flight: a disk request is waited for, as the kernel writes to its
//! buffer. A waiter for a lock leaves the line, and passes on what it was given in that very
//! moment. [`mask_cancel`] defers it. Destructors may park while they unwind; I/O that would wait
//! fails with ECANCELED there.
//!
//! ```
//! let io = corio::IoThread::builder().spawn()?;
//! let (begun, begins) = std::sync::mpsc::channel();
//! let (unwound, unwinds) = std::sync::mpsc::channel();
//! let handle = io.context().spawn(move || {
//!     struct Guard(std::sync::mpsc::Sender<()>);
//!     impl Drop for Guard {
//!         fn drop(&mut self) {
//!             self.0.send(()).unwrap();
//!         }
//!     }
//!     let _guard = Guard(unwound);
//!     begun.send(()).unwrap();
//!     corio::time::sleep(std::time::Duration::from_secs(3600));
//! });
//! begins.recv().unwrap();
//! handle.cancel()?;
//! assert!(matches!(handle.join(), Err(corio::JoinError::Cancelled)));
//! assert!(unwinds.recv().is_ok());
//! # Ok::<(), corio::Error>(())
//! ```
//!
//! A program built with `panic = "abort"` cannot cancel, and is told so.
//!
//! # Locks
//!
//! [`sync`] has mutexes, reader-writer locks, queues, semaphores, barriers, events and channels,
//! and [`sync::select()`] over several of them, for coroutines of any contexts and plain threads
//! alike: who has to wait parks, or blocks. They are fair and do not poison. Guards stay on their
//! thread. An ordinary mutex is right for what is held for some instructions and never across a
//! park; a coroutine's for what is held while something is waited for.
//!
//! ```
//! use corio::sync::Mutex;
//! use std::{sync::Arc, time::Duration};
//! let (a, b) = (corio::IoThread::builder().spawn()?, corio::IoThread::builder().spawn()?);
//! let total = Arc::new(Mutex::new(0));
//! let adders = [&a, &b].map(|io| {
//!     let total = Arc::clone(&total);
//!     io.context().spawn(move || {
//!         let mut total = total.lock();
//!         let before = *total;
//!         corio::time::sleep(Duration::from_millis(1)); // Others of the thread run meanwhile.
//!         *total = before + 1;
//!     })
//! });
//! adders.map(|adder| adder.join().unwrap());
//! assert_eq!(*total.lock(), 2);
//! # Ok::<(), corio::Error>(())
//! ```
//!
//! # Files, sockets and clocks
//!
//! [`fs`], [`net`] and [`time`] are named as std names them, and park instead of blocking. A buffer
//! that is lent to a request is borrowed until the request has ended, whatever happens to the
//! coroutine meanwhile. Which of the [`engine`]s serves files is chosen by what the system allows.
//!
//! # Moving between threads
//!
//! A coroutine stays on the thread of its home: that is why its locals need not be `Send`, and why
//! thread-locals may be used in it. What goes across are closures and results
//! ([`AioContext::spawn`], [`AioContext::run`]), tokens, and what [`sync`] shares. To move a
//! coroutine that has begun, stack and all, is `unsafe`: [`move_to`], [`Coroutine::schedule_on`]
//! and [`Coroutine::enter_on`] say what has to hold.
//!
//! # Stacks and limits
//!
//! - A stack takes 256 KiB of addresses and the memory it touches, a page at least;
//!   [`Builder::stack_size`] asks for more or less, [`stack_usage`] tells how deep each kind of
//!   coroutine went.
//! - Below each stack is a guard. A coroutine that runs into it ends the process, after a line on
//!   standard error that names it and its stack's size; nothing of others is overwritten.
//! - On Linux 6.13 and later the guards cost no mapping, and a million suspended coroutines live in
//!   a process under the default vm.max_map_count. Before that there can be (vm.max_map_count -
//!   5000) / 2; then [`Builder`] returns [`Error::StackLimit`], and [`spawn`] panics as std's does.
//! - Stacks are reused; [`stack_pool`] says how many free ones are kept, and changes it.
//!
//! # Hazards
//!
//! What the types cannot keep you from:
//!
//! - **What belongs to the thread is shared by its coroutines.** A thread-local that is set, and is
//!   to be set back after a park, is seen by all that run in between. So `scoped_tls` and its like,
//!   a `tracing` span that stays entered, or a `RefCell` borrow of a thread-local must not span a
//!   park or a [`suspend`]. A std guard that spans one stops the thread for ever once another of
//!   its coroutines wants the lock.
//! - **Blocking calls stop the loop**, with all its coroutines: std's files, sockets, `sleep`,
//!   `join`. [`engine::unblock`] has one made by another thread.
//! - **[`std::thread::panicking`] is the thread's.** A destructor that parks while its coroutine
//!   unwinds leaves it true for whatever runs meanwhile: std mutexes that are locked then are not
//!   poisoned by a panic, and a coroutine whose cancellation is due may have to wait for it until
//!   the unwinding goes on.
//! - **Rounding modes and exception masks (MXCSR, the x87 control word) are the thread's**, not the
//!   coroutine's: a change stays across a switch. So do the signal mask, the locale and the like.
//! - **errno** may be another's after a park.
//! - **C code** between a coroutine's frames is neither to be unwound by a cancellation nor by a
//!   panic: mask the one and catch the other. It finds the guard only if its frames are smaller
//!   than that, or it was built with `-fstack-clash-protection`.
//! - **A forgotten guard or handle** leaks: a lock stays locked, a stack is never used again.
//! - **`fork`** without `exec`: the child has one thread, no loop, and the parent's rings. Don't.
//! - **`std::process::exit` inside a home** runs destructors of thread-locals below suspended
//!   frames: leave the home first.
//!
//! # How it is built
//!
//! The modules form layers, each of which imports only from those above it in this list: `sys`,
//! `atomic`, `tls`, [`track`], `stack`, `coroutine`, [`context`], `schedule`, [`sync`], `engine`,
//! and the public face [`fs`], [`net`], [`time`]. The repository's docs/ARCHITECTURE.md shows the
//! way of a request through them, docs/INVARIANTS.md what each relies on.

// Failures carry their operation and their paths; they are rare, and boxing them would not make
// them rarer.
#![allow(clippy::result_large_err)]

#[macro_use]
mod planted;

mod atomic;
pub mod context;
mod coroutine;
pub mod engine;
mod error;
pub mod fs;
#[cfg(all(test, loom))]
mod model;
pub mod net;
#[doc(hidden)]
pub mod raw;
mod recycle;
mod schedule;
mod stack;
pub mod sync;
mod sys;
pub mod time;
mod tls;
pub mod track;

pub use context::AioContext;
pub use coroutine::{
    Builder, CancelMask, Coroutine, CoroutineId, current_id as current, home, in_coroutine,
    mask_cancel, suspend,
};
pub use error::Error;
pub use schedule::{
    CoWaker, IoThread, IoThreadBuilder, JoinError, JoinHandle, LocalJoinHandle, Scope,
    ScopedJoinHandle, Turn, block_on, block_on_within, move_to, park, scope, spawn, spawn_local,
    yield_now,
};
pub use stack::{stack_pool, stack_usage};

/// The README's examples.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
