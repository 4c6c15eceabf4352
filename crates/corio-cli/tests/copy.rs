//! nbdcopy into and out of the export, 1 GiB of random data: over TCP and over Unix, with one
//! connection and with four. `qemu-img compare` and sha256 agree each time.
//!
//! Each of the eight ways is gone on both monitors and on both engines; all of them on all four
//! pairs would take twice as long and show no more.

mod common;

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use common::data::{self, GIB, MIB};
use common::serve::{Serve, image_dir};
use common::tool::{command, run_for};
use common::{Combo, matrix, need};

matrix!(nbdcopy_copies_in_and_out);

/// How long one copy of 1 GiB may take on a slow and busy machine.
const COPY_LIMIT: Duration = Duration::from_secs(120);
/// Not a multiple of anything, so that the last request is an odd one.
const LEN: u64 = GIB + 4097;

fn nbdcopy_copies_in_and_out(combo: Combo) {
    need!(combo, "nbdcopy", "qemu-img");
    let _alone = common::alone();
    let dir = image_dir();
    let [source, image, copy] = ["source", "image", "copy"].map(|name| dir.path().join(name));
    data::random_file(&source, LEN, data::fresh_seed());
    let sum = data::sha256(&source);
    data::sparse_file(&image, LEN);
    let check = |what: &str, file: &Path| {
        // The server holds its image: -U looks at it all the same.
        let mut compare = command("qemu-img compare -U -f raw -F raw");
        run_for(COPY_LIMIT, compare.arg(&source).arg(file)).ok();
        assert_eq!(data::sha256(file), sum, "{combo}: {what}");
    };

    let server = Serve::new(combo)
        .image(&image)
        .args(["--iothreads", "2"])
        .tcp()
        .unix()
        .start();
    let (tcp, unix) = (("TCP", &server.tcp().uri), ("Unix", &server.unix().uri));
    // The other half of the ways, on the other two pairs.
    let half = combo == Combo::EPOLL_URING || combo == Combo::URING_THREADS;
    let (first, second) = if half { (tcp, unix) } else { (unix, tcp) };
    for ((kind, uri), connections, inwards) in [
        (first, 1, true),
        (second, 1, false),
        (second, 4, true),
        (first, 4, false),
    ] {
        let (from, to): (&OsStr, &OsStr) = if inwards {
            forget(&image);
            (source.as_ref(), uri.as_ref())
        } else {
            (uri.as_ref(), copy.as_ref())
        };
        let mut nbdcopy = command("nbdcopy --flush --threads=2");
        nbdcopy
            .arg(format!("--connections={connections}"))
            .arg(from)
            .arg(to);
        let took = run_for(COPY_LIMIT, &mut nbdcopy).ok().took;
        let way = if inwards { "in" } else { "out" };
        let what = format!("{way}, {kind}, {connections} connections");
        println!("{combo}: {what}: {:.0} MiB/s", 1024.0 / took.as_secs_f64());
        check(&what, if inwards { &image } else { &copy });
        if !inwards {
            std::fs::remove_file(&copy).unwrap();
        }
    }
    server.stop();
}

/// Makes what the round before wrote different, so that a copy that writes nothing is found out.
fn forget(image: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    let block = vec![0x5a; 1 << 20];
    for at in (0..GIB).step_by(usize::try_from(64 * MIB).unwrap()) {
        std::os::unix::fs::FileExt::write_all_at(&file, &block, at).unwrap();
    }
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 4097], GIB).unwrap();
}
