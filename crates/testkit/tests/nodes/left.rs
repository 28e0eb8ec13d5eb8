//! One node that cannot be reached keeps nothing from the others.

use anyhow::{Result, ensure};
use bulkhead_testkit::world::{App, World};
use std::fs;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_dead_node_stops_no_rollback", rollback),
    ("a_dead_node_stops_no_deploy_that_asks_nor_promote", deploy_and_promote),
    ("a_dead_node_stops_no_rm", rm),
    ("a_dead_node_keeps_nobody_from_reading_the_others", reading),
];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"1s\"\nstop = \"1s\"";

/// A copy of the fleet's files in which nothing listens where one node should be.
fn fleet_without(world: &World, app: &App<'_>, dead: &str) -> Result<String> {
    fleet_via(world, app, dead, 9)
}

/// A copy of the fleet's files in which one node is reached through a port of this machine.
pub(crate) fn fleet_via(world: &World, app: &App<'_>, node: &str, port: u16) -> Result<String> {
    let fleet = app.folder.join("../").join(format!("{}-{node}-{port}", app.name));
    fs::create_dir_all(&fleet)?;
    for name in ["policy.json", "policy.json.sig"] {
        fs::copy(world.fleet().join(name), fleet.join(name))?;
    }
    let text = fs::read_to_string(world.fleet().join("fleet.toml"))?;
    let (address, _) = world.address(node)?;
    let quoted = format!("address = \"{address}\"");
    ensure!(text.contains(&quoted), "{text}");
    fs::write(fleet.join("fleet.toml"), text.replace(&quoted, &format!("address = \"127.0.0.1\"\nport = {port}")))?;
    Ok(fleet.display().to_string())
}

fn rollback(world: &World) -> Result<()> {
    let app = world.app("left-back", SERVE, WEB)?;
    app.deploy("production", 0)?;
    app.write("version.txt", "2")?;
    app.deploy("production", 0)?;
    let without = fleet_without(world, &app, "prod-2")?;

    // Without a number: the node that answers decides what the one before is.
    let back = ["rollback", "-e", "production", "left-back", "--yes"];
    let ran = app.run(&[&back[..], &["--fleet", &without]].concat())?.expect(4)?;
    let again = "bulkhead rollback -e production left-back 1 --node prod-1";
    ran.says("unreachable")?.says("once prod-2 can be reached again")?.says(again)?.says("done on 1 of 2 nodes")?;
    app.serves("prod-1", "1")?;
    app.serves("prod-2", "2")?;

    // Back again, the short command would mean the opposite on the two: it is refused, and says what is not.
    app.run(&back)?.expect(9)?.says("nodes differ")?.says("--node prod-1")?;
    app.serves("prod-2", "2")?;
    let words: Vec<&str> = again.split(' ').skip(1).chain(["--yes"]).collect();
    app.run(&words)?.expect(0)?;
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "1")?;
    }
    // Numbers differ from here on, and one node's word still decides.
    app.run(&["rollback", "-e", "production", "left-back", "2", "--node", "prod-2", "--yes"])?.expect(0)?;
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "2")?;
    }
    app.run(&["rollback", "-e", "production", "left-back", "--node", "stage-1", "--yes"])?
        .expect(2)?
        .says("stage-1")?;
    let dead = ["rollback", "-e", "production", "left-back", "1", "--node", "prod-2", "--yes", "--fleet", &without];
    app.run(&dead)?.expect(4)?.says("prod-2")?;
    app.serves("prod-1", "2")?;

    // Where nobody answers there is nothing to choose from.
    let nobody = fleet_without(world, &app, "stage-1")?;
    app.run(&["rollback", "-e", "staging", "left-back", "--yes", "--fleet", &nobody])?.expect(4)?.says("stage-1")?;
    Ok(())
}

fn deploy_and_promote(world: &World) -> Result<()> {
    let app = world.app("left-out", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let without = fleet_without(world, &app, "prod-1")?;
    let ran = app.run(&["promote", "staging", "production", "--yes", "--fleet", &without])?.expect(4)?;
    ran.says("left as it is")?.says("once prod-1 can be reached again: `bulkhead promote staging production`")?;
    app.serves("prod-2", "1")?;
    ensure!(app.serves("prod-1", "1").is_err(), "prod-1 was not to be reached");
    app.run(&["promote", "staging", "production", "--yes"])?.expect(0)?;
    app.serves("prod-1", "1")?;

    // A node of FROM that does not answer is said, where another does.
    app.write("version.txt", "2")?;
    app.deploy("production", 0)?;
    app.run(&["promote", "production", "staging", "--yes", "--fleet", &without])?.expect(0)?.says("prod-1")?;
    app.serves("stage-1", "2")?;

    // What a person is shown before the question, and what is done when the answer is yes.
    app.write("version.txt", "3")?;
    let deploy = ["deploy", "-e", "production", "--fleet", &without];
    let mut ran = world.on_a_terminal(&app.folder, &deploy, "y\n")?.expect(4)?;
    for words in ["unreachable", "left as it is", "prod-1 does not answer", "once prod-1 can be reached again"] {
        ran = ran.says(words)?;
    }
    app.serves("prod-2", "3")?;
    app.serves("prod-1", "2")?;
    app.run(&["plan", "-e", "production", "--fleet", &without])?.expect(0)?.says("prod-1 does not answer")?;

    // With --yes nobody is asked first, and it ends the same.
    app.run(&["deploy", "-e", "production", "--yes", "--fleet", &without])?.expect(4)?.says("bulkhead deploy")?;
    Ok(())
}

fn rm(world: &World) -> Result<()> {
    let app = world.app("left-over", SERVE, WEB)?;
    app.deploy("production", 0)?;
    let without = fleet_without(world, &app, "prod-2")?;
    let ran = app.run(&["rm", "-e", "production", "left-over", "--yes", "--fleet", &without])?.expect(4)?;
    ran.says("prod-2 is left as it is")?.says("`bulkhead rm -e production left-over`")?;
    ensure!(app.socket("prod-1").is_err(), "still live on prod-1");
    app.serves("prod-2", "1")?;
    // Whether the one that is away has such an app is not known; with all there, it is.
    let mistyped = ["rm", "-e", "production", "left-ovre", "--yes"];
    app.run(&[&mistyped[..], &["--fleet", &without]].concat())?.expect(4)?.says("that answers knows")?;
    app.run(&mistyped)?.expect(2)?.says("no node of `production` knows")?;
    app.run(&["rm", "-e", "production", "left-over", "--yes"])?.expect(0)?;
    ensure!(app.socket("prod-2").is_err(), "still live on prod-2");
    Ok(())
}

fn reading(world: &World) -> Result<()> {
    let app = world.app("left-read", SERVE, WEB)?;
    app.deploy("production", 0)?;
    app.deploy("staging", 0)?;
    let without = fleet_without(world, &app, "prod-2")?;
    let read = |words: &[&str]| app.run(&[words, &["--fleet", &without]].concat());
    let partly = |words: &[&str], shows: &str| -> Result<()> {
        read(words)?.expect(9)?.says(shows)?.says("did not answer")?.says("prod-2")?;
        Ok(())
    };
    let (logs, releases) = (["logs", "-e", "production", "left-read"], ["releases", "-e", "production", "left-read"]);
    partly(&logs, "testapp: listening on 3000")?;
    partly(&releases, "prod-1")?;
    partly(&["ps", "-e", "production"], "left-read/web")?;
    partly(&["node", "ls"], "prod-1")?;

    // A program gets what there is, and what there is not.
    let json = read(&[&releases[..], &["-o", "json"]].concat())?.expect(9)?.json()?;
    ensure!(json["releases"].as_array().map(Vec::len) == Some(1) && json["error"]["exit_code"] == 9, "{json}");
    let lines = read(&[&logs[..], &["-o", "json"]].concat())?.expect(9)?.stdout;
    ensure!(lines.lines().any(|line| line.contains("listening on 3000")), "{lines}");
    ensure!(lines.lines().last().is_some_and(|line| line.contains("\"exit_code\":9")), "{lines}");
    let json = read(&["node", "ls", "-o", "json"])?.expect(9)?.json()?;
    let reached = json["nodes"].as_array().into_iter().flatten().filter(|node| node["reachable"] == true).count();
    ensure!(reached == 2, "{json}");

    // Nobody who was asked is away; and nobody who was asked is there.
    read(&["node", "ls", "-e", "staging"])?.expect(0)?;
    let nobody = fleet_without(world, &app, "stage-1")?;
    for words in
        [&["logs", "-e", "staging", "left-read"][..], &["releases", "-e", "staging"], &["node", "ls", "-e", "staging"]]
    {
        app.run(&[words, &["--fleet", &nobody]].concat())?.expect(4)?.says("stage-1")?;
    }
    Ok(())
}
