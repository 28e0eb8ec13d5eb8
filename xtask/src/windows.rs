//! `cargo xtask windows`: the command line as a Windows program, seen to work.
//!
//! `bulkhead.exe` is cross-compiled, and run by Wine beside the Linux program:
//!
//! - an image built by either has the same digest;
//! - what Windows cannot hold, or must not bring, is refused by name;
//! - one command deploys from it to a real local node, and the others look and roll back.
//!
//! Wine is not Windows. It shows that the program starts, finds its folders, reads and writes files by
//! Windows' rules for names, and talks to nodes; not what NTFS, a console, an agent or a virus scanner do.
//!
//! ```text
//! target/windows      what is compiled
//! target/windows/lane the folders of one run: removed at its beginning, kept at its end; drive Z: is its parent
//! ```

mod systems;

use crate::{
    binaries::{self, Binaries},
    paths, run,
    setup::{self, For},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const TARGET: &str = "x86_64-pc-windows-gnu";
/// Where the program lies, as Wine sees it.
const PROGRAM: &str = r"Z:\work\bulkhead.exe";
const NODE: &str = "laptop-1=staging";
/// The exit code of a build that the lint refused; see docs/cli.md.
const REFUSED: i32 = 3;
/// How long a tunnel may take to answer.
const PAGE_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub struct WindowsArguments {
    /// Compiles, and runs nothing.
    #[arg(long, conflicts_with = "built")]
    build: bool,
    /// Compiles nothing: runs what was compiled last.
    #[arg(long)]
    built: bool,
}

pub fn windows(arguments: &WindowsArguments) -> Result<()> {
    setup::ensure(&[For::Build, For::Fleet])?;
    setup::require_root("the Windows lane")?;
    let started = Instant::now();
    run::heading("two Debian systems: one that compiles for Windows, one with Wine");
    if !arguments.built {
        systems::BUILDER.ensure()?;
    }
    if !arguments.build {
        systems::WINE.ensure()?;
        systems::lend_names()?;
    }
    run::heading("bulkhead.exe");
    let program = if arguments.built { compiled() } else { cross_compile()? };
    println!("{:.1} MB in {:.0} s", program.metadata()?.len() as f64 / 1e6, started.elapsed().as_secs_f64());
    if arguments.build {
        println!("{}", program.display());
        return Ok(());
    }
    run::heading("bulkhead and the agent for Linux");
    let binaries = if arguments.built { binaries::locate() } else { binaries::build()? };
    let lane = Lane::new(binaries, &program)?;
    lane.starts()?;
    lane.init()?;
    lane.same_digests()?;
    lane.refusals()?;
    lane.packages()?;
    lane.nodes()?;
    println!("\nall of it worked, in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Compiles in the builder's system, with this machine's registry and a target directory of its own.
fn cross_compile() -> Result<PathBuf> {
    let target = paths::target().join("windows");
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"),
    };
    // The system has no network of its own: this machine's cargo fetches what both workspaces name.
    run::run(run::cargo().args(["fetch", "--quiet", "--locked"]))?;
    let library = systems::BUILDER.root().join("usr/lib/rustlib/src/rust");
    let library = fs::canonicalize(&library).or_else(|_| {
        // The link leads out of what it is seen from; its last part is the name of the sources' folder.
        let link = fs::read_link(&library)?;
        Ok::<_, std::io::Error>(systems::BUILDER.root().join("usr/src").join(link.file_name().unwrap_or_default()))
    });
    let manifest = library.context("the builder has no sources of Rust's library")?.join("library/sysroot/Cargo.toml");
    run::run(
        run::cargo()
            // Not from that folder: its settings would replace the registry.
            .current_dir("/")
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["fetch", "--quiet", "--locked", "--manifest-path"])
            .arg(&manifest),
    )?;
    let root = paths::root();
    let registry = cargo_home.join("registry");
    let binds =
        [(root.as_path(), "/src"), (registry.as_path(), "/registry"), (target.as_path(), "/src/target/windows")];
    let mut command = systems::BUILDER.inside(&binds);
    command.args(["CARGO_HOME=/", "CARGO_TARGET_DIR=/src/target/windows", "RUSTC_BOOTSTRAP=1", "sh", "-c"]);
    command.arg(r#"cd /src && exec cargo build "$@""#).args(["sh", "--quiet", "--offline", "--locked", "--release"]);
    command.args(["-Zbuild-std=std,panic_unwind", "--target", TARGET, "-p", "bulkhead-cli"]);
    run::run(&mut command)?;
    Ok(compiled())
}

/// Where it lies then.
fn compiled() -> PathBuf {
    paths::target().join("windows").join(TARGET).join("release/bulkhead.exe")
}

struct Lane {
    binaries: Binaries,
    folder: PathBuf,
}

impl Lane {
    fn new(binaries: Binaries, program: &Path) -> Result<Self> {
        let lane = Self { binaries, folder: paths::target().join("windows/lane") };
        let home = systems::windows_home();
        for old in [lane.folder.clone(), home.join(".ssh"), home.join("AppData/Local/bulkhead")] {
            if old.exists() {
                fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        fs::create_dir_all(&lane.folder).with_context(|| format!("cannot make {}", lane.folder.display()))?;
        // By name, as where a person put it on the PATH.
        fs::copy(program, lane.folder.join("bulkhead.exe")).context("cannot copy bulkhead.exe")?;
        Ok(lane)
    }

    fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let path = self.folder.join(path);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))
    }

    fn windows(&self, folder: &str, words: &[&str]) -> Command {
        systems::wine(&self.folder, folder, &[&[PROGRAM], words].concat())
    }

    fn linux(&self, folder: &str, words: &[&str]) -> Command {
        let mut command = self.binaries.bulkhead();
        command.current_dir(self.folder.join(folder)).args(words);
        command.env("BULKHEAD_CACHE", self.folder.join("linux-cache")).env_remove("SSH_AUTH_SOCK");
        command.env("BULKHEAD_KEY", systems::windows_home().join(".ssh/id_ed25519"));
        command
    }

    /// Runs the Windows program, shows what it printed, and checks how it ended.
    fn show(&self, folder: &str, words: &[&str], code: i32) -> Result<String> {
        run::say(&format!("bulkhead.exe {}", words.join(" ")));
        // Its shell tells how it ended: of a program with several threads, Wine now and then gives Linux another's code.
        let words = [&["cmd", "/c", PROGRAM], words].concat();
        let output = ended(&mut systems::wine(&self.folder, folder, &words))?;
        let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        print!("{text}");
        ensure!(output.status.code() == Some(code), "ended with {}, expected {code}", output.status);
        Ok(text)
    }

    fn starts(&self) -> Result<()> {
        run::heading("it starts");
        let version = self.show("", &["--version"], 0)?;
        let linux = run::read(&mut self.linux("", &["--version"]))?;
        ensure!(version == linux, "the Linux program says {linux}");
        let help = run::read(&mut self.windows("", &["--help"]))?;
        ensure!(help.contains("deploy"), "the help says {help}");
        Ok(())
    }

    /// Makes a fleet by the key in the home folder, which is found without being named.
    fn init(&self) -> Result<()> {
        run::heading("a fleet by the key in %USERPROFILE%\\.ssh");
        let ssh = systems::windows_home().join(".ssh");
        fs::create_dir_all(&ssh).with_context(|| format!("cannot make {}", ssh.display()))?;
        let key = ssh.join("id_ed25519");
        run::output(
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "ann@laptop", "-f"]).arg(key),
        )?;
        let example = paths::root().join("examples/hello-static");
        self.write("laptop/bulkhead.toml", fs::read(example.join("bulkhead.toml"))?)?;
        let mut cargo = run::cargo();
        cargo.current_dir(&example).args(["build", "--quiet", "--release", "--target", &binaries::node_target()]);
        cargo.arg("--target-dir").arg(self.folder.join("laptop/target"));
        run::run(cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
        let said = self.show("laptop", &["init"], 0)?;
        ensure!(said.contains("wrote  policy.json"), "no policy was written");
        Ok(())
    }

    fn image(command: &mut Command) -> Result<String> {
        let text = run::read(command)?;
        let built: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        Ok(built["image"].as_str().context("the report names no image")?.to_owned())
    }

    /// Builds a folder with both programs.
    fn same(&self, folder: &str, words: &[&str]) -> Result<()> {
        let words: Vec<&str> = ["build", "-o", "json"].iter().chain(words).copied().collect();
        let mut took = Vec::new();
        let mut image = |command: &mut Command| {
            let started = Instant::now();
            let image = Self::image(command);
            took.push(format!("{:.2} s", started.elapsed().as_secs_f64()));
            image
        };
        let linux = image(&mut self.linux(folder, &words))?;
        let windows = image(&mut self.windows(folder, &words))?;
        println!("{folder:<8} Linux   {linux}  {}\n{:<8} Windows {windows}  {}", took[0], "", took[1]);
        ensure!(linux == windows, "the images of {folder} differ");
        Ok(())
    }

    fn same_digests(&self) -> Result<()> {
        run::heading("the same digests on Linux and on Windows");
        self.same("laptop", &[])?;
        let program = self.folder.join("laptop/target").join(binaries::node_target()).join("release/hello-static");
        self.write("tree/server", fs::read(program)?)?;
        // Modes that Windows does not have, whichever they are: they follow from contents.
        run::run(Command::new("chmod").arg("0600").arg(self.folder.join("tree/server")))?;
        self.write("tree/bulkhead.toml", TREE)?;
        self.write("tree/.bulkheadignore", "# as an editor on Windows writes it\r\nout/\r\n*.log\r\n")?;
        self.write("tree/out/made", "left out")?;
        self.write("tree/deep/er/x.log", "left out")?;
        self.write("tree/private/a/b", "left out")?;
        self.write("tree/deep/er/still/a.js", "console.log(1)\n")?;
        self.write("tree/crlf.txt", "one\r\ntwo\r\n")?;
        self.write("tree/run", "#!/app/server\n")?;
        self.write("tree/Größe/ß and blanks/日本.txt", "names")?;
        // Past 260 characters, where Windows' own rules end.
        self.write(&format!("tree/{}/end.txt", vec!["a-folder-with-a-long-name"; 16].join("/")), "long")?;
        fs::create_dir_all(self.folder.join("tree/empty"))?;
        run::run(Command::new("chmod").arg("0755").arg(self.folder.join("tree/crlf.txt")))?;
        self.same("tree", &[])?;
        // From the index this time.
        self.same("tree", &[])
    }

    fn refusals(&self) -> Result<()> {
        run::heading("what is refused");
        self.write("tree/node_modules/sharp/build/Release/sharp.node", windows_library())?;
        let said = self.show("tree", &["build"], REFUSED)?;
        ensure!(said.contains("sharp.node") && said.contains("Windows"), "the binary is not named");
        fs::remove_dir_all(self.folder.join("tree/node_modules"))?;
        self.write("tree/aux.js", "")?;
        let said = self.show("tree", &["build"], REFUSED)?;
        ensure!(said.contains("aux.js has a name that Windows keeps to itself"), "the name is not refused");
        fs::remove_file(self.folder.join("tree/aux.js"))?;
        let said = self.show("tree", &["local", "ls"], 2)?;
        ensure!(said.contains("only Linux can boot"), "it does not say why");
        Ok(())
    }

    /// With packages of Debian, where Windows downloads for itself.
    fn packages(&self) -> Result<()> {
        run::heading("an image with Debian packages");
        let example = paths::root().join("examples/notes");
        for name in
            ["app.js", "server.js", "store.js", "package.json", "version.txt", "bulkhead.toml", "views/index.html"]
        {
            self.write(&format!("notes/{name}"), fs::read(example.join(name))?)?;
        }
        // The first of the two pins the versions.
        run::read(&mut self.linux("notes", &["build"]))?;
        self.same("notes", &["--locked"])
    }

    fn nodes(&self) -> Result<()> {
        run::heading("a real node, deployed to from Windows");
        run::run(&mut self.linux("laptop", &["local", "up", "--nodes", NODE]))?;
        let result = self.on_a_node();
        let down = run::run(&mut self.linux("laptop", &["local", "down", "--remove", "--yes"]));
        result.and(down)
    }

    fn on_a_node(&self) -> Result<()> {
        let show = |words: &[&str]| self.show("laptop", words, 0);
        show(&["deploy", "-e", "staging", "--yes"])?;
        self.page("hello from one static binary")?;
        let manifest = fs::read_to_string(self.folder.join("laptop/bulkhead.toml"))?;
        let manifest =
            manifest.replace("drain = \"2s\"", "drain = \"2s\"\nenv = { GREETING = \"hello from a laptop\" }");
        // As an editor on Windows writes it.
        self.write("laptop/bulkhead.toml", manifest.replace('\n', "\r\n"))?;
        show(&["deploy", "-e", "staging", "--yes", "-m", "another greeting"])?;
        self.page("hello from a laptop")?;
        show(&["ps"])?;
        show(&["logs", "-e", "staging", "hello-static"])?;
        show(&["rollback", "-e", "staging", "hello-static", "--yes"])?;
        self.page("hello from one static binary")?;
        let releases = show(&["releases", "-e", "staging", "hello-static"])?;
        ensure!(releases.contains("another greeting"), "the history lacks a release");
        Ok(())
    }

    /// Opens a tunnel with the Windows program and fetches the page through it.
    fn page(&self, expected: &str) -> Result<()> {
        let words = ["open", "-e", "staging", "hello-static/web", "-o", "json"];
        run::say(&format!("bulkhead.exe {} &", words.join(" ")));
        let mut command = self.windows("laptop", &words);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
        let mut tunnel = Tunnel(child.context("cannot run bulkhead.exe open")?);
        let mut line = String::new();
        let stdout = tunnel.0.stdout.take().context("the tunnel's standard output is a pipe")?;
        BufReader::new(stdout).read_line(&mut line).context("the tunnel says nothing")?;
        let opened: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        let port = opened["port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("no port")?;
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot reach the tunnel")?;
        stream.set_read_timeout(Some(PAGE_WITHIN))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("no answer through the tunnel")?;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim();
        println!("{body}");
        ensure!(body == expected, "the page is not `{expected}`");
        Ok(())
    }
}

/// A tunnel, which ends with this value.
struct Tunnel(Child);

impl Drop for Tunnel {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about it then.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// As [`run::output`], however it ends.
fn ended(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().context("cannot run Wine")?;
    match output.status.code() {
        Some(_) => Ok(output),
        None => bail!("Wine was killed: {}", output.status),
    }
}

/// The least that is a library of Windows.
fn windows_library() -> Vec<u8> {
    let mut library = b"MZ".to_vec();
    library.resize(0x3c, 0);
    library.extend(0x40u32.to_le_bytes());
    library.extend(b"PE\0\0");
    library
}

const TREE: &str = "app = \"tree\"\r\n[image]\r\nexclude = [\"/private/\"]\r\n\
                    copy = { \"/srv/copied.js\" = \"deep/er/still/a.js\" }\r\n\
                    [services.web]\r\ncommand = [\"/app/run\"]\r\n";
