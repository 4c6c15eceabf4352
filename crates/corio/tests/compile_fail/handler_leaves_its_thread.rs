//! SPEC A3, C10: a descriptor's handler is home's, and so is its handle.

use std::fs::File;

fn take(handler: corio::context::Handler<File>) {
    std::thread::spawn(move || drop(handler));
}

fn main() {
    let _ = take;
}
