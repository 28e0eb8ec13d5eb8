//! A connection that breaks while an order is on its way: the client hears over
//! another one how it ended, or says that it cannot.

use crate::left::fleet_via;
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{App, PATIENCE, World, noise};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::Instant,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("an_upload_that_breaks_goes_on_over_another_connection", upload),
    ("an_accepted_order_is_told_as_it_ended", accepted),
    ("an_accepted_order_that_fails_is_told_as_it_ended", failed),
    ("a_line_that_stays_broken_is_no_failure_of_the_order", stays_broken),
];

const WEB: &str = "port = 3000\nhealth = { http = \"/health\", within = \"20s\" }\ndrain = \"1s\"\nstop = \"1s\"";
const SLOW: &[&str] = &["serve", "3000", "--start-ms", "3000"];

/// A relay to a node whose line can be cut, for once or for good.
struct Line {
    port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
    is_dead: Arc<AtomicBool>,
}

impl Line {
    /// The first connection breaks after so many bytes from the client; those after it do not.
    fn to(world: &World, node: &str, first_bytes: i64) -> Result<Self> {
        let (address, _) = world.address(node)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let line = Self { port: listener.local_addr()?.port(), open: Arc::default(), is_dead: Arc::default() };
        let (open, is_dead) = (Arc::clone(&line.open), Arc::clone(&line.is_dead));
        thread::spawn(move || {
            let mut budget = first_bytes;
            for client in listener.incoming().flatten() {
                if is_dead.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(node) = TcpStream::connect((address.as_str(), 22)) else { return };
                relay(&client, &node, std::mem::replace(&mut budget, i64::MAX));
                open.lock().unwrap_or_else(PoisonError::into_inner).extend([client, node]);
            }
        });
        Ok(line)
    }

    fn cut(&self, for_good: bool) {
        self.is_dead.store(for_good, Ordering::SeqCst);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // One that has ended is cut.
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn relay(client: &TcpStream, node: &TcpStream, budget: i64) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket");
    let (mut from_client, mut to_node) = (clone(client), clone(node));
    let left = AtomicI64::new(budget);
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = from_client.read(&mut piece) {
            let count_bytes = i64::try_from(count).expect("a piece is small");
            if left.fetch_sub(count_bytes, Ordering::Relaxed) <= count_bytes
                || to_node.write_all(&piece[..count]).is_err()
            {
                break;
            }
        }
        from_client.shutdown(Shutdown::Both).ok();
        to_node.shutdown(Shutdown::Both).ok();
    });
    let (mut from_node, mut to_client) = (clone(node), clone(client));
    thread::spawn(move || {
        std::io::copy(&mut from_node, &mut to_client).ok();
        to_client.shutdown(Shutdown::Both).ok();
    });
}

fn upload(world: &World) -> Result<()> {
    let app = world.app("broken-upload", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    for (round, budget) in [6000, 20_000, 60_000, 150_000].into_iter().enumerate() {
        let line = Line::to(world, "stage-1", budget)?;
        let fleet = fleet_via(world, &app, "stage-1", line.port)?;
        app.write("version.txt", &format!("{}", round + 2))?;
        // What does not compress, so that the larger budgets cut within the pack.
        fs::write(app.folder.join("noise"), noise(200_000, 90 + round as u64))?;
        let ran = app.run(&["deploy", "-e", "staging", "--yes", "--fleet", &fleet])?.expect(0)?;
        ran.says("the connection broke").with_context(|| format!("after {budget} bytes"))?;
        app.serves("stage-1", &format!("{}", round + 2))?;
    }
    ensure!(orders(&app)? == 5, "{} orders instead of 5", orders(&app)?);
    Ok(())
}

/// Starts a deploy over this line and cuts it once the node has accepted the order.
fn cut_when_accepted(app: &App<'_>, world: &World, release: u64, for_good: bool) -> Result<(i32, String)> {
    let line = Line::to(world, "stage-1", i64::MAX)?;
    let fleet = fleet_via(world, app, "stage-1", line.port)?;
    let deploy = world.spawn(&app.folder, &["deploy", "-e", "staging", "--yes", "--fleet", &fleet])?;
    let record = format!("var/lib/bulkhead/apps/{}/releases/{release}/record.json", app.name);
    let accepted = app.node_root("stage-1")?.join(record);
    let end = Instant::now() + PATIENCE;
    while !accepted.exists() {
        ensure!(Instant::now() < end, "the order is not accepted");
        thread::yield_now();
    }
    // Its process starts after the client was told that the order is durable.
    let unit = format!("bulkhead-{}.web.r{release}.service", app.name);
    while !world
        .on_node("stage-1", &["systemctl", "show", "-P", "MainPID", &unit])?
        .trim()
        .parse()
        .is_ok_and(|pid: u32| pid > 0)
    {
        ensure!(Instant::now() < end, "{unit} is not started");
    }
    line.cut(for_good);
    let output = deploy.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code().unwrap_or(-1), said))
}

fn orders(app: &App<'_>) -> Result<usize> {
    let releases = app.run(&["releases", "-e", "staging", &app.name, "-o", "json"])?.expect(0)?.json()?;
    releases["releases"].as_array().map(Vec::len).context("no releases")
}

fn accepted(world: &World) -> Result<()> {
    let app = world.app("broken-good", SLOW, WEB)?;
    let (code, said) = cut_when_accepted(&app, world, 1, false)?;
    ensure!(code == 0 && said.contains("the connection broke") && said.contains("done"), "{code}: {said}");
    app.serves("stage-1", "1")?;
    ensure!(orders(&app)? == 1, "more than one order");
    Ok(())
}

fn failed(world: &World) -> Result<()> {
    let app = world.app("broken-sick", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    app.manifest(&["serve", "3000", "--sick"], &WEB.replace("20s", "6s"))?;
    app.write("version.txt", "2")?;
    let (code, said) = cut_when_accepted(&app, world, 2, false)?;
    ensure!(code == 6 && said.contains("503"), "{code}: {said}");
    app.serves("stage-1", "1")
}

fn stays_broken(world: &World) -> Result<()> {
    let app = world.app("broken-line", SLOW, WEB)?;
    let (code, said) = cut_when_accepted(&app, world, 1, true)?;
    ensure!(code == 4, "{code}: {said}");
    for words in ["broke after it had accepted the order", "it carries the order out", "bulkhead releases"] {
        ensure!(said.contains(words), "does not say `{words}`: {said}");
    }
    ensure!(app.served("stage-1")? == "1", "the order was not carried out");
    Ok(())
}
