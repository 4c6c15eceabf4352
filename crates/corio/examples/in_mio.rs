//! A context inside a loop that is made with mio: one descriptor among the loop's own.
//!
//! The loop listens on a socket of its own, and beside it the context's coroutines run.

use std::cell::Cell;
use std::error::Error;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use corio::AioContext;
use mio::net::UdpSocket;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

const CONTEXT: Token = Token(0);
const SOCKET: Token = Token(1);

/// Runs until a coroutine and a datagram of the loop's own have both been seen.
pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let context = AioContext::builder().name("in mio").build()?;
    context.enter_home(|| turn(&context))?
}

fn turn(context: &AioContext) -> Result<(), Box<dyn Error>> {
    let local = context.local().ok_or("this thread is its home")?;
    let embedded = local.embed()?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(16);
    let fd = embedded.as_raw_fd();
    poll.registry()
        .register(&mut SourceFd(&fd), CONTEXT, Interest::READABLE)?;
    let mut socket = UdpSocket::bind("127.0.0.1:0".parse()?)?;
    poll.registry()
        .register(&mut socket, SOCKET, Interest::READABLE)?;
    let here = socket.local_addr()?;

    // Ordinary blocking code, in a coroutine: what it sends, the loop receives.
    let child = local.spawn(move || {
        corio::time::sleep(Duration::from_millis(1));
        std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"from a coroutine", here)
    });

    let received = Rc::new(Cell::new(0));
    while received.get() == 0 || !child.is_finished() {
        // mio has milliseconds; the descriptor knows better when a timer is due.
        let timeout = embedded.prepare().filter(Duration::is_zero);
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == SOCKET {
                received.set(socket.recv(&mut [0; 64])?);
            }
        }
        // mio is edge-triggered: all that there is.
        while embedded.check() {
            embedded.dispatch()?;
        }
    }
    println!("received {} bytes from a coroutine", received.get());
    Ok(())
}
