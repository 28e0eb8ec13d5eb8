//! Installs what is missing from Debian's packages.
//!
//! Each need is looked for as what it is for (a program, a file), not as a
//! package, so a machine that has it from elsewhere is left as it is.

use crate::run;
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

/// What a need is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Building the binaries.
    Build,
    /// The local fleet.
    Fleet,
    /// The example app.
    Example,
    /// The test suite, beyond all of the above.
    Test,
    /// The benchmark, beyond the fleet.
    Bench,
    /// The virtual machine, beyond the fleet and the tests.
    Qemu,
}

/// How a need shows that it is there.
enum Sign {
    Program(&'static str),
    File(&'static str),
    /// A file in the directory of this architecture's libraries.
    Library(&'static str),
}

struct Need {
    package: &'static str,
    sign: Sign,
    what_for: For,
    why: &'static str,
}

const fn need(what_for: For, package: &'static str, sign: Sign, why: &'static str) -> Need {
    Need { package, sign, what_for, why }
}

const NEEDS: &[Need] = &[
    need(For::Build, "gcc", Sign::Program("cc"), "compiles the C parts of zstd and links"),
    need(For::Build, "libc6-dev", Sign::Library("libc.a"), "the static agent is linked with it"),
    need(For::Build, "pkg-config", Sign::Program("pkg-config"), "finds OpenSSL for the agent's composefs"),
    need(For::Build, "libssl-dev", Sign::Library("libssl.a"), "the agent's composefs uses OpenSSL, linked statically"),
    need(For::Fleet, "systemd-container", Sign::Program("systemd-nspawn"), "local nodes are systemd-nspawn machines"),
    need(For::Fleet, "mmdebstrap", Sign::Program("mmdebstrap"), "makes the Debian root of local nodes"),
    need(
        For::Fleet,
        "debian-archive-keyring",
        Sign::File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        "checks the signatures of the packages in that root",
    ),
    need(For::Fleet, "iproute2", Sign::Program("ip"), "the bridge between local nodes"),
    need(
        For::Fleet,
        "openssh-client",
        Sign::Program("ssh-keygen"),
        "makes the demo's key; `ssh` and `sftp` for the tests",
    ),
    need(For::Example, "nodejs", Sign::Program("node"), "runs npm; the example app itself brings its own"),
    need(For::Example, "npm", Sign::Program("npm"), "installs the example app's dependencies from its lock file"),
    need(
        For::Test,
        "openssh-server",
        Sign::Program("sshd"),
        "the SSH client is tested against it; not started as a service",
    ),
    need(For::Test, "ssh-audit", Sign::Program("ssh-audit"), "looks for faults of a node's SSH server"),
    need(For::Test, "e2fsprogs", Sign::Program("chattr"), "makes a file that a node cannot replace"),
    need(For::Test, "git", Sign::Program("git"), "releases say which commit they were built from"),
    need(
        For::Qemu,
        "qemu-system-x86",
        Sign::Program("qemu-system-x86_64"),
        "the machine that is adopted has a kernel of its own",
    ),
    need(For::Bench, "rsync", Sign::Program("rsync"), "what a deploy is compared with"),
    need(For::Bench, "zstd", Sign::Program("zstd"), "what a first upload is compared with"),
];

impl Need {
    fn is_met(&self) -> bool {
        match self.sign {
            Sign::Program(name) => run::find_program(name).is_some(),
            Sign::File(path) => Path::new(path).exists(),
            Sign::Library(name) => {
                Path::new("/usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH)).join(name).exists()
            }
        }
    }
}

/// Installs what is missing for these purposes. Prints nothing when all is there.
pub fn ensure(purposes: &[For]) -> Result<()> {
    check_rust()?;
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| purposes.contains(&need.what_for) && !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing on this machine:");
    for need in &missing {
        println!("  {:<24} {}", need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if run::find_program("apt-get").is_none() {
        bail!("this machine has no apt-get: install what the list above says by other means");
    }
    if !is_root()? {
        bail!("only root can install packages: run `{by_hand}`, then this again");
    }
    install(&packages)?;
    match missing.iter().find(|need| !need.is_met()) {
        Some(need) => bail!("package {} is installed, but what it is for is still not there", need.package),
        None => disable_services(&packages),
    }
}

/// Units that a package enables, and that nobody asked this machine to run.
const UNWANTED_UNITS: &[(&str, &[&str])] = &[("openssh-server", &["ssh.service", "ssh.socket"])];

/// A package that was installed for its program alone must not open a port at the next boot either.
fn disable_services(packages: &[&str]) -> Result<()> {
    for (package, units) in UNWANTED_UNITS {
        // Without systemd nothing starts by itself.
        if packages.contains(package) && run::find_program("systemctl").is_some() {
            run::output(Command::new("systemctl").arg("disable").args(*units))?;
        }
    }
    Ok(())
}

/// While this exists, packages that are installed start no services (see invoke-rc.d(8)).
struct NoServices {
    made: bool,
}

const POLICY_RC_D: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Result<Self> {
        // One that is there already is somebody's own decision.
        if Path::new(POLICY_RC_D).exists() {
            return Ok(Self { made: false });
        }
        fs::write(POLICY_RC_D, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {POLICY_RC_D}"))?;
        let this = Self { made: true };
        fs::set_permissions(POLICY_RC_D, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {POLICY_RC_D} executable"))?;
        Ok(this)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made
            && let Err(error) = fs::remove_file(POLICY_RC_D)
        {
            eprintln!("cannot remove {POLICY_RC_D}, remove it by hand: {error}");
        }
    }
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
    command
}

fn install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(packages);
    println!("$ {}", run::display(&apt_get(&arguments)));
    let _quiet = NoServices::begin()?;
    // Package lists may be absent or old; they are fetched only where that stands in the way.
    let first = apt_get(&arguments).stdin(Stdio::null()).output().context("cannot run apt-get")?;
    if first.status.success() {
        return Ok(());
    }
    println!("$ apt-get update");
    run::output(apt_get(&["update", "-q"]).stdin(Stdio::null()))?;
    run::output(&mut apt_get(&arguments)).map(drop)
}

/// Whether this process is root.
pub fn is_root() -> Result<bool> {
    Ok(run::read(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Refuses to go on where only root can.
pub fn require_root(what: &str) -> Result<()> {
    if is_root()? {
        return Ok(());
    }
    bail!("{what} needs root: it boots machines and makes a network bridge. Run it with sudo or as root")
}

/// The `rust-version` of the workspace.
const RUST_MIN: (u32, u32) = (1, 90);

fn check_rust() -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = run::read(Command::new(rustc).arg("--version"))?;
    let version = parse_version(&text).with_context(|| format!("cannot read a version in `{}`", text.trim()))?;
    if version < RUST_MIN {
        bail!("rustc is {}.{}, Bulkhead needs {}.{} or newer", version.0, version.1, RUST_MIN.0, RUST_MIN.1);
    }
    Ok(())
}

/// The first `MAJOR.MINOR` in a program's version line.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| c.is_whitespace() || c == 'v' || c == '(').find_map(|word| {
        let mut numbers = word.split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor: String = numbers.next()?.chars().take_while(char::is_ascii_digit).collect();
        Some((major, minor.parse().ok()?))
    })
}

/// rustfmt and clippy are components of the toolchain, which a minimal installation lacks.
pub fn ensure_components() -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let present = run::cargo()
            .args([subcommand, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !present && run::find_program("rustup").is_some() {
            println!("missing on this machine: {component}, a component of the Rust toolchain");
            run::show(Command::new("rustup").args(["component", "add", component]))?;
        } else if !present {
            bail!("`cargo {subcommand}` is missing: install {component} for this Rust toolchain");
        }
    }
    Ok(())
}

/// `cargo xtask setup`.
pub fn report() -> Result<()> {
    ensure(&[For::Build, For::Fleet, For::Example, For::Test, For::Bench])?;
    ensure_components()?;
    let versions: &[(&str, &[&str])] = &[
        ("rustc", &["--version"]),
        ("cc", &["--version"]),
        ("systemd-nspawn", &["--version"]),
        ("mmdebstrap", &["--version"]),
        ("ip", &["-V"]),
        ("node", &["--version"]),
        ("npm", &["--version"]),
        ("git", &["--version"]),
        ("rsync", &["--version"]),
        ("zstd", &["--version"]),
    ];
    for (program, arguments) in versions {
        let path = run::find_program(program).with_context(|| format!("{program} is not on PATH"))?;
        let text = run::read(Command::new(path).args(*arguments))?;
        println!("{program:<16} {}", text.lines().next().unwrap_or_default());
    }
    println!("all is there");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check = |text: &str, version| assert_eq!(parse_version(text), version, "{text}");
        check("rustc 1.95.0 (59807616e 2026-04-14)", Some((1, 95)));
        check("v20.20.2\n", Some((20, 20)));
        check("rustc 1.90.0-nightly", Some((1, 90)));
        check("systemd 257 (257.8-1)", Some((257, 8)));
        check("none at all", None);
    }

    #[test]
    fn the_least_rust_is_the_workspace_s() {
        let text = std::fs::read_to_string(crate::paths::root().join("Cargo.toml")).unwrap();
        assert!(text.contains(&format!("rust-version = \"{}.{}\"", RUST_MIN.0, RUST_MIN.1)));
    }

    #[test]
    fn every_package_once() {
        for (index, need) in NEEDS.iter().enumerate() {
            assert!(NEEDS[..index].iter().all(|other| other.package != need.package), "{}", need.package);
        }
    }
}
