//! SPEC C10, L1: a lock belongs to a coroutine, and its guard stays on that one's thread.

use std::sync::Arc;

fn main() {
    let mutex = Arc::new(corio::sync::Mutex::new(0));
    std::thread::scope(|scope| {
        let guard = mutex.lock();
        scope.spawn(move || drop(guard));
    });
}
