//! A write load that keeps book of what a server owes, and the check of that book after a crash.
//!
//! The disk is blocks of 4 KiB. Each write gives each of its blocks a new version; at most one
//! write of a block is in flight, so versions of a block reach the disk in order. The book keeps
//! for each block: the versions issued, the last acknowledged one, and the last one that is
//! durable: acknowledged with FUA, or acknowledged before a flush was sent, on any connection,
//! that was acknowledged in its turn. After the crash every sector must hold a version from the
//! durable one (older is lost data) to the last issued one (a write that was cut short).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::data::Random;
use super::nbd::{self, Client, Headers, cmd};
use super::serve::Addr;

pub(crate) const BLOCK: u64 = 4096;
const SECTOR: usize = 512;
/// Requests that a connection keeps in flight.
const DEPTH: usize = 16;
/// Blocks of one write at most.
const RUN_MAX: u64 = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zeroes,
}

/// The book's page on one block. Version `n` is `issued[n - 1]`; version 0 is the fresh disk.
#[derive(Clone, Default)]
struct Page {
    issued: Vec<Kind>,
    acknowledged: usize,
    durable: usize,
    in_flight: bool,
}

/// The book, shared by all connections of a load.
pub(crate) struct Ledger {
    pages: Mutex<Vec<Page>>,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) flushes: AtomicU64,
    stop: AtomicBool,
}

/// What the check found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Blocks that were owed something durable.
    pub(crate) owed: u64,
    /// Blocks of which a sector holds an older version than the durable one.
    pub(crate) lost: u64,
    /// Blocks of which a sector holds what was never written there.
    pub(crate) garbage: u64,
}

/// A request in flight.
enum Op {
    Write {
        first: u64,
        blocks: u64,
        durable: bool,
    },
    Flush {
        covers: Vec<usize>,
    },
}

impl Ledger {
    pub(crate) fn new(blocks: u64) -> Ledger {
        Ledger {
            pages: Mutex::new(vec![Page::default(); usize::try_from(blocks).unwrap()]),
            acknowledged: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// Makes [`Ledger::load`] return in all threads once their requests are answered.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Writes to blocks of its own, `share` of `shares`, until the server is gone or
    /// [`Ledger::stop`] is called. Only the first share sends flushes: they cover the others.
    pub(crate) fn load(&self, addr: &Addr, share: u64, shares: u64, seed: u64) -> io::Result<()> {
        let mut client = Client::connect(addr, "", Headers::Structured)?;
        let mut random = Random::new(seed ^ share);
        let blocks = u64::try_from(self.pages.lock().unwrap().len()).unwrap() / shares;
        let own = share * blocks..(share + 1) * blocks;
        let mut ops: HashMap<u64, Op> = HashMap::new();
        loop {
            while ops.len() < DEPTH && !self.stop.load(Ordering::Relaxed) {
                let (cookie, op) = if share == 0 && random.below(16) == 0 {
                    let covers = self
                        .pages
                        .lock()
                        .unwrap()
                        .iter()
                        .map(|p| p.acknowledged)
                        .collect();
                    (client.send(cmd::FLUSH, 0, 0, 0, &[])?, Op::Flush { covers })
                } else {
                    self.issue(&mut client, &own, &mut random)?
                };
                ops.insert(cookie, op);
            }
            if ops.is_empty() {
                return client.disconnect();
            }
            let reply = client.reply()?.good()?;
            self.note(ops.remove(&reply.cookie).unwrap());
        }
    }

    /// Sends a write of blocks none of which is in flight.
    fn issue(
        &self,
        client: &mut Client,
        own: &std::ops::Range<u64>,
        random: &mut Random,
    ) -> io::Result<(u64, Op)> {
        let mut pages = self.pages.lock().unwrap();
        let is_free =
            |pages: &[Page], block: u64| own.contains(&block) && !pages[index(block)].in_flight;
        let first = loop {
            let block = own.start + random.below(own.end - own.start);
            if is_free(&pages, block) {
                break block;
            }
        };
        let wanted = 1 + random.below(RUN_MAX);
        let blocks = (1..wanted)
            .take_while(|more| is_free(&pages, first + more))
            .count();
        let blocks = 1 + u64::try_from(blocks).unwrap();
        let kind = if random.below(6) == 0 {
            Kind::Zeroes
        } else {
            Kind::Data
        };
        let mut payload = Vec::new();
        for block in first..first + blocks {
            let page = &mut pages[index(block)];
            page.issued.push(kind);
            page.in_flight = true;
            if kind == Kind::Data {
                payload.extend((0..SECTORS).flat_map(|s| sector(block, page.issued.len(), s)));
            }
        }
        drop(pages);
        let durable = random.below(4) == 0;
        let flags = if durable { nbd::FUA } else { 0 };
        let command = if kind == Kind::Data {
            cmd::WRITE
        } else {
            cmd::WRITE_ZEROES
        };
        let cookie = client.send(command, flags, first * BLOCK, blocks * BLOCK, &payload)?;
        Ok((
            cookie,
            Op::Write {
                first,
                blocks,
                durable,
            },
        ))
    }

    /// Enters an acknowledgement into the book.
    fn note(&self, op: Op) {
        let mut pages = self.pages.lock().unwrap();
        match op {
            Op::Write {
                first,
                blocks,
                durable,
            } => {
                for block in first..first + blocks {
                    let page = &mut pages[index(block)];
                    page.in_flight = false;
                    page.acknowledged = page.issued.len();
                    if durable {
                        page.durable = page.acknowledged;
                    }
                }
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Op::Flush { covers } => {
                for (page, version) in pages.iter_mut().zip(covers) {
                    page.durable = page.durable.max(version);
                }
                self.flushes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Holds the image against the book.
    pub(crate) fn check(&self, image: &Path) -> Losses {
        let file = File::open(image).unwrap();
        let mut losses = Losses::default();
        for (block, page) in (0..).zip(self.pages.lock().unwrap().iter()) {
            let mut bytes = vec![0; usize::try_from(BLOCK).unwrap()];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, block * BLOCK).unwrap();
            let found: Vec<Option<usize>> = (0..SECTORS)
                .zip(bytes.chunks(SECTOR))
                .map(|(s, bytes)| newest_version(block, page, s, bytes))
                .collect();
            losses.owed += u64::from(page.durable > 0);
            losses.lost += u64::from(found.iter().flatten().any(|&v| v < page.durable));
            losses.garbage += u64::from(found.contains(&None));
        }
        losses
    }
}

const SECTORS: u64 = 8;

fn index(block: u64) -> usize {
    usize::try_from(block).unwrap()
}

/// The newest version of a block that has these bytes in one of its sectors.
fn newest_version(block: u64, page: &Page, number: u64, bytes: &[u8]) -> Option<usize> {
    if bytes.iter().all(|&b| b == 0) {
        let newest = page.issued.iter().rposition(|&kind| kind == Kind::Zeroes);
        return Some(newest.map_or(0, |at| at + 1));
    }
    let version = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    let version = usize::try_from(version).unwrap();
    let issued = version > 0 && page.issued.get(version - 1) == Some(&Kind::Data);
    (issued && sector(block, version, number) == bytes).then_some(version)
}

/// What a version of a block has in one sector: block, version, and noise made from them.
fn sector(block: u64, version: usize, number: u64) -> [u8; SECTOR] {
    let version = u64::try_from(version).unwrap();
    let mut bytes = [0; SECTOR];
    Random::new(block << 40 ^ version << 8 ^ number).fill(&mut bytes[16..]);
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// True for an error that a client sees when its server dies.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}
