//! When a handshake must be over, TLS's included.

use std::time::{Duration, Instant};

use super::Error;
use super::transport::Transport;

/// A time that each wait of a handshake is cut to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    end: Instant,
    limit: Duration,
}

impl Deadline {
    /// `limit` from now.
    pub(super) fn after(limit: Duration) -> Self {
        let end = Instant::now() + limit;
        Self { end, limit }
    }

    /// When it is.
    pub(super) fn end(&self) -> Instant {
        self.end
    }

    /// How long it was when it was set.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Lets the stream's next read or write wait no longer than what is left.
    pub(super) fn impose(&self, stream: &impl Transport) -> Result<(), Error> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::io("waiting for the client")(
                std::io::ErrorKind::TimedOut.into(),
            ));
        }
        stream
            .set_timeout(Some(left))
            .map_err(Error::io("setting time-outs"))
    }
}
