//! A service for tests: well-behaved unless its arguments say otherwise, and
//! able to report from inside its sandbox what it can see and do.
//!
//! ```text
//! testapp serve PORT [--start-ms N] [--sick] [--alone DIR]
//!                                              HTTP on 127.0.0.1:PORT, after N ms; unhealthy with --sick; with
//!                                              --alone leaves `DIR/met` and exits if another is on DIR already
//! testapp exit CODE                            prints a line on stderr and exits
//! testapp curse HEX                            writes these bytes to its log and exits
//! testapp idle                                 stays up, listens on nothing
//! testapp try                                  asks the kernel for what no service may have: a line for each, `NAME
//!                                              done`, or `NAME` and the number of the error
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `/health` | 200, or 503 with `--sick` |
//! | `/version` | the contents of `version.txt` in the working directory |
//! | `/slow/MS` | 200 after MS milliseconds |
//! | `/read/PATH` | the file, or the error's text |
//! | `/list/PATH` | names in the directory, a line each |
//! | `/append/PATH/TEXT` | appends a line to the file, synced |
//! | `/connect/HOST:PORT` | `connected`, or the error's text |
//! | `/exec/PATH` | `ran`, or the error's text |
//! | `/exec-copy/PATH` | copies itself there and runs that: `ran`, or the error's text |
//! | `/journal/APP/TEXT` | sends a line of that app to the journal's own socket: `sent`, or the error's text |
//! | `/env` | the environment, a line each |
//! | `/spawn` | starts itself and gives the new process's number as it sees it |
//! | `/work/N` | reads a file N times |
//! | `/hog/MIB` | takes that much memory and keeps it |
//! | `/fork/N` | starts N processes that stay: how many it got |
//! | `/multiply` | `started`: from then on every process starts others, without end |
//! | `/try` | what `testapp try` prints |
//! | `/say/HEX` | writes these bytes and a line's end to its log: `said` |
//! | `/crash` | the process ends with 3 |
#![expect(clippy::print_stderr, clippy::exit, reason = "a test program talks through its standard streams")]

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    os::unix::net::UnixDatagram,
    process::{Command, exit},
    thread,
    time::Duration,
};

mod forbidden;

const TESTAPP: &str = "/app/testapp";

fn main() {
    let words: Vec<String> = env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[1..] {
        ["serve", port, ref options @ ..] => {
            let _alone = options.iter().position(|word| *word == "--alone").map(|index| alone(options[index + 1]));
            if let Some(index) = options.iter().position(|word| *word == "--start-ms") {
                let delay_ms = options[index + 1].parse().expect("milliseconds");
                thread::sleep(Duration::from_millis(delay_ms));
            }
            serve(port.parse().expect("a port"), options.contains(&"--sick"));
        }
        ["exit", code] => {
            eprintln!("testapp: exiting on request with {code}");
            exit(code.parse().expect("a code"));
        }
        ["idle"] => loop {
            thread::park();
        },
        ["curse", hex] => {
            say(hex).expect("a log");
            exit(1);
        }
        ["try"] => forbidden::try_all(),
        ["multiply"] => multiply(),
        _ => {
            eprintln!(
                "usage: testapp serve PORT [--start-ms N] [--sick] [--alone DIR] | exit CODE | curse HEX | idle | try"
            );
            exit(2);
        }
    }
}

/// The lock of a program that must be the only one on its data; held as long as what this gives lives.
fn alone(directory: &str) -> fs::File {
    let file = fs::File::create(format!("{directory}/lock")).expect("the volume can be written");
    if file.try_lock().is_err() {
        fs::write(format!("{directory}/met"), "").expect("the volume can be written");
        eprintln!("testapp: another is on {directory}");
        exit(9);
    }
    file
}

fn serve(port: u16, sick: bool) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    eprintln!("testapp: listening on {port}");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(error) = converse(&stream, sick) {
                eprintln!("testapp: {error}");
            }
        });
    }
}

/// Requests on one connection until the client closes it.
fn converse(stream: &TcpStream, sick: bool) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut close = false;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            close |= header.trim().eq_ignore_ascii_case("connection: close");
        }
        let path = line.split(' ').nth(1).unwrap_or("/");
        let (status, body) = answer(path, sick);
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n", body.len());
        let mut writer = stream;
        writer.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
        if close {
            return Ok(());
        }
    }
}

fn answer(path: &str, sick: bool) -> (&'static str, String) {
    let (word, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let body = match word {
        "health" if sick => return ("503 Service Unavailable", "sick".into()),
        "health" => Ok("well".into()),
        "version" => fs::read_to_string("version.txt"),
        "slow" => {
            thread::sleep(Duration::from_millis(rest.parse().unwrap_or(0)));
            Ok("slept".into())
        }
        "read" => fs::read(format!("/{rest}")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        "list" => list(&format!("/{rest}")),
        "append" => {
            rest.rsplit_once('/').map_or(Ok("no text".into()), |(file, text)| append(&format!("/{file}"), text))
        }
        "connect" => connect(rest),
        "exec" => Command::new(format!("/{rest}")).status().map(|_| "ran".into()),
        "exec-copy" => exec_copy(&format!("/{rest}")),
        "journal" => rest.split_once('/').map_or(Ok("no text".into()), |(app, text)| journal(app, text)),
        "spawn" => spawn(),
        "work" => (0..rest.parse().unwrap_or(0))
            .try_for_each(|_: u32| fs::read("version.txt").map(drop))
            .map(|()| "worked".into()),
        "hog" => Ok(hog(rest.parse().unwrap_or(0))),
        "fork" => Ok(fork(rest.parse().unwrap_or(0))),
        "multiply" => Command::new(TESTAPP).arg("multiply").spawn().map(|_| "started".into()),
        "try" => Command::new(TESTAPP).arg("try").output().map(|output| String::from_utf8_lossy(&output.stdout).into()),
        "say" => say(rest),
        "env" => Ok(env::vars().map(|(key, value)| format!("{key}={value}\n")).collect()),
        "crash" => exit(3),
        _ => return ("404 Not Found", "no such path".into()),
    };
    ("200 OK", body.unwrap_or_else(|error| format!("error: {error}")))
}

fn list(path: &str) -> io::Result<String> {
    let mut names: Vec<String> = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names.join("\n"))
}

fn append(path: &str, text: &str) -> io::Result<String> {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    Ok("written".into())
}

fn exec_copy(path: &str) -> io::Result<String> {
    fs::copy(TESTAPP, path)?;
    Command::new(path).args(["exit", "0"]).status().map(|_| "ran".into())
}

fn journal(app: &str, text: &str) -> io::Result<String> {
    let entry = format!("BULKHEAD_APP={app}\nBULKHEAD_SERVICE=web\nBULKHEAD_RELEASE=1\nMESSAGE={text}\n");
    UnixDatagram::unbound()?.send_to(entry.as_bytes(), "/run/systemd/journal/socket")?;
    Ok("sent".into())
}

fn hog(mib: usize) -> String {
    // Other than zero, for each page to be the process's own.
    let memory = vec![1u8; mib << 20];
    let kept = memory.leak();
    format!("{} bytes", kept.len())
}

fn fork(count: usize) -> String {
    let started = (0..count).map_while(|_| Command::new(TESTAPP).arg("idle").spawn().ok()).count();
    started.to_string()
}

/// Bounded by nothing but the limits of its service.
fn multiply() -> ! {
    loop {
        // At the limit it fails, and is tried again at once.
        Command::new(TESTAPP).arg("multiply").spawn().ok();
    }
}

/// As any program may write to its own log.
fn say(hex: &str) -> io::Result<String> {
    let digits: Option<Vec<u8>> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect();
    let line = [&digits.ok_or(io::ErrorKind::InvalidInput)?[..], b"\n"].concat();
    io::stderr().write_all(&line)?;
    Ok("said".into())
}

fn spawn() -> io::Result<String> {
    let mut child = Command::new(TESTAPP).args(["exit", "0"]).spawn()?;
    let number = child.id();
    child.wait().map(|_| number.to_string())
}

fn connect(address: &str) -> io::Result<String> {
    let address = address.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
    TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(|_| "connected".into())
}
