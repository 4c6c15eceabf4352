//! corio-nbd.
