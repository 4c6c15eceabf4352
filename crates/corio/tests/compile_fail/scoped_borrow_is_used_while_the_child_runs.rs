//! SPEC L8: what a child has borrowed is borrowed until its scope ends.

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let handle = io.context().spawn(|| {
        let mut numbers = vec![1];
        corio::scope(|s| {
            s.spawn(|| println!("{}", numbers[0]));
            numbers.push(2);
        });
    });
    handle.join().unwrap();
}
