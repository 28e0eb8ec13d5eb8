//! Cut connections and garbage.

use crate::orders::{converse, ssh};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{World, noise};
use bulkhead_wire::{Ask, Bring, Event, Kind, PROTOCOL, Paper, Request, Submit, write_frame};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_connection_cut_anywhere_leaves_a_whole_release", cut_anywhere),
    ("garbage_to_the_gate", garbage),
    ("frames_without_end", endless),
    ("an_unknown_protocol_or_question", unknown_question),
];

/// A relay to a node that stops for good after so many bytes from the client.
fn cutter(to: String, budget: i64) -> Result<(u16, Arc<AtomicI64>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let left = Arc::new(AtomicI64::new(budget));
    let budget = Arc::clone(&left);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(node) = TcpStream::connect((to.as_str(), 22)) else { return };
            let (mut from_client, mut to_node) =
                (client.try_clone().expect("a socket"), node.try_clone().expect("a socket"));
            let left = Arc::clone(&left);
            thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(count) = from_client.read(&mut piece) {
                    if count == 0 || left.fetch_sub(count as i64, Ordering::Relaxed) <= count as i64 {
                        break;
                    }
                    if to_node.write_all(&piece[..count]).is_err() {
                        break;
                    }
                }
                from_client.shutdown(std::net::Shutdown::Both).ok();
                to_node.shutdown(std::net::Shutdown::Both).ok();
            });
            let (mut from_node, mut to_client) = (node, client);
            thread::spawn(move || {
                std::io::copy(&mut from_node, &mut to_client).ok();
                to_client.shutdown(std::net::Shutdown::Both).ok();
            });
        }
    });
    Ok((port, budget))
}

fn cut_anywhere(world: &World) -> Result<()> {
    let app = world.app("cut", &["serve", "3000"], "port = 3000\nstop = \"1s\"\ndrain = \"1s\"")?;
    app.deploy("staging", 0)?;
    let (address, _) = world.address("stage-1")?;
    let fleet = app.folder.join("../cut-fleet");
    fs::create_dir_all(&fleet)?;
    for name in ["policy.json", "policy.json.sig"] {
        fs::copy(world.fleet().join(name), fleet.join(name))?;
    }
    let text = fs::read_to_string(world.fleet().join("fleet.toml"))?;
    let mut old = "1".to_owned();
    for (round, budget) in [200, 1500, 2500, 4000, 6000, 20_000, 60_000, 150_000].into_iter().enumerate() {
        let (port, _) = cutter(address.clone(), budget)?;
        let quoted = format!("address = \"{address}\"");
        ensure!(text.contains(&quoted), "{text}");
        fs::write(fleet.join("fleet.toml"), text.replace(&quoted, &format!("address = \"127.0.0.1\"\nport = {port}")))?;
        let new = format!("{}", round + 2);
        app.write("version.txt", &new)?;
        // What does not compress, so that the larger budgets cut within the pack.
        fs::write(app.folder.join("noise"), noise(200_000, round as u64))?;
        let cut = app.run(&["deploy", "-e", "staging", "--yes", "--fleet", &fleet.display().to_string()])?;
        let serving = app.served("stage-1")?;
        ensure!(serving == old || serving == new, "after {budget} bytes `{serving}` serves: {cut}");
        ensure!(cut.code != 0 || serving == new, "{cut}");
        app.deploy("staging", 0).with_context(|| format!("after a cut at {budget} bytes"))?;
        app.serves("stage-1", &new)?;
        old = new;
    }
    Ok(())
}

fn garbage(world: &World) -> Result<()> {
    for garbage in
        [&b""[..], b"\0\0\0\0\x01", b"\xff\xff\xff\xff\x01", b"GET / HTTP/1.1\r\n\r\n", b"\x02\0\0\0\x01{]", &[0; 4096]]
    {
        let mut child = ssh(world, "stage-1", "bulkhead")?
            .arg(bulkhead_wire::COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // The node may hang up before all is written.
        child.stdin.take().context("no stdin")?.write_all(garbage).ok();
        let output = child.wait_with_output()?;
        ensure!(!output.status.success() || !output.stdout.is_empty(), "silence on {garbage:?}");
    }
    let request = Request { protocol: PROTOCOL, ask: Ask::Status };
    let events = converse(world, "stage-1", &request, &[])?;
    ensure!(matches!(events[0], Event::Status(_)), "{events:?}");
    Ok(())
}

/// Longer than any patience of a node's.
const HOLDS_ON: Duration = Duration::from_secs(120);

/// What follows each question goes on for ever: the node says what is wrong, or nothing, and hangs up.
fn endless(world: &World) -> Result<()> {
    let bring = |paper| Ask::Bring(Bring { paper, signatures: vec![] });
    let asks = [
        Ask::Status,
        Ask::Submit(Submit::default()),
        bring(Paper::Policy),
        bring(Paper::Statement),
        bring(Paper::Heartbeat),
    ];
    // Side by side: nearly all of the time is the node's patience.
    thread::scope(|scope| -> Result<()> {
        let cases: Vec<_> = asks.into_iter().map(|ask| scope.spawn(move || goes_on_for_ever(world, ask))).collect();
        cases.into_iter().try_for_each(|case| case.join().expect("no case panics"))
    })?;
    let request = Request { protocol: PROTOCOL, ask: Ask::Status };
    let events = converse(world, "stage-1", &request, &[])?;
    ensure!(matches!(events[0], Event::Status(_)), "{events:?}");
    Ok(())
}

fn goes_on_for_ever(world: &World, ask: Ask) -> Result<()> {
    const GIVEN_MAX_BYTES: usize = 64 << 20;
    let frame = |kind: Kind, payload: &[u8]| -> Result<Vec<u8>> {
        let mut out = Vec::new();
        write_frame(&mut out, kind, payload)?;
        Ok(out)
    };
    let data = frame(Kind::Data, &noise(bulkhead_wire::DATA_MAX_BYTES, 7))?;
    let said = format!("{ask:?}");
    let question = frame(Kind::Message, &serde_json::to_vec(&Request { protocol: PROTOCOL, ask })?)?;
    let mut child = ssh(world, "stage-1", "bulkhead")?
        .arg(bulkhead_wire::COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // One that neither reads nor hangs up would hold this for ever: then the line is cut, and that is a failure.
    let (ended, is_ended) = mpsc::channel::<()>();
    let id = child.id().to_string();
    let watch = thread::spawn(move || {
        let in_time = is_ended.recv_timeout(HOLDS_ON) != Err(mpsc::RecvTimeoutError::Timeout);
        if !in_time {
            Command::new("kill").arg(&id).status().ok();
        }
        in_time
    });
    let mut input = child.stdin.take().context("no stdin")?;
    let mut given = 0;
    let mut goes_on = input.write_all(&question).is_ok();
    while goes_on && given < GIVEN_MAX_BYTES {
        goes_on = input.write_all(&data).is_ok();
        given += data.len();
    }
    drop(input);
    let status = child.wait()?;
    drop(ended);
    // As ssh ends where it was not let in at all.
    ensure!(status.code() != Some(255), "{said}: nothing was asked");
    ensure!(!goes_on, "{said}: {given} bytes were taken");
    ensure!(watch.join().unwrap_or(false), "{said}: the node neither reads nor hangs up");
    Ok(())
}

fn unknown_question(world: &World) -> Result<()> {
    let request = Request { protocol: PROTOCOL + 1, ask: Ask::Status };
    let events = converse(world, "stage-1", &request, &[])?;
    ensure!(matches!(events.last(), Some(Event::Failed(_))), "{events:?}");
    Ok(())
}
