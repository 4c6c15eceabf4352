//! SPEC L8: nothing of a scope gets out of it.

fn main() {
    let io = corio::IoThread::builder().spawn().unwrap();
    let handle = io.context().spawn(|| {
        let mut kept = None;
        corio::scope(|s| kept = Some(s.spawn(|| 1)));
        kept.unwrap().join().unwrap()
    });
    handle.join().unwrap();
}
