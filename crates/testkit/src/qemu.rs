//! A virtual machine as a provider sells it: stock Debian, cloud-init, its own
//! kernel, a disk with fs-verity, and a console that needs no network.
//!
//! It is made to be adopted. What a machine in a container cannot show, it can:
//! limits that the kernel enforces, a disk that is altered, a boot, a power cut.
//!
//! ```text
//! /var/cache/bulkhead/qemu/trixie-DIGEST/{disk.raw,vmlinuz,initrd.img}   made once, by the recipe's digest
//! FOLDER/disk.raw                                                        a machine's copy
//! FOLDER/{console,serial,qemu.log}                                       its console's socket, what it printed
//! ```
//!
//! The processor is emulated; `BULKHEAD_QEMU_ACCEL=kvm` uses this machine's.
//!
//! The machine's network is a tap interface in the network namespace of the
//! process that starts it, which is to be one of its own ([`enter_namespace`]):
//! nobody else reaches the machine, and it reaches nobody else. It ends with
//! that process, however that ends.

use crate::short_digest;
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Where stock disks are kept.
const CACHE: &str = "/var/cache/bulkhead/qemu";
/// The machine's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 2);
/// This side's.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 1);
/// Where providers hand out a machine's credentials.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Emulated, a boot with cloud-init takes some 50 s on an idle machine.
const BOOT_WITHIN: Duration = Duration::from_secs(300);
/// For one command on the console.
const CONSOLE_WITHIN: Duration = Duration::from_secs(180);
const SSH_PORT: u16 = 22;
const TAP: &str = "stock0";
/// Set for the process that is inside its own namespace.
const INSIDE: &str = "BULKHEAD_QEMU_INSIDE";

const PACKAGES: &str = "ca-certificates,cloud-init,dbus,e2fsprogs,initramfs-tools,iproute2,linux-image-cloud-amd64,\
    openssh-server,passwd,procps,sudo,systemd,systemd-resolved,systemd-sysv,udev,zstd";
const LEFT_OUT: [&str; 3] = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"];
const DISK_SIZE: &str = "4G";

/// Before packages: an initrd with what this disk needs and no more, for it is unpacked at each boot.
const SETUP: &str = r#"set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d" "$1/srv/packages"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/stock"
printf 'virtio_pci\nvirtio_blk\next4\n' >"$1/usr/share/initramfs-tools/modules.d/stock""#;

/// After packages: an archive with those that an adoption installs, since the machine reaches no mirror; a fixed
/// address; the provider's console.
const CUSTOMIZE: &str = r#"set -e
chroot "$1" apt-get install -y -q --download-only --no-install-recommends -o Dir::Cache::archives=/srv/packages nftables
(cd "$1/srv/packages"; rm -rf lock partial
for file in *.deb; do
  dpkg-deb -f "$file"; echo "Filename: ./$file"; echo "Size: $(stat -c %s "$file")"
  echo "SHA256: $(sha256sum <"$file" | cut -d ' ' -f 1)"; echo
done >Packages)
rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/ssh/ssh_host_*_key* "$1"/etc/machine-id
echo 'deb [trusted=yes] file:/srv/packages ./' >"$1/etc/apt/sources.list"
echo stock >"$1/etc/hostname"
echo '/dev/vda / ext4 defaults,errors=remount-ro 0 1' >"$1/etc/fstab"
printf '[Match]\nName=e*\n[Network]\nAddress=10.87.0.2/24\nGateway=10.87.0.1\n' >"$1/etc/systemd/network/10-stock.network"
printf 'network: {config: disabled}\ndatasource_list: [NoCloud, None]\n' >"$1/etc/cloud/cloud.cfg.d/99_stock.cfg"
mkdir -p "$1/var/lib/cloud/seed/nocloud"
cat >"$1/usr/local/sbin/stock-console" <<'END'
#!/bin/sh
exec 3<>/dev/virtio-ports/console
while read -r line <&3; do
  script=$(printf %s "$line" | base64 -d)
  said=$(sh -c "$script" 2>&1 </dev/null 3<&-); code=$?
  printf '%s %s\n' "$code" "$(printf %s "$said" | base64 -w 0)" >&3
done
END
chmod 755 "$1/usr/local/sbin/stock-console"
cat >"$1/etc/systemd/system/stock-console.service" <<'END'
[Unit]
Description=The provider's console
After=dev-virtio\x2dports-console.device
BindsTo=dev-virtio\x2dports-console.device
[Service]
ExecStart=/usr/local/sbin/stock-console
Restart=always
RestartSec=1
OOMScoreAdjust=-1000
[Install]
WantedBy=multi-user.target
END
chroot "$1" systemctl enable systemd-networkd.service stock-console.service
chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer systemd-networkd-wait-online.service"#;

/// A stock system's disk and kernel.
#[derive(Debug, Clone)]
pub struct Stock {
    folder: PathBuf,
}

fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let shown: String = shown.chars().take(200).collect();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().collect();
    bail!("{shown} ended with {}: {}", output.status, lines[lines.len().saturating_sub(12)..].join("; "))
}

fn recipe() -> Vec<String> {
    let mut recipe = vec!["--variant=minbase".to_owned(), "--mode=root".to_owned(), format!("--include={PACKAGES}")];
    recipe.extend(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    recipe.push(format!("--setup-hook={SETUP}"));
    recipe.push(format!("--customize-hook={CUSTOMIZE}"));
    recipe.push("trixie".to_owned());
    recipe
}

impl Stock {
    /// Makes it from Debian's packages, unless it is there. Needs a mirror, and a minute.
    ///
    /// # Errors
    /// A program is missing or fails.
    pub fn ensure() -> Result<Self> {
        let recipe = recipe();
        let digest = short_digest(format!("{}\n{DISK_SIZE}", recipe.join("\n")).as_bytes());
        fs::create_dir_all(CACHE).with_context(|| format!("cannot make {CACHE}"))?;
        let lock = fs::File::create(Path::new(CACHE).join("lock"))?;
        // Whoever comes second waits and finds it made.
        lock.lock()?;
        let stock = Self { folder: Path::new(CACHE).join(format!("trixie-{digest}")) };
        if stock.folder.is_dir() {
            return Ok(stock);
        }
        let work = tempfile::Builder::new().prefix("unfinished-").tempdir_in(CACHE)?;
        let root = work.path().join("root");
        run(Command::new("mmdebstrap").args(&recipe).arg(&root))?;
        let made = work.path().join("made");
        fs::create_dir(&made)?;
        for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
            let found = fs::read_dir(root.join("boot"))?
                .flatten()
                .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .with_context(|| format!("no {prefix} in the system's /boot"))?;
            fs::copy(found.path(), made.join(name))?;
        }
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "verity", "-b", "4096", "-d"])
            .arg(&root)
            .arg(made.join("disk.raw"))
            .arg(DISK_SIZE))?;
        fs::rename(&made, &stock.folder)?;
        Ok(stock)
    }
}

/// Puts this process into a network namespace of its own, by starting the program again inside one: whatever it makes
/// there goes with it. Returns at once in the one that is inside.
///
/// # Errors
/// It cannot.
pub fn enter_namespace() -> Result<()> {
    if env::var_os(INSIDE).is_none() {
        let program = env::current_exe().context("cannot tell which program this is")?;
        let error =
            Command::new("unshare").arg("--net").arg(program).args(env::args_os().skip(1)).env(INSIDE, "1").exec();
        bail!("cannot run unshare: {error}");
    }
    let ip = |words: &str| run(Command::new("ip").args(words.split(' '))).map(drop);
    ip("link set lo up")?;
    ip(&format!("tuntap add dev {TAP} mode tap"))?;
    ip(&format!("address add {GATEWAY}/24 dev {TAP}"))?;
    ip(&format!("address add {METADATA}/32 dev {TAP}"))?;
    ip(&format!("link set {TAP} up"))
}

/// A machine with a disk of its own.
#[derive(Debug)]
pub struct Machine {
    stock: Stock,
    folder: PathBuf,
    qemu: Option<Child>,
    console: Option<BufReader<UnixStream>>,
}

impl Machine {
    /// A new one, off, that cloud-init gives this user data at its first boot.
    ///
    /// # Errors
    /// Its disk cannot be copied or written to.
    pub fn new(stock: &Stock, folder: &Path, user_data: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let machine = Self { stock: stock.clone(), folder: folder.to_owned(), qemu: None, console: None };
        run(Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .arg(stock.folder.join("disk.raw"))
            .arg(machine.disk()))?;
        for (name, text) in [("user-data", user_data), ("meta-data", "instance-id: stock-1\nlocal-hostname: stock\n")] {
            let file = folder.join(name);
            fs::write(&file, text)?;
            // As a provider does: its image has a place for them.
            machine.debugfs_write(&file, &format!("/var/lib/cloud/seed/nocloud/{name}"))?;
        }
        Ok(machine)
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join("disk.raw")
    }

    fn debugfs_write(&self, from: &Path, to: &str) -> Result<()> {
        let request = format!("write {} {to}", from.display());
        run(Command::new("debugfs").args(["-w", "-R", &request]).arg(self.disk())).map(drop)
    }

    /// The block of the disk that holds the beginning of a file. The machine must be off.
    ///
    /// # Errors
    /// There is no such file.
    pub fn first_block(&self, path: &str) -> Result<u64> {
        ensure!(self.qemu.is_none(), "the machine runs");
        let text = run(Command::new("debugfs").args(["-R", &format!("blocks {path}")]).arg(self.disk()))?;
        let first = text.split_whitespace().next().with_context(|| format!("{path} has no block on the disk"))?;
        Ok(first.parse()?)
    }

    /// Switches it on.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn start(&mut self) -> Result<()> {
        let socket = self.folder.join("console");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let log = fs::File::create(self.folder.join("qemu.log"))?;
        let mut command = Command::new("setpriv");
        // It ends with this process, and not by the terminal's interrupts.
        command.args(["--pdeathsig", "KILL", "setsid", "qemu-system-x86_64"]);
        // Emulated, so that it is the same wherever it runs: virtual machines in virtual machines have KVM's device and
        // may not get far with it.
        let accelerator = env::var("BULKHEAD_QEMU_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        command.args(["-machine", &format!("q35,accel={accelerator}"), "-cpu", "max", "-smp", "2", "-m", "1024"]);
        command.args(["-nodefaults", "-display", "none", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(self.stock.folder.join("vmlinuz"));
        command.arg("-initrd").arg(self.stock.folder.join("initrd.img"));
        command.args(["-append", "root=/dev/vda rw console=ttyS0 quiet"]);
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=writeback", self.disk().display()));
        command.arg("-serial").arg(format!("file:{}", self.folder.join("serial").display()));
        command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=c,name=console"]);
        command.arg("-chardev").arg(format!("socket,id=c,path={},server=on,wait=off", socket.display()));
        command.args(["-netdev", &format!("tap,id=n,ifname={TAP},script=no,downscript=no")]);
        command.args(["-device", "virtio-net-pci,netdev=n,romfile="]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("cannot start QEMU")?;
        let end = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => {
                    let ended = child.try_wait()?.is_some();
                    if ended || Instant::now() > end {
                        child.kill().ok();
                        child.wait().ok();
                        let said = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
                        bail!("QEMU offers no console: {error}; it said: {said}");
                    }
                    thread::park_timeout(Duration::from_millis(50));
                }
            }
        };
        stream.set_read_timeout(Some(CONSOLE_WITHIN))?;
        self.qemu = Some(child);
        self.console = Some(BufReader::new(stream));
        Ok(())
    }

    /// Waits until its SSH server greets.
    ///
    /// # Errors
    /// It does not in time, or QEMU has ended.
    pub fn await_ssh(&mut self) -> Result<()> {
        let end = Instant::now() + BOOT_WITHIN;
        while !greets(ADDRESS) {
            let qemu = self.qemu.as_mut().context("the machine is off")?;
            ensure!(qemu.try_wait()?.is_none(), "QEMU has ended");
            if Instant::now() > end {
                let serial = fs::read(self.folder.join("serial")).unwrap_or_default();
                let text = String::from_utf8_lossy(&serial).into_owned();
                let tail: Vec<&str> = text.lines().rev().take(15).collect();
                bail!("no SSH server answers; the end of what it printed, last line first: {tail:?}");
            }
            thread::park_timeout(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Runs a script as root on its console: the exit code, and all that it printed.
    ///
    /// # Errors
    /// The console does not answer.
    pub fn try_console(&mut self, script: &str) -> Result<(i32, String)> {
        let console = self.console.as_mut().context("the machine is off")?;
        console.get_mut().write_all(format!("{}\n", base64(script.as_bytes())).as_bytes())?;
        let mut line = String::new();
        console.read_line(&mut line).with_context(|| format!("the console does not answer to `{script}`"))?;
        let (code, text) =
            line.trim_end_matches('\n').split_once(' ').with_context(|| format!("the console says {line:?}"))?;
        Ok((code.parse()?, String::from_utf8_lossy(&unbase64(text)?).into_owned()))
    }

    /// As [`Machine::try_console`], of a script that must succeed.
    ///
    /// # Errors
    /// It fails.
    pub fn console(&mut self, script: &str) -> Result<String> {
        let (code, text) = self.try_console(script)?;
        ensure!(code == 0, "`{script}` ended with {code} on the console: {text}");
        Ok(text)
    }

    /// Switches it off in order.
    ///
    /// # Errors
    /// It does not end.
    pub fn power_off(&mut self) -> Result<()> {
        self.console("systemctl --no-block poweroff")?;
        let end = Instant::now() + BOOT_WITHIN;
        let qemu = self.qemu.as_mut().context("the machine is off")?;
        while qemu.try_wait()?.is_none() {
            ensure!(Instant::now() < end, "the machine does not power off");
            thread::park_timeout(Duration::from_millis(100));
        }
        self.qemu = None;
        self.console = None;
        Ok(())
    }

    /// Has it boot again, and waits until it has.
    ///
    /// # Errors
    /// It does not come back.
    pub fn reboot(&mut self) -> Result<()> {
        self.console("systemctl --no-block reboot")?;
        let end = Instant::now() + BOOT_WITHIN;
        while greets(ADDRESS) {
            ensure!(Instant::now() < end, "the machine does not go down");
            thread::park_timeout(Duration::from_millis(200));
        }
        self.await_ssh()
    }

    /// Cuts its power. What it had not yet written to its disk is lost.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn cut_power(&mut self) -> Result<()> {
        self.console = None;
        if let Some(mut qemu) = self.qemu.take() {
            qemu.kill()?;
            qemu.wait()?;
        }
        Ok(())
    }

    /// QEMU's process, while the machine is on.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.qemu.as_ref().map(Child::id)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // There is nobody to tell; it ends with this process in any case.
        drop(self.cut_power());
    }
}

/// Whether an SSH server greets there.
#[must_use]
pub fn greets(address: Ipv4Addr) -> bool {
    let greeting = || {
        let mut stream =
            TcpStream::connect_timeout(&SocketAddr::from((address, SSH_PORT)), Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        let mut start = [0; 4];
        stream.read_exact(&mut start).ok()?;
        Some(start)
    };
    greeting() == Some(*b"SSH-")
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for piece in bytes.chunks(3) {
        let word = piece.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - piece.len()));
        for at in 0..4 {
            let index = (word >> (18 - 6 * at)) as usize & 63;
            text.push(if at <= piece.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Result<Vec<u8>> {
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == c).context("the console's answer is not base64")?;
        word = word << 6 | u32::try_from(value)?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits & 0xff) as u8);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_there_and_back() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(unbase64(coded).unwrap(), plain.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unbase64(&base64(&all)).unwrap(), all);
    }
}
