//! SPEC C10: the handle of a raw coroutine stays where the coroutine is.

fn main() {
    corio::home(|| {
        let coroutine = corio::Coroutine::new(|| {});
        std::thread::spawn(move || coroutine.enter());
    });
}
