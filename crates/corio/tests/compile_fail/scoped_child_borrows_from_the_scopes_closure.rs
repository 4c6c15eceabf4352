//! SPEC L8: a child borrows what outlives its scope, and nothing that its closure owns.

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let handle = io.context().spawn(|| {
        corio::scope(|s| {
            let number = 1;
            s.spawn(|| println!("{number}"));
        });
    });
    handle.join().unwrap();
}
