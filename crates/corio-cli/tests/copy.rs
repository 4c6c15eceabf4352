//! nbdcopy into and out of the export, 1 GiB of random data: over TCP and over Unix, with one
//! connection and with four, on both monitors and with both engines. `qemu-img compare` and sha256
//! agree each time.
//!
//! All of them share the same data, image and copy, as fresh gigabytes, of memory or of a disk,
//! take longer than all the rest. The data and the copy lie in memory where there is room: what is
//! tested is the server, whose image is on a disk.

mod common;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::data::{self, GIB};
use common::serve::{Serve, Server};
use common::tool::{SOON, command, run_for};
use common::{Combo, again_on_linux_aio, again_through_tls, matrix, need, wait_until};
use rustix::fs::{MemfdFlags, memfd_create};

matrix!(nbdcopy_copies_in_and_out);
again_through_tls!(nbdcopy_copies_in_and_out);
again_on_linux_aio!(nbdcopy_copies_in_and_out);

/// How long one copy of 1 GiB may take on a slow and busy machine.
const COPY_LIMIT: Duration = Duration::from_secs(120);
/// Not a multiple of anything, so that the last request is an odd one.
const LEN: u64 = GIB + 4097;

/// A file without a name, which goes away with this process however that ends.
struct Unnamed(File);

impl Unnamed {
    fn on_disk() -> Unnamed {
        Unnamed(tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn in_memory() -> Unnamed {
        Unnamed(memfd_create("copy", MemfdFlags::CLOEXEC).unwrap().into())
    }

    /// Where other processes find it.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.0.as_raw_fd()
        ))
    }
}

fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Random data and its sum.
struct Source {
    file: Unnamed,
    sum: String,
}

/// What all copies are made of, and where they go.
struct Files {
    /// Taken in turns, so that nothing of what the copy before wrote is right for the next one.
    sources: [Source; 2],
    image: Unnamed,
    copy: Unnamed,
}

impl Files {
    fn make() -> Files {
        // The four of them, the image in the page cache among them, and room for everybody else.
        let scratch = match available_memory() > 4 * LEN + GIB {
            true => Unnamed::in_memory,
            false => Unnamed::on_disk,
        };
        let seed = data::fresh_seed();
        let sources = [seed, !seed].map(|seed| {
            let file = scratch();
            data::random_file(&file.path(), LEN, seed);
            let sum = data::sha256(&file.path());
            Source { file, sum }
        });
        let image = Unnamed::on_disk();
        image.0.set_len(LEN).unwrap();
        Files {
            sources,
            image,
            copy: scratch(),
        }
    }
}

static FILES: LazyLock<Files> = LazyLock::new(Files::make);

fn nbdcopy_copies_in_and_out(combo: Combo) {
    need!(combo, "nbdcopy", "qemu-img");
    let _alone = common::alone();
    let files = &*FILES;
    let (image, copy) = (files.image.path(), files.copy.path());
    let server = Serve::new(combo)
        .image(&image)
        .args(["--iothreads", "2", "--log", "info"])
        .tcp()
        .unix()
        .start();
    let mut sources = files.sources.iter().cycle();
    let mut connected = 0;
    for (kind, listening) in [("TCP", server.tcp()), ("Unix", server.unix())] {
        // TLS takes its time, and so does a disk: either number of connections once will do.
        let is_slow = combo.tls || combo == Combo::EPOLL_AIO;
        let counts: &[usize] = match (is_slow, kind) {
            (false, _) => &[1, 4],
            (true, "TCP") => &[4],
            (true, _) => &[1],
        };
        for &connections in counts {
            let source = sources.next().unwrap();
            for (way, from, to, written) in [
                (
                    "in",
                    source.file.path().into(),
                    OsString::from(&listening.uri),
                    &image,
                ),
                (
                    "out",
                    OsString::from(&listening.uri),
                    copy.clone().into(),
                    &copy,
                ),
            ] {
                let what = format!("{combo}: {way}, {kind}, {connections} connections");
                // With fewer threads nbdcopy makes fewer connections than it is asked for.
                let mut nbdcopy = command("nbdcopy --flush");
                nbdcopy
                    .arg(format!("--threads={connections}"))
                    .arg(format!("--connections={connections}"))
                    .args([from, to]);
                let took = run_for(COPY_LIMIT, &mut nbdcopy).ok().took;
                connected += connections;
                assert_connected(&server, connected, &what);
                let checking = Instant::now();
                assert_copied(source, written, &what);
                println!(
                    "{what}: {:.0} MiB/s, checked in {:.1?}",
                    1024.0 / took.as_secs_f64(),
                    checking.elapsed()
                );
            }
        }
    }
    server.stop();
}

/// The clients' connections are counted where they arrive, in the server's log.
fn assert_connected(server: &Server, expected: usize, what: &str) {
    let connected = || server.stderr().matches(": connected").count();
    wait_until(&format!("{what}: as many connections"), SOON, || {
        connected() >= expected
    });
    assert_eq!(connected(), expected, "{what}: connections");
}

fn assert_copied(source: &Source, copy: &Path, what: &str) {
    // The two look at the same time, as each is one thread's work.
    let sum = std::thread::scope(|scope| {
        let sum = scope.spawn(|| data::sha256(copy));
        // The server holds its image: -U looks at it all the same.
        let mut compare = command("qemu-img compare -U -f raw -F raw");
        run_for(COPY_LIMIT, compare.arg(source.file.path()).arg(copy)).ok();
        sum.join().unwrap()
    });
    assert_eq!(sum, source.sum, "{what}");
}
