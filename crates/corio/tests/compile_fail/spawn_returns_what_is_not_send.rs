//! SPEC C10: `spawn` gives a `JoinHandle`, which may go to another thread, and so its result is
//! `Send`; `spawn_local` is for the rest.

use std::rc::Rc;

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let outer = io.context().spawn(|| {
        let inner = corio::spawn(|| Rc::new(1));
        *inner.join().unwrap()
    });
    outer.join().unwrap();
}
