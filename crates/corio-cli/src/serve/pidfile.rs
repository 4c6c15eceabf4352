//! `--pid-file`: whoever finds the file finds a whole number in it, and can connect.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::litter::Litter;
use crate::report::Failure;

/// Writes the process number to `path` and remembers it for removal. Replaces an older file.
///
/// The file appears whole: it is written beside `path` and renamed.
///
/// # Errors
/// The directory is missing or not writable, or the disk is full.
pub(crate) fn write(path: &Path, litter: &Litter) -> Result<(), Failure> {
    let content = format!("{}\n", std::process::id());
    replace(path, &content).map_err(|error| {
        Failure::new(format!("cannot write pid file {}", path.display()))
            .io(&error)
            .advice("give a path in an existing directory that you may write to")
    })?;
    litter.add_file(path, &content);
    Ok(())
}

fn replace(path: &Path, content: &str) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    let beside = beside(path)?;
    // Left by a process of our number that died here; nobody else uses the name.
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&beside)?;
    let written = file
        .write_all(content.as_bytes())
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// A name of our own in the same directory.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let mut name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?
        .to_owned();
    name.push(format!(".{}", std::process::id()));
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_our_number_and_goes_with_the_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "99999999999 an older and longer one\n").unwrap();
        let litter = Litter::default();
        write(&path, &litter).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("{}\n", std::process::id())
        );
        drop(litter);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_said_with_the_path() {
        let error = write(Path::new("/no/such/dir/pid"), &Litter::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot write pid file /no/such/dir/pid: No such file or directory; give a path in an \
             existing directory that you may write to"
        );
    }

    #[test]
    fn a_directory_is_no_pid_file_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), &Litter::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("is a directory"), "{error}");
        assert!(dir.path().is_dir());
    }
}
