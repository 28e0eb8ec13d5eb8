//! Mishaps that no other file has: a wrong user, bytes that change on the way, a node that lacks what it needs.

use crate::{left::fleet_via, orders::ssh};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{World, noise};
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
