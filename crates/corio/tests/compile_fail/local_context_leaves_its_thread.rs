//! SPEC C10: what takes things that are not `Send` exists in the home thread only.

fn main() {
    let context = corio::AioContext::new().unwrap();
    std::thread::scope(|scope| {
        if let Some(local) = context.local() {
            scope.spawn(move || drop(local));
        }
    });
}
