//! The program against real clients, and against clients of our own where those cannot say what is
//! to be said: one test program, as each takes as long to build as all of them to run.

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod clients;
mod crash;
mod handshake;
mod images;
mod lifecycle;
mod polling;
mod tls;
mod transmission;
