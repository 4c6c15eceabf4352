//! Block devices, and storage that fails for real: loop devices (root only).

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{LoopDevice, contents, directory, has, in_coroutine, run, skipped};
use corio::engine::EngineChoice;
use corio_block::{Error, Length, Offset, WriteFlags, ZeroFlags, raw};

const MIB: u64 = 1 << 20;

fn device(file: &Path, size: u64, what: &str, more: &[&str]) -> Option<LoopDevice> {
    fs::File::create(file).unwrap().set_len(size).unwrap();
    LoopDevice::new(file, more)
        .map_err(|why| skipped(what, why))
        .ok()
}

#[test]
fn block_devices_are_served_like_files() {
    let directory = directory();
    for (sector, cache) in [
        ("512", raw::Cache::Writeback),
        ("512", raw::Cache::None),
        ("4096", raw::Cache::Writeback),
        ("4096", raw::Cache::None),
    ] {
        let file = directory.path().join("device.raw");
        let what = format!("a block device with sectors of {sector}");
        let Some(device) = device(&file, 4 * MIB, &what, &["--sector-size", sector]) else {
            return;
        };
        let path = device.path.clone();
        in_coroutine(EngineChoice::Auto, move || {
            let node = raw::Options::new(&path).cache(cache).open().unwrap();
            assert_eq!(node.size(), 4 * MIB);
            if cache == raw::Cache::None {
                assert!(node.limits().request_alignment >= sector.parse().unwrap());
            }
            let mut model = vec![0; 4 << 20];
            node.write_at(&[5; 10_000], Offset(MIB + 3), WriteFlags::FUA)
                .unwrap();
            model[(1 << 20) + 3..][..10_000].fill(5);
            for flags in [ZeroFlags::empty(), ZeroFlags::MAY_UNMAP] {
                node.write_zeroes(Offset(MIB + 100), Length(9000), flags)
                    .unwrap();
                model[(1 << 20) + 100..][..9000].fill(0);
                assert!(contents(&node) == model, "{cache:?} {sector} {flags:?}");
            }
            node.discard(Offset(MIB), Length(MIB)).unwrap();
            let mut map = Vec::new();
            node.block_status(Offset::ZERO, Length(4 * MIB), 8, &mut map)
                .unwrap();
            assert_eq!(map.iter().map(|e| e.len).sum::<u64>(), 4 * MIB);
            node.flush().unwrap();
        });
    }
}

// qemu-io opens the device while we have it and the other way round.
#[test]
fn block_devices_are_locked_against_qemu_io() {
    if !has("qemu-io") {
        return skipped(
            "device locks against qemu-io",
            "qemu-utils is not installed",
        );
    }
    let directory = directory();
    let file = directory.path().join("device.raw");
    let Some(device) = device(&file, MIB, "device locks against qemu-io", &[]) else {
        return;
    };
    let path = device.path.to_str().unwrap();
    let write = || run("qemu-io", &["-f", "raw", "-c", "write 0 512", path]);
    let node = raw::Options::new(&device.path).open().unwrap();
    assert!(write().unwrap_err().contains("lock"));
    drop(node);
    write().unwrap();
}

/// A tmpfs with room for 1 MiB, until dropped.
struct SmallFilesystem(PathBuf);

impl SmallFilesystem {
    fn new(at: &Path) -> Result<SmallFilesystem, String> {
        let path = at.to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=1M", "tmpfs", path])?;
        Ok(SmallFilesystem(at.to_owned()))
    }
}

impl Drop for SmallFilesystem {
    fn drop(&mut self) {
        // Lazily: a loop device may take a moment to let go of its file.
        let _ = run("umount", &["--lazy", self.0.to_str().unwrap()]);
    }
}

// A device whose storage fills up fails write-back after the writes were acknowledged. A FUA write
// that is told of it must not keep the flush from hearing of it, and once heard it stays.
#[test]
fn writes_lost_in_write_back_fail_the_flush_even_after_fua_and_for_good() {
    const WHAT: &str = "storage that fails in write-back";
    let directory = directory();
    let small = match SmallFilesystem::new(directory.path()) {
        Ok(small) => small,
        Err(why) => return skipped(WHAT, why),
    };
    let Some(device) = device(&small.0.join("device.raw"), 8 * MIB, WHAT, &[]) else {
        return;
    };
    let path = device.path.clone();
    in_coroutine(EngineChoice::Auto, move || {
        let node = raw::Options::new(&path).open().unwrap();
        // This fits, and stays writable.
        node.write_at(&[1; 4096], Offset(0), WriteFlags::FUA)
            .unwrap();
        node.flush().unwrap();
        // This does not; the page cache takes it.
        node.write_at(&vec![2; 4 << 20], Offset(MIB), WriteFlags::empty())
            .unwrap();
        // Writes all of it back, and is the first to be told.
        let fua = node.write_at(&[3; 4096], Offset(MIB), WriteFlags::FUA);
        let fua = fua.and_then(|()| node.write_at(&vec![3; 2 << 20], Offset(MIB), WriteFlags::FUA));
        assert!(fua.is_err(), "the device did not fail");
        let flush = node.flush().unwrap_err();
        assert!(matches!(flush, Error::Flush { .. }), "{flush}");
        // The bad news are used up below, but not forgotten here.
        for _ in 0..2 {
            let later = node.flush().unwrap_err();
            assert!(matches!(later, Error::FlushLost { .. }), "{later}");
        }
        drop(node);
    });
}

#[test]
fn a_full_filesystem_says_so() {
    let directory = directory();
    let small = match SmallFilesystem::new(directory.path()) {
        Ok(small) => small,
        Err(why) => return skipped("a full filesystem", why),
    };
    let file = small.0.join("disk.raw");
    fs::File::create(&file).unwrap().set_len(8 * MIB).unwrap();
    let node = raw::Options::new(&file).open().unwrap();
    let error = node
        .write_at(&vec![1; 2 << 20], Offset(0), WriteFlags::empty())
        .unwrap_err();
    assert_eq!(
        error.errno(),
        rustix::io::Errno::NOSPC.raw_os_error(),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("disk.raw") && text.contains("free space"),
        "{text}"
    );
}
