//! Debian 12: a systemd without process-id namespaces, an OpenSSH without penalties.

use anyhow::{Result, ensure};
use bulkhead_testkit::world::World;

pub(crate) fn bookworm(world: &World) -> Result<()> {
    let app = world.app("elder", &["serve", "3000"], "port = 3000\ndrain = \"1s\"\nstop = \"1s\"")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "1")?;
    app.write("version.txt", "2")?;
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2")?;

    let ran = app.run(&["node", "ls"])?.expect(0)?.says("bookworm")?;
    let row = ran.stdout.lines().find(|line| line.contains("stage-1")).unwrap_or_default();
    ensure!(row.contains("without") && row.contains("private-pids"), "{ran}");
    let facts = app.run(&["node", "ls", "-o", "json"])?.expect(0)?.json()?;
    let pids = &facts["nodes"][0]["facts"]["facilities"]["private-pids"];
    ensure!(pids["present"] == false, "{facts}");
    ensure!(pids["detail"] == "needs systemd 257; other processes are hidden instead", "{facts}");

    // And so they are.
    let (_, names) = app.get("stage-1", "/list/proc")?;
    let seen: Vec<&str> = names.lines().filter(|name| name.parse::<u32>().is_ok()).collect();
    ensure!(seen.len() == 1, "it sees {seen:?}");
    let (_, first) = app.get("stage-1", "/read/proc/1/cmdline")?;
    ensure!(first.starts_with("error"), "{first}");
    crate::sealed::cannot_escape(&app)
}
