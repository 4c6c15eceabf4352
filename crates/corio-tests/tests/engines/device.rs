//! Block devices.

use std::process::Command;
use std::sync::Arc;

use corio::fs::{OpenOptions, ZeroFlags};

use super::{buffer, in_each_mode};

/// A block device whose bytes are a file's, until dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn new(backing: &std::path::Path, words: &[&str]) -> Result<Self, String> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(words)
            .arg(backing)
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(Self(text(&output.stdout))),
            false => Err(text(&output.stderr)),
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

// SPEC Q4: zero bytes are never written where only fast zeroing will do.
#[test]
fn a_block_device_is_zeroed_fast_or_not_at_all() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(1 << 20).unwrap();
    let device = match LoopDevice::new(named.path(), &[]) {
        Ok(device) => Arc::new(device),
        Err(error) => return println!("SKIPPED: zeroes on a block device: {error}"),
    };
    in_each_mode(move |mode| {
        let file = mode.open(&device.0).unwrap();
        let reads_as = |byte| {
            let mut back = buffer(4096, 1);
            file.read_exact_at(&mut back, 8192).unwrap();
            back.iter().all(|read| *read == byte)
        };
        file.write_all_at(&buffer(65_536, 7), 0).unwrap();
        let kept = file.write_zeroes(8192, 4096, ZeroFlags::FAST_ONLY);
        assert_eq!(kept.unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(reads_as(7));
        let fast = ZeroFlags::FAST_ONLY | ZeroFlags::MAY_UNMAP;
        match file.write_zeroes(8192, 4096, fast) {
            Ok(()) => assert!(reads_as(0)),
            // What the device lies on knows no holes.
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
                assert!(reads_as(7));
            }
        }
        file.write_zeroes(8192, 4096, ZeroFlags::empty()).unwrap();
        assert!(reads_as(0));
    });
}

// SPEC E1
#[test]
fn direct_requests_are_aligned_to_the_sectors_of_a_device() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(1 << 20).unwrap();
    for sector in [512u32, 4096] {
        let words = ["--sector-size", &sector.to_string()];
        let device = match LoopDevice::new(named.path(), &words) {
            Ok(device) => device,
            Err(error) => return println!("SKIPPED: sectors of {sector} bytes: {error}"),
        };
        let open = |direct| {
            let options = OpenOptions::new().read(true);
            options.direct(direct).open(&device.0).unwrap()
        };
        assert_eq!(open(true).direct_alignment(), Some(sector));
        assert_eq!(open(false).direct_alignment(), None);
    }
}
