//! SPEC C10: what is spawned on another context is `Send`.

use std::cell::Cell;
use std::rc::Rc;

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let counter = Rc::new(Cell::new(1));
    let handle = io.context().spawn(move || counter.get());
    handle.join().unwrap();
}
