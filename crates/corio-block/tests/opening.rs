//! Opening: each thing that can be wrong has its own error, which says what to do.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{LoopDevice, directory, is_root, run, skipped};
use corio_block::{Error, Length, Node, memory, raw};

fn message(path: impl AsRef<Path>) -> (Error, String) {
    let error = raw::Options::new(path).open().unwrap_err();
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    (error, text)
}

#[test]
fn no_such_file() {
    let directory = directory();
    let path = directory.path().join("none.raw");
    let (error, text) = message(&path);
    assert!(matches!(error, Error::NotFound { .. }));
    assert_eq!(error.errno(), 2);
    assert!(
        text.starts_with(path.to_str().unwrap()) && text.contains("truncate"),
        "{text}"
    );
    // Neither does it make one.
    assert!(!path.exists());
}

#[test]
fn no_permission() {
    let directory = directory();
    let path = directory.path().join("disk.raw");
    fs::write(&path, [0; 512]).unwrap();
    let path_text = path.to_str().unwrap();
    if is_root() {
        // Modes do not stop root; an immutable file does.
        if let Err(why) = run("chattr", &["+i", path_text]) {
            return skipped("an image without permission", why);
        }
    } else {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    let result = raw::Options::new(&path).open();
    let reading = raw::Options::new(&path).read_only(true).open();
    if is_root() {
        run("chattr", &["-i", path_text]).unwrap();
    }
    let error = result.unwrap_err();
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error}");
    assert!(error.to_string().contains("open it read-only"), "{error}");
    assert!(reading.is_ok());
}

#[test]
fn things_that_are_no_disks() {
    let directory = directory();
    let pipe = directory.path().join("pipe");
    run("mkfifo", &[pipe.to_str().unwrap()]).unwrap();
    let socket = directory.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (directory.path(), "a directory"),
        (&pipe, "a pipe"),
        (&socket, "a socket"),
        (Path::new("/dev/zero"), "a character device"),
    ] {
        for read_only in [false, true] {
            let error = raw::Options::new(path)
                .read_only(read_only)
                .open()
                .unwrap_err();
            assert!(matches!(error, Error::NotADisk { .. }), "{error}");
            assert!(error.to_string().contains(kind), "{error}");
        }
    }
}

#[test]
fn a_file_is_no_directory() {
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, b"x").unwrap();
    assert!(matches!(
        message(file.join("disk.raw")).0,
        Error::NotFound { .. }
    ));
}

#[test]
fn a_filesystem_without_o_direct() {
    // Regular files whose filesystem has no direct I/O, on every Linux.
    let options = raw::Options::new("/proc/version")
        .read_only(true)
        .cache(raw::Cache::None);
    let error = options.open().unwrap_err();
    assert!(matches!(error, Error::DirectUnsupported { .. }), "{error}");
    assert!(error.to_string().contains("writeback"), "{error}");
}

/// A directory mounted read-only over itself, until dropped.
struct ReadOnlyMount<'a>(&'a str);

impl Drop for ReadOnlyMount<'_> {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", self.0]);
    }
}

#[test]
fn a_read_only_filesystem() {
    let directory = directory();
    let path = directory.path().join("disk.raw");
    fs::write(&path, [7; 512]).unwrap();
    let at = directory.path().to_str().unwrap();
    if let Err(why) = run("mount", &["--bind", at, at]) {
        return skipped("an image on a read-only filesystem", why);
    }
    let _mount = ReadOnlyMount(at);
    run("mount", &["-o", "remount,bind,ro", at]).unwrap();
    let (error, text) = message(&path);
    assert!(matches!(error, Error::ReadOnlyFilesystem { .. }), "{error}");
    assert!(text.contains("open the image read-only"), "{text}");
    assert!(raw::Options::new(&path).read_only(true).open().is_ok());
}

#[test]
fn sizes_that_no_memory_disk_can_have() {
    for size in [0, 1 << 63, u64::MAX] {
        let error = memory::Options::new(Length(size)).open().unwrap_err();
        assert!(matches!(error, Error::BadSize { .. }), "{error}");
        assert!(error.to_string().contains(&size.to_string()), "{error}");
    }
    for size in [1, 511, (1 << 63) - 1] {
        assert_eq!(
            memory::Options::new(Length(size)).open().unwrap().size(),
            size
        );
    }
}

/// Opens what has just been let go of. Between fork and exec, a program that another test starts
/// has the descriptors of all, and holds what they held exclusively.
fn once_free(open: impl Fn() -> Result<Arc<Node>, Error>) -> Arc<Node> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match open() {
            Err(Error::DeviceBusy { .. }) if Instant::now() < deadline => {
                std::thread::yield_now();
            }
            result => return result.unwrap(),
        }
    }
}

#[test]
fn a_device_that_another_has_exclusively() {
    let directory = directory();
    let file = directory.path().join("device.raw");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let device = match LoopDevice::new(&file, &[]) {
        Ok(device) => device,
        Err(why) => return skipped("an exclusive block device", why),
    };
    let unlocked = || raw::Options::new(&device.path).lock(false);
    let first = raw::Options::new(&device.path).open().unwrap();
    assert_eq!(first.size(), 1 << 20);
    // Ours holds it O_EXCL, and its locks besides.
    let again = |read_only| raw::Options::new(&device.path).read_only(read_only).open();
    for read_only in [false, true] {
        let error = again(read_only).unwrap_err();
        assert!(matches!(error, Error::DeviceBusy { .. }), "{error}");
    }
    unlocked().open().unwrap();
    drop(first);
    // A reader holds it O_EXCL too.
    let reader = once_free(|| again(true));
    for read_only in [false, true] {
        let error = again(read_only).unwrap_err();
        assert!(matches!(error, Error::DeviceBusy { .. }), "{error}");
    }
    drop(reader);
    once_free(|| again(false));
}

#[test]
fn a_read_only_device() {
    let directory = directory();
    let file = directory.path().join("device.raw");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let device = match LoopDevice::new(&file, &["--read-only"]) {
        Ok(device) => device,
        Err(why) => return skipped("a read-only block device", why),
    };
    let (error, text) = message(&device.path);
    assert!(matches!(error, Error::ReadOnlyFilesystem { .. }), "{text}");
    assert!(text.contains("open the image read-only"), "{text}");
    assert!(
        raw::Options::new(&device.path)
            .read_only(true)
            .open()
            .is_ok()
    );
}
