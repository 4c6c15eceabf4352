//! Which TCP clients are given up: the dead ones, never the slow.
//!
//! TCP_USER_TIMEOUT ends a connection whose peer acknowledges nothing. But Linux also counts the
//! time for which the peer's window is closed, though it answers each probe of the window: the
//! machine of a paused VM is such a peer, and RFC 9293, section 3.8.6.1, wants it waited for. So
//! the option is lifted while the window is closed and the probes are answered:
//!
//! ```text
//!                 window closed, probes answered
//!   in force  ------------------------------------>  lifted
//!             <------------------------------------
//!             window open again, or PROBES_MAX in a row not answered
//! ```
//!
//! Put back while probes go unanswered, it ends the connection at the next one, as the kernel has
//! counted all along. To lift it while a writer is parked would not do: what fits into the socket's
//! buffer leaves nobody parked, and the connection ends all the same. Hence a timer, which looks
//! several times within the limit; requests pay nothing.
//!
//! A timer's callback can go to another thread and a stream cannot: the callback has a number,
//! under which the thread that serves the connection finds the stream.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use corio::AioContext;
use corio::context::Timer;
use corio::net::{SendState, TcpStream};

/// Looks within one limit: the window may close right behind one, and a busy loop be late for
/// another.
const LOOKS: u32 = 4;
/// Probes of a closed window that a peer may leave unanswered in a row. They come up to 2 minutes
/// apart: a dead peer that had not been reading is given up some 10 minutes after its end.
const PROBES_MAX: u32 = 3;

thread_local! {
    /// What this thread's connections are watched by.
    static WATCHES: RefCell<HashMap<u64, Watch>> = RefCell::default();
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
}

/// The watch over one connection, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Vigil {
    id: u64,
}

#[derive(Debug)]
struct Watch {
    stream: Weak<TcpStream>,
    silence_max: Duration,
    lifted: bool,
    timer: Timer,
}

impl Vigil {
    /// Has the kernel give the peer up after `silence_max`, and sees to it that it spares a slow
    /// one. On the thread that serves the connection.
    ///
    /// Without a context there is nobody to look, and the kernel is left to its own limit, which
    /// spares the slow too and takes a quarter of an hour for the dead.
    pub(super) fn keep(stream: &Rc<TcpStream>, silence_max: Duration) -> Option<Self> {
        let context = AioContext::current()?;
        // A socket that does not know the option has no limit that would have to be lifted.
        stream.set_user_timeout(Some(silence_max)).ok()?;
        let id = NEXT_ID.replace(NEXT_ID.get() + 1);
        let watch = Watch {
            stream: Rc::downgrade(stream),
            silence_max,
            lifted: false,
            timer: context.timer(move || look(id)),
        };
        watch.timer.arm_after(silence_max / LOOKS);
        WATCHES.with_borrow_mut(|watches| watches.insert(id, watch));
        Some(Self { id })
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        // The list may be gone already if the thread ends under a leaked coroutine.
        let watch = WATCHES.try_with(|watches| watches.borrow_mut().remove(&self.id));
        drop(watch);
    }
}

/// The timer's callback, on the connection's thread.
fn look(id: u64) {
    WATCHES.with_borrow_mut(|watches| {
        if let Some(watch) = watches.get_mut(&id) {
            watch.look();
            watch.timer.arm_after(watch.silence_max / LOOKS);
        }
    });
}

impl Watch {
    fn look(&mut self) {
        // A connection that is at its end has nothing to be spared from.
        let Some(stream) = self.stream.upgrade() else {
            return;
        };
        let Ok(state) = stream.send_state() else {
            return;
        };
        let lift = is_to_be_spared(state);
        if lift == self.lifted {
            return;
        }
        let limit = (!lift).then_some(self.silence_max);
        if stream.set_user_timeout(limit).is_ok() {
            self.lifted = lift;
        }
    }
}

/// Whether the peer is alive and does not read.
fn is_to_be_spared(state: SendState) -> bool {
    state.held_back && state.probes_unanswered < PROBES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(held_back: bool, probes_unanswered: u32) -> SendState {
        let mut state = SendState::default();
        state.held_back = held_back;
        state.probes_unanswered = probes_unanswered;
        state
    }

    #[test]
    fn peer_that_answers_and_does_not_read_is_spared() {
        // One that is late with an answer is not dead.
        for probes in 0..PROBES_MAX {
            assert!(is_to_be_spared(state(true, probes)));
        }
    }

    #[test]
    fn peer_that_does_not_answer_is_not_spared() {
        assert!(!is_to_be_spared(state(true, PROBES_MAX)));
        assert!(!is_to_be_spared(state(true, u32::MAX)));
    }

    #[test]
    fn peer_whose_window_is_open_has_no_need_to_be_spared() {
        assert!(!is_to_be_spared(state(false, 0)));
        assert!(!is_to_be_spared(state(false, PROBES_MAX)));
    }

    #[test]
    fn vigil_leaves_nothing_behind_and_needs_a_context() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Rc::new(stream);
        let limit = Duration::from_secs(300);
        assert!(Vigil::keep(&stream, limit).is_none());
        assert_eq!(stream.user_timeout().unwrap(), None);
        let stream = Rc::into_inner(stream).unwrap();
        let io = corio::IoThread::builder().spawn().unwrap();
        let watched = io.context().spawn(move || {
            let stream = Rc::new(stream);
            let watches = || WATCHES.with_borrow(HashMap::len);
            let vigil = Vigil::keep(&stream, limit);
            assert_eq!((vigil.is_some(), watches()), (true, 1));
            assert_eq!(stream.user_timeout().unwrap(), Some(limit));
            drop(vigil);
            watches()
        });
        assert_eq!(watched.join().ok(), Some(0));
    }
}
