//! A context inside tokio: its descriptor in an `AsyncFd`, turned by one task beside others.

#![allow(unsafe_code)] // tokio wants a promise about the descriptor.

use std::error::Error;
use std::io::{Read, Write};
use std::time::Duration;

use corio::AioContext;
use corio::context::Embedded;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// Runs until what a tokio task asked of a coroutine has been answered.
pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let context = AioContext::builder().name("in tokio").build()?;
    context.enter_home(|| runtime.block_on(serve(&context)))?
}

async fn serve(context: &AioContext) -> Result<(), Box<dyn Error>> {
    let local = context.local().ok_or("this thread is its home")?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;

    // Straight-line code that parks: it answers on its end of the pair.
    let mut ours = corio::net::UnixStream::try_from_std(ours)?;
    let answered = local.spawn(move || {
        let mut request = [0; 4];
        ours.read_exact(&mut request)?;
        corio::time::sleep(Duration::from_millis(1));
        ours.write_all(&request.map(|byte| byte.to_ascii_uppercase()))
    });
    let tasks = tokio::task::LocalSet::new();
    // SAFETY: an `Embedded` has the same descriptor, open and its own, for as long as it lives.
    let embedded = unsafe { AsyncFd::register(local.embed()?) }?;
    let turns = tasks.spawn_local(turn_for_ever(embedded));

    theirs.set_nonblocking(true)?;
    let theirs = UnixStream::from_std(theirs)?;
    let mut answer = [0; 4];
    let ask = async {
        theirs.writable().await?;
        theirs.try_write(b"ping")?;
        theirs.readable().await?;
        theirs.try_read(&mut answer)
    };
    assert_eq!(tasks.run_until(ask).await?, 4);
    println!("answered: {}", String::from_utf8_lossy(&answer));
    turns.abort();
    answered.join()??;
    Ok(())
}

/// Turns the context whenever there is something to do.
async fn turn_for_ever(embedded: AsyncFd<Embedded>) -> std::io::Result<()> {
    loop {
        let mut ready = embedded.readable().await?;
        ready.get_inner().dispatch()?;
        // tokio is edge-triggered: it may forget the descriptor only once there is no more.
        if !ready.get_inner().check() {
            ready.clear_ready();
        }
    }
}
