//! What the environment refuses for real, each in a process of its own: a loop falls back to what
//! works and says so, and what cannot work is an error and no panic (SPEC M2, E4, A1).

#![allow(unsafe_code)] // seccomp(2) and setrlimit(2).

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc;

use corio::context::{Interest, MonitorChoice, MonitorInfo, MonitorKind};
use corio::engine::{EngineChoice, EngineInfo, EngineKind};
use corio::fs::{AlignedBuf, File, OpenOptions};
use corio::net::{TcpListener, TcpStream};
use corio::{AioContext, Error, IoThread};

const CHILD: &str = "CORIO_FALLBACK_CHILD";

/// Runs the test `name` again in a process of its own; true in there. What it skips is said here,
/// too.
fn in_child(name: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("1 passed"), "{said}");
    for line in said.lines().filter(|line| line.starts_with("SKIPPED:")) {
        println!("{line}");
    }
    false
}

/// Has a loop that asked for io_uring do all it is for; which monitor and engine it got.
fn what_works() -> (MonitorInfo, EngineInfo) {
    let io = IoThread::builder()
        .monitor(MonitorChoice::IoUring)
        .engine(EngineChoice::Auto)
        .spawn()
        .unwrap();
    let (ours, mut theirs) = std::io::pipe().unwrap();
    let (tx, rx) = mpsc::channel();
    let handler = io.context().add_handler(ours, Interest::READ, move |_| {
        let _ = tx.send(());
    });
    theirs.write_all(b"x").unwrap();
    rx.recv().unwrap();
    drop(handler);
    let read = io.context().spawn(|| {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 0).unwrap();
        let file = File::from(OwnedFd::from(file));
        let mut data = [0; 4];
        file.read_exact_at(&mut data, 0).unwrap();
        file.sync_data().unwrap(); // Which the page cache cannot answer.
        data
    });
    assert_eq!(&read.join().unwrap(), b"data");
    let context = io.context();
    (context.monitor().unwrap(), context.engine().unwrap())
}

fn assert_fell_back((monitor, engine): &(MonitorInfo, EngineInfo)) {
    assert_eq!(monitor.kind, MonitorKind::Epoll, "{monitor:?}");
    assert!(monitor.reason.contains("io_uring"), "{monitor:?}");
    assert_eq!(engine.kind, EngineKind::Threads, "{engine:?}");
    assert!(engine.reason.contains("io_uring"), "{engine:?}");
}

/// Has `call` fail with EPERM for this thread and all that it starts.
fn refuse(call: libc::c_long) -> std::io::Result<()> {
    refuse_with(call, libc::EPERM)
}

/// The same with another error.
fn refuse_with(call: libc::c_long, errno: i32) -> std::io::Result<()> {
    let instruction = |code: u32, jt: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf: 0,
        k,
    };
    let (load, jump, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let refused = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let mut code = [
        instruction(load, 0, 0), // seccomp_data.nr
        instruction(jump, 1, u32::try_from(call).unwrap()),
        instruction(answer, 0, libc::SECCOMP_RET_ALLOW),
        instruction(answer, 0, refused),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).unwrap(),
        filter: code.as_mut_ptr(),
    };
    // SAFETY: without pointers; it gives up what no test needs.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the program, and the code that it points to, outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

// SPEC M2, E4
#[test]
fn a_filter_that_refuses_rings_leaves_epoll_and_threads() {
    if !in_child("a_filter_that_refuses_rings_leaves_epoll_and_threads") {
        return;
    }
    if let Err(error) = refuse(libc::SYS_io_uring_setup) {
        println!("SKIPPED: a filter that refuses rings: seccomp is refused: {error}");
        return;
    }
    assert_fell_back(&what_works());
}

/// Reads a file past the page cache in a loop that asks for `choice`, and says which engine did
/// so; None: there is no O_DIRECT here, which is said.
fn direct_engine(choice: EngineChoice) -> Option<EngineInfo> {
    let io = IoThread::builder().engine(choice).spawn().unwrap();
    let read = io.context().spawn(|| {
        let named = tempfile::NamedTempFile::new()?;
        fs::write(&named, [7; 4096])?;
        let file = OpenOptions::new().read(true).direct(true).open(&named)?;
        let mut block = AlignedBuf::zeroed(4096, 4096)?;
        file.read_exact_at(&mut block, 0)?;
        file.sync_data()?;
        assert_eq!(block[4095], 7);
        Ok::<_, std::io::Error>(())
    });
    match read.join().unwrap() {
        Ok(()) => Some(io.context().direct_engine().unwrap()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            println!("SKIPPED: direct files: no O_DIRECT here");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

// SPEC E2, E4: without rings it is Linux AIO for direct files, and threads for the others.
#[test]
fn a_filter_that_refuses_rings_leaves_linux_aio_for_direct_files() {
    if !in_child("a_filter_that_refuses_rings_leaves_linux_aio_for_direct_files") {
        return;
    }
    if let Err(error) = refuse(libc::SYS_io_uring_setup) {
        println!("SKIPPED: a filter that refuses rings: seccomp is refused: {error}");
        return;
    }
    assert_fell_back(&what_works());
    let Some(auto) = direct_engine(EngineChoice::Auto) else {
        return;
    };
    assert_eq!(auto.kind, EngineKind::LinuxAio, "{auto:?}");
    assert!(auto.reason.starts_with("io_uring is refused"), "{auto:?}");
    let asked = direct_engine(EngineChoice::IoUring).unwrap();
    assert_eq!(asked.kind, EngineKind::Threads, "not asked for: {asked:?}");
    assert!(asked.reason.starts_with("io_uring is refused"), "{asked:?}");
    let asked = direct_engine(EngineChoice::LinuxAio).unwrap();
    assert_eq!(asked.kind, EngineKind::LinuxAio);
    assert_eq!(asked.reason, "asked for");
}

/// What a loop says of direct files when `call` fails with `errno`, and io_uring with EPERM.
fn without_linux_aio(call: libc::c_long, errno: i32, words: &str) {
    for (call, errno) in [(libc::SYS_io_uring_setup, libc::EPERM), (call, errno)] {
        if let Err(error) = refuse_with(call, errno) {
            println!("SKIPPED: a filter that refuses Linux AIO: seccomp is refused: {error}");
            return;
        }
    }
    for choice in [EngineChoice::Auto, EngineChoice::LinuxAio] {
        let Some(engine) = direct_engine(choice) else {
            return;
        };
        assert_eq!(engine.kind, EngineKind::Threads, "{engine:?}");
        let why = format!("Linux AIO is refused: {words}");
        assert!(engine.reason.contains(&why), "{engine:?}");
        let because_of_ring = engine.reason.contains("io_uring is refused");
        assert_eq!(because_of_ring, choice == EngineChoice::Auto, "{engine:?}");
    }
}

// SPEC E2
#[test]
fn a_filter_that_refuses_linux_aio_leaves_threads() {
    if in_child("a_filter_that_refuses_linux_aio_leaves_threads") {
        without_linux_aio(libc::SYS_io_setup, libc::EPERM, "io_setup: ");
    }
}

// SPEC E2: it is tried out before anything relies on it.
#[test]
fn a_filter_that_lets_contexts_be_made_and_not_used_leaves_threads() {
    if in_child("a_filter_that_lets_contexts_be_made_and_not_used_leaves_threads") {
        without_linux_aio(libc::SYS_io_submit, libc::EPERM, "io_submit: ");
    }
}

// SPEC E2
#[test]
fn a_kernel_without_linux_aio_leaves_threads() {
    if in_child("a_kernel_without_linux_aio_leaves_threads") {
        without_linux_aio(libc::SYS_io_setup, libc::ENOSYS, "io_setup: ");
    }
}

/// What is said when the machine's limit is reached.
const LIMIT_REACHED: &str = "io_setup (is fs.aio-max-nr reached?): ";

// SPEC E2: as the kernel answers when fs.aio-max-nr is reached.
#[test]
fn too_many_requests_of_the_whole_machine_leave_threads() {
    if in_child("too_many_requests_of_the_whole_machine_leave_threads") {
        without_linux_aio(libc::SYS_io_setup, libc::EAGAIN, LIMIT_REACHED);
    }
}

// SPEC E2: the same for real, where nothing runs beside it: the limit is the whole machine's.
#[test]
fn a_limit_that_is_reached_leaves_threads_until_it_is_not() {
    if std::env::var_os("CORIO_SOAK").is_none() {
        println!(
            "SKIPPED: fs.aio-max-nr reached: it is the whole machine's; `cargo xtask soak` does it"
        );
        return;
    }
    // One request at a time at the end, so that not even one is left.
    let (mut contexts, mut requests) = (Vec::new(), 1u32 << 20);
    while requests > 0 {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number.
        match unsafe { libc::syscall(libc::SYS_io_setup, requests, &raw mut context) } {
            0 => contexts.push(context),
            _ => requests /= 2,
        }
    }
    let during = direct_engine(EngineChoice::LinuxAio);
    for context in contexts {
        // SAFETY: it is ours, and has no requests.
        unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    }
    let (Some(during), Some(after)) = (during, direct_engine(EngineChoice::LinuxAio)) else {
        return;
    };
    assert_eq!(during.kind, EngineKind::Threads);
    assert!(during.reason.contains(LIMIT_REACHED), "{during:?}");
    assert_eq!(after.kind, EngineKind::LinuxAio, "{after:?}");
}

/// Sets the soft limit, and the hard one if that is lower.
fn limit(what: libc::__rlimit_resource_t, soft: u64, hard: Option<u64>) {
    // SAFETY: the structure is filled by the one call and read by the other.
    unsafe {
        let mut limits = std::mem::zeroed::<libc::rlimit>();
        assert_eq!(libc::getrlimit(what, &raw mut limits), 0);
        limits.rlim_cur = soft;
        limits.rlim_max = hard.unwrap_or(limits.rlim_max);
        assert_eq!(libc::setrlimit(what, &raw const limits), 0);
    }
}

// SPEC M2: since Linux 5.12 a ring is counted elsewhere, so that this refuses none; then all works
// by it.
#[test]
fn no_memory_to_lock_leaves_epoll_and_threads() {
    if !in_child("no_memory_to_lock_leaves_epoll_and_threads") {
        return;
    }
    limit(libc::RLIMIT_MEMLOCK, 0, Some(0));
    // For root there is no limit. SAFETY: without pointers.
    if unsafe { libc::geteuid() == 0 && libc::setuid(65_534) != 0 } {
        println!("SKIPPED: no memory to lock: root's is not limited, and cannot be given up");
        return;
    }
    let found = what_works();
    if found.0.kind == MonitorKind::IoUring {
        println!("SKIPPED: no memory to lock: this kernel refuses no ring for it");
    } else {
        assert_fell_back(&found);
    }
}

/// Puts a sysctl back.
struct Restored(&'static str, String);

impl Drop for Restored {
    fn drop(&mut self) {
        fs::write(self.0, &self.1).expect("it could be written before");
    }
}

// SPEC M2: it is the whole machine's, so only `cargo xtask soak`, which runs nothing beside it,
// changes it.
#[test]
fn a_kernel_with_rings_switched_off_leaves_epoll_and_threads() {
    const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";
    let skipped = |why: &str| println!("SKIPPED: rings switched off: {why}");
    if std::env::var_os("CORIO_SOAK").is_none() {
        return skipped("it is the whole machine's; `cargo xtask soak` does it");
    }
    let Ok(before) = fs::read_to_string(SYSCTL) else {
        return skipped("this kernel has no kernel.io_uring_disabled");
    };
    let restored = Restored(SYSCTL, before.trim().to_owned());
    if let Err(error) = fs::write(SYSCTL, "2") {
        core::mem::forget(restored);
        return skipped(&format!("kernel.io_uring_disabled cannot be set: {error}"));
    }
    let found = what_works();
    drop(restored);
    assert_fell_back(&found);
}

/// Loops whose requests do not end before their process does.
static NEVER_ENDS: std::sync::Mutex<Vec<IoThread>> = std::sync::Mutex::new(Vec::new());

/// Whether a descriptor is seen to be ready by a loop with so many disk requests that the kernel
/// refuses with `errno`; None: its requests go another way.
fn is_seen_beside_refused(monitor: MonitorChoice, count: usize, errno: i32) -> Option<bool> {
    let io = IoThread::builder()
        .monitor(monitor)
        .engine(EngineChoice::IoUring)
        .spawn()
        .unwrap();
    let start = move || {
        let file = std::sync::Arc::new(File::from(OwnedFd::from(tempfile::tempfile()?)));
        file.sync_data()?;
        refuse_with(libc::SYS_io_uring_enter, errno)?; // Of this thread alone.
        for _ in 0..count {
            let file = std::sync::Arc::clone(&file);
            let _never_ends = corio::spawn_local(move || file.read_at(&mut [0; 512], 0));
        }
        corio::yield_now();
        Ok::<_, std::io::Error>(())
    };
    let started = io.context().spawn(start).join().unwrap();
    let by_ring = io.context().engine().unwrap().kind == EngineKind::IoUring;
    let seen = (by_ring && started.is_ok()).then(|| {
        let (ours, mut theirs) = std::io::pipe().unwrap();
        let (tx, rx) = mpsc::channel();
        let handler = io.context().add_handler(ours, Interest::READ, move |_| {
            let _ = tx.send(());
        });
        theirs.write_all(b"x").unwrap();
        let seen = rx.recv_timeout(std::time::Duration::from_secs(10));
        drop(handler);
        seen.is_ok()
    });
    NEVER_ENDS.lock().unwrap().push(io); // Its end would wait for the requests.
    seen
}

// SPEC M1, A1: with as few requests as are waited for in the set, as are in the ring, and as fill
// the ring's queue.
#[test]
fn a_kernel_that_refuses_requests_starves_no_descriptor() {
    if !in_child("a_kernel_that_refuses_requests_starves_no_descriptor") {
        return;
    }
    for monitor in [MonitorChoice::Epoll, MonitorChoice::Poll] {
        for (count, errno) in [300, 2, 1]
            .into_iter()
            .flat_map(|count| [(count, libc::EAGAIN), (count, libc::EPERM)])
        {
            match is_seen_beside_refused(monitor, count, errno) {
                Some(seen) => assert!(seen, "{monitor:?}, {count} requests, errno {errno}"),
                None => return println!("SKIPPED: refused requests: no ring, or no filter"),
            }
        }
    }
}

// SPEC E6
#[test]
fn a_client_that_could_not_be_accepted_is_accepted_later() {
    if !in_child("a_client_that_could_not_be_accepted_is_accepted_later") {
        return;
    }
    let io = IoThread::builder().spawn().unwrap();
    let accepted = io.context().spawn(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // The listener has waited once, so that it is known to the monitor.
        listener_has_waited(&listener)?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let next = fs::File::open("/dev/null")?;
        let first_free = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&next)).unwrap();
        drop(next);
        limit(libc::RLIMIT_NOFILE, first_free, None);
        for _ in 0..3 {
            let error = listener.accept().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        }
        // Who wants to may wait until descriptors are free again: here they are.
        limit(libc::RLIMIT_NOFILE, first_free + 16, None);
        let (mut server, _) = listener.accept()?;
        client.write_all(b"patient")?;
        let mut word = [0; 7];
        server.read_exact(&mut word)?;
        assert_eq!(&word, b"patient");
        // And the one after it, for whom the listener waits.
        let address = listener.local_addr()?;
        let waiting = corio::spawn_local(move || listener.accept().map(drop));
        corio::yield_now();
        drop(TcpStream::connect(address)?);
        waiting.join().unwrap()
    });
    accepted.join().unwrap().unwrap();
}

fn listener_has_waited(listener: &TcpListener) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let client = corio::spawn_local(move || TcpStream::connect(address).map(drop));
    listener.accept()?;
    client.join().unwrap()
}

fn is_out_of_descriptors(error: &Error) -> bool {
    matches!(error, Error::Os { source, .. } if source.raw_os_error() == Some(libc::EMFILE))
}

// SPEC A1, M2
#[test]
fn without_descriptors_contexts_and_homes_are_errors() {
    if !in_child("without_descriptors_contexts_and_homes_are_errors") {
        return;
    }
    let context = AioContext::new().unwrap();
    let of_ring = AioContext::builder()
        .monitor(MonitorChoice::IoUring)
        .build()
        .unwrap();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    // Every number below it is in use, up to the one that the next descriptor would get.
    let next = fs::File::open("/dev/null").unwrap();
    let first_free = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&next)).unwrap();
    drop(next);
    limit(libc::RLIMIT_NOFILE, first_free, None);
    for _ in 0..100 {
        assert!(is_out_of_descriptors(&AioContext::new().unwrap_err()));
        let spawned = IoThread::builder().spawn();
        assert!(is_out_of_descriptors(&spawned.unwrap_err()));
        for context in [&context, &of_ring] {
            // The poll monitor needs none: then the home can be.
            match context.enter_home(|| context.poll(false).map(|_| ())) {
                Ok(turned) => {
                    turned.unwrap();
                    assert_eq!(context.monitor().unwrap().kind, MonitorKind::Poll);
                }
                Err(error) => assert!(is_out_of_descriptors(&error), "{error}"),
            }
        }
    }
    limit(libc::RLIMIT_NOFILE, first_free + 64, None);
    assert_eq!(open(), before, "descriptors leaked");
    drop(what_works());
}
