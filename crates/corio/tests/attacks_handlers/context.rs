//! Programs that try to break the event loop, the monitors, the engines and files from safe code.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corio::context::MonitorChoice;
use corio::engine::EngineChoice;
use corio::fs::{AlignedBuf, File, OpenOptions};
use corio::net::{TcpListener, UnixStream};
use corio::{AioContext, Coroutine, IoThread};

const MONITORS: [MonitorChoice; 3] = MonitorChoice::ALL;

/// Runs a test in a coroutine, on each engine and each monitor.
fn on_each_engine(test: impl Fn() + Clone + Send + 'static) {
    for monitor in MONITORS {
        for engine in [EngineChoice::IoUring, EngineChoice::Threads] {
            let io = IoThread::builder()
                .monitor(monitor)
                .engine(engine)
                .spawn()
                .unwrap();
            if let Err(error) = io.context().spawn(test.clone()).join() {
                panic!("{monitor:?} {engine:?}: {}", error.resume_panic());
            }
        }
    }
}

/// Turns the loop until `done`, for at most 5 s.
fn turn_until(context: &AioContext, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let tick = context.timer(|| ());
    while !done() {
        assert!(
            Instant::now() < deadline,
            "what the test waits for does not come"
        );
        tick.arm_after(Duration::from_millis(5));
        // Panics of callbacks are what some tests are about.
        let _ = catch_unwind(AssertUnwindSafe(|| context.poll(true).unwrap()));
    }
}

fn scratch() -> File {
    let file = tempfile::tempfile().unwrap();
    File::from(std::os::fd::OwnedFd::from(file))
}

/// Runs one test of this file in a process of its own, where [`is_child`] is true.
fn child(test: &str, envs: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("context::{test}")])
        .args(["--nocapture", "--test-threads=1"])
        .env("CORIO_ATTACK_CHILD", test)
        .envs(envs.iter().copied())
        .output()
        .unwrap();
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn is_child(test: &str) -> bool {
    std::env::var_os("CORIO_ATTACK_CHILD").is_some_and(|name| name == test)
}

// SPEC E1: to the kernel an offset of -1 is the descriptor's own position, where nobody asked to
// read or write.
#[test]
fn an_offset_past_every_file_is_refused() {
    let test = || {
        let file = scratch();
        file.write_all_at(b"precious", 0).unwrap();
        for offset in [u64::MAX, u64::MAX - 4096, 1 << 63] {
            let mut buf = [0u8; 4];
            for result in [
                file.read_at(&mut buf, offset).map(drop),
                file.read_vectored_at(&mut [IoSliceMut::new(&mut [0; 4])], offset)
                    .map(drop),
                file.try_read_at(&mut buf, offset).map(drop),
                file.write_all_at(b"oops", offset),
                file.write_all_at_durable(b"oops", offset),
                file.write_all_vectored_at(
                    &[IoSlice::new(b"o"), IoSlice::new(b"ops")],
                    offset,
                    true,
                ),
            ] {
                let error = result.expect_err("refused");
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            }
        }
        let mut back = [0u8; 8];
        // Nor has a bad offset taught the file that it always waits.
        assert_eq!(file.try_read_at(&mut back, 0).unwrap(), Some(8));
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"precious");
        assert_eq!(file.size().unwrap(), 8);
    };
    test();
    on_each_engine(test);
}

// SPEC E1: the kernel takes 1024 buffers at a time, of which all may be empty; that is not the end
// of the file.
#[test]
fn many_empty_buffers_are_not_the_end_of_the_file() {
    let test = || {
        let file = scratch();
        let mut data = vec![IoSlice::new(b""); 1500];
        data.extend([IoSlice::new(b"da"), IoSlice::new(b""), IoSlice::new(b"ta")]);
        data.extend(vec![IoSlice::new(b""); 1500]);
        file.write_all_vectored_at(&data, 3, false).unwrap();
        assert_eq!(file.size().unwrap(), 7);
        let (mut a, mut b) = ([0u8; 3], [0u8; 1]);
        let mut bufs: Vec<_> = (0..1500).map(|_| IoSliceMut::new(&mut [])).collect();
        bufs.push(IoSliceMut::new(&mut a));
        bufs.extend((0..1500).map(|_| IoSliceMut::new(&mut [])));
        bufs.push(IoSliceMut::new(&mut b));
        assert_eq!(file.read_vectored_at(&mut bufs, 3).unwrap(), 4);
        assert_eq!((&a, &b), (b"dat", b"a"));
        let mut empty: Vec<_> = (0..3000).map(|_| IoSliceMut::new(&mut [])).collect();
        assert_eq!(file.read_vectored_at(&mut empty, 0).unwrap(), 0);
        let mut bytes: Vec<[u8; 1]> = vec![[0]; 3000];
        let mut ones: Vec<_> = bytes.iter_mut().map(|byte| IoSliceMut::new(byte)).collect();
        file.write_all_at(&[7; 3000], 0).unwrap();
        assert_eq!(file.read_vectored_at(&mut ones, 0).unwrap(), 3000);
        assert!(bytes.iter().all(|byte| byte == &[7]));
    };
    test();
    on_each_engine(test);
}

// SPEC E1
#[test]
fn nothing_is_nothing() {
    let test = || {
        let file = scratch();
        file.write_all_at(b"x", 0).unwrap();
        file.write_all_at(b"", 1 << 40).unwrap();
        file.write_all_vectored_at(&[], 0, true).unwrap();
        assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
        assert_eq!(file.read_vectored_at(&mut [], 0).unwrap(), 0);
        file.discard(0, 0).unwrap();
        assert_eq!(file.size().unwrap(), 1);
        for (len, align) in [(0, 1), (0, 4096), (1, 1 << 20)] {
            let buf = AlignedBuf::zeroed(len, align).unwrap();
            assert_eq!((buf.len(), buf.as_ptr().addr() % align), (len, 0));
        }
        for (len, align) in [
            (1, 0),
            (1, 3),
            (usize::MAX, 1),
            (usize::MAX / 2, 4096),
            (1, 1 << 63),
        ] {
            AlignedBuf::zeroed(len, align).expect_err("no such memory");
        }
    };
    test();
    on_each_engine(test);
}

// SPEC E1: where the file system answers EAGAIN for ever, as some do for O_NONBLOCK, the request
// must not spin.
#[test]
fn a_non_blocking_descriptor_is_read_all_the_same() {
    on_each_engine(|| {
        for directory in ["/dev/shm", "/tmp", "/proc"] {
            let options = OpenOptions::new().custom_flags(0o4000);
            let file = if directory == "/proc" {
                options.read(true).open("/proc/version").unwrap()
            } else {
                let path = format!("{directory}/corio-attack-{}", std::process::id());
                let file = options
                    .read(true)
                    .write(true)
                    .create(true)
                    .open(&path)
                    .unwrap();
                std::fs::remove_file(path).unwrap();
                file.write_all_at(b"Linux", 0).unwrap();
                file
            };
            let mut buf = [0u8; 5];
            file.read_exact_at(&mut buf, 0).unwrap();
            assert_eq!(&buf, b"Linux");
        }
    });
}

// SPEC B4: at least every 10 ms, not as fast as it can.
#[test]
fn an_idle_bottom_half_that_schedules_itself_does_not_spin() {
    const RUNS: usize = 30;
    for monitor in MONITORS {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let runs = Arc::new(Mutex::new(Vec::new()));
        let own: Arc<Mutex<Option<corio::context::BottomHalf>>> = Arc::default();
        let bh = context.bottom_half("idle", {
            let (runs, own) = (Arc::clone(&runs), Arc::clone(&own));
            move || {
                runs.lock().unwrap().push(Instant::now());
                own.lock().unwrap().as_ref().unwrap().schedule_idle();
            }
        });
        bh.schedule_idle();
        *own.lock().unwrap() = Some(bh);
        let turns = context
            .enter_home(|| {
                let mut turns = 0;
                while runs.lock().unwrap().len() < RUNS {
                    context.poll(true).unwrap();
                    turns += 1;
                }
                turns
            })
            .unwrap();
        *own.lock().unwrap() = None;
        let runs = runs.lock().unwrap();
        let mut gaps: Vec<_> = runs.windows(2).map(|two| two[1] - two[0]).collect();
        gaps.sort_unstable();
        // 10 ms, of which those are left out in which other work had the processor.
        let usual = gaps[gaps.len() / 2];
        let limits = Duration::from_millis(8)..Duration::from_millis(15);
        assert!(limits.contains(&usual), "{monitor:?}: every {usual:?}");
        assert!(turns <= 2 * RUNS + 20, "{monitor:?}: {turns} turns");
    }
}

// SPEC B4, N1: scheduled from another thread while the loop blocks without a limit, it runs all the
// same.
#[test]
fn an_idle_bottom_half_of_another_thread_runs() {
    for monitor in MONITORS {
        let io = IoThread::builder().monitor(monitor).spawn().unwrap();
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        let bh = io
            .context()
            .bottom_half("idle", move || tx.send(()).unwrap());
        for _ in 0..50 {
            bh.schedule_idle();
            rx.recv_timeout(Duration::from_secs(5)).expect("it runs");
        }
    }
}

// SPEC A3, B1: what panics kept from running when its home ended runs in the next home.
#[test]
fn a_bottom_half_that_a_home_has_not_run_runs_in_the_next() {
    let context = AioContext::new().unwrap();
    let order: Arc<Mutex<Vec<usize>>> = Arc::default();
    let bombs: Vec<_> = (0..8)
        .map(|_| context.bottom_half("bomb", || panic!("as the test wants")))
        .collect();
    let late: Vec<_> = (0..3)
        .map(|i| {
            let order = Arc::clone(&order);
            context.bottom_half("late", move || order.lock().unwrap().push(i))
        })
        .collect();
    context
        .enter_home(|| {
            bombs.iter().for_each(corio::context::BottomHalf::schedule);
            late[0].schedule();
            late[1].schedule();
            for _ in 0..2 {
                catch_unwind(AssertUnwindSafe(|| context.poll(true))).expect_err("a bomb");
            }
        })
        .unwrap();
    drop(bombs);
    assert_eq!(
        order.lock().unwrap().len(),
        0,
        "the bombs were to be in the way"
    );
    context
        .enter_home(|| {
            late[2].schedule();
            late[0].schedule();
            turn_until(&context, || order.lock().unwrap().len() == 3);
        })
        .unwrap();
    assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
}

// SPEC A3, H1: a panic that a handler's callback lets through does not silence the descriptor for
// those behind it.
#[test]
fn a_handler_whose_callback_panicked_is_called_again() {
    for monitor in MONITORS {
        let context = AioContext::builder().monitor(monitor).build().unwrap();
        let got = Rc::new(AtomicUsize::new(0));
        context
            .enter_home(|| {
                let (ours, mut theirs) = StdUnixStream::pair().unwrap();
                let ours = Rc::new(UnixStream::try_from_std(ours).unwrap());
                let first = Coroutine::new({
                    let ours = Rc::clone(&ours);
                    move || {
                        (&*ours).read_exact(&mut [0; 1]).unwrap();
                        panic!("as the test wants");
                    }
                });
                let second = Coroutine::new({
                    let (ours, got) = (Rc::clone(&ours), Rc::clone(&got));
                    move || {
                        (&*ours).read_exact(&mut [0; 1]).unwrap();
                        got.store(1, Ordering::Relaxed);
                    }
                });
                first.enter();
                second.enter();
                theirs.write_all(b"12").unwrap();
                turn_until(&context, || got.load(Ordering::Relaxed) == 1);
                assert!(first.is_done() && second.is_done(), "{monitor:?}");
            })
            .unwrap();
    }
}

// SPEC H5, I1: when an IoThread has ended, its descriptors are closed, also for who looks at once.
#[test]
fn an_address_is_free_once_the_home_has_ended() {
    for monitor in MONITORS {
        let mut address: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        for round in 0..30 {
            let io = IoThread::builder().monitor(monitor).spawn().unwrap();
            let listener = TcpListener::bind(address)
                .unwrap_or_else(|error| panic!("{monitor:?}, round {round}: {error}"));
            address = listener.local_addr().unwrap();
            let (tx, rx) = std::sync::mpsc::channel();
            let accepting = io.context().spawn(move || {
                tx.send(()).unwrap();
                listener.accept().map(drop)
            });
            rx.recv().unwrap();
            // Once this has run, the accept waits.
            io.context().spawn(|| ()).join().unwrap();
            io.join();
            drop(accepting);
        }
    }
}

// SPEC E1, section 7: no thread for the pool is this call's error, not a lost page.
#[test]
fn a_flush_that_was_never_asked_of_the_kernel_is_not_remembered() {
    const NAME: &str = "a_flush_that_was_never_asked_of_the_kernel_is_not_remembered";
    if !is_child(NAME) {
        // No thread can have a stack that large.
        return child(NAME, &[("RUST_MIN_STACK", "140737488355328")]);
    }
    let context = AioContext::new().unwrap();
    context.set_engine(EngineChoice::Threads);
    let file = Arc::new(scratch());
    let flush = {
        let file = Arc::clone(&file);
        move || file.sync_data()
    };
    context
        .enter_home(|| {
            let refused = context.spawn(flush);
            turn_until(&context, || refused.is_finished());
            refused.join().unwrap().expect_err("there is no thread");
        })
        .unwrap();
    file.sync_data().expect("nothing has been lost");
}

// SPEC section 7: a name that no thread can have is refused where it is given.
#[test]
fn a_name_with_a_nul_byte_is_refused() {
    let error = AioContext::builder().name("a\0b").build().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(22));
    IoThread::builder().name("a\0b").spawn().unwrap_err();
}
