//! SPEC L8, C10: a scope's children are started on its own thread.

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let handle = io.context().spawn(|| {
        corio::scope(|s| {
            std::thread::scope(|threads| {
                threads.spawn(|| drop(s.spawn(|| 1)));
            });
        });
    });
    handle.join().unwrap();
}
