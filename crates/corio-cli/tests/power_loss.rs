//! The server is killed, and all that it did not fdatasync is gone with it.
//!
//! `CORIO_SHIM_BIN` names a `corio` built with the feature `power-loss-shim`. In it, files opened
//! for writing are served from a volatile copy in `CORIO_POWER_LOSS_DIR`, and only what is synced
//! reaches the real file; with `CORIO_POWER_LOSS_NO_SYNC` set, syncs are dropped: a server that
//! never syncs, which these checks must find out.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::data;
use common::ledger::{BLOCK, Ledger, Losses, is_gone};
use common::nbd::{self, Client, Headers, cmd};
use common::serve::{Addr, Serve, Server, image_dir};
use common::{Combo, everywhere, need, skip, wait_until};

everywhere!(
    flushed_writes_survive_under_load,
    flush_covers_writes_of_another_connection,
    fua_writes_survive_without_a_flush,
    clean_stop_loses_nothing,
    server_that_never_syncs_is_found_out,
);

const BLOCKS: u64 = 2048;

/// The shimmed server on a fresh image, or a skip.
macro_rules! shimmed {
    ($combo:expr) => {{
        need!($combo);
        let Some(program) = std::env::var_os("CORIO_SHIM_BIN") else {
            skip!("CORIO_SHIM_BIN is not set");
        };
        Shimmed::new($combo, PathBuf::from(program))
    }};
}

struct Shimmed {
    combo: Combo,
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Shimmed {
    fn new(combo: Combo, program: PathBuf) -> Shimmed {
        let dir = image_dir();
        std::fs::create_dir(dir.path().join("volatile")).unwrap();
        data::sparse_file(&dir.path().join("disk.raw"), BLOCKS * BLOCK);
        Shimmed {
            combo,
            program,
            dir,
        }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    fn serve(&self) -> Serve {
        Serve::new(self.combo)
            .program(&self.program)
            .env("CORIO_POWER_LOSS_DIR", self.dir.path().join("volatile"))
            .image(&self.image())
            .args(["--iothreads", "2"])
            .unix()
    }
}

fn flushed_writes_survive_under_load(combo: Combo) {
    let shimmed = shimmed!(combo);
    for seed in [1, 2] {
        data::sparse_file(&shimmed.image(), BLOCKS * BLOCK);
        let losses = lose_power_under_load(shimmed.serve().start(), &shimmed.image(), seed);
        assert_eq!((losses.lost, losses.garbage), (0, 0), "{losses:?}");
    }
}

/// The check above, on a server that it must not pass.
fn server_that_never_syncs_is_found_out(combo: Combo) {
    let shimmed = shimmed!(combo);
    let server = shimmed.serve().env("CORIO_POWER_LOSS_NO_SYNC", "1").start();
    let losses = lose_power_under_load(server, &shimmed.image(), 3);
    assert!(losses.lost > 0, "nothing was found lost: {losses:?}");
    assert_eq!(losses.garbage, 0, "{losses:?}");
}

fn flush_covers_writes_of_another_connection(combo: Combo) {
    let shimmed = shimmed!(combo);
    let mut server = shimmed.serve().start();
    let addr = server.unix().addr.clone();
    // One more connection than there are loops, so that two of them are on different threads.
    let mut clients = [(); 3].map(|()| connect(&addr));
    for (client, byte) in clients.iter_mut().zip(1..) {
        client
            .write(u64::from(byte) * BLOCK, &[byte; 4096])
            .unwrap();
    }
    clients[2].flush().unwrap();
    // Written after the flush: nobody owes this one, and the shim does lose it.
    clients[0].write(0, &[0xee; 4096]).unwrap();
    server.kill();
    for byte in 1..4 {
        assert_block(&shimmed.image(), u64::from(byte), byte);
    }
    assert_block(&shimmed.image(), 0, 0);
}

fn fua_writes_survive_without_a_flush(combo: Combo) {
    let shimmed = shimmed!(combo);
    let mut server = shimmed.serve().start();
    let mut client = connect(&server.unix().addr);
    let mut call = |command, flags, block: u64, payload: &[u8]| {
        let reply = client
            .call(command, flags, block * BLOCK, BLOCK, payload)
            .unwrap();
        reply.good().unwrap();
    };
    call(cmd::WRITE, nbd::FUA, 1, &[1; 4096]);
    call(cmd::WRITE, nbd::FUA, 2, &[2; 4096]);
    call(cmd::WRITE_ZEROES, nbd::FUA, 2, &[]);
    server.kill();
    assert_block(&shimmed.image(), 1, 1);
    assert_block(&shimmed.image(), 2, 0);
}

fn clean_stop_loses_nothing(combo: Combo) {
    let shimmed = shimmed!(combo);
    let server = shimmed.serve().start();
    let mut client = connect(&server.unix().addr);
    client.write(BLOCK, &[1; 4096]).unwrap();
    client.write(7 * BLOCK, &[7; 4096]).unwrap();
    server.stop();
    assert_block(&shimmed.image(), 1, 1);
    assert_block(&shimmed.image(), 7, 7);
}

/// Writes from two connections, kills the server in the midst of it and checks the real file.
fn lose_power_under_load(mut server: Server, image: &Path, seed: u64) -> Losses {
    let ledger = Ledger::new(BLOCKS);
    let addr = server.unix().addr.clone();
    let enough = 1000 + data::Random::new(seed).below(1000);
    std::thread::scope(|scope| {
        let (addr, ledger) = (&addr, &ledger);
        let threads = [0, 1].map(|share| scope.spawn(move || ledger.load(addr, share, 2, seed)));
        wait_until("enough writes and flushes", Duration::from_secs(60), || {
            ledger.acknowledged.load(Ordering::Relaxed) >= enough
                && ledger.flushes.load(Ordering::Relaxed) >= 10
                || threads.iter().any(|thread| thread.is_finished())
        });
        let early = threads.iter().filter(|thread| thread.is_finished()).count();
        server.kill();
        for thread in threads {
            let error = thread.join().unwrap().unwrap_err();
            assert!(is_gone(&error), "the load ended with {error}");
        }
        assert_eq!(early, 0, "a connection ended before the kill");
    });
    let losses = ledger.check(image);
    println!("{losses:?}");
    assert!(
        losses.owed > 500,
        "the load wrote too little to prove anything: {losses:?}"
    );
    losses
}

fn connect(addr: &Addr) -> Client {
    Client::connect(addr, "", Headers::Structured).unwrap()
}

/// Asserts that a block of the image is one byte repeated.
#[track_caller]
fn assert_block(image: &Path, block: u64, byte: u8) {
    let file = std::fs::File::open(image).unwrap();
    let mut found = [!byte; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, block * BLOCK).unwrap();
    data::assert_same(&format!("block {block}"), &found, &[byte; 4096]);
}
