//! SPEC C10: what comes back from another context with `run` is `Send`.

use std::rc::Rc;

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let context = io.context().clone();
    let counter: Rc<i32> = corio::home(|| context.run(|| Rc::new(1)));
    println!("{counter}");
}
