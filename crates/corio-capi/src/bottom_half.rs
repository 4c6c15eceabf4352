//! Bottom halves.
