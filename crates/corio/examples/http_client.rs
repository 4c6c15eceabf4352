//! An async HTTP client, hyper on tokio's sockets, called from a coroutine. The server is a
//! coroutine of the same thread, which could not answer if the call blocked it.

use std::error::Error;
use std::future::poll_fn;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::pin::Pin;

use corio::IoThread;
use corio::net::TcpListener;
use hyper::Request;
use hyper::body::Body;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

type Failure = Box<dyn Error + Send + Sync>;

/// Asks a server of its own, until it has the answer.
pub(crate) fn main() -> Result<(), Failure> {
    // What hyper waits for is seen by tokio, on this thread.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let tokio = runtime.handle().clone();
    let (done, ends) = oneshot::channel();
    let driver = std::thread::spawn(move || runtime.block_on(ends));

    let io = IoThread::builder().name("io0").spawn()?;
    let body = io.context().spawn(move || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = corio::spawn(move || answer(&listener));
        // Parks until the whole response is there.
        let body = corio::block_on_within(|| tokio.enter(), get(address, "/disk"));
        server.join().expect("the server does not panic")?;
        body
    });
    let body = body.join().expect("the client does not panic")?;
    println!("answered: {body}");
    assert_eq!(body, "GET /disk HTTP/1.1");
    let _ = done.send(()); // Tokio's thread may go.
    driver.join().map_err(|_| "tokio's thread panicked")??;
    Ok(())
}

/// The body of the response, which has to be text.
async fn get(address: SocketAddr, path: &str) -> Result<String, Failure> {
    let stream = TokioIo::new(tokio::net::TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let connection = tokio::spawn(connection); // In tokio's thread.
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .body(String::new())?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(response.status().to_string().into());
    }
    let (mut body, mut text) = (response.into_body(), Vec::new());
    while let Some(frame) = poll_fn(|task| Pin::new(&mut body).poll_frame(task)).await {
        if let Ok(data) = frame?.into_data() {
            text.extend_from_slice(&data);
        }
    }
    drop(sender);
    connection.await??;
    Ok(String::from_utf8(text)?)
}

/// Answers one request with its first line. Straight-line code that parks.
fn answer(listener: &TcpListener) -> std::io::Result<()> {
    let mut stream = BufReader::new(listener.accept()?.0);
    let (mut first, mut line) = (String::new(), String::new());
    stream.read_line(&mut first)?;
    while stream.read_line(&mut line)? > "\r\n".len() {
        line.clear();
    }
    let body = first.trim_end();
    write!(
        stream.get_mut(),
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
