//! A fleet of real local nodes and a folder to work in, driven as a person
//! drives it: through the `bulkhead` program.
//!
//! A [`World`] has a fleet, a key and nodes of its own and takes them all away
//! when it is dropped. It needs root and the programs that `cargo xtask setup`
//! installs; the environment names the binaries:
//!
//! | variable | |
//! |---|---|
//! | `BULKHEAD_BIN` | the `bulkhead` program; else beside or above the running test |
//! | `BULKHEAD_AGENT` | the static agent, for `bulkhead local up` |

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// The longest that any one step of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A fleet and a folder.
#[derive(Debug)]
pub struct World {
    root: tempfile::TempDir,
    bulkhead: PathBuf,
    agent: PathBuf,
    testapp: PathBuf,
    name: String,
    /// Whether it has nodes of its own on this machine.
    local: bool,
}

/// What a finished command said.
#[derive(Debug)]
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Demands an exit code.
    ///
    /// # Errors
    /// It was another; the text has all that the command said.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "exit code {} instead of {code}: {self}", self.code);
        Ok(self)
    }

    /// Demands words on standard output or error.
    ///
    /// # Errors
    /// They are not there.
    pub fn says(self, words: &str) -> Result<Self> {
        ensure!(self.stdout.contains(words) || self.stderr.contains(words), "does not say `{words}`: {self}");
        Ok(self)
    }

    /// Standard output as JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "$ {}\n{}\n{}\n(exit code {})", self.command, self.stdout, self.stderr, self.code)
    }
}

fn finish(command: &mut Command, words: &[&str]) -> Result<Ran> {
    let output = command.output().context("bulkhead cannot be started")?;
    Ok(Ran {
        command: format!("bulkhead {}", words.join(" ")),
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The folder that holds this build's binaries: `target/release`.
fn build_directory() -> Result<PathBuf> {
    let test = env::current_exe().context("cannot tell where this test is")?;
    let deps = test.parent().context("the test is in no folder")?;
    Ok(if deps.ends_with("deps") { deps.parent().unwrap_or(deps) } else { deps }.to_owned())
}

fn existing(variable: &str, otherwise: PathBuf) -> Result<PathBuf> {
    let path = env::var_os(variable).map_or(otherwise, PathBuf::from);
    ensure!(path.exists(), "{} is missing: `cargo xtask test` builds it, or name it in {variable}", path.display());
    Ok(path)
}

impl World {
    /// Makes a fleet of these nodes, such as `stage-1=staging,prod-1=production`, and boots them.
    ///
    /// # Errors
    /// A binary is missing, or the nodes do not boot.
    pub fn start(nodes: &str) -> Result<Self> {
        Self::of_suite(nodes, "trixie")
    }

    /// As [`World::start`], of another Debian suite.
    ///
    /// # Errors
    /// A binary is missing, or the nodes do not boot.
    pub fn of_suite(nodes: &str, suite: &str) -> Result<Self> {
        let mut world = Self::without_nodes()?;
        world.local = true;
        world.run(&world.fleet(), &["local", "up", "--nodes", nodes, "--suite", suite])?.expect(0)?;
        Ok(world)
    }

    /// Makes a fleet that has no node yet.
    ///
    /// # Errors
    /// A binary is missing.
    pub fn without_nodes() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let build = build_directory()?;
        let static_build = build.parent().unwrap_or(&build).join("x86_64-unknown-linux-gnu/release");
        let world = Self {
            root: tempfile::Builder::new().prefix("bulkhead-world-").tempdir_in("/var/tmp")?,
            bulkhead: existing("BULKHEAD_BIN", build.join("bulkhead"))?,
            agent: existing("BULKHEAD_AGENT", static_build.join("bulkhead-agent"))?,
            testapp: existing("BULKHEAD_TESTAPP", static_build.join("testapp"))?,
            // A fleet is named after its folder, and machines after their fleet.
            name: format!("it-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
            local: false,
        };
        fs::create_dir_all(world.fleet())?;
        let words = ["init", "--new-key", &world.key().display().to_string()];
        finish(world.command(&world.fleet(), &words).env_remove("BULKHEAD_FLEET"), &words)?.expect(0)?;
        let manifest = world.fleet().join("bulkhead.toml");
        if manifest.exists() {
            fs::remove_file(manifest)?;
        }
        Ok(world)
    }

    /// The world's own folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.root.path()
    }

    /// The folder of `fleet.toml`.
    #[must_use]
    pub fn fleet(&self) -> PathBuf {
        self.root.path().join(&self.name)
    }

    /// The key that may do everything.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.root.path().join("key")
    }

    fn command(&self, folder: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.bulkhead);
        command
            .args(words)
            .current_dir(folder)
            .stdin(Stdio::null())
            .env("BULKHEAD_FLEET", self.fleet())
            .env("BULKHEAD_KEY", self.key())
            .env("BULKHEAD_AGENT", &self.agent)
            .env("HOME", self.root.path())
            .env("XDG_CACHE_HOME", self.cache())
            .env_remove("XDG_STATE_HOME")
            .env_remove("SSH_AUTH_SOCK")
            .env_remove("BULKHEAD_ENV");
        command
    }

    /// One cache for all worlds of a build, so that the nodes' Debian is made once.
    fn cache(&self) -> PathBuf {
        let build = self.bulkhead.parent().unwrap_or(Path::new("/var/tmp"));
        build.parent().unwrap_or(build).join("test-cache")
    }

    /// Runs `bulkhead` to its end, without a terminal.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, folder: &Path, words: &[&str]) -> Result<Ran> {
        finish(&mut self.command(folder, words), words)
    }

    /// As [`World::run`], with another key.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_with_key(&self, folder: &Path, words: &[&str], key: &Path) -> Result<Ran> {
        finish(self.command(folder, words).env("BULKHEAD_KEY", key), words)
    }

    /// As [`World::run`], with more in its environment.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_with_env(&self, folder: &Path, words: &[&str], settings: &[(&str, &Path)]) -> Result<Ran> {
        finish(self.command(folder, words).envs(settings.iter().copied()), words)
    }

    /// As [`World::run`], from a machine that remembers only what is in this folder.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_with_cache(&self, folder: &Path, words: &[&str], cache: &Path) -> Result<Ran> {
        finish(self.command(folder, words).env("BULKHEAD_CACHE", cache), words)
    }

    /// As [`World::run`], on a terminal at which this is typed. All that the terminal shows is standard output.
    ///
    /// # Errors
    /// `script`, which makes the terminal, cannot be started.
    pub fn on_a_terminal(&self, folder: &Path, words: &[&str], typed: &str) -> Result<Ran> {
        let line = std::iter::once(self.bulkhead.display().to_string())
            .chain(words.iter().map(|word| (*word).to_owned()))
            .map(|word| format!("'{word}'"))
            .collect::<Vec<_>>()
            .join(" ");
        // The same environment, another program.
        let settings = self.command(folder, words);
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (key, value) in settings.get_envs() {
            match value {
                Some(value) => script.env(key, value),
                None => script.env_remove(key),
            };
        }
        let mut child = script.spawn().context("script cannot be started")?;
        child.stdin.take().context("no stdin")?.write_all(typed.as_bytes())?;
        let output = child.wait_with_output()?;
        Ok(Ran {
            command: format!("bulkhead {}", words.join(" ")),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::new(),
        })
    }

    /// Starts `bulkhead` and leaves it running.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, folder: &Path, words: &[&str]) -> Result<Child> {
        let mut command = self.command(folder, words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("bulkhead cannot be started")
    }

    /// As [`World::spawn`], with another key.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_with_key(&self, folder: &Path, words: &[&str], key: &Path) -> Result<Child> {
        let mut command = self.command(folder, words);
        command.env("BULKHEAD_KEY", key).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("bulkhead cannot be started")
    }

    /// Runs a program as root on a node.
    ///
    /// # Errors
    /// It fails.
    pub fn on_node(&self, node: &str, words: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["local", "exec", node, "--"].iter().chain(words).copied().collect();
        let ran = self.run(&self.fleet(), &all)?.expect(0)?;
        Ok(ran.stdout)
    }

    /// Cuts a node's power.
    ///
    /// # Errors
    /// There is no such node.
    pub fn kill_node(&self, node: &str) -> Result<()> {
        self.run(&self.fleet(), &["local", "kill", node])?.expect(0).map(drop)
    }

    /// Switches a node on again.
    ///
    /// # Errors
    /// It does not boot.
    pub fn start_node(&self, node: &str) -> Result<()> {
        self.run(&self.fleet(), &["local", "start", node])?.expect(0).map(drop)
    }

    /// Address and host key of a node, from `fleet.toml`.
    ///
    /// # Errors
    /// There is no such node.
    pub fn address(&self, node: &str) -> Result<(String, String)> {
        let text = fs::read_to_string(self.fleet().join("fleet.toml"))?;
        let fleet: bulkhead_core::fleet::Fleet = bulkhead_core::manifest::parse_toml(&text)?;
        let node = fleet.nodes.get(&node.parse()?).with_context(|| format!("no node {node}"))?;
        Ok((node.address.clone(), node.host_key.clone().unwrap_or_default()))
    }

    /// A folder with the test app and a manifest: one service `web` of this command on port 3000.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn app(&self, name: &str, command: &[&str], more: &str) -> Result<App<'_>> {
        let folder = self.root.path().join("apps").join(name);
        fs::create_dir_all(&folder)?;
        fs::copy(&self.testapp, folder.join("testapp"))?;
        let app = App { world: self, name: name.to_owned(), folder };
        app.write("version.txt", "1")?;
        app.manifest(command, more)?;
        Ok(app)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.local {
            return;
        }
        match self.run(&self.fleet(), &["local", "down", "--remove", "--yes"]).and_then(|ran| ran.expect(0)) {
            Ok(_) => {}
            Err(error) => {
                let text = format!("the local fleet in {} was not taken down: {error:#}\n", self.root.path().display());
                std::io::stderr().write_all(text.as_bytes()).ok();
            }
        }
    }
}

/// A folder with a manifest.
#[derive(Debug)]
pub struct App<'a> {
    world: &'a World,
    /// The app's name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
}

impl App<'_> {
    /// Writes a file of the app.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(path), text).with_context(|| format!("cannot write {path}"))
    }

    /// Writes the manifest: service `web` with this command line after `/app/testapp`, and more lines of its table.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn manifest(&self, command: &[&str], more: &str) -> Result<()> {
        let words: Vec<String> = ["/app/testapp"].iter().chain(command).map(|word| format!("{word:?}")).collect();
        let text = format!("app = \"{}\"\n\n[services.web]\ncommand = [{}]\n{more}\n", self.name, words.join(", "));
        self.write("bulkhead.toml", &text)
    }

    /// Runs `bulkhead` in the app's folder.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, words: &[&str]) -> Result<Ran> {
        self.world.run(&self.folder, words)
    }

    /// Deploys and demands an exit code.
    ///
    /// # Errors
    /// Another exit code.
    pub fn deploy(&self, environment: &str, code: i32) -> Result<Ran> {
        self.run(&["deploy", "-e", environment, "--yes"])?.expect(code)
    }

    /// Starts a deploy and leaves it running.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_deploy(&self, environment: &str) -> Result<Child> {
        self.world.spawn(&self.folder, &["deploy", "-e", environment, "--yes"])
    }

    /// The path, on this host, of the live socket of `web` on a node.
    ///
    /// # Errors
    /// The node is down or nothing is live.
    pub fn socket(&self, node: &str) -> Result<PathBuf> {
        live_socket(&self.node_root(node)?, &self.name, "web")
    }

    /// The node's root directory as this host sees it.
    ///
    /// # Errors
    /// The node is down.
    pub fn node_root(&self, node: &str) -> Result<PathBuf> {
        let ran = self.world.run(&self.world.fleet(), &["local", "ls", "-o", "json"])?.expect(0)?;
        let json = ran.json()?;
        let nodes = json["nodes"].as_array().context("no nodes")?;
        let found = nodes.iter().find(|one| one["node"] == node).with_context(|| format!("no node {node}: {ran}"))?;
        let pid = found["pid"].as_u64().with_context(|| format!("{node} is down: {ran}"))?;
        Ok(PathBuf::from(format!("/proc/{pid}/root")))
    }

    /// GET through the live socket of `web` on a node: status and body.
    ///
    /// # Errors
    /// No connection or no answer.
    pub fn get(&self, node: &str, path: &str) -> Result<(u16, String)> {
        get(&self.socket(node)?, path)
    }

    /// Demands what `/version` answers.
    ///
    /// # Errors
    /// It answers something else.
    pub fn serves(&self, node: &str, version: &str) -> Result<()> {
        let (status, body) = self.get(node, "/version")?;
        ensure!(
            (status, body.trim()) == (200, version),
            "{} serves {status} `{body}` on {node}, not `{version}`",
            self.name
        );
        Ok(())
    }

    /// Waits until `/version` answers, and gives the answer.
    ///
    /// # Errors
    /// It does not within [`PATIENCE`].
    pub fn served(&self, node: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.get(node, "/version") {
                Ok((200, body)) => return Ok(body.trim().to_owned()),
                other if Instant::now() > end => bail!("{} is not served on {node}: {other:?}", self.name),
                _ => std::thread::yield_now(),
            }
        }
    }
}

/// Resolves the live link below a root directory that is not ours: its target is absolute there.
///
/// # Errors
/// Nothing is live.
pub fn live_socket(root: &Path, app: &str, service: &str) -> Result<PathBuf> {
    let link = root.join("run/bulkhead/live").join(app).join(service);
    let target = fs::read_link(&link).with_context(|| format!("nothing is live at {}", link.display()))?;
    let directory = if target.is_absolute() {
        root.join(target.strip_prefix("/")?)
    } else {
        link.parent().context("a link has a parent")?.join(target)
    };
    Ok(directory.join("sock"))
}

/// GET over a Unix socket: status and body.
///
/// # Errors
/// No connection or no whole answer.
pub fn get(socket: &Path, path: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    read_answer(&mut BufReader::new(stream))
}

/// Reads one HTTP answer with a Content-Length.
///
/// # Errors
/// It is not whole.
pub fn read_answer(reader: &mut BufReader<UnixStream>) -> Result<(u16, String)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status =
        line.split(' ').nth(1).and_then(|word| word.parse().ok()).with_context(|| format!("no status in {line:?}"))?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        ensure!(reader.read_line(&mut header)? > 0, "the answer ends in its headers");
        if header.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Bytes that do not compress, the same for the same seed (splitmix64).
#[must_use]
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let word = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    });
    word.flatten().take(bytes).collect()
}
