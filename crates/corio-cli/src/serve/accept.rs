//! The thread that takes new clients from the listening sockets.
//!
//! A thread and not a coroutine on a client's loop: refusing the client that is one too many, and
//! stopping to accept, must not wait for a loop that is busy with the clients it has.
//!
//! When the process or the system has no descriptor left, accept fails and the client stays queued,
//! so that polling would turn hot: the thread then looks away for [`BACK_OFF`], says so once, and
//! goes on when clients have left.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// How long a socket whose accept failed for want of something is left alone.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Clients taken from one socket before the others are looked at.
const BATCH_MAX: usize = 64;

/// A listening, non-blocking socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A client that has just connected.
#[derive(Debug)]
pub(crate) enum Client {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// The thread; [`Acceptor::stop`] ends it.
#[derive(Debug)]
pub(crate) struct Acceptor {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// What a failed accept calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// Nobody there any more: wait for the next.
    Drained,
    /// This client is gone: take the next.
    Next,
    /// Something is used up: look away for a while.
    BackOff,
    /// The socket is of no use any more.
    Dead,
}

impl Acceptor {
    /// Starts taking clients and giving each to `admit`.
    ///
    /// # Errors
    /// No descriptor or thread is to be had.
    pub(crate) fn start(
        listeners: Vec<Listener>,
        admit: impl FnMut(Client) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || Rounds::new(listeners, admit).run(&told))?;
        Ok(Self { stop, thread })
    }

    /// Takes no more clients and closes the sockets. Returns when that is done.
    pub(crate) fn stop(self) {
        // An eventfd that does not take a 1 is already readable.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if self.thread.join().is_err() {
            tracing::error!("the accepting thread panicked");
        }
    }
}

/// The thread's state.
struct Rounds<F> {
    listeners: Vec<Listener>,
    admit: F,
    /// The lack that was last logged, until a client could be accepted again.
    lacking: Option<Errno>,
}

impl<F: FnMut(Client)> Rounds<F> {
    fn new(listeners: Vec<Listener>, admit: F) -> Self {
        Self {
            listeners,
            admit,
            lacking: None,
        }
    }

    /// Until told to stop.
    fn run(mut self, stop: &OwnedFd) {
        let mut back_off = false;
        loop {
            let Some(ready) = self.wait(stop, back_off) else {
                return;
            };
            back_off = self.round(&ready);
        }
    }

    /// Which sockets have clients, by index; `None`: stop. While backing off only the stop is seen.
    fn wait(&self, stop: &OwnedFd, back_off: bool) -> Option<Vec<usize>> {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        if !back_off {
            let sockets = self.listeners.iter();
            fds.extend(
                sockets.map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)),
            );
        }
        let pause = Timespec::try_from(BACK_OFF).ok().filter(|_| back_off);
        match poll(&mut fds, pause.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Some(Vec::new()),
            Err(errno) => {
                // Out of kernel memory: nothing to do but try again later.
                tracing::warn!("cannot wait for clients: {errno}");
                thread::sleep(BACK_OFF);
            }
        }
        if !fds[0].revents().is_empty() {
            return None;
        }
        if back_off {
            return Some((0..self.listeners.len()).collect());
        }
        let ready = fds[1..]
            .iter()
            .enumerate()
            .filter(|(_, fd)| !fd.revents().is_empty());
        Some(ready.map(|(index, _)| index).collect())
    }

    /// Takes clients from the sockets named. True: something is used up.
    fn round(&mut self, ready: &[usize]) -> bool {
        let mut back_off = false;
        let mut dead = Vec::new();
        for &index in ready {
            match self.take_from(index) {
                Failed::BackOff => back_off = true,
                Failed::Dead => dead.push(index),
                Failed::Drained | Failed::Next => {}
            }
        }
        for index in dead.into_iter().rev() {
            self.listeners.remove(index);
        }
        back_off
    }

    /// Takes up to [`BATCH_MAX`] clients from one socket; says why it ended.
    fn take_from(&mut self, index: usize) -> Failed {
        for _ in 0..BATCH_MAX {
            match self.listeners[index].accept() {
                Ok(client) => {
                    self.lacking = None;
                    (self.admit)(client);
                }
                Err(error) => {
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    match classify(errno) {
                        Failed::Next => {
                            tracing::debug!("a client was gone before it was accepted: {errno}")
                        }
                        end => {
                            self.log(end, errno);
                            return end;
                        }
                    }
                }
            }
        }
        Failed::Next
    }

    fn log(&mut self, end: Failed, errno: Errno) {
        match end {
            Failed::BackOff if self.lacking != Some(errno) => {
                tracing::warn!(
                    "cannot accept clients: {errno}; they wait until others leave (raise \
                     LimitNOFILE= or ulimit -n)"
                );
                self.lacking = Some(errno);
            }
            Failed::Dead => tracing::error!("a listening socket is lost: {errno}"),
            _ => {}
        }
    }
}

/// What accept(2) says about each errno.
fn classify(errno: Errno) -> Failed {
    match errno {
        Errno::AGAIN => Failed::Drained,
        Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP => Failed::Dead,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Failed::BackOff,
        // ECONNABORTED, EPERM from a firewall, and the network errors Linux passes on from the new
        // connection.
        _ => Failed::Next,
    }
}

impl Listener {
    fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener) => listener
                .accept()
                .map(|(stream, peer)| Client::Tcp(stream, peer)),
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Client::Unix(stream)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn tcp() -> (Listener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        (Listener::Tcp(listener), address)
    }

    #[test]
    fn clients_of_every_socket_are_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let unix = UnixListener::bind(&path).unwrap();
        unix.set_nonblocking(true).unwrap();
        let (first, first_at) = tcp();
        let (second, second_at) = tcp();
        let (sender, clients) = mpsc::channel();
        let acceptor = Acceptor::start(vec![first, second, Listener::Unix(unix)], move |client| {
            sender.send(client).unwrap();
        })
        .unwrap();
        for at in [second_at, first_at, second_at] {
            let ours = TcpStream::connect(at).unwrap();
            let Client::Tcp(_, peer) = clients.recv().unwrap() else {
                panic!("it is TCP")
            };
            assert_eq!(peer, ours.local_addr().unwrap());
        }
        let _ours = UnixStream::connect(&path).unwrap();
        assert!(matches!(clients.recv().unwrap(), Client::Unix(_)));
        acceptor.stop();
    }

    #[test]
    fn more_clients_than_a_batch_are_all_admitted() {
        let (listener, at) = tcp();
        let ours: Vec<_> = (0..3).map(|_| TcpStream::connect(at).unwrap()).collect();
        let (sender, clients) = mpsc::channel();
        let acceptor =
            Acceptor::start(vec![listener], move |client| sender.send(client).unwrap()).unwrap();
        let more: Vec<_> = (0..2 * BATCH_MAX)
            .map(|_| TcpStream::connect(at).unwrap())
            .collect();
        for _ in 0..ours.len() + more.len() {
            clients.recv().unwrap();
        }
        acceptor.stop();
    }

    #[test]
    fn after_a_stop_nobody_gets_in() {
        let (listener, at) = tcp();
        let acceptor = Acceptor::start(vec![listener], |_| panic!("nobody is to come")).unwrap();
        acceptor.stop();
        assert_eq!(
            TcpStream::connect(at).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }

    #[test]
    fn lack_is_waited_out_and_lost_clients_are_passed_over() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(classify(errno), Failed::BackOff, "{errno}");
        }
        for errno in [
            Errno::CONNABORTED,
            Errno::PROTO,
            Errno::PERM,
            Errno::HOSTUNREACH,
            Errno::INTR,
        ] {
            assert_eq!(classify(errno), Failed::Next, "{errno}");
        }
        for errno in [Errno::BADF, Errno::INVAL, Errno::NOTSOCK] {
            assert_eq!(classify(errno), Failed::Dead, "{errno}");
        }
        assert_eq!(classify(Errno::AGAIN), Failed::Drained);
    }

    #[test]
    fn while_backing_off_only_the_stop_is_seen() {
        let (listener, at) = tcp();
        let _ours = TcpStream::connect(at).unwrap();
        let rounds = Rounds::new(vec![listener], |_| {});
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let started = std::time::Instant::now();
        assert_eq!(rounds.wait(&stop, true), Some(vec![0]));
        assert!(started.elapsed() >= BACK_OFF);
        rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(rounds.wait(&stop, true), None);
        assert_eq!(rounds.wait(&stop, false), None);
    }

    #[test]
    fn a_dead_socket_is_dropped_and_the_others_stay() {
        let (live, at) = tcp();
        // Not listening: accept says EINVAL.
        let (unconnected, _) = tcp();
        rustix::net::shutdown(&unconnected, rustix::net::Shutdown::Both).unwrap();
        let mut admitted = 0;
        let _ours = TcpStream::connect(at).unwrap();
        let mut rounds = Rounds::new(vec![unconnected, live], |_| admitted += 1);
        assert!(!rounds.round(&[0, 1]));
        assert_eq!(rounds.listeners.len(), 1);
        assert_eq!(admitted, 1);
    }
}
