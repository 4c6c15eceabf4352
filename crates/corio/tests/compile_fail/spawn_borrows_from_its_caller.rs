//! SPEC C10: a spawned coroutine may outlive its spawner, and borrows nothing from it.

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let greeting = String::from("hello");
    let handle = io.context().spawn(|| greeting.len());
    handle.join().unwrap();
}
