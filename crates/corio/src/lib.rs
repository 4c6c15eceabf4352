//! corio.
