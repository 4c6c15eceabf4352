//! What the kernel refuses keeps its errno, whichever engine asked.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use corio::fs::{File, OpenOptions};

use super::{Mode, buffer, errno, in_child, in_each_mode, in_modes};

// SPEC E1, E2
#[test]
fn a_file_that_is_open_for_reading_is_not_written() {
    in_each_mode(|mode| {
        let file = mode.scratch();
        file.write_all_at(&buffer(4096, 1), 0).unwrap();
        let options = OpenOptions::new().read(true).direct(mode.direct);
        let reader = options.open(file.named.path()).unwrap();
        let block = buffer(4096, 2);
        assert_eq!(errno(reader.write_all_at(&block, 0)), libc::EBADF);
        assert_eq!(errno(reader.write_all_at_durable(&block, 0)), libc::EBADF);
        assert_eq!(errno(reader.discard(0, 4096)), libc::EBADF);
        let mut back = buffer(4096, 0);
        reader.read_exact_at(&mut back, 0).unwrap();
        assert!(back.iter().all(|byte| *byte == 1), "it was written");
        reader.sync_data().unwrap();
    });
}

/// A file whose descriptor, a number that nobody else gets, is closed.
fn closed(mode: Mode) -> File {
    let scratch = mode.scratch();
    // SAFETY: it has no pointers; the new descriptor is nobody's but the file's.
    let file = unsafe {
        let high = libc::fcntl(
            std::os::fd::AsFd::as_fd(&*scratch).as_raw_fd(),
            libc::F_DUPFD_CLOEXEC,
            900,
        );
        assert!(high >= 900);
        File::from(OwnedFd::from_raw_fd(high))
    };
    // SAFETY: as above; whoever drops the file must not close it again.
    unsafe { libc::close(std::os::fd::AsFd::as_fd(&file).as_raw_fd()) };
    file
}

// SPEC E1, E2: a descriptor that somebody has closed is an error, and stops nobody else's request.
#[test]
fn a_closed_file_is_an_error() {
    if !in_child("errors::a_closed_file_is_an_error") {
        return; // Numbers must be nobody else's.
    }
    in_each_mode(|mode| {
        let good = mode.scratch();
        let bad = closed(mode);
        let block = buffer(4096, 1);
        let beside = corio::spawn_local(move || good.write_all_at(&buffer(4096, 3), 0));
        assert_eq!(errno(bad.write_all_at(&block, 0)), libc::EBADF);
        assert_eq!(
            errno(bad.read_exact_at(&mut buffer(4096, 0), 0)),
            libc::EBADF
        );
        assert_eq!(errno(bad.sync_data()), libc::EBADF);
        beside.join().unwrap().unwrap();
        std::mem::forget(bad);
    });
}

// SPEC E2: what direct I/O asks for is the kernel's to say.
#[test]
fn what_is_not_aligned_is_refused_past_the_page_cache() {
    let direct = Mode::all().filter(|mode| mode.direct);
    in_modes(direct, |mode| {
        let file = mode.scratch();
        file.write_all_at(&buffer(4096, 1), 0).unwrap();
        let mut buf = buffer(8192, 0);
        match file.read_at(&mut buf[1..4097], 1) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
            Ok(n) => assert_eq!(n, 4095, "a file system that needs no alignment"),
        }
        let past = file.read_at(&mut buf, u64::MAX - 4095).unwrap_err();
        assert_eq!(past.raw_os_error(), Some(libc::EINVAL));
    });
}

#[test]
fn a_missing_file_and_a_full_device_keep_their_errno() {
    in_each_mode(|mode| {
        let missing = mode.open("/nonexistent/disk").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(errno(full.write_all_at(b"x", 0)), libc::ENOSPC);
        // So that the mode's own engine was asked for something.
        mode.scratch().sync_data().unwrap();
    });
}

/// A file system of 1 MiB, until it is dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn path_of(dir: &Path) -> CString {
        CString::new(dir.as_os_str().as_bytes()).unwrap()
    }

    fn mount() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let none = c"none".as_ptr();
        let (target, kind) = (Self::path_of(dir.path()), c"tmpfs".as_ptr());
        let options = c"size=1m".as_ptr().cast();
        // SAFETY: strings that end with NUL.
        match unsafe { libc::mount(none, target.as_ptr(), kind, 0, options) } {
            0 => Ok(Self(dir)),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let target = Self::path_of(self.0.path());
        // SAFETY: a string that ends with NUL.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

// SPEC E1, E2: what did fit is there, and room that is made is used.
#[test]
fn a_full_disk_is_enospc() {
    in_each_mode(|mode| {
        let small = match Small::mount() {
            Ok(small) => small,
            Err(error) => {
                mode.scratch().sync_data().unwrap();
                return println!("SKIPPED: a full disk: {error}");
            }
        };
        let path = small.0.path().join("disk");
        std::fs::write(&path, []).unwrap();
        let file = match mode.open(&path) {
            Ok(file) => file,
            Err(error) => {
                mode.scratch().sync_data().unwrap();
                return println!("SKIPPED: a full disk past the page cache: {error}");
            }
        };
        // More than there is room for: what fits is there.
        let huge = buffer(2 << 20, 9);
        assert_eq!(errno(file.write_all_at(&huge, 0)), libc::ENOSPC);
        let fit = std::fs::read(&path).unwrap();
        assert!((1..=1 << 20).contains(&fit.len()), "{}", fit.len());
        assert!(fit.iter().all(|byte| *byte == 9));
        let mut back = buffer(4096, 0);
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(*back == huge[..4096]);
        std::fs::write(&path, []).unwrap(); // Makes room.
        let block = buffer(4096, 7);
        let mut written = 0;
        let refused = loop {
            match file.write_all_at(&block, written) {
                Ok(()) => written += 4096,
                Err(error) => break error,
            }
            assert!(written <= 1 << 20);
        };
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        let more = buffer(1 << 20, 7);
        assert_eq!(errno(file.write_all_at(&more, written)), libc::ENOSPC);
        file.read_exact_at(&mut back, written - 4096).unwrap();
        assert!(*back == *block);
        file.discard(0, 65_536).unwrap();
        file.write_all_at(&block, 4096).unwrap();
    });
}

// SPEC E1, E2: RLIMIT_FSIZE, which is of a process.
#[test]
fn a_file_that_may_not_grow_is_efbig() {
    if !in_child("errors::a_file_that_may_not_grow_is_efbig") {
        return;
    }
    let limits = libc::rlimit {
        rlim_cur: 65_536,
        rlim_max: 65_536,
    };
    // SAFETY: the kernel reads the structure; the signal's default is to die.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limits), 0);
    }
    in_each_mode(|mode| {
        let file = mode.scratch();
        let block = buffer(65_536, 1);
        file.write_all_at(&block, 0).unwrap();
        assert_eq!(
            errno(file.write_all_at(&block[..4096], 65_536)),
            libc::EFBIG
        );
        // What fits is written, and then there is no more.
        assert_eq!(errno(file.write_all_at(&block, 32_768)), libc::EFBIG);
        // On the spot a part of it, if any, and that is said.
        let part = file.try_write_at(&block, 32_768).unwrap();
        assert!(matches!(part, None | Some(32_768)), "{part:?}");
        assert_eq!(file.size().unwrap(), 65_536);
    });
}
