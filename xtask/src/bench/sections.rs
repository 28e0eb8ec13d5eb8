//! What is measured, section by section.

use super::{
    Figures, Section,
    lab::{Deploy, HEALTH_PORT_OF_APP, Lab, Node},
    median,
    peers::Peer,
};
use crate::run;
use anyhow::{Context as _, Result};
use bulkhead_testkit::{
    fixture,
    relay::{Counts, Line, Relay},
};
use serde_json::json;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Runs the sections. The large app is on the first node from the first section that needs it.
pub fn measure(lab: &mut Lab, sections: &[Section], runs: u32, figures: &mut Figures) -> Result<()> {
    let wants = |section: Section| sections.contains(&section);
    machine(figures)?;
    if sections.iter().any(|section| !matches!(section, Section::Files | Section::Nodes)) {
        run::heading("the large app");
        let app = lab.large_app()?;
        let size = fixture::measure(&app.join("tree")).context("cannot measure the large app")?;
        println!("  {} files, {:.0} MB, from npm packages and the node binary", size.files, size.bytes as f64 / 1e6);
        figures.note("large_app", json!(size));
        if wants(Section::FirstUpload) {
            first_upload(lab, &app, runs.min(3), figures)?;
        }
        lab.up(1)?;
        lab.deploy(&app, &[])?;
        if wants(Section::OneFile) {
            one_file(lab, &app, runs, figures)?;
        }
        if wants(Section::Rollback) {
            rollback(lab, &app, runs, figures)?;
        }
        if wants(Section::Wan) {
            wan(lab, &app, runs, figures)?;
        }
        if wants(Section::Deltas) {
            deltas(lab, &app, figures)?;
        }
        lab.remove_app(&app)?;
    }
    if wants(Section::Files) {
        many_files(lab, runs, figures)?;
    }
    if wants(Section::Nodes) {
        many_nodes(lab, runs, figures)?;
    }
    Ok(())
}

fn machine(figures: &mut Figures) -> Result<()> {
    let kernel = run::read(Command::new("uname").arg("-r"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Whoever reads the figures must be able to tell a busy machine from a slow product.
    let load = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    let load: f64 =
        load.split_whitespace().next().unwrap_or_default().parse().context("/proc/loadavg has no number")?;
    if load > 0.5 {
        println!("other work is running here (load {load}): figures will be worse than they are");
    }
    figures.note("machine", json!({"kernel": kernel.trim(), "cores": cores, "load_at_start": load}));
    Ok(())
}

/// Changes the one file whose text the app answers with.
fn change(tree: &Path, text: &str) -> Result<()> {
    let path = tree.join("app/version.txt");
    std::fs::write(&path, format!("{text}\n")).with_context(|| format!("cannot write {}", path.display()))
}

fn seconds(values: &[f64]) -> Result<f64> {
    median(values).context("nothing was measured")
}

/// The medians of each part of some deploys, printed and kept.
fn parts(name: &str, deploys: &[Deploy], figures: &mut Figures) -> Result<()> {
    let of = |part: fn(&Deploy) -> Option<f64>| {
        let values: Vec<f64> = deploys.iter().filter_map(part).collect();
        median(&values)
    };
    let table = [
        (
            "scan_ms",
            "until the push begins: scan and plan; for a rollback, asking the node",
            of(|d| Some(d.before_ms())),
        ),
        (
            "connect_ms",
            "TCP, key exchange, authentication; begun while the folder is scanned",
            of(|d| Some(d.connect_ms)),
        ),
        ("transfer_ms", "from connected until the node has all", of(|d| d.transfer_ms)),
        ("durable_ms", "since the node read the request: would survive a power cut", of(|d| d.durable_ms)),
        ("mounted_ms", "likewise: the image is mounted", of(|d| d.mounted_ms)),
        ("started_ms", "likewise: the process is started", of(|d| d.started_ms)),
        ("healthy_ms", "likewise: the health check is answered", of(|d| d.healthy_ms)),
        ("to_healthy_ms", "all of it, from the command", of(|d| d.healthy_s().map(|s| s * 1000.0))),
        (
            "command_ms",
            "until the command ends: switched, the old one drained and stopped",
            of(|d| Some(d.wall_s * 1000.0)),
        ),
    ];
    println!("  parts, medians in milliseconds:");
    let mut kept = serde_json::Map::new();
    for (part, what, value) in table {
        let Some(value) = value else { continue };
        println!("    {part:<16} {value:>9.0}  {what}");
        kept.insert(part.into(), json!(value.round()));
    }
    figures.note(&format!("{name}_parts"), kept.into());
    Ok(())
}

fn healthy(deploys: &[Deploy]) -> Result<f64> {
    let values = deploys.iter().map(|deploy| deploy.healthy_s().context("a deploy without a health check"));
    seconds(&values.collect::<Result<Vec<_>>>()?)
}

fn first_upload(lab: &mut Lab, app: &Path, runs: u32, figures: &mut Figures) -> Result<()> {
    run::heading("first upload of the large app onto an empty node");
    let tree = app.join("tree");
    let (mut deploys, mut rsync, mut tar) = (vec![], vec![], vec![]);
    let mut memory = Memory::default();
    for _ in 0..runs {
        // A node made anew has nothing of any image; the client forgets what it has read, too.
        lab.new_node()?;
        lab.forget_scans()?;
        let watch = MemoryWatch::start(&lab.nodes()[0]);
        let deployed = lab.deploy(app, &[]);
        memory = memory.max(watch.stop());
        deploys.push(deployed?);
        let node = lab.nodes()[0].clone();
        let peer = Peer::start(lab, &node)?;
        peer.empty()?;
        rsync.push(peer.rsync(&tree)?.as_secs_f64());
        peer.empty()?;
        tar.push(peer.tar(&tree)?.as_secs_f64());
        peer.empty()?;
    }
    let durable: Vec<f64> = deploys.iter().filter_map(Deploy::durable_s).collect();
    let ours = seconds(&durable)?;
    let (rsync, tar) = (seconds(&rsync)?, seconds(&tar)?);
    let best = rsync.min(tar);
    figures.put("first_upload_s", ours, "from the command, nothing scanned yet, until durable on the node");
    figures.put("first_upload_healthy_s", healthy(&deploys)?, "likewise until healthy");
    figures.put("rsync_first_upload_s", rsync, "rsync -a --delete; not synced to disk");
    figures.put("tar_first_upload_s", tar, "tar | zstd -1 | ssh 'zstd -d | tar x'; not synced to disk");
    figures.put("first_upload_ratio", ours / best, "first_upload_s over the faster peer; wanted: at most 1");
    figures.put("keeper_peak_mb", memory.keeper_mb, "most memory of a keeper meanwhile; wanted: at most 48");
    figures.put("gate_peak_mb", memory.gate_mb, "most memory of a gate meanwhile");
    parts("first_upload", &deploys, figures)?;
    let idle = resident(&lab.nodes()[0]);
    figures.put("idle_processes", idle as f64, "processes of the agent on the idle node; wanted: 0");
    Ok(())
}

fn one_file(lab: &Lab, app: &Path, runs: u32, figures: &mut Figures) -> Result<()> {
    run::heading("one changed file of the large app");
    let node = &lab.nodes()[0];
    let tree = app.join("tree");
    let peer = Peer::start(lab, node)?;
    peer.rsync(&tree)?;
    peer.restart()?;
    let (mut deploys, mut restarted, mut answered) = (vec![], vec![], vec![]);
    for number in 0..runs {
        let text = format!("one file, run {number}");
        change(&tree, &text)?;
        deploys.push(lab.deploy(app, &[])?);
        let start = Instant::now();
        peer.rsync(&tree)?;
        peer.restart()?;
        restarted.push(start.elapsed().as_secs_f64());
        peer.wait_for(&text)?;
        answered.push(start.elapsed().as_secs_f64());
    }
    let ours = healthy(&deploys)?;
    let (restarted, answered) = (seconds(&restarted)?, seconds(&answered)?);
    figures.put("one_file_s", ours, "from the command to healthy");
    figures.put("rsync_restart_s", restarted, "rsync -a --delete and systemctl restart, until both return");
    figures.put("rsync_healthy_s", answered, "likewise until the restarted service answers");
    figures.put("one_file_ratio", ours / restarted, "one_file_s over rsync_restart_s; wanted: at most 0.5");
    figures.put("one_file_ratio_to_healthy", ours / answered, "one_file_s over rsync_healthy_s");
    parts("one_file", &deploys, figures)?;
    // The peer's service would take the processor's time from what comes next.
    peer.ssh("systemctl stop peer.service").map(drop)
}

fn rollback(lab: &Lab, app: &Path, runs: u32, figures: &mut Figures) -> Result<()> {
    run::heading("rollback of the large app");
    change(&app.join("tree"), "rollback")?;
    lab.deploy(app, &[])?;
    let mut deploys = vec![];
    for _ in 0..runs {
        // Each goes back to the release before, so the two images take turns.
        deploys.push(lab.rollback(app)?);
    }
    let ours = healthy(&deploys)?;
    let starts: Vec<f64> = deploys.iter().filter_map(Deploy::app_start_s).collect();
    let start = seconds(&starts)?;
    figures.put("rollback_s", ours, "from the command to healthy");
    figures.put("app_start_s", start, "the app's own start: from its process to healthy");
    figures.put("rollback_less_start_s", ours - start, "wanted: at most 0.3");
    parts("rollback", &deploys, figures)
}

fn relay_to(node: &Node) -> Result<Relay> {
    Relay::start(SocketAddr::new(node.address, 22), Line::WAN).context("cannot start the relay")
}

fn wire_bytes(counts: Counts) -> f64 {
    (counts.up_bytes + counts.down_bytes) as f64
}

fn wan(lab: &Lab, app: &Path, runs: u32, figures: &mut Figures) -> Result<()> {
    run::heading("one small file over 50 ms and 50 Mbit/s, over a fresh connection");
    let relay = relay_to(&lab.nodes()[0])?;
    let fleet = lab.fleet_through(relay.address())?;
    let (mut deploys, mut bytes, mut trips) = (vec![], vec![], vec![]);
    for number in 0..runs {
        change(&app.join("tree"), &format!("over the line, run {number}"))?;
        relay.reset();
        deploys.push(lab.deploy_through(&fleet, app)?);
        let counts = relay.counts();
        bytes.push(wire_bytes(counts));
        trips.push(counts.round_trips as f64);
    }
    let round_trip_s = 2.0 * Line::WAN.delay.as_secs_f64();
    let mounted: Vec<f64> = deploys
        .iter()
        .filter_map(|deploy| {
            let both_ms = deploy.mounted_ms?.max(deploy.durable_ms?);
            Some((deploy.connect_ms + both_ms) / 1000.0 + round_trip_s)
        })
        .collect();
    figures.put("wan_one_file_bytes", seconds(&bytes)?, "payload of TCP both ways; wanted: at most 10,000");
    figures.put("wan_one_file_s", seconds(&mounted)?, "connect to durable and mounted; wanted: at most 1.0");
    figures.put("wan_one_file_healthy_s", healthy(&deploys)?, "from the command to healthy");
    figures.put("wan_round_trips", seconds(&trips)?, "of the whole command, the drain included");
    parts("wan_one_file", &deploys, figures)
}

fn deltas(lab: &Lab, app: &Path, figures: &mut Figures) -> Result<()> {
    run::heading("patch releases over 50 ms and 50 Mbit/s, as file deltas");
    let relay = relay_to(&lab.nodes()[0])?;
    let fleet = lab.fleet_through(relay.address())?;
    for (name, what) in [("dependency", "next and its compiler"), ("runtime", "node")] {
        let layer = lab.patch(app, name)?;
        relay.reset();
        let deploy = lab.deploy_through(&fleet, app)?;
        let sent = wire_bytes(relay.counts());
        figures.put(&format!("{name}_patch_mb"), sent / 1e6, &format!("on the wire: a patch release of {what}"));
        figures.put(&format!("{name}_layer_mb"), layer as f64 / 1e6, "what a compressed layer (zstd -3) would be");
        figures.put(&format!("{name}_patch_ratio"), sent / layer as f64, "the one over the other");
        figures.put(
            &format!("{name}_patch_s"),
            deploy.healthy_s().unwrap_or(deploy.wall_s),
            "from the command to healthy",
        );
    }
    Ok(())
}

fn many_files(lab: &mut Lab, runs: u32, figures: &mut Figures) -> Result<()> {
    lab.up(1)?;
    for files in [1_000, 10_000, 100_000] {
        run::heading(&format!("one changed file among {files}"));
        let app = lab.small_app(&format!("files-{files}"), files, 1)?;
        lab.deploy(&app, &[])?;
        let deploys = change_and_deploy(lab, &app, runs)?;
        figures.put(&format!("one_file_of_{files}_s"), healthy(&deploys)?, "from the command to healthy");
        parts(&format!("one_file_of_{files}"), &deploys, figures)?;
        lab.remove_app(&app)?;
    }
    Ok(())
}

fn many_nodes(lab: &mut Lab, runs: u32, figures: &mut Figures) -> Result<()> {
    for count in [1, 3, 10] {
        run::heading(&format!("one changed file to {count} nodes at once"));
        lab.up(count)?;
        let app = lab.small_app(&format!("nodes-{count}"), 1_000, count)?;
        lab.deploy(&app, &[])?;
        let deploys = change_and_deploy(lab, &app, runs)?;
        figures.put(
            &format!("one_file_to_{count}_nodes_s"),
            healthy(&deploys)?,
            "from the command until the last is healthy",
        );
        lab.remove_app(&app)?;
    }
    Ok(())
}

fn change_and_deploy(lab: &Lab, app: &Path, runs: u32) -> Result<Vec<Deploy>> {
    (0..runs)
        .map(|number| {
            change(&app.join("tree"), &format!("run {number} on port {HEALTH_PORT_OF_APP}"))?;
            lab.deploy(app, &[])
        })
        .collect()
}

/// The most memory of each part of the agent, in megabytes.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    gate_mb: f64,
    keeper_mb: f64,
}

impl Memory {
    fn max(self, other: Self) -> Self {
        Self { gate_mb: self.gate_mb.max(other.gate_mb), keeper_mb: self.keeper_mb.max(other.keeper_mb) }
    }
}

/// Looks at the node's processes every few milliseconds. The kernel keeps each
/// process's own high-water mark (`VmHWM`), so what is missed is only what grows in a process's last moments.
struct MemoryWatch {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Memory>,
}

impl MemoryWatch {
    fn start(node: &Node) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let node = node.clone();
        let thread = std::thread::spawn(move || {
            let mut memory = Memory::default();
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                stopped.recv_timeout(std::time::Duration::from_millis(5))
            {
                memory = memory.max(look(&node));
            }
            memory
        });
        Self { stop, thread }
    }

    fn stop(self) -> Memory {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

/// The agent's processes in a node, as this machine sees them: command line and `VmHWM` in kB.
fn agents(node: &Node) -> Vec<(String, u64)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return vec![] };
    // Every process of a machine is in its PID namespace, whatever else its unit shuts off.
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/pid")).ok();
    let of_node = namespace(&PathBuf::from(format!("/proc/{}", node.leader)));
    processes
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let words = std::fs::read(path.join("cmdline")).ok()?;
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            // A process ends at any moment: what cannot be read is gone.
            if !words.contains("bulkhead-agent") && !words.contains("bulkhead-gate") {
                return None;
            }
            let here = namespace(&path) == of_node;
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            let kilobytes = peak.split_whitespace().next()?.parse().ok()?;
            here.then_some((words, kilobytes))
        })
        .collect()
}

fn look(node: &Node) -> Memory {
    let mut memory = Memory::default();
    for (words, kilobytes) in agents(node) {
        let megabytes = kilobytes as f64 / 1000.0;
        if words.contains("keeper") {
            memory.keeper_mb = memory.keeper_mb.max(megabytes);
        } else if words.contains("gate") {
            memory.gate_mb = memory.gate_mb.max(megabytes);
        }
    }
    memory
}

/// The agent's processes on a node that nobody talks to. The last ones of a deploy may take a moment to end.
fn resident(node: &Node) -> usize {
    let start = Instant::now();
    while start.elapsed() < std::time::Duration::from_secs(3) && !agents(node).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    agents(node).len()
}
