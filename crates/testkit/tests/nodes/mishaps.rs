//! Mishaps that no other file has: a wrong user, bytes that change on the way, a node that lacks what it needs.

use crate::{left::fleet_via, orders::ssh};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{World, get, noise};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_user_that_the_node_does_not_have", wrong_user),
    ("bytes_that_change_on_the_way", changed_bytes),
    ("a_node_that_cannot_mount_images", cannot_mount),
    ("processes_that_are_left_on_a_volume", leftovers),
    ("a_link_that_cannot_be_switched", stuck_link),
];

const WEB: &str = "port = 3000\ndrain = \"1s\"\nstop = \"1s\"";

/// `~/.ssh/config` decides who logs in, as for any other SSH program.
fn wrong_user(world: &World) -> Result<()> {
    let app = world.app("nobody", &["idle"], "")?;
    let (address, _) = world.address("stage-1")?;
    let settings = world.folder().join(".ssh");
    fs::create_dir_all(&settings)?;
    fs::write(settings.join("config"), format!("Host as-root\n  HostName {address}\n  User root\n"))?;
    let fleet = fleet_via(world, &app, "stage-1", 22)?;
    let file = std::path::Path::new(&fleet).join("fleet.toml");
    let text = fs::read_to_string(&file)?.replacen("\"127.0.0.1\"", "\"as-root\"", 1);
    fs::write(&file, text)?;
    let ran = app.run(&["deploy", "-e", "staging", "--yes", "--fleet", &fleet])?.expect(4)?;
    ran.says("root")?.says("stage-1")?;
    // The node's own account, whose shell passes bytes and nothing else.
    let output = ssh(world, "stage-1", "bulkhead")?.arg("id").output()?;
    ensure!(!output.status.success(), "a command was run");
    Ok(())
}

/// One byte of an upload is another when it arrives. SSH notices, and the order is carried out over another connection.
fn changed_bytes(world: &World) -> Result<()> {
    let app = world.app("garbled", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let (address, _) = world.address("stage-1")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let fleet = fleet_via(world, &app, "stage-1", listener.local_addr()?.port())?;
    thread::spawn(move || {
        let mut at = Some(60_000);
        for client in listener.incoming().flatten() {
            let Ok(node) = TcpStream::connect((address.as_str(), 22)) else { return };
            relay(&client, &node, at.take());
        }
    });
    app.write("version.txt", "2")?;
    fs::write(app.folder.join("noise"), noise(200_000, 77))?;
    let ran = app.run(&["deploy", "-e", "staging", "--yes", "--fleet", &fleet])?.expect(0)?;
    ran.says("the connection broke").context("the byte was not noticed")?;
    app.serves("stage-1", "2")
}

/// A node without what images need, such as a host that lets it mount nothing: the order is refused before it is
/// accepted, so it uses up no release.
fn cannot_mount(world: &World) -> Result<()> {
    let app = world.app("unmounted", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    app.write("version.txt", "2 of unmounted")?;
    let built = app.run(&["build", "-o", "json"])?.expect(0)?.json()?;
    let image = built["image"].as_str().context("no image")?;
    // For this one image, since other tests use the node.
    let drop_in = format!("/run/systemd/system/bulkhead-image@{image}.service.d");
    let without = "[Service]\nCapabilityBoundingSet=\nCapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER CAP_CHOWN\n";
    world.on_node("stage-1", &["mkdir", "-p", &drop_in])?;
    world.on_node("stage-1", &["sh", "-c", &format!("printf '{without}' > {drop_in}/lacking.conf")])?;
    world.on_node("stage-1", &["systemctl", "daemon-reload"])?;
    let ran = app.run(&["deploy", "-e", "staging", "--yes"])?.expect(8)?;
    ran.says("cannot be mounted")?.says("not permitted")?;
    app.serves("stage-1", "1")?;
    world.on_node("stage-1", &["rm", "-r", &drop_in])?;
    world.on_node("stage-1", &["systemctl", "daemon-reload"])?;
    world.on_node("stage-1", &["systemctl", "reset-failed"])?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2 of unmounted")?;
    let releases = app.run(&["releases", "-e", "staging", "unmounted", "-o", "json"])?.expect(0)?.json()?;
    let count = releases["releases"].as_array().map(Vec::len);
    ensure!(count == Some(2), "{count:?} releases: the refused order used one up");
    Ok(())
}

/// What a unit left behind is on its volume still: nothing is started beside it.
fn leftovers(world: &World) -> Result<()> {
    let app = world.app("haunted", &["serve", "3000"], &format!("{WEB}\nvolumes = {{ data = \"/data\" }}"))?;
    app.deploy("staging", 0)?;
    app.run(&["stop", "-e", "staging", "haunted", "--yes"])?.expect(0)?;
    // As one that the kernel does not let go of, in the place where systemd has its unit's processes.
    let unit = "bulkhead-haunted.web.r1.service";
    let script = "mkdir -p $0; sleep 3600 </dev/null >/dev/null 2>&1 & echo $! > $0/cgroup.procs; echo $!";
    let group = format!("/sys/fs/cgroup/bulkhead.slice/{unit}");
    let left = world.on_node("stage-1", &["sh", "-c", script, &group])?;
    let start = ["start", "-e", "staging", "haunted", "--yes"];
    let refused = app.run(&start);
    let processes = world.on_node("stage-1", &["cat", &format!("{group}/cgroup.procs")]);
    world.on_node("stage-1", &["kill", "-KILL", left.trim()])?;
    refused?.expect(8)?.says(unit)?.says("processes of it go on running")?;
    ensure!(processes?.trim() == left.trim(), "another process was started beside the one that was left");
    app.run(&start)?.expect(0)?;
    app.serves("stage-1", "1")
}

/// The names by which connections reach a release cannot be made ready, or not be replaced: either way it is
/// told, those who come reach the old one, and the next order makes it good.
fn stuck_link(world: &World) -> Result<()> {
    let app = world.app("pinned", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let old = app.socket("stage-1")?;
    let links = app.node_root("stage-1")?.join("run/bulkhead/live/pinned");

    fs::create_dir(links.join(".web"))?;
    app.write("version.txt", "2")?;
    let failed = app.run(&["deploy", "-e", "staging", "--yes"]);
    fs::remove_dir(links.join(".web"))?;
    failed?.expect(8)?.says("/run/bulkhead/live/pinned/.web")?.says("not all of it could be undone")?;
    ensure!(app.socket("stage-1")? == old, "the link is another");
    app.serves("stage-1", "1")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")?;

    // A directory leads to the old one as the link did, and no link takes its place.
    let (old, link) = (app.socket("stage-1")?, links.join("web"));
    app.write("version.txt", "3")?;
    let target = fs::read_link(&link)?;
    fs::remove_file(&link)?;
    fs::create_dir(&link)?;
    std::os::unix::fs::symlink(target.join("sock"), link.join("sock"))?;
    let told = app.run(&["deploy", "-e", "staging", "--yes"]);
    let served = get(&old, "/version");
    fs::remove_dir_all(&link)?;
    told?
        .expect(0)?
        .says("not all new connections reach the new release yet")?
        .says("/run/bulkhead/live/pinned/web")?;
    let (status, body) = served?;
    ensure!((status, body.trim()) == (200, "2"), "the old one does not serve: {status} {body}");
    app.run(&["restart", "-e", "staging", "pinned", "--yes"])?.expect(0)?;
    app.serves("stage-1", "3")
}

/// Passes bytes on; the one at this place on its way to the node is changed.
fn relay(client: &TcpStream, node: &TcpStream, at: Option<usize>) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket");
    let (mut from_client, mut to_node) = (clone(client), clone(node));
    thread::spawn(move || {
        let (mut piece, mut passed) = ([0; 4096], 0);
        while let Ok(count @ 1..) = from_client.read(&mut piece) {
            if let Some(at) = at.filter(|at| (passed..passed + count).contains(at)) {
                piece[at - passed] ^= 0x10;
            }
            passed += count;
            if to_node.write_all(&piece[..count]).is_err() {
                break;
            }
        }
        // Where one side has hung up, so does the other.
        to_node.shutdown(Shutdown::Both).ok();
    });
    let (mut from_node, mut to_client) = (clone(node), clone(client));
    thread::spawn(move || {
        std::io::copy(&mut from_node, &mut to_client).ok();
        to_client.shutdown(Shutdown::Both).ok();
    });
}
