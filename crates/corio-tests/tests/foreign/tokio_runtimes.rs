//! tokio's handles in coroutines, and coroutines' handles in tokio's tasks.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::io::{Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use corio::{IoThread, JoinError, block_on_within};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

#[path = "../../../corio/examples/http_client.rs"]
mod http_client;

/// Coroutine and task alike need a moment; no test waits for this long.
const MOMENT: Duration = Duration::from_millis(2);

/// A runtime of tokio's and a thread that runs it, until this is dropped.
struct Driven {
    handle: Handle,
    done: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

impl Driven {
    fn new() -> Self {
        let runtime = runtime();
        let handle = runtime.handle().clone();
        let (done, ends) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(ends);
        });
        Self {
            handle,
            done: Some(done),
            thread: Some(thread),
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn io() -> IoThread {
    IoThread::builder().name("io").spawn().unwrap()
}

/// Runs it in a coroutine and goes on with its panic.
fn in_a_coroutine<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let io = io();
    let outcome = io.context().spawn(f).join();
    outcome.unwrap_or_else(|error| panic!("{:?}", error.resume_panic()))
}

// SPEC E7
#[test]
fn a_coroutine_uses_tokios_timers_tasks_and_threads() {
    let driven = Driven::new();
    let handle = driven.handle.clone();
    in_a_coroutine(move || {
        let home = std::thread::current().id();
        block_on_within(|| handle.enter(), async {
            let began = Instant::now();
            tokio::time::sleep(MOMENT).await;
            assert!(began.elapsed() >= MOMENT);
            let late = tokio::time::timeout(MOMENT, std::future::pending::<()>()).await;
            assert!(late.is_err());

            let thread = || std::thread::current().id();
            assert_eq!(thread(), home); // The future itself stays with the coroutine.
            assert_ne!(tokio::spawn(async move { thread() }).await.unwrap(), home);
            assert_ne!(tokio::task::spawn_blocking(thread).await.unwrap(), home);
        });
    });
}

// SPEC E7: a socket of tokio's in one coroutine, ours in another of the same thread, which would
// never answer if the thread blocked.
#[test]
fn a_coroutine_uses_tokios_sockets() {
    let driven = Driven::new();
    let handle = driven.handle.clone();
    let received = in_a_coroutine(move || {
        let listener = corio::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = corio::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4];
            stream.read_exact(&mut request).unwrap();
            stream
                .write_all(&request.map(|byte| byte.to_ascii_uppercase()))
                .unwrap();
        });
        let received = block_on_within(|| handle.enter(), async {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.writable().await?;
            assert_eq!(stream.try_write(b"ping")?, 4);
            let mut received = Vec::new();
            loop {
                stream.readable().await?;
                let mut part = [0; 16];
                match stream.try_read(&mut part) {
                    Ok(0) => return std::io::Result::Ok(received),
                    Ok(count) => received.extend_from_slice(&part[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        });
        server.join().unwrap();
        received.unwrap()
    });
    assert_eq!(received, b"PING");
}

// SPEC E7: each is in its own runtime at each of its polls, and in none while the other runs; had
// one stayed entered across a park, the other would find itself in it, and leaving out of order
// panics in tokio.
#[test]
fn coroutines_of_one_thread_use_different_runtimes_in_turns() {
    const TURNS: u32 = 50;
    let runtimes = [Driven::new(), Driven::new(), Driven::new()];
    let handles = runtimes.each_ref().map(|driven| driven.handle.clone());
    let most = in_a_coroutine(move || {
        let (waiting, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let users = handles.map(|handle| {
            let (waiting, most) = (Rc::clone(&waiting), Rc::clone(&most));
            corio::spawn_local(move || {
                let id = handle.id();
                block_on_within(|| handle.enter(), async {
                    for turn in 0..TURNS {
                        assert_eq!(Handle::current().id(), id);
                        waiting.set(waiting.get() + 1);
                        most.set(most.get().max(waiting.get()));
                        if turn % 2 == 0 {
                            tokio::time::sleep(MOMENT / 4).await;
                        } else {
                            tokio::spawn(async {}).await.unwrap();
                        }
                        waiting.set(waiting.get() - 1);
                    }
                });
                assert!(Handle::try_current().is_err());
            })
        });
        while !users.iter().all(corio::LocalJoinHandle::is_finished) {
            assert!(Handle::try_current().is_err()); // Whenever they are parked.
            corio::yield_now();
        }
        for user in users {
            user.join().unwrap();
        }
        most.get()
    });
    assert_eq!(most, 3); // They did take turns.
}

// SPEC E7, C12: the future is dropped inside the runtime, at home, and what it waited for with it.
#[test]
fn a_cancelled_coroutine_drops_what_it_had_of_tokio() {
    /// Needs the runtime in its drop.
    struct Spawns(Arc<AtomicBool>);
    impl Drop for Spawns {
        fn drop(&mut self) {
            let ran = Arc::clone(&self.0);
            tokio::spawn(async move { ran.store(true, Ordering::Release) });
        }
    }
    let driven = Driven::new();
    let (handle, io) = (driven.handle.clone(), io());
    let ran = Arc::new(AtomicBool::new(false));
    let spawns = Spawns(Arc::clone(&ran));
    let (began, begins) = std::sync::mpsc::channel();
    let waits = io.context().spawn(move || {
        block_on_within(|| handle.enter(), async {
            let _spawns = spawns;
            began.send(()).unwrap();
            tokio::time::sleep(Duration::from_secs(3600)).await;
        });
    });
    begins.recv().unwrap();
    waits.cancel().unwrap();
    assert!(matches!(waits.join(), Err(JoinError::Cancelled)));
    // The runtime's queue is in order: this task runs after that one.
    let after = driven.handle.spawn(async {});
    assert!(corio::block_on(after).is_ok());
    assert!(ran.load(Ordering::Acquire));
}

// SPEC E7: tokio waits for coroutines of another thread: results, panics, cancellations.
#[test]
fn a_task_of_tokios_awaits_coroutines() {
    let io = io();
    runtime().block_on(async {
        let slow = io.context().spawn(|| {
            corio::time::sleep(MOMENT);
            "slow"
        });
        assert_eq!(slow.await.unwrap(), "slow");

        // Many at once, from tasks that tokio polls for other reasons in between.
        let tasks: Vec<_> = (0..100)
            .map(|i| {
                let child = io.context().spawn(move || {
                    corio::yield_now();
                    i
                });
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    child.await.unwrap()
                })
            })
            .collect();
        for (i, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), i);
        }

        let panics = io.context().spawn(|| -> () { panic!("spoilt") });
        assert!(matches!(panics.await, Err(JoinError::Panicked(_))));

        let parked = io.context().spawn(|| -> () {
            loop {
                corio::park();
            }
        });
        parked.cancel().unwrap();
        assert!(matches!(parked.await, Err(JoinError::Cancelled)));
    });
}

// SPEC E7: a handle may be awaited by one task and then by another, and be dropped by the first.
#[test]
fn a_handle_wakes_the_task_that_polled_it_last() {
    let io = io();
    runtime().block_on(async {
        let release = Arc::new(corio::sync::Event::new());
        let waits = io.context().spawn({
            let release = Arc::clone(&release);
            move || release.wait()
        });
        let (sender, receiver) = oneshot::channel();
        let first = tokio::spawn(async move {
            let mut waits = waits;
            let polled = poll_fn(|task| Poll::Ready(Pin::new(&mut waits).poll(task))).await;
            assert!(polled.is_pending());
            assert!(sender.send(waits).is_ok());
        });
        first.await.unwrap();
        let waits = receiver.await.unwrap();
        let second = tokio::spawn(waits);
        release.set();
        second.await.unwrap().unwrap();
    });
}

// SPEC E7: an async HTTP client.
#[test]
fn the_example_with_an_http_client_runs() {
    http_client::main().unwrap();
}
