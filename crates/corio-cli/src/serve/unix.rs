//! Listening on a Unix socket: taking over a path that a dead server left, and no other.
//!
//! Between looking at the path and binding it another server may do the same, so that both find the
//! old socket dead and the slower one removes the fresh socket of the faster. An flock on the
//! directory, held over all three steps, keeps servers of this program apart.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{bind, connect, listen, socket_with};

use super::BACKLOG;
use super::litter::Litter;
use crate::report::{Failure, errno_text};

/// How long another server may take to settle its socket in the same directory.
const LOCK_TRIES_MAX: u32 = 100;
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Listens at `path`, with exactly the permissions `mode` if one is given.
///
/// # Errors
/// The path is too long or taken by something alive or by no socket, or the directory is missing or
/// not writable.
pub(crate) fn listen_at(
    path: &Path,
    mode: Option<u32>,
    litter: &Litter,
) -> Result<UnixListener, Failure> {
    let failed = |errno: Errno| {
        Failure::new(cannot(path))
            .io(&io::Error::from(errno))
            .advice(advice(errno))
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let _lock = lock_directory(path);
    make_way(path, &address)?;
    let socket = stream_socket().map_err(failed)?;
    if let Some(mode) = mode {
        // Before there is a path: nobody gets in with more than `mode` allows, however early.
        fchmod(&socket, Mode::from_raw_mode(mode)).map_err(failed)?;
    }
    bind(&socket, &address).map_err(failed)?;
    litter.add_socket(path);
    if let Some(mode) = mode {
        // What the umask took away, which `mode` has asked for.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(|error| Failure::new(cannot(path)).io(&error))?;
    }
    listen(&socket, BACKLOG).map_err(failed)?;
    Ok(UnixListener::from(socket))
}

/// Removes a dead server's socket at `path`.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<(), Failure> {
    let failure = || Failure::new(cannot(path));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            return Err(failure().io(&error).advice(advice(errno)));
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(failure()
                .why("it exists and is no socket")
                .advice("remove it or choose another path"));
        }
        Ok(_) => {}
    }
    let probe = stream_socket().map_err(|errno| failure().io(&errno.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure()
                .why(format!(
                    "a dead server's socket is there and cannot be removed: {}",
                    errno_text(&error)
                ))
                .advice("remove it or choose another path")),
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        // Accepted, or (EAGAIN) somebody listens and is busy, or it is no stream socket.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(failure()
            .io(&Errno::ADDRINUSE.into())
            .advice("another program uses this socket: stop it or choose another path")),
        Err(errno) => Err(failure().io(&errno.into()).advice(advice(errno))),
    }
}

/// Non-blocking, so that a probe never waits for a server that does not accept.
fn stream_socket() -> Result<OwnedFd, Errno> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Released when the file is dropped. Best effort: without it only the race above is open.
fn lock_directory(path: &Path) -> Option<File> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).ok()?;
    for _ in 0..LOCK_TRIES_MAX {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_RETRY),
            Err(_) => return None,
        }
    }
    None
}

fn cannot(path: &Path) -> String {
    format!("cannot listen on Unix socket {}", path.display())
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NAMETOOLONG => {
            "a Unix socket's path has at most 107 bytes: choose a shorter one, or a relative one"
        }
        Errno::NOENT => "create the directory first",
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            "choose a directory that you may write to, or change its permissions"
        }
        Errno::NOTDIR => "choose a path whose parents are directories",
        Errno::ADDRINUSE => "another program has just taken this path: choose another one",
        _ => "choose another path",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn listen_in(dir: &tempfile::TempDir) -> (std::path::PathBuf, Litter) {
        (dir.path().join("sock"), Litter::default())
    }

    #[test]
    fn accepts_and_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, litter) = listen_in(&dir);
        let listener = listen_at(&path, None, &litter).unwrap();
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(litter);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_servers_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, litter) = listen_in(&dir);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = listen_at(&path, None, &litter).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_servers_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, litter) = listen_in(&dir);
        let _alive = UnixListener::bind(&path).unwrap();
        let error = listen_at(&path, None, &litter).unwrap_err().to_string();
        assert!(error.contains("Address already in use"), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        drop(litter);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_server_with_a_full_backlog_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, litter) = listen_in(&dir);
        let address = SocketAddrUnix::new(&path).unwrap();
        let busy = stream_socket().unwrap();
        bind(&busy, &address).unwrap();
        listen(&busy, 0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let client = stream_socket().unwrap();
            match connect(&client, &address) {
                Ok(()) => waiting.push(client),
                Err(Errno::AGAIN) => break,
                Err(errno) => panic!("{errno}"),
            }
        }
        let error = listen_at(&path, None, &litter).unwrap_err().to_string();
        assert!(error.contains("Address already in use"), "{error}");
        assert!(path.exists());
    }

    #[test]
    fn a_datagram_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, litter) = listen_in(&dir);
        let _other = UnixDatagram::bind(&path).unwrap();
        assert!(listen_at(&path, None, &litter).is_err());
        assert!(path.exists());
    }

    #[test]
    fn files_links_and_directories_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [file.as_path(), link.as_path(), dir.path()] {
            let error = listen_at(path, None, &Litter::default())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("it exists and is no socket; remove it"),
                "{error}"
            );
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn the_mode_is_exact_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o666, 0o777, 0o000] {
            let path = dir.path().join(format!("{mode:o}"));
            let litter = Litter::default();
            let _listener = listen_at(&path, Some(mode), &litter).unwrap();
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
                mode
            );
        }
    }

    #[test]
    fn a_long_path_is_said_to_be_too_long() {
        let path = Path::new("/tmp").join("x".repeat(108));
        let error = listen_at(&path, None, &Litter::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("File name too long; a Unix socket's path has at most 107 bytes"));
        let fits = tempfile::tempdir().unwrap();
        let room = 107 - fits.path().as_os_str().len() - 1;
        let path = fits.path().join("x".repeat(room));
        listen_at(&path, None, &Litter::default()).unwrap();
    }

    #[test]
    fn a_missing_directory_says_what_to_do() {
        let path = Path::new("/no/such/dir/sock");
        let error = listen_at(path, None, &Litter::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot listen on Unix socket /no/such/dir/sock: No such file or directory; create \
             the directory first"
        );
    }
}
