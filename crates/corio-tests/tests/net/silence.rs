//! Peers that do not read, and peers that are gone without a word.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use corio::net::{SendState, TcpStream};

use super::{on_each_monitor, tcp_pair};

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes until a write would have to wait.
fn fill(stream: &TcpStream) {
    stream
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let error = loop {
        if let Err(error) = (&*stream).write(&[0; 65536]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    stream.set_write_timeout(None).unwrap();
}

/// Looks at the stream until `condition` holds.
fn await_state(stream: &TcpStream, condition: impl Fn(SendState) -> bool) -> SendState {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = stream.send_state().unwrap();
        if condition(state) {
            return state;
        }
        assert!(Instant::now() < deadline, "{state:?}");
        corio::time::sleep(Duration::from_millis(5));
    }
}

/// From now on the socket gets nothing of what is sent to it, and so acknowledges nothing.
fn fall_silent(stream: &TcpStream) {
    let mut drop_all = [libc::sock_filter {
        code: 6, // BPF_RET: keep `k` bytes.
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: drop_all.as_mut_ptr(),
    };
    let len = libc::socklen_t::try_from(size_of_val(&program)).unwrap();
    // SAFETY: `program` is of the length given and names one instruction; the kernel copies both.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::setsockopt(
            stream.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            len,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

// SPEC E6
#[test]
fn user_timeout_is_what_was_set() {
    let (stream, _peer) = tcp_pair();
    assert_eq!(stream.user_timeout().unwrap(), None);
    for (set, got) in [
        (Duration::from_secs(300), Duration::from_secs(300)),
        (Duration::from_micros(1), Duration::from_millis(1)),
        (Duration::MAX, Duration::from_millis((u32::MAX / 2).into())),
    ] {
        stream.set_user_timeout(Some(set)).unwrap();
        assert_eq!(stream.user_timeout().unwrap(), Some(got));
    }
    let zero = stream.set_user_timeout(Some(Duration::ZERO)).unwrap_err();
    assert_eq!(zero.kind(), ErrorKind::InvalidInput);
    stream.set_user_timeout(None).unwrap();
    assert_eq!(stream.user_timeout().unwrap(), None);
}

// SPEC E6
#[test]
fn peer_that_does_not_read_holds_data_back_and_answers_probes() {
    on_each_monitor(|| {
        let (stream, peer) = tcp_pair();
        assert!(!stream.send_state().unwrap().held_back);
        fill(&stream);
        await_state(&stream, |state| state.held_back);
        // Once it reads, what was held back goes out.
        let mut buf = vec![0; 1 << 20];
        let deadline = Instant::now() + PATIENCE;
        while stream.send_state().unwrap().held_back {
            assert!(Instant::now() < deadline, "the window does not open");
            if peer.try_read(&mut buf).unwrap().is_none() {
                corio::time::sleep(Duration::from_millis(1));
            }
        }
    });
}

// SPEC E6
#[test]
fn peer_that_is_gone_without_a_word_is_told_from_one_that_does_not_read() {
    // Short, as each probe comes after twice the time of the one before.
    const LIMIT: Duration = Duration::from_millis(250);
    let (stream, peer) = tcp_pair();
    fill(&stream);
    // Whether it is to be spared; what the kernel says of the connection if it has ended.
    let look = || {
        let state = stream.send_state().unwrap();
        let spared = state.held_back && state.probes_unanswered < 3;
        stream.set_user_timeout((!spared).then_some(LIMIT)).unwrap();
        corio::time::sleep(Duration::from_millis(10));
        stream.take_error().unwrap()
    };
    let began = Instant::now();
    while began.elapsed() < 3 * LIMIT {
        assert!(look().is_none(), "it is alive");
    }
    fall_silent(&peer);
    let silent = Instant::now();
    let error = loop {
        match look() {
            Some(error) => break error,
            None => assert!(silent.elapsed() < PATIENCE, "it is not given up"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
}
