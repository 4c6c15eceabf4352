//! Opening a raw image: each step, and what its failure means to the user.

use std::{io, os::fd::AsFd, path::Path};

use corio::fs::{AlignedBuf, File, OpenOptions};
use rustix::{
    fs::{Advice, FileType, Stat},
    io::Errno,
};

use super::{Cache, Discard, Options, io::Raw};
use crate::{
    Error, Limits,
    error::errno_of,
    limits::MAX_ALIGNMENT,
    lock::{self, Refusal},
    units::{buffer_len, bytes, round_down},
};

pub(super) fn open(options: &Options) -> Result<Raw, Error> {
    let path = options.path.as_path();
    // Before opening: to open a pipe would wait for its other end, a tape would rewind.
    let stat = rustix::fs::stat(path).map_err(|e| refused(options, "look at it", e.into()))?;
    check_kind(path, &stat)?;
    if !options.read_only && is_read_only_device(&stat) {
        return Err(Error::ReadOnlyFilesystem {
            path: path.to_owned(),
        });
    }
    let direct = options.cache == Cache::None;
    let data = open_first(options, direct)?;
    let stat = look(path, &data)?;
    check_kind(path, &stat)?;
    let device = data.is_block_device();
    if options.lock {
        take_locks(options, &data)?;
    }
    // Once locked, nobody who keeps to the locks changes the size.
    let size = data.size().map_err(|e| failed(path, "find its size", e))?;
    if size == 0 && device {
        let advice = "insert a medium or attach the device";
        return Err(Error::BadSize {
            what: path.display().to_string(),
            size,
            advice,
        });
    }
    let limits = limits(path, &data, &stat)?;
    if direct {
        check_direct(path, &data, size, limits)?;
    }
    let flush = match options.read_only {
        true => None,
        false => Some(open_again(options, &stat)?),
    };
    let odd = round_down(size, limits.request_alignment) != size;
    let tail = if odd {
        Some(open_tail(options, &stat)?)
    } else {
        None
    };
    let tail_from = match odd {
        true => round_down(size, tail_unit(&stat, limits)),
        false => u64::MAX,
    };
    Ok(Raw {
        device,
        unmap: options.discard == Discard::Unmap,
        data,
        flush,
        tail,
        tail_from,
        size,
        limits,
    })
}

fn check_kind(path: &Path, stat: &Stat) -> Result<(), Error> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => return Ok(()),
        FileType::Directory => "a directory",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "a special file",
    };
    Err(Error::NotADisk {
        path: path.to_owned(),
        kind,
    })
}

/// Whether it is a block device that refuses writes: Linux lets it be opened for them, and then
/// fails each. Without sysfs nobody knows, and the writes will tell.
fn is_read_only_device(stat: &Stat) -> bool {
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return false;
    }
    let (major, minor) = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"))
        .is_ok_and(|flag| flag.trim() == "1")
}

fn open_first(options: &Options, direct: bool) -> Result<File, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .direct(direct)
        // A reader too: the locks reach only those who open the same file, and a device has many
        // names. What is mounted changes below a reader without anybody's lock.
        .excl_device(options.lock)
        .open(&options.path);
    opened.map_err(|error| match errno(&error) {
        // What else is invalid about these flags is O_DIRECT.
        Errno::INVAL if direct => Error::DirectUnsupported {
            path: options.path.clone(),
        },
        _ => refused(options, "open it", error),
    })
}

/// One more description of the image, through the page cache. Not O_EXCL: that is the first one's.
fn open_again(options: &Options, first: &Stat) -> Result<File, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .open(&options.path);
    let file = opened.map_err(|error| refused(options, "open it again", error))?;
    let stat = look(&options.path, &file)?;
    let same = (stat.st_dev, stat.st_ino) == (first.st_dev, first.st_ino);
    if same {
        Ok(file)
    } else {
        Err(Error::Replaced {
            path: options.path.clone(),
        })
    }
}

fn look(path: &Path, file: &File) -> Result<Stat, Error> {
    rustix::fs::fstat(file).map_err(|e| failed(path, "look at it", e.into()))
}

fn open_tail(options: &Options, stat: &Stat) -> Result<File, Error> {
    let tail = open_again(options, stat)?;
    rustix::fs::fadvise(&tail, 0, None, Advice::Random)
        .map_err(|e| failed(&options.path, "advise random access", e.into()))?;
    Ok(tail)
}

fn take_locks(options: &Options, data: &File) -> Result<(), Error> {
    let path = options.path.as_path();
    let claim = if options.read_only {
        lock::READER
    } else {
        lock::WRITER
    };
    match lock::acquire(data, claim) {
        Ok(()) => Ok(()),
        Err(Refusal::Held(holder)) => Err(Error::Locked {
            path: path.to_owned(),
            holder,
        }),
        Err(Refusal::Unsupported(error)) => {
            tracing::warn!(
                "{}: not locked ({error}): this filesystem has no locks; see to it that nobody \
                 else writes the image",
                path.display()
            );
            Ok(())
        }
        Err(Refusal::Failed(error)) => Err(failed(path, "lock it", error)),
    }
}

fn limits(path: &Path, data: &File, stat: &Stat) -> Result<Limits, Error> {
    let mut limits = match data.direct_alignment() {
        Some(alignment) if alignment > MAX_ALIGNMENT || !alignment.is_power_of_two() => {
            tracing::warn!(
                "{}: O_DIRECT wants an alignment of {alignment}",
                path.display()
            );
            return Err(Error::DirectUnsupported {
                path: path.to_owned(),
            });
        }
        Some(alignment) => Limits::blocks(alignment),
        None => Limits::bytes(),
    };
    let unit = if data.is_block_device() {
        // Zeroing and discarding take whole sectors, even through the page cache.
        let sector = rustix::fs::ioctl_blksszget(data.as_fd())
            .map_err(|e| failed(path, "find its sector size", e.into()))?;
        let sector = power_of_two(u64::from(sector));
        limits.zero_alignment = limits.zero_alignment.max(sector);
        sector
    } else {
        file_block(stat)
    };
    // Edges of a discard that do not fill a block would be zeroed byte by byte: it frees nothing.
    limits.discard_alignment = limits.discard_alignment.max(unit);
    limits.preferred = limits.preferred.max(unit);
    Ok(limits)
}

/// Some filesystems take the flag and refuse the I/O, so read a block now.
fn check_direct(path: &Path, data: &File, size: u64, limits: Limits) -> Result<(), Error> {
    if size == 0 {
        return Ok(());
    }
    let block = buffer_len(u64::from(limits.request_alignment));
    let mut buf =
        AlignedBuf::zeroed(block, block).map_err(|e| failed(path, "get memory for a block", e))?;
    match data.read_at(&mut buf, 0) {
        Ok(_) => Ok(()),
        Err(error) if errno(&error) == Errno::INVAL => Err(Error::DirectUnsupported {
            path: path.to_owned(),
        }),
        Err(error) => Err(failed(path, "read its first block", error)),
    }
}

/// The unit at a multiple of which the tail begins: no page and no filesystem block lies on both
/// sides. A multiple of the request alignment, as all are powers of two.
fn tail_unit(stat: &Stat, limits: Limits) -> u32 {
    let page = power_of_two(bytes(rustix::param::page_size()));
    page.max(file_block(stat)).max(limits.request_alignment)
}

/// The filesystem's block, as far as it tells; some tell what they like best to transfer instead.
fn file_block(stat: &Stat) -> u32 {
    power_of_two(u64::try_from(stat.st_blksize).unwrap_or(0))
}

/// A size from outside as an alignment: rounded up to a power of two from 512 to 64 KiB.
fn power_of_two(n: u64) -> u32 {
    u32::try_from(n)
        .unwrap_or(MAX_ALIGNMENT)
        .clamp(512, MAX_ALIGNMENT)
        .next_power_of_two()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw_os_error(errno_of(error))
}

/// The error for an image that could not be looked at or opened.
fn refused(options: &Options, step: &'static str, error: io::Error) -> Error {
    let path = options.path.clone();
    match errno(&error) {
        Errno::NOENT | Errno::NOTDIR => Error::NotFound { path },
        Errno::ACCESS | Errno::PERM => Error::PermissionDenied {
            path,
            access: if options.read_only {
                "read"
            } else {
                "read and write"
            },
            hint: if options.read_only {
                ""
            } else {
                ", or open it read-only"
            },
        },
        Errno::ROFS => Error::ReadOnlyFilesystem { path },
        Errno::BUSY => Error::DeviceBusy { path },
        _ => failed(&options.path, step, error),
    }
}

fn failed(path: &Path, step: &'static str, source: io::Error) -> Error {
    Error::Open {
        what: path.display().to_string(),
        step,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_from_outside_become_usable_alignments() {
        assert_eq!(power_of_two(0), 512);
        assert_eq!(power_of_two(4096), 4096);
        assert_eq!(power_of_two(4097), 8192);
        assert_eq!(power_of_two(1 << 20), MAX_ALIGNMENT);
        assert_eq!(power_of_two(u64::MAX), MAX_ALIGNMENT);
    }
}
