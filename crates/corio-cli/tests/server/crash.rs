//! The server is killed under write load: what it acknowledged before the last FLUSH, on any
//! connection, or with FUA is in the file.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::common::data;
use crate::common::ledger::{BLOCK, Ledger, is_gone};
use crate::common::serve::{Serve, Server, image_dir};
use crate::common::{Combo, again_on_linux_aio, again_through_tls, matrix, need, wait_until};

matrix!(
    killed_server_keeps_what_it_flushed,
    killed_direct_server_keeps_what_it_flushed
);
again_through_tls!(killed_server_keeps_what_it_flushed);
again_on_linux_aio!(killed_direct_server_keeps_what_it_flushed);

/// Connections of the load.
const SHARES: u64 = 4;
const BLOCKS: u64 = 4096;

fn killed_server_keeps_what_it_flushed(combo: Combo) {
    check_after_kill(combo, "writeback");
}

fn killed_direct_server_keeps_what_it_flushed(combo: Combo) {
    check_after_kill(combo, "none");
}

fn check_after_kill(combo: Combo, cache: &str) {
    need!(combo);
    let dir = image_dir();
    let image = dir.path().join("disk.raw");
    let seed = data::fresh_seed();
    // Several deaths, each at another moment.
    for round in 0..3 {
        data::sparse_file(&image, BLOCKS * BLOCK);
        let server = Serve::new(combo).image(&image).tcp().unix();
        let server = server.args(["--cache", cache, "--iothreads", "2"]).start();
        let ledger = Ledger::new(BLOCKS);
        load_and_kill(server, &ledger, seed + round);
        let losses = ledger.check(&image);
        println!("{combo}: {losses:?}");
        assert!(
            losses.owed > 1000,
            "the load wrote too little to prove anything: {losses:?}"
        );
        assert_eq!((losses.lost, losses.garbage), (0, 0), "{losses:?}");
        // The check can fail: what is wiped now is missed.
        data::sparse_file(&image, BLOCKS * BLOCK);
        assert!(ledger.check(&image).lost > 0);
    }
}

/// Writes from [`SHARES`] connections and kills the server in the midst of it.
fn load_and_kill(mut server: Server, ledger: &Ledger, seed: u64) {
    let addrs: Vec<_> = server
        .listening()
        .iter()
        .map(|at| at.addr.clone())
        .collect();
    let enough = 2000 + data::Random::new(seed).below(2000);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SHARES)
            .zip(addrs.iter().cycle())
            .map(|(share, addr)| scope.spawn(move || ledger.load(addr, share, SHARES, seed)))
            .collect();
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
}
