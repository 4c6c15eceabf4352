//! SPEC C10: a coroutine on the same thread may outlive its spawner all the same.

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let outer = io.context().spawn(|| {
        let greeting = String::from("hello");
        let inner = corio::spawn_local(|| greeting.len());
        inner.join().unwrap()
    });
    outer.join().unwrap();
}
