//! SPEC E5: a buffer is the request's until that has ended, whatever becomes of its coroutine.

use corio::fs::File;

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let handle = io.context().spawn(|| {
        let file = File::open("disk.raw").unwrap();
        let (mut freed, mut moved, mut read, mut written) = (vec![0], vec![0], [0], [0]);
        corio::scope(|s| {
            s.spawn(|| file.read_at(&mut freed, 0));
            s.spawn(|| file.read_at(&mut moved, 0));
            s.spawn(|| file.read_at(&mut read, 0));
            s.spawn(|| file.write_all_at(&written, 0));
            freed = Vec::new();
            let elsewhere = std::mem::take(&mut moved);
            println!("{elsewhere:?} {}", read[0]);
            written[0] = 1;
        });
        let mut left_behind = [0];
        let buffer = &mut left_behind;
        corio::spawn_local(move || file.read_at(buffer, 0));
    });
    handle.join().unwrap();
}
