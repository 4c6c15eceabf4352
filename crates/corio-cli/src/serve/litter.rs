//! What must not stay behind: Unix sockets and the pid file.
//!
//! Two ways lead out of the program, the orderly one and the second signal, and both sweep; what
//! one has taken out of the list the other no longer sees. A path is removed only while it is still
//! ours: another server may have put its own there meanwhile.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The list, shared with the thread that handles signals. Sweeps when the owner is dropped.
#[derive(Debug, Default)]
pub(crate) struct Litter {
    items: SharedLitter,
}

/// A handle that can sweep but does not when dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedLitter(Arc<Mutex<Vec<Item>>>);

#[derive(Debug)]
struct Item {
    path: PathBuf,
    ours: Mark,
}

/// How to tell that a path still holds what we put there.
#[derive(Debug)]
enum Mark {
    Inode { device: u64, inode: u64 },
    Content(String),
}

impl Litter {
    /// For the thread that handles signals.
    pub(crate) fn share(&self) -> SharedLitter {
        self.items.clone()
    }

    /// The socket now at `path` is ours. If it cannot be looked at, it is not remembered.
    pub(crate) fn add_socket(&self, path: &Path) {
        if let Ok(metadata) = fs::symlink_metadata(path) {
            let ours = Mark::Inode {
                device: metadata.dev(),
                inode: metadata.ino(),
            };
            self.items.push(Item {
                path: path.to_owned(),
                ours,
            });
        }
    }

    /// The file at `path` is ours while it holds `content`.
    pub(crate) fn add_file(&self, path: &Path, content: &str) {
        self.items.push(Item {
            path: path.to_owned(),
            ours: Mark::Content(content.to_owned()),
        });
    }
}

impl Drop for Litter {
    fn drop(&mut self) {
        self.items.sweep();
    }
}

impl SharedLitter {
    fn push(&self, item: Item) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(item);
    }

    /// Removes what is still ours. Failures are logged: there is nothing else to do about them.
    pub(crate) fn sweep(&self) {
        let items = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for item in items.iter().filter(|item| item.is_ours()) {
            if let Err(error) = fs::remove_file(&item.path) {
                tracing::warn!("cannot remove {}: {error}", item.path.display());
            }
        }
    }
}

impl Item {
    fn is_ours(&self) -> bool {
        match &self.ours {
            Mark::Inode { device, inode } => fs::symlink_metadata(&self.path)
                .is_ok_and(|now| now.dev() == *device && now.ino() == *inode),
            Mark::Content(content) => {
                fs::read_to_string(&self.path).is_ok_and(|now| now == *content)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn dropping_removes_what_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("s"), dir.path().join("f"));
        let _listener = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "1\n").unwrap();
        let litter = Litter::default();
        litter.add_socket(&socket);
        litter.add_file(&file, "1\n");
        drop(litter);
        assert!(!socket.exists() && !file.exists());
    }

    #[test]
    fn what_another_server_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("s"), dir.path().join("f"));
        let _first = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "1\n").unwrap();
        let litter = Litter::default();
        litter.add_socket(&socket);
        litter.add_file(&file, "1\n");
        // The first socket's inode is kept busy by a link, or its number could be given out again.
        fs::rename(&socket, dir.path().join("old")).unwrap();
        let _second = UnixListener::bind(&socket).unwrap();
        fs::write(&file, "2\n").unwrap();
        drop(litter);
        assert!(socket.exists() && file.exists());
    }

    #[test]
    fn a_second_sweep_finds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        let litter = Litter::default();
        litter.add_file(&file, "x");
        litter.share().sweep();
        fs::write(&file, "x").unwrap();
        drop(litter);
        assert!(file.exists());
    }
}
