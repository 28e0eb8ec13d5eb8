//! What goes wrong on the way, and that the old release serves on.

use anyhow::{Result, ensure};
use bulkhead_testkit::world::{App, World};
use std::{fs, os::unix::fs::PermissionsExt as _};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("an_app_that_exits", exits),
    ("an_app_on_the_wrong_port", wrong_port),
    ("an_app_that_is_never_healthy", never_healthy),
    ("a_program_that_is_not_in_the_image", no_such_program),
    ("a_shell_in_the_image", shell),
    ("a_binary_for_another_platform", other_platform),
    ("a_bad_manifest", bad_manifest),
    ("an_unknown_environment", unknown_environment),
    ("two_deploys_at_once", two_at_once),
    ("an_unreachable_node", unreachable),
    ("a_changed_host_key", changed_host_key),
    ("a_key_the_node_does_not_know", wrong_key),
];

const WEB: &str = "port = 3000\nhealth = { http = \"/health\", within = \"2s\" }\ndrain = \"1s\"\nstop = \"1s\"";

/// Deploys a good version, then one that must fail with code 6 and these words; the good one serves on.
fn fails_and_old_serves(app: &App<'_>, command: &[&str], more: &str, words: &[&str]) -> Result<()> {
    app.manifest(&["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    app.manifest(command, more)?;
    app.write("version.txt", "2")?;
    let mut ran = app.deploy("staging", 6)?;
    for word in words {
        ran = ran.says(word)?;
    }
    app.serves("stage-1", "1")?;
    app.manifest(&["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")
}

fn exits(world: &World) -> Result<()> {
    let app = world.app("exits", &[], "")?;
    fails_and_old_serves(&app, &["exit", "7"], WEB, &["7", "exiting on request with 7"])
}

fn wrong_port(world: &World) -> Result<()> {
    let app = world.app("astray", &[], "")?;
    fails_and_old_serves(&app, &["serve", "3001"], WEB, &["3001", "3000"])
}

fn never_healthy(world: &World) -> Result<()> {
    let app = world.app("sickly", &[], "")?;
    fails_and_old_serves(&app, &["serve", "3000", "--sick"], WEB, &["503", "listening on 3000"])
}

fn no_such_program(world: &World) -> Result<()> {
    let app = world.app("absent", &["idle"], "")?;
    app.write("bulkhead.toml", "app = \"absent\"\n[services.web]\ncommand = [\"/app/no-such\"]\n")?;
    app.deploy("staging", 3)?.says("/app/no-such")?;
    Ok(())
}

fn shell(world: &World) -> Result<()> {
    let app = world.app("shelled", &["idle"], "")?;
    fs::copy("/bin/sh", app.folder.join("sh"))?;
    app.deploy("staging", 3)?.says("shell")?.says("app/sh")?;
    Ok(())
}

fn other_platform(world: &World) -> Result<()> {
    let app = world.app("foreign", &["idle"], "")?;
    // The start of a Windows program: DOS header, then PE signature and machine 0x8664 at 0x40.
    let mut program = vec![0; 512];
    program[..2].copy_from_slice(b"MZ");
    program[0x3c] = 0x40;
    program[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
    fs::write(app.folder.join("addon.node"), program)?;
    app.deploy("staging", 3)?.says("addon.node")?;
    Ok(())
}

fn bad_manifest(world: &World) -> Result<()> {
    let app = world.app("typo", &["idle"], "")?;
    app.write("bulkhead.toml", "app = \"typo\"\n[services.web]\ncomand = [\"x\"]\n")?;
    app.deploy("staging", 3)?.says("bulkhead.toml:3")?.says("comand")?.says("did you mean `command`?")?;
    app.write("bulkhead.toml", "app = \"typo\"\n[services.web]\ncommand = [\"x\"]\nport = 70000\n")?;
    app.deploy("staging", 3)?.says("bulkhead.toml:4")?.says("1 to 65535")?;
    fs::remove_file(app.folder.join("bulkhead.toml"))?;
    app.deploy("staging", 3)?.says("bulkhead.toml")?;
    Ok(())
}

fn unknown_environment(world: &World) -> Result<()> {
    let app = world.app("nowhere", &["idle"], "")?;
    app.deploy("stagging", 3)?.says("stagging")?.says("staging")?;
    // Also where the manifest has it: what it says of an environment that nobody has would never be read.
    app.manifest(&["idle"], "[environments.stagging.services.web]\nenv = { LEVEL = \"warn\" }")?;
    for command in ["deploy", "plan"] {
        let ran =
            app.run(&[&[command, "-e", "staging"][..], if command == "plan" { &[] } else { &["--yes"] }].concat())?;
        ran.expect(3)?.says("the policy has no environment `stagging`")?.says("did you mean `staging`?")?;
    }
    Ok(())
}

fn two_at_once(world: &World) -> Result<()> {
    let slow = "port = 3000\nhealth = { http = \"/health\", within = \"20s\" }\ndrain = \"1s\"\nstop = \"1s\"";
    let app = world.app("twice", &["serve", "3000", "--start-ms", "4000"], slow)?;
    let first = app.spawn_deploy("staging")?;
    let root = app.node_root("stage-1")?;
    let underway = root.join("var/lib/bulkhead/apps/twice/releases/1");
    let end = std::time::Instant::now() + bulkhead_testkit::world::PATIENCE;
    while !underway.exists() {
        ensure!(std::time::Instant::now() < end, "the first deploy does not begin");
        std::thread::yield_now();
    }
    app.write("version.txt", "2")?;
    app.run(&["deploy", "-e", "staging", "--yes", "--wait", "0s"])?.expect(7)?.says("owner")?;
    app.run(&["deploy", "-e", "staging", "--yes", "--wait", "30s"])?.expect(0)?;
    let first = first.wait_with_output()?;
    ensure!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    app.serves("stage-1", "2")
}

fn unreachable(world: &World) -> Result<()> {
    let app = world.app("lost", &["idle"], "")?;
    let fleet = app.folder.join("fleet");
    copy_fleet(world, &fleet, |text| {
        text + "\n[nodes.gone]\nenvironment = \"staging\"\naddress = \"127.0.0.1\"\nport = 9\n\
                host_key = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb1nSl4SWcVQ6vBlLN2Gqmj7VbRfX1fZy9iFzGJ8Q1e\"\n"
    })?;
    let fleet = fleet.display().to_string();
    let ran = app.run(&["ps", "-e", "staging", "--fleet", &fleet])?.says("gone")?;
    ensure!([0, 4, 9].contains(&ran.code), "{ran}");
    let ran = app.run(&["node", "ls", "--fleet", &fleet])?.says("gone")?.says("stage-1")?;
    ensure!([0, 4, 9].contains(&ran.code), "{ran}");
    Ok(())
}

fn changed_host_key(world: &World) -> Result<()> {
    let app = world.app("spoofed", &["idle"], "")?;
    let (_, host_key) = world.address("stage-1")?;
    let (_, other_key) = world.address("prod-1")?;
    let fleet = app.folder.join("fleet");
    copy_fleet(world, &fleet, |text| text.replace(&host_key, &other_key))?;
    app.run(&["deploy", "-e", "staging", "--yes", "--fleet", &fleet.display().to_string()])?
        .expect(4)?
        .says("HOST KEY")?;
    Ok(())
}

fn wrong_key(world: &World) -> Result<()> {
    let app = world.app("stranger", &["idle"], "")?;
    let key = app.folder.join("../stranger-key");
    let made =
        std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status()?;
    ensure!(made.success(), "ssh-keygen failed");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let ran = world.run_with_key(&app.folder, &["deploy", "-e", "staging", "--yes"], &key)?;
    ensure!([3, 4, 5].contains(&ran.code), "{ran}");
    ran.says("key")?;
    Ok(())
}

fn copy_fleet(world: &World, to: &std::path::Path, change: impl FnOnce(String) -> String) -> Result<()> {
    fs::create_dir_all(to)?;
    for name in ["policy.json", "policy.json.sig"] {
        fs::copy(world.fleet().join(name), to.join(name))?;
    }
    let text = fs::read_to_string(world.fleet().join("fleet.toml"))?;
    Ok(fs::write(to.join("fleet.toml"), change(text))?)
}
