//! SPEC C10: what a `JoinHandle` carries is `Send`.

use std::rc::Rc;

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let handle = io.context().spawn(|| Rc::new(1));
    handle.join().unwrap();
}
