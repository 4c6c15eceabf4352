//! Answers system calls of one thread in the kernel's place (seccomp(2), user notification).

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;

/// What waits for descriptors with epoll.
pub(crate) const EPOLL_WAITS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];
/// What waits for descriptors with poll.
pub(crate) const POLL_WAITS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
];
/// What makes an epoll set.
pub(crate) const EPOLL_CREATES: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_create,
    libc::SYS_epoll_create1,
];
/// What changes what an epoll set watches.
pub(crate) const EPOLL_ADDS: &[libc::c_long] = &[libc::SYS_epoll_ctl];
/// What submits to a ring, and waits for it.
pub(crate) const RING_ENTER: &[libc::c_long] = &[libc::SYS_io_uring_enter];

/// A system call's arguments.
pub(crate) type Args = [u64; 6];

/// Refuses system calls as it is told.
pub(crate) struct Kernel {
    calls: &'static [libc::c_long],
    listener: mpsc::Sender<OwnedFd>,
}

impl Kernel {
    /// For each of `calls`, `decide` says with which errno it fails, or None to let it through. No
    /// thread is watched yet. None where user notification is refused, which is said out loud.
    pub(crate) fn new(
        test: &str,
        calls: &'static [libc::c_long],
        decide: impl Fn(Args) -> Option<i32> + Send + 'static,
    ) -> Option<Arc<Self>> {
        // A filter stays with its thread, so it is tried out in one of its own.
        if let Err(error) = thread::spawn(|| install(&[])).join().unwrap() {
            println!("SKIPPED: {test}: seccomp user notification is refused: {error}");
            return None;
        }
        let (listener, listeners) = mpsc::channel();
        thread::spawn(move || {
            for fd in listeners {
                serve(&fd, &decide);
            }
        });
        Some(Arc::new(Self { calls, listener }))
    }

    /// From here on, for the calling thread; one thread a `Kernel`.
    pub(crate) fn watch_this_thread(&self) {
        let fd = install(self.calls).unwrap();
        self.listener.send(fd).unwrap();
    }
}

/// Has this thread's `calls` reported to the descriptor that is returned.
fn install(calls: &[libc::c_long]) -> io::Result<OwnedFd> {
    let instruction = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: u8::try_from(jt).unwrap(),
        jf: 0,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut code = vec![instruction(load, 0, 0)]; // seccomp_data.nr
    for (i, call) in calls.iter().enumerate() {
        code.push(instruction(
            jump,
            calls.len() - i,
            u32::try_from(*call).unwrap(),
        ));
    }
    let answer = libc::BPF_RET | libc::BPF_K;
    code.push(instruction(answer, 0, libc::SECCOMP_RET_ALLOW));
    code.push(instruction(answer, 0, libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).unwrap(),
        filter: code.as_mut_ptr(),
    };
    // SAFETY: without pointers; it only gives up what no test needs.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program, and the code that it points to, outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made it for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Answers until the watched thread has ended.
fn serve(listener: &OwnedFd, decide: &impl Fn(Args) -> Option<i32>) {
    loop {
        // SAFETY: all-zero bytes are a valid structure of integers, which the call demands.
        let mut asked: libc::seccomp_notif = unsafe { zeroed() };
        let receive = libc::SECCOMP_IOCTL_NOTIF_RECV;
        // SAFETY: the call fills the structure.
        if unsafe { libc::ioctl(listener.as_raw_fd(), receive, &raw mut asked) } != 0 {
            return;
        }
        // SAFETY: as above.
        let mut answer: libc::seccomp_notif_resp = unsafe { zeroed() };
        answer.id = asked.id;
        match decide(asked.data.args) {
            Some(errno) => answer.error = -errno,
            None => {
                let go_on = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE;
                answer.flags = u32::try_from(go_on).unwrap();
            }
        }
        let send = libc::SECCOMP_IOCTL_NOTIF_SEND;
        // SAFETY: the call reads the structure. It fails where the thread has been interrupted,
        // which will ask again.
        unsafe { libc::ioctl(listener.as_raw_fd(), send, &raw mut answer) };
    }
}
