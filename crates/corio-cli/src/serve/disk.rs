//! The disk: the image or the memory, and the export under which clients see it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use corio_block::{Error, Length, Node, memory, probe, raw};
use corio_nbd::server::{Export, Server, ServerConfig, TlsConfig};

use super::address::shell_word;
use crate::args::{Cache, Discard, Engine, MEMORY_DEFAULT, ServeArgs};
use crate::report::Failure;

/// How long a locked image or a device in use is tried again.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
/// How often.
const LOCK_STEP: Duration = Duration::from_millis(20);

/// Opens the image, or makes the memory disk.
///
/// # Errors
/// The image cannot be opened or locked, or its content looks like another format than raw and
/// nobody has said that it is raw; Linux AIO is asked for without O_DIRECT.
pub(crate) fn open(args: &ServeArgs) -> Result<Arc<Node>> {
    refuse_cached_aio(args)?;
    let Some(path) = &args.image else {
        let size = Length(args.memory.unwrap_or(MEMORY_DEFAULT));
        let memory = memory::Options::new(size).read_only(args.read_only);
        return Ok(memory.open().map_err(|error| explain(&error))?);
    };
    let image = raw::Options::new(path)
        .read_only(args.read_only)
        .cache(args.cache.into())
        .discard(args.discard.into());
    let node = open_unlocked(&image).map_err(|error| explain(&error))?;
    if args.format.is_none() {
        refuse_other_formats(path, &node)?;
    }
    Ok(node)
}

/// Through the page cache Linux AIO would only block the loop. Threads in its place, which the
/// runtime uses then, are not what was asked for.
fn refuse_cached_aio(args: &ServeArgs) -> Result<()> {
    if args.engine != Engine::LinuxAio || args.image.is_some() && args.cache == Cache::None {
        return Ok(());
    }
    let what = args.image.as_ref().map_or_else(
        || "a memory disk".to_owned(),
        |path| path.display().to_string(),
    );
    let failure = Failure::new(format!("cannot serve {what} with --engine linux-aio"))
        .why("Linux AIO is for images that are opened past the page cache");
    let advice = match args.image {
        Some(_) => "add --cache none, or use --engine io_uring or threads",
        None => "use --engine io_uring or threads",
    };
    Err(failure.advice(advice).into())
}

/// Opens an image, and tries again for a moment while it is locked or in use: the kernel takes
/// io_uring apart after its process is gone, and lets go of the files, and so of the locks, of a
/// server that was killed only then.
fn open_unlocked(image: &raw::Options) -> Result<Arc<Node>, Error> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match image.clone().open() {
            Err(Error::Locked { .. } | Error::DeviceBusy { .. }) if Instant::now() < deadline => {
                thread::sleep(LOCK_STEP);
            }
            result => return result,
        }
    }
}

/// The block layer's error in this program's words: what to do is an option here.
fn explain(error: &Error) -> Failure {
    let cannot = |path: &Path| Failure::new(format!("cannot serve {}", path.display()));
    let errno = io::Error::from_raw_os_error(error.errno());
    match error {
        Error::NotFound { path } => {
            // It may be a directory on the way that is none: the kernel tells them apart.
            let errno = std::fs::metadata(path).err().unwrap_or(errno);
            let word = shell_word(path.as_os_str());
            cannot(path).io(&errno).advice(format!(
                "check the path, or make an image: truncate -s 1G {word}"
            ))
        }
        Error::PermissionDenied { path, hint, .. } => {
            // There is a hint when it was to be written.
            let read_only = match *hint {
                "" => "",
                _ => ", or serve it with --read-only",
            };
            cannot(path).io(&errno).advice(format!(
                "run as its owner or change its permissions{read_only}"
            ))
        }
        Error::ReadOnlyFilesystem { path } => {
            cannot(path).io(&errno).advice("serve it with --read-only")
        }
        Error::NotADisk { path, kind } => cannot(path)
            .why(format!("it is {kind}"))
            .advice("give a regular file or a block device"),
        Error::Locked { path, holder } => cannot(path)
            .why(format!("the image is locked: another process {holder}"))
            .advice(format!(
                "stop that process ('fuser -v {}' names it), or let both only read",
                shell_word(path.as_os_str())
            )),
        Error::DeviceBusy { path } => cannot(path)
            .io(&errno)
            .advice("unmount it, or stop what uses it (lsblk and fuser -v tell)"),
        Error::DirectUnsupported { path } => cannot(path)
            .why("its file system has no O_DIRECT")
            .advice("serve it with --cache writeback"),
        error => Failure::new(error.to_string()),
    }
}

/// A raw disk whose first bytes look like qcow2 would be served as the file it is, and not as the
/// disk it describes, which is hardly ever what is meant.
fn refuse_other_formats(path: &Path, node: &Node) -> Result<()> {
    let detected = probe::detect(node).map_err(|error| explain(&error))?;
    let Some(format) = detected else {
        return Ok(());
    };
    let format = format.name();
    Err(Failure::new(format!("cannot serve {}", path.display()))
        .why(format!(
            "it looks like a {format} image, and corio serves raw ones"
        ))
        .advice(
            "convert it (qemu-img convert -O raw), or serve its bytes as they are with --format raw",
        )
        .into())
}

/// The server for one export of `node`.
pub(crate) fn export(args: &ServeArgs, node: Arc<Node>, tls: Option<TlsConfig>) -> Server {
    let export = Export {
        description: args.description.clone(),
        read_only: args.read_only,
        trim: args.discard == Discard::Unmap,
        ..Export::new(args.name.clone(), node)
    };
    let config = ServerConfig {
        tls,
        // The loops do nothing else, and a new client goes to the one with the fewest.
        lone_writes: true,
        ..ServerConfig::default()
    };
    Server::new(config, vec![export])
}

impl From<Cache> for raw::Cache {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Writeback => Self::Writeback,
            Cache::None => Self::None,
        }
    }
}

impl From<Discard> for raw::Discard {
    fn from(discard: Discard) -> Self {
        match discard {
            Discard::Unmap => Self::Unmap,
            Discard::Ignore => Self::Ignore,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_opening_says_what_to_do_here() {
        let path = || "/d/disk.raw".into();
        let denied = |hint| Error::PermissionDenied {
            path: path(),
            access: "read",
            hint,
        };
        let cases = [
            (
                Error::NotFound { path: path() },
                "No such file or directory; check the path, or make an image: truncate -s 1G \
                 /d/disk.raw",
            ),
            (
                denied(""),
                "Permission denied; run as its owner or change its permissions",
            ),
            (
                denied(", or open it read-only"),
                "Permission denied; run as its owner or change its permissions, or serve it with \
                 --read-only",
            ),
            (
                Error::ReadOnlyFilesystem { path: path() },
                "Read-only file system; serve it with --read-only",
            ),
            (
                Error::NotADisk {
                    path: path(),
                    kind: "a directory",
                },
                "it is a directory; give a regular file or a block device",
            ),
            (
                Error::Locked {
                    path: path(),
                    holder: "has it open for writing",
                },
                "the image is locked: another process has it open for writing; stop that process \
                 ('fuser -v /d/disk.raw' names it), or let both only read",
            ),
            (
                Error::DeviceBusy { path: path() },
                "Device or resource busy; unmount it, or stop what uses it (lsblk and fuser -v \
                 tell)",
            ),
            (
                Error::DirectUnsupported { path: path() },
                "its file system has no O_DIRECT; serve it with --cache writeback",
            ),
        ];
        for (error, rest) in cases {
            assert_eq!(
                explain(&error).to_string(),
                format!("cannot serve /d/disk.raw: {rest}")
            );
        }
    }

    #[test]
    fn other_errors_speak_for_themselves() {
        let error = Error::Open {
            what: "/d/disk.raw".into(),
            step: "open it",
            source: io::Error::from_raw_os_error(40),
        };
        assert_eq!(explain(&error).to_string(), error.to_string());
    }

    #[test]
    fn paths_in_advice_are_for_the_shell() {
        let error = Error::NotFound {
            path: "/d/a b".into(),
        };
        let text = explain(&error).to_string();
        assert!(text.ends_with("truncate -s 1G '/d/a b'"), "{text}");
        let error = Error::NotFound {
            path: "/dev/null/disk".into(),
        };
        let text = explain(&error).to_string();
        assert!(text.contains("/dev/null/disk: Not a directory; "), "{text}");
    }
}
