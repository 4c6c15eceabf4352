//! Image locks against qemu-io and qemu-img on the same file, both ways.

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use common::{directory, has, run, skipped};
use corio_block::{Error, Node, raw};

/// A qemu-io that has the image open until dropped.
struct QemuIo {
    child: Child,
    _output: BufReader<ChildStdout>,
}

impl QemuIo {
    fn open(path: &Path, read_only: bool) -> QemuIo {
        let mut command = Command::new("qemu-io");
        if read_only {
            command.arg("-r");
        }
        command
            .args(["-f", "raw"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It has answered a read, so it has the image open.
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"read 0 512\n")
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("read 512/512") {
            line.clear();
            assert!(
                output.read_line(&mut line).unwrap() > 0,
                "qemu-io ended early"
            );
        }
        QemuIo {
            child,
            _output: output,
        }
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn qemu_io(path: &Path, read_only: bool) -> Result<String, String> {
    let path = path.to_str().unwrap();
    if read_only {
        run("qemu-io", &["-r", "-f", "raw", "-c", "read 0 512", path])
    } else {
        run("qemu-io", &["-f", "raw", "-c", "write 0 512", path])
    }
}

fn open(path: &Path, read_only: bool) -> Result<std::sync::Arc<Node>, Error> {
    raw::Options::new(path).read_only(read_only).open()
}

/// A directory to work in, for one test at a time: between the fork and the exec by which one of
/// them starts a program, its child has the descriptors of all, and with them their locks.
struct Scratch {
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// A directory with an image; `None`, said aloud, without the tools.
fn image() -> Option<(Scratch, std::path::PathBuf)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !has("qemu-io") || !has("qemu-img") {
        skipped("image locks against qemu-io", "qemu-utils is not installed");
        return None;
    }
    let directory = directory();
    let path = directory.path().join("disk.raw");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let scratch = Scratch {
        directory,
        _alone: alone,
    };
    Some((scratch, path))
}

const WRITE: bool = false;
const READ: bool = true;

#[test]
fn what_we_have_open_is_refused_to_qemu_io() {
    let Some((_scratch, path)) = image() else {
        return;
    };
    // (we, qemu-io, both may)
    for (ours, theirs, both) in [
        (WRITE, WRITE, false),
        (WRITE, READ, true),
        (READ, WRITE, false),
        (READ, READ, true),
    ] {
        let node = open(&path, ours).unwrap();
        let result = qemu_io(&path, theirs);
        assert_eq!(result.is_ok(), both, "{ours} {theirs}: {result:?}");
        if let Err(message) = result {
            assert!(message.contains("lock"), "{message}");
        }
        drop(node);
        qemu_io(&path, theirs).unwrap();
    }
}

#[test]
fn what_qemu_io_has_open_is_refused_to_us() {
    let Some((_scratch, path)) = image() else {
        return;
    };
    for (ours, theirs, both) in [
        (WRITE, WRITE, false),
        (WRITE, READ, true),
        (READ, WRITE, false),
        (READ, READ, true),
    ] {
        let other = QemuIo::open(&path, theirs);
        match open(&path, ours) {
            Ok(_) => assert!(both, "{ours} {theirs}: both have it"),
            Err(error @ Error::Locked { .. }) => {
                assert!(!both, "{ours} {theirs}: {error}");
                let text = error.to_string();
                assert!(
                    text.contains("open for writing") && text.contains("disk.raw"),
                    "{text}"
                );
            }
            Err(error) => panic!("{error}"),
        }
        drop(other);
        open(&path, ours).unwrap();
    }
}

// qemu-img convert wants a source that nobody writes, unless told that it may change (-U).
#[test]
fn qemu_img_convert_wants_us_not_to_write() {
    let Some((scratch, path)) = image() else {
        return;
    };
    let target = scratch.directory.path().join("copy.raw");
    let (source, target) = (path.to_str().unwrap(), target.to_str().unwrap());
    let convert = |more: &[&str]| {
        let mut args = vec!["convert", "-f", "raw", "-O", "raw"];
        args.extend(more);
        args.extend([source, target]);
        run("qemu-img", &args)
    };
    let writer = open(&path, WRITE).unwrap();
    assert!(convert(&[]).unwrap_err().contains("lock"));
    convert(&["-U"]).unwrap();
    drop(writer);
    let _reader = open(&path, READ).unwrap();
    convert(&[]).unwrap();
}

#[test]
fn two_of_ours_exclude_each_other_unless_both_read_or_do_not_lock() {
    let Some((_scratch, path)) = image() else {
        return;
    };
    let writer = open(&path, WRITE).unwrap();
    assert!(matches!(open(&path, WRITE), Err(Error::Locked { .. })));
    assert!(matches!(open(&path, READ), Err(Error::Locked { .. })));
    raw::Options::new(&path).lock(false).open().unwrap();
    drop(writer);
    let reader = open(&path, READ).unwrap();
    assert!(matches!(open(&path, WRITE), Err(Error::Locked { .. })));
    open(&path, READ).unwrap();
    drop(reader);
    open(&path, WRITE).unwrap();
}

// With O_DIRECT the image has several descriptors; the lock is held by the first to the end.
#[test]
fn locks_hold_with_several_descriptors() {
    let Some((_scratch, path)) = image() else {
        return;
    };
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len((1 << 20) + 7)
        .unwrap();
    let node = match raw::Options::new(&path).cache(raw::Cache::None).open() {
        Err(error @ Error::DirectUnsupported { .. }) => {
            return skipped("locks with O_DIRECT", error);
        }
        node => node.unwrap(),
    };
    assert!(qemu_io(&path, WRITE).is_err());
    drop(node);
    qemu_io(&path, WRITE).unwrap();
}
