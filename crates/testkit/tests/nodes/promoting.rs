//! What promote takes from the release and what from the folder; what a removed app leaves in memory.

use anyhow::{Result, ensure};
use bulkhead_testkit::world::World;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("what_a_node_forges_is_not_signed_again", forged_history),
    ("promote_takes_the_program_from_the_release", promote),
    ("a_removed_app_is_not_remembered_as_running", removed),
];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"1s\"\nstop = \"1s\"";

fn promote(world: &World) -> Result<()> {
    let app = world.app("cloned", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    // The folder goes on: another port, another command, and what production gets.
    let place = "\n[environments.production]\nenv = { LEVEL = \"warn\" }\n";
    app.manifest(&["serve", "4000"], &format!("{}{place}", WEB.replace("3000", "4000")))?;
    let ran = app.run(&["promote", "staging", "production", "--yes"])?.expect(0)?;
    ran.says("web: port is 3000 there, 4000 here; the release decides")?.says("env.LEVEL")?;
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "1")?;
        let (_, env) = app.get(node, "/env")?;
        ensure!(env.contains("LEVEL=warn"), "{env}");
    }
    let (_, env) = app.get("stage-1", "/env")?;
    ensure!(!env.contains("LEVEL"), "{env}");

    // A folder that says nothing of a service cannot say what it gets.
    app.write("bulkhead.toml", "app = \"cloned\"\n[services.site]\ncommand = [\"/app/testapp\", \"idle\"]\n")?;
    app.run(&["promote", "staging", "production", "--yes"])?.expect(3)?.says("a service `web`")?;
    app.serves("prod-1", "1")
}

fn removed(world: &World) -> Result<()> {
    let app = world.app("forgotten", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    app.deploy("staging", 0)?.says("unchanged")?;
    app.run(&["rm", "-e", "staging", "forgotten", "--yes"])?.expect(0)?;
    let ran = app.deploy("staging", 0)?;
    ensure!(!ran.stdout.contains("unchanged") && !ran.stdout.contains("runs there already"), "{ran}");
    app.serves("stage-1", "1")?;

    // A machine that did not see it removed finds out from the node.
    let elsewhere = tempfile::tempdir()?;
    let deploy = ["deploy", "-e", "staging", "--yes"];
    world.run_with_cache(&app.folder, &deploy, elsewhere.path())?.expect(0)?;
    app.run(&["rm", "-e", "staging", "forgotten", "--yes"])?.expect(0)?;
    world.run_with_cache(&app.folder, &deploy, elsewhere.path())?.expect(0)?;
    app.serves("stage-1", "1")
}

/// Whoever has taken a node over may say what they like about what runs there: nobody signs it for them.
fn forged_history(world: &World) -> Result<()> {
    let app = world.app("forged", &["serve", "3000"], "port = 3000\nstop = \"1s\"\ndrain = \"100ms\"")?;
    app.deploy("staging", 0)?;
    let path = app.node_root("stage-1")?.join("var/lib/bulkhead/apps/forged/releases/1/order.json");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, text.replace("\"serve\"", "\"serve-evil\""))?;
    app.run(&["promote", "staging", "production", "--yes"])?.expect(5)?.says("not signed again")?;
    std::fs::write(&path, &text)?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    std::fs::write(&path, text.replace("\"serve\"", "\"serve-evil\""))?;
    app.run(&["rollback", "-e", "staging", "forged", "1", "--yes"])?.expect(5)?.says("not signed again")?;
    app.serves("stage-1", "2")?;
    std::fs::write(&path, &text)?;
    app.run(&["rollback", "-e", "staging", "forged", "1", "--yes"])?.expect(0)?;
    app.serves("stage-1", "1")
}
