//! The smallest service: one static binary, an image with one file in it.
//!
//! Answers `GET /` and `GET /health` over HTTP/1.1, one request per connection,
//! on port 8080. It takes nothing from its surroundings but `GREETING`.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

const PORT: u16 = 8080;
/// The request line and all headers; more is not read.
const REQUEST_MAX_BYTES: u64 = 16 << 10;
/// A client that says nothing for so long is hung up on.
const SILENCE: Duration = Duration::from_secs(5);

fn main() -> io::Result<()> {
    let greeting = std::env::var("GREETING").unwrap_or_else(|_| "hello from one static binary".into());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    println!("listening on 127.0.0.1:{PORT}");
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let greeting = &greeting;
            match stream {
                Ok(stream) => drop(scope.spawn(move || {
                    if let Err(error) = answer(stream, greeting) {
                        eprintln!("connection: {error}");
                    }
                })),
                Err(error) => eprintln!("accept: {error}"),
            }
        }
    });
    Ok(())
}

fn answer(stream: TcpStream, greeting: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new((&stream).take(REQUEST_MAX_BYTES));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    if request.is_empty() {
        return Ok(()); // connected and left, as a TCP health check does
    }
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, body) = match request.split_whitespace().collect::<Vec<_>>()[..] {
        ["GET", "/", _] => ("200 OK", greeting),
        ["GET", "/health", _] => ("200 OK", "ok"),
        ["GET", _, _] => ("404 Not Found", "not here"),
        _ => ("400 Bad Request", "GET only"),
    };
    let length = body.len() + 1;
    write!(
        &stream,
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}\n"
    )
}
