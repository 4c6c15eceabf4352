//! The `corio` program.
fn main() {}
