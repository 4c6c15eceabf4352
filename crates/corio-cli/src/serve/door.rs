//! The door: lets clients in up to the limit, and shows each to the loop with the fewest.
//!
//! Those beyond the limit are told so in the handshake, which takes a place on a loop too: at most
//! [`TOLD_AT_ONCE_MAX`] at a time, each for no longer than the server allows. In a rush beyond that
//! the connection is closed without a word.
//!
//! Only the accepting thread lets clients in, so that the count it sees can be too high for a
//! moment (a client is just leaving) but never too low: the limit holds without a lock.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use corio::net::{TcpStream, UnixStream};
use corio::{AioContext, IoThread};
use corio_nbd::server::Server;
use rustix::net::sockopt;

use super::accept::Client;
use super::tcp;

/// Refusals are logged at most this often, with their number.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Refused clients that are being told so.
pub(crate) const TOLD_AT_ONCE_MAX: u32 = 16;

/// Where new clients go.
pub(crate) struct Door {
    server: Server,
    seats: Vec<Seat>,
    connections_max: u32,
    /// Refused clients that are being told so.
    told: Arc<AtomicU32>,
    refusals: Refusals,
}

/// One loop, and how many clients it has.
struct Seat {
    context: AioContext,
    taken: Arc<AtomicU32>,
}

/// A client's place on a loop, given back when dropped, also by a panic.
struct Place(Arc<AtomicU32>);

/// What was refused since it was last said.
#[derive(Debug, Default)]
struct Refusals {
    unsaid: u64,
    last_said: Option<Instant>,
}

impl Door {
    /// A door to the loops of `threads` for up to `connections_max` clients at a time.
    pub(crate) fn new(server: Server, threads: &[IoThread], connections_max: u32) -> Self {
        let seats = threads
            .iter()
            .map(|thread| Seat {
                context: thread.context().clone(),
                taken: Arc::default(),
            })
            .collect();
        Self {
            server,
            seats,
            connections_max,
            told: Arc::default(),
            refusals: Refusals::default(),
        }
    }

    /// For the accepting thread.
    pub(crate) fn into_admit(mut self) -> impl FnMut(Client) + Send + 'static {
        move |client| self.admit(client)
    }

    fn admit(&mut self, client: Client) {
        let taken = self
            .seats
            .iter()
            .map(|seat| seat.taken.load(Ordering::Relaxed));
        let Some(index) = choose(taken, self.connections_max) else {
            return self.refuse(client);
        };
        let seat = &self.seats[index];
        let place = Place::take(&seat.taken);
        let server = self.server.clone();
        // The handle is not kept: a panic in there is reported by the runtime.
        drop(seat.context.spawn(move || {
            let _place = place;
            serve(&server, client);
        }));
    }

    fn refuse(&mut self, client: Client) {
        let connections_max = self.connections_max;
        if let Some(count) = self.refusals.count(Instant::now()) {
            tracing::warn!(
                "clients refused: {count}, as --connections {connections_max} are there"
            );
        }
        let seat = self
            .seats
            .iter()
            .min_by_key(|seat| seat.taken.load(Ordering::Relaxed));
        let Some(seat) = seat.filter(|_| self.told.load(Ordering::Relaxed) < TOLD_AT_ONCE_MAX)
        else {
            // Closing is all: the protocol lets the server speak first, so that the client finds
            // its connection ended instead of waiting for a greeting.
            return drop(client);
        };
        let place = Place::take(&self.told);
        let server = self.server.clone();
        drop(seat.context.spawn(move || {
            let _place = place;
            turn_away(&server, client, connections_max);
        }));
    }
}

/// Tells a client that there is no room for it. Runs in a coroutine on a loop.
fn turn_away(server: &Server, client: Client, connections_max: u32) {
    let peer = peer_name(&client);
    let why = format!("the server serves its maximum of {connections_max} connections");
    // The server says how it went; that it did not is nobody's loss.
    let _ = match client {
        Client::Tcp(stream, _) => {
            TcpStream::try_from_std(stream).map(|stream| server.turn_away(stream, &peer, &why))
        }
        Client::Unix(stream) => {
            UnixStream::try_from_std(stream).map(|stream| server.turn_away(stream, &peer, &why))
        }
    };
}

/// Serves one client to its end. Runs in a coroutine on the client's loop.
fn serve(server: &Server, client: Client) {
    let peer = peer_name(&client);
    tracing::info!("{peer}: connected");
    let moved = match client {
        Client::Tcp(stream, _) => {
            if let Err(errno) = tcp::tune(&stream) {
                tracing::debug!("{peer}: socket options: {errno}");
            }
            TcpStream::try_from_std(stream).map(|stream| server.serve_tcp(stream, peer.clone()))
        }
        Client::Unix(stream) => {
            UnixStream::try_from_std(stream).map(|stream| server.serve_unix(stream, peer.clone()))
        }
    };
    match moved {
        Ok(Ok(())) => tracing::info!("{peer}: gone"),
        // The server has said why.
        Ok(Err(_)) => {}
        Err(error) => tracing::warn!("{peer}: cannot be served: {error}"),
    }
}

/// How messages call a client.
fn peer_name(client: &Client) -> String {
    match client {
        Client::Tcp(_, address) => address.to_string(),
        Client::Unix(stream) => match sockopt::socket_peercred(stream.as_fd()) {
            Ok(peer) => format!(
                "unix client (pid {}, uid {})",
                peer.pid.as_raw_nonzero(),
                peer.uid.as_raw()
            ),
            Err(_) => "unix client".to_owned(),
        },
    }
}

/// The seat with the fewest clients, the first of equals; `None` when all of them together have
/// `connections_max`.
fn choose(taken: impl Iterator<Item = u32>, connections_max: u32) -> Option<usize> {
    let mut total: u64 = 0;
    let mut best: Option<(usize, u32)> = None;
    for (index, count) in taken.enumerate() {
        total += u64::from(count);
        if best.is_none_or(|(_, fewest)| count < fewest) {
            best = Some((index, count));
        }
    }
    best.filter(|_| total < u64::from(connections_max))
        .map(|(index, _)| index)
}

impl Place {
    fn take(taken: &Arc<AtomicU32>) -> Self {
        // Relaxed here and below: it is a count and guards no data.
        taken.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(taken))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Refusals {
    /// Counts one; returns how many to speak of if it is time to speak.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        let due = self
            .last_said
            .is_none_or(|last| now.saturating_duration_since(last) >= REFUSAL_LOG_INTERVAL);
        due.then(|| {
            self.last_said = Some(now);
            std::mem::take(&mut self.unsaid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_with_the_fewest_clients_is_chosen() {
        assert_eq!(choose([0, 0, 0].into_iter(), 10), Some(0));
        assert_eq!(choose([1, 0, 0].into_iter(), 10), Some(1));
        assert_eq!(choose([2, 1, 3].into_iter(), 10), Some(1));
        assert_eq!(choose([5].into_iter(), 10), Some(0));
    }

    #[test]
    fn clients_spread_evenly() {
        let mut taken = [0u32; 3];
        for _ in 0..30 {
            taken[choose(taken.into_iter(), 30).unwrap()] += 1;
        }
        assert_eq!(taken, [10, 10, 10]);
        assert_eq!(choose(taken.into_iter(), 30), None);
    }

    #[test]
    fn the_limit_is_for_all_loops_together() {
        assert_eq!(choose([1, 1].into_iter(), 3), Some(0));
        assert_eq!(choose([2, 1].into_iter(), 3), None);
        assert_eq!(choose([u32::MAX, u32::MAX].into_iter(), u32::MAX), None);
        assert_eq!(choose([].into_iter(), 1), None);
    }

    #[test]
    fn a_place_is_given_back_also_by_a_panic() {
        let taken = Arc::new(AtomicU32::new(0));
        let place = Place::take(&taken);
        assert_eq!(taken.load(Ordering::Relaxed), 1);
        drop(place);
        let place = Place::take(&taken);
        let result = std::panic::catch_unwind(move || {
            let _place = place;
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(result.is_err());
        assert_eq!(taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn refusals_are_said_at_intervals_with_their_number() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        assert_eq!(refusals.count(start), Some(1));
        for _ in 0..5 {
            assert_eq!(refusals.count(start + Duration::from_secs(9)), None);
        }
        assert_eq!(refusals.count(start + Duration::from_secs(10)), Some(6));
        assert_eq!(refusals.count(start + Duration::from_secs(11)), None);
    }

    #[test]
    fn clients_have_names() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let name = peer_name(&Client::Unix(ours));
        assert!(
            name.contains(&format!("pid {}", std::process::id())),
            "{name}"
        );
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let client = Client::Tcp(std::net::TcpStream::connect(at).unwrap(), at);
        assert_eq!(peer_name(&client), at.to_string());
    }
}
