//! The main road: deploy, look, promote, roll back, stop, remove.

use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{App, World, get, live_socket, noise};
use std::{
    fs,
    io::Write as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_folder_becomes_a_running_service", running_service),
    ("the_same_again_is_a_release_of_its_own", unchanged),
    ("promote_and_roll_back", promote_and_roll_back),
    ("promote_and_roll_back_from_another_machine", from_another_machine),
    ("a_deploy_under_load_loses_no_request", under_load),
    ("nor_does_one_of_a_service_with_a_volume", volume_under_load),
    ("stop_start_restart_remove", stop_start_restart_remove),
    ("logs_and_look", logs_and_look),
    ("open_from_the_laptop", open_from_the_laptop),
    ("volumes_outlive_releases", volumes_outlive_releases),
    ("two_services_and_one_without_a_port", two_services),
];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\nhealth = { http = \"/health\", within = \"10s\" }\ndrain = \"2s\"\nstop = \"1s\"";

fn running_service(world: &World) -> Result<()> {
    let app = world.app("first", SERVE, WEB)?;
    app.run(&["plan", "-e", "staging"])?.expect(0)?.says("stage-1")?;
    app.run(&["deploy", "-e", "staging"])?.expect(2)?.says("--yes")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "1")?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")?;
    let ran = app.run(&["ps", "-e", "staging", "-o", "json"])?.expect(0)?;
    ensure!(ran.stdout.contains("\"first\"") && ran.stdout.contains("active"), "{ran}");
    let ran = app.run(&["releases", "-e", "staging", "first", "-o", "json"])?.expect(0)?;
    ran.json()?;
    Ok(())
}

fn unchanged(world: &World) -> Result<()> {
    let app = world.app("unchanged", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let process = |release: u32| {
        let unit = format!("bulkhead-unchanged.web.r{release}.service");
        world.on_node("stage-1", &["systemctl", "show", "-P", "MainPID", &unit])
    };
    ensure!(process(1)?.trim() != "0");
    app.deploy("staging", 0)?;
    app.serves("stage-1", "1")?;
    let (first, second) = (process(1)?, process(2)?);
    ensure!(first.trim() == "0" && second.trim() != "0", "`{first}` `{second}`");
    Ok(())
}

fn promote_and_roll_back(world: &World) -> Result<()> {
    let app = world.app("promoted", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    app.run(&["promote", "staging", "production", "--yes"])?.expect(0)?;
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "1")?;
    }
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    app.serves("prod-1", "1")?;
    app.run(&["promote", "staging", "production", "--yes"])?.expect(0)?;
    app.serves("prod-2", "2")?;
    app.run(&["rollback", "-e", "production", "promoted", "--yes"])?.expect(0)?;
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "1")?;
    }
    app.run(&["rollback", "-e", "production", "promoted", "2", "--yes"])?.expect(0)?;
    app.serves("prod-1", "2")?;
    app.run(&["rollback", "-e", "production", "promoted", "77", "--yes"])?.says("77").and_then(|ran| {
        ensure!(ran.code != 0, "{ran}");
        Ok(())
    })
}

/// A colleague's machine has neither built nor sent the image: what is needed comes from a node that holds it.
fn from_another_machine(world: &World) -> Result<()> {
    let app = world.app("borrowed", SERVE, WEB)?;
    // Of no other app, and changed below; more than one record of a pack; the same twice.
    app.write("own.txt", "first of borrowed")?;
    fs::write(app.folder.join("large.bin"), noise(9 << 20, 7))?;
    fs::write(app.folder.join("again.bin"), noise(100_000, 8))?;
    fs::write(app.folder.join("same.bin"), noise(100_000, 8))?;
    app.deploy("staging", 0)?;

    let elsewhere = tempfile::tempdir()?;
    let run = |words: &[&str]| world.run_with_cache(&app.folder, words, elsewhere.path());
    let ran = run(&["promote", "staging", "production", "--yes"])?.expect(0)?;
    ensure!(ran.stderr.contains("from stage-1"), "{ran}");
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "1")?;
    }
    let releases = app.run(&["releases", "-e", "production", "borrowed", "-o", "json"])?.expect(0)?.json()?;
    let orders = releases["releases"].as_array().map(Vec::len);
    ensure!(orders == Some(1), "the nodes carried out {orders:?} orders instead of one");
    let image = first_image(&releases).context("no image in the releases")?;
    // What was fetched is kept: nothing is fetched a second time.
    app.write("version.txt", "2 of borrowed")?;
    app.write("own.txt", "second of borrowed")?;
    app.deploy("staging", 0)?;
    run(&["promote", "staging", "production", "--yes"])?.expect(0)?.says("2 files from stage-1")?;
    app.serves("prod-2", "2 of borrowed")?;

    // A node that no longer has the earlier image gets it through a third machine from one that has.
    let first = bulkhead_core::verity::digest(b"first of borrowed").to_string();
    let object = format!("objects/{}/{}", &first[..2], &first[2..]);
    let lose = |node: &str, image: &str| {
        let store = "/var/lib/bulkhead/store";
        world.on_node(node, &["rm", &format!("{store}/{object}"), &format!("{store}/documents/{image}")])
    };
    lose("prod-1", &image)?;
    let third = tempfile::tempdir()?;
    let back = ["rollback", "-e", "production", "borrowed", "1", "--yes"];
    world.run_with_cache(&app.folder, &back, third.path())?.expect(0)?.says("1 file from prod-2")?;
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "1")?;
    }

    // Where nobody has it, that is said, and nothing changes.
    app.run(&["rollback", "-e", "production", "borrowed", "2", "--yes"])?.expect(0)?;
    for node in ["prod-1", "prod-2"] {
        lose(node, &image)?;
    }
    let fourth = tempfile::tempdir()?;
    let ran = world.run_with_cache(&app.folder, &back, fourth.path())?.expect(3)?;
    ran.says("neither on this machine nor on a node")?.says("bulkhead deploy")?;
    app.serves("prod-1", "2 of borrowed")
}

/// The image of release 1.
fn first_image(releases: &serde_json::Value) -> Option<String> {
    let all = releases["releases"].as_array()?;
    let is_first = |release: &&serde_json::Value| {
        release["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|node| node["number"] == 1))
    };
    let first = all.iter().find(is_first)?;
    first["image"].as_str().map(str::to_owned)
}

fn under_load(world: &World) -> Result<()> {
    let app = world.app("loaded", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    loses_nothing(&app, || deploy_thrice(&app))
}

fn volume_under_load(world: &World) -> Result<()> {
    let app = world.app("loaded-volume", SERVE, &format!("{WEB}\nvolumes = {{ data = \"/data\" }}"))?;
    app.deploy("staging", 0)?;
    loses_nothing(&app, || deploy_thrice(&app))
}

fn deploy_thrice(app: &App<'_>) -> Result<()> {
    for version in ["2", "1", "2"] {
        app.write("version.txt", version)?;
        app.deploy("staging", 0)?;
    }
    Ok(())
}

/// New connections for each request on two threads, and slow requests on a
/// third, through the live link while `change` goes on: all are answered.
fn loses_nothing(app: &App<'_>, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let root = app.node_root("stage-1")?;
    let (running, answered) = (AtomicBool::new(true), AtomicU64::new(0));
    let one = |path: &str| -> Result<()> {
        let socket = live_socket(&root, &app.name, "web")?;
        let (status, body) = get(&socket, path)?;
        ensure!(status == 200 && ["1", "2", "slept"].contains(&body.trim()), "{status} {body}");
        answered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let repeat = |path: &str| -> Result<()> {
        while running.load(Ordering::Relaxed) {
            one(path)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let paths = ["/version", "/version", "/slow/700"];
        let repeat = &repeat;
        let workers = paths.map(|path| scope.spawn(move || repeat(path)));
        let changed = change();
        running.store(false, Ordering::Relaxed);
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?.context("a request was lost")?;
        }
        changed
    })?;
    ensure!(answered.load(Ordering::Relaxed) > 20, "only {} requests", answered.load(Ordering::Relaxed));
    Ok(())
}

fn stop_start_restart_remove(world: &World) -> Result<()> {
    let app = world.app("cycle", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    app.run(&["stop", "-e", "staging", "cycle", "--yes"])?.expect(0)?;
    ensure!(app.get("stage-1", "/version").is_err(), "a stopped service answers");
    app.run(&["start", "-e", "staging", "cycle", "--yes"])?.expect(0)?;
    ensure!(app.served("stage-1")? == "1", "not started");
    app.run(&["restart", "-e", "staging", "cycle/web", "--yes"])?.expect(0)?;
    ensure!(app.served("stage-1")? == "1", "not restarted");
    app.run(&["rm", "-e", "staging", "cycle", "--yes"])?.expect(0)?;
    ensure!(app.get("stage-1", "/version").is_err(), "a removed service answers");
    let units = world
        .on_node("stage-1", &["systemctl", "list-units", "--all", "--plain", "--no-legend", "bulkhead-cycle.*"])?;
    ensure!(units.trim().is_empty(), "{units}");
    // A removed app can come back: its counter goes on.
    app.deploy("staging", 0)?;
    app.serves("stage-1", "1")
}

fn logs_and_look(world: &World) -> Result<()> {
    let app = world.app("seen", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    app.run(&["logs", "-e", "staging", "seen"])?.expect(0)?.says("testapp: listening on 3000")?;
    app.run(&["look", "-e", "staging", "seen/web"])?.expect(0)?.says("testapp")?.says("3000")?;
    app.run(&["look", "-e", "staging", "seen/web", "--", "files", "/app"])?.expect(0)?.says("version.txt")?;
    app.run(&["look", "-e", "staging", "seen/web", "--", "cat", "/app/version.txt"])?.expect(0)?.says("1")?;
    Ok(())
}

fn open_from_the_laptop(world: &World) -> Result<()> {
    let app = world.app("opened", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.local_addr()?.port()
    };
    let mut child = world.spawn(&app.folder, &["open", "-e", "staging", "opened/web", &port.to_string()])?;
    let answer = (|| {
        let end = std::time::Instant::now() + bulkhead_testkit::world::PATIENCE;
        let mut stream = loop {
            match std::net::TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) if std::time::Instant::now() > end => return Err(error.into()),
                Err(_) => thread::yield_now(),
            }
        };
        write!(stream, "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text)?;
        anyhow::Ok(text)
    })();
    child.kill()?;
    child.wait()?;
    let text = answer?;
    ensure!(text.starts_with("HTTP/1.1 200") && text.ends_with('1'), "{text}");
    Ok(())
}

fn volumes_outlive_releases(world: &World) -> Result<()> {
    let more = format!("{WEB}\nvolumes = {{ data = \"/data\" }}");
    let app = world.app("kept", SERVE, &more)?;
    app.deploy("staging", 0)?;
    let (_, body) = app.get("stage-1", "/append/data/log/one")?;
    ensure!(body == "written", "{body}");
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    app.get("stage-1", "/append/data/log/two")?;
    let (_, body) = app.get("stage-1", "/read/data/log")?;
    ensure!(body == "one\ntwo\n", "{body}");
    Ok(())
}

fn two_services(world: &World) -> Result<()> {
    let more = format!("{WEB}\n[services.worker]\ncommand = [\"/app/testapp\", \"idle\"]\nstop = \"1s\"");
    let app = world.app("pair", SERVE, &more)?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "1")?;
    let ran = app.run(&["ps", "-e", "staging"])?.expect(0)?.says("worker")?;
    ensure!(ran.stdout.contains("web"), "{ran}");
    Ok(())
}
