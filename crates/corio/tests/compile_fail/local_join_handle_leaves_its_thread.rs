//! SPEC C10: the handle that `spawn_local` gives stays on its thread.

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let outer = io.context().spawn(|| {
        let inner = corio::spawn_local(|| 1);
        std::thread::spawn(move || inner.join().unwrap())
    });
    drop(outer.join().unwrap());
}
