//! SPEC C10: what goes to another context with `run` is `Send`.

use std::rc::Rc;

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let context = io.context().clone();
    let counter = Rc::new(1);
    corio::home(|| context.run(move || *counter + 1));
}
