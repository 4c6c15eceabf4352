//! Sockets and pipes in coroutines, on each monitor (SPEC E6, C12, H1, H5).

mod calls;
mod moving;
mod pipes;
mod silence;
mod waiting;

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use corio::context::MonitorChoice;
use corio::net::{Stream, TcpStream, UnixStream};
use corio::{IoThread, JoinError, spawn_local};

const MONITORS: [MonitorChoice; 3] = MonitorChoice::ALL;

fn io_thread(monitor: MonitorChoice) -> IoThread {
    IoThread::builder()
        .name("io")
        .monitor(monitor)
        .spawn()
        .unwrap()
}

/// Runs a test in a coroutine on each monitor.
fn on_each_monitor(test: impl Fn() + Clone + Send + 'static) {
    for monitor in MONITORS {
        let io = io_thread(monitor);
        let result = io.context().spawn(test.clone()).join();
        if let Err(error) = result.map_err(JoinError::resume_panic) {
            panic!("{error}");
        }
        io.join();
    }
}

/// Two ends of a TCP connection on loopback.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let wrap = |stream| TcpStream::try_from_std(stream).unwrap();
    (wrap(ours), wrap(theirs))
}

/// Fills the stream until it takes no more; how much that was.
fn fill(stream: &UnixStream) -> usize {
    stream
        .set_write_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    let mut total = 0;
    loop {
        match (&*stream).write(&[0; 4096]) {
            Ok(n) => total += n,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TimedOut);
                stream.set_write_timeout(None).unwrap();
                return total;
            }
        }
    }
}

/// Reads one byte into a list, in a coroutine of its own.
fn read_one(
    stream: &Rc<UnixStream>,
    who: u32,
    order: &Rc<RefCell<Vec<(u32, u8)>>>,
) -> corio::LocalJoinHandle<()> {
    let (stream, order) = (Rc::clone(stream), Rc::clone(order));
    spawn_local(move || {
        let mut byte = [0];
        (&*stream).read_exact(&mut byte).unwrap();
        order.borrow_mut().push((who, byte[0]));
    })
}

/// Lets every coroutine that can run do so, until it waits.
fn settle() {
    for _ in 0..8 {
        corio::yield_now();
    }
}

fn echo(mut stream: impl Stream) {
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf).unwrap() {
            0 => return stream.shutdown(Shutdown::Write).unwrap(),
            n => stream.write_all(&buf[..n]).unwrap(),
        }
    }
}
