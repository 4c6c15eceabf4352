//! nbdcopy into and out of the export, 1 GiB of random data: over TCP and over Unix, with one
//! connection and with four. `qemu-img compare` and sha256 agree each time.

mod common;

use std::time::Duration;

use common::data::{self, GIB, MIB};
use common::serve::{Listening, Serve, image_dir};
use common::tool::{command, run_for};
use common::{Combo, matrix, need};

matrix!(nbdcopy_copies_in_and_out);

/// How long one copy of 1 GiB may take on a slow and busy machine.
const COPY_LIMIT: Duration = Duration::from_secs(120);

fn nbdcopy_copies_in_and_out(combo: Combo) {
    need!(combo, "nbdcopy", "qemu-img");
    let _alone = common::alone();
    let dir = image_dir();
    let [source, image, copy] = ["source", "image", "copy"].map(|name| dir.path().join(name));
    // Not a multiple of anything, so that the last request is an odd one.
    data::random_file(&source, GIB + 4097, data::fresh_seed());
    let sum = data::sha256(&source);
    data::sparse_file(&image, GIB + 4097);

    let server = Serve::new(combo)
        .image(&image)
        .args(["--iothreads", "2"])
        .tcp()
        .unix()
        .start();
    let ways = [
        (server.tcp(), 1),
        (server.tcp(), 4),
        (server.unix(), 1),
        (server.unix(), 4),
    ];
    for (at, connections) in ways {
        let nbdcopy = |from: &std::ffi::OsStr, to: &std::ffi::OsStr| {
            let threads = connections.min(2);
            let mut nbdcopy = command("nbdcopy --flush");
            nbdcopy
                .arg(format!("--connections={connections}"))
                .arg(format!("--threads={threads}"));
            run_for(COPY_LIMIT, nbdcopy.arg(from).arg(to)).ok().took
        };
        let way = format!("{} x{connections}", kind(at));
        forget(&image);
        let took_in = nbdcopy(source.as_ref(), at.uri.as_ref());
        let compare = |with: &std::path::Path| {
            // The server holds its image: -U looks at it all the same.
            let mut compare = command("qemu-img compare -U -f raw -F raw");
            run_for(COPY_LIMIT, compare.arg(&source).arg(with)).ok();
            assert_eq!(
                data::sha256(with),
                sum,
                "{combo}: {way}: {}",
                with.display()
            );
        };
        compare(&image);
        let took_out = nbdcopy(at.uri.as_ref(), copy.as_ref());
        compare(&copy);
        std::fs::remove_file(&copy).unwrap();
        let [rate_in, rate_out] = [took_in, took_out].map(|took| 1024.0 / took.as_secs_f64());
        println!("{combo}: {way}: in {rate_in:.0} MiB/s, out {rate_out:.0} MiB/s");
    }
    server.stop();
}

/// Makes what the round before wrote different, so that a copy that writes nothing is found out.
fn forget(image: &std::path::Path) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    let block = vec![0x5a; 1 << 20];
    for at in (0..GIB).step_by(usize::try_from(64 * MIB).unwrap()) {
        std::os::unix::fs::FileExt::write_all_at(&file, &block, at).unwrap();
    }
    std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 4097], GIB).unwrap();
}

fn kind(at: &Listening) -> &'static str {
    if at.uri.starts_with("nbd+unix") {
        "Unix"
    } else {
        "TCP"
    }
}
