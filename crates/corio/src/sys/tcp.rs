//! TCP_INFO (tcp(7)): what the kernel knows of a connection.
//!
//! libc's structure lacks the later fields, so those that are needed are taken from their places in
//! `struct tcp_info`, which the kernel only ever appends to.

#![allow(unsafe_code)] // TCP_INFO has no wrapper.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `tcpi_probes`, one byte.
const PROBES_AT: usize = 3;
/// `tcpi_unacked`, as all below four bytes.
const UNACKED_AT: usize = 24;
/// `tcpi_notsent_bytes`, since Linux 4.6.
const NOTSENT_BYTES_AT: usize = 144;
/// `tcpi_snd_wnd`, since Linux 5.4.
const SND_WND_AT: usize = 228;
/// Up to and with the last of them.
const INFO_BYTES: usize = SND_WND_AT + 4;

/// What is asked of TCP_INFO here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Info {
    /// Window probes in a row that were not answered.
    pub(crate) probes_unanswered: u8,
    /// Segments that were sent and not acknowledged.
    pub(crate) unacked_segments: u32,
    /// Bytes that were not sent yet.
    pub(crate) unsent_bytes: u32,
    /// The window that the peer has announced last; None: the kernel does not say.
    pub(crate) window_bytes: Option<u32>,
}

/// The state of a TCP socket.
pub(crate) fn info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    let mut raw = [0_u8; INFO_BYTES];
    // A constant of this file.
    let mut len = libc::socklen_t::try_from(INFO_BYTES).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes into `raw`, which is as long, and how many it
    // wrote into `len`; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            raw.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let known = raw.get(..usize::try_from(len).unwrap_or(0));
    Ok(parse(known.unwrap_or(&raw)))
}

/// What an older kernel leaves out reads as "nothing".
fn parse(known: &[u8]) -> Info {
    let field = |at: usize| {
        let bytes = known.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    Info {
        probes_unanswered: known.get(PROBES_AT).copied().unwrap_or(0),
        unacked_segments: field(UNACKED_AT).unwrap_or(0),
        unsent_bytes: field(NOTSENT_BYTES_AT).unwrap_or(0),
        window_bytes: field(SND_WND_AT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_an_older_kernel_leaves_out_is_not_made_up() {
        let raw = [1_u8; INFO_BYTES];
        let word = u32::from_ne_bytes([1; 4]);
        assert_eq!(parse(&raw).window_bytes, Some(word));
        let older = parse(&raw[..SND_WND_AT]);
        assert_eq!((older.window_bytes, older.unsent_bytes), (None, word));
        let oldest = parse(&raw[..104]);
        assert_eq!((oldest.unsent_bytes, oldest.unacked_segments), (0, word));
        assert_eq!(parse(&[]).probes_unanswered, 0);
    }

    #[test]
    fn only_tcp_sockets_answer() {
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(info(unix.as_fd()).is_err());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let info = info(client.as_fd()).unwrap();
        assert_eq!((info.probes_unanswered, info.unsent_bytes), (0, 0));
        assert!(info.window_bytes.is_none_or(|bytes| bytes > 0));
    }
}
