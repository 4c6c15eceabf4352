//! SPEC C10, C9: a raw coroutine may be forgotten suspended, and borrows nothing either.

fn main() {
    corio::home(|| {
        let greeting = String::from("hello");
        let coroutine = corio::Coroutine::new(|| println!("{greeting}"));
        coroutine.enter();
    });
}
