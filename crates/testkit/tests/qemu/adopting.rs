//! From a stock machine to a node: what is refused, what is changed.

use crate::{Lane, NODE, Test};
use anyhow::{Result, ensure};
use bulkhead_fleet::bootstrap::OneTimeKey;
use bulkhead_testkit::qemu::{ADDRESS, METADATA};
use std::{fs, io::Write as _, net::TcpListener, process::Command, thread};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("what_is_refused_before_anything_is_changed", refused),
    ("where_nobody_comes_the_stock_server_comes_back", comes_back),
    ("a_stock_machine_becomes_a_node", becomes_a_node),
    ("adopting_it_again_changes_nothing", again),
    ("a_port_scan_finds_ssh_alone", port_scan),
    ("root_and_passwords_are_refused", logins),
    ("the_metadata_service_is_out_of_reach", metadata),
];

const CONNECTS: &str = "timeout 5 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80 && head -c 8 <&3'";

/// A machine's state that an adoption would change.
const FINGERPRINT: &str = "getent passwd; ls -R /etc/systemd /etc/ssh /usr/lib/bulkhead /var/lib/bulkhead 2>&1; \
     systemctl is-active ssh.service; dpkg -l | wc -l";

fn refused(lane: &mut Lane) -> Result<()> {
    ensure!(!lane.adopted, "the machine is a node already");
    let before = lane.machine.console(FINGERPRINT)?;
    let right = lane.one_time.host_key().fingerprint().to_owned();
    let wrong = OneTimeKey::make()?.host_key().fingerprint().to_owned();
    lane.adopt(&["--yes", "--host-key", &wrong])?.expect(4)?.says("shows the host key")?.says(&right)?;
    lane.adopt(&["--yes"])?.expect(4)?.says("is not known")?.says("--host-key")?;
    lane.adopt(&["--host-key", &right])?.expect(2)?.says("install packages")?.says("--yes")?;
    let root = format!("root@{ADDRESS}");
    let fleet = lane.world.fleet();
    let words = ["node", "adopt", &root, "-e", "stagging", "--yes", "--host-key", &right];
    lane.world.run(&fleet, &words)?.expect(3)?.says("did you mean `staging`?")?;
    let stranger = format!("nobody@{ADDRESS}");
    let words = ["node", "adopt", &stranger, "-e", "staging", "--yes", "--host-key", &right];
    lane.world.run(&fleet, &words)?.expect(4)?.says("nobody")?;
    // An account that is not root, and has sudo that asks: the same key lets it in.
    lane.machine.console(
        "useradd -m ann && mkdir -p /home/ann/.ssh && cp /root/.ssh/authorized_keys /home/ann/.ssh/ && chown -R ann /home/ann/.ssh",
    )?;
    let ann = format!("ann@{ADDRESS}");
    let words = ["node", "adopt", &ann, "-e", "staging", "--yes", "--host-key", &right];
    lane.world.run(&fleet, &words)?.expect(5)?.says("sudo")?;
    lane.machine.console("userdel -r ann 2>/dev/null; true")?;
    let after = lane.machine.console(FINGERPRINT)?;
    ensure!(before == after, "something was changed:\n{before}\n---\n{after}");
    ensure!(!fs::read_to_string(fleet.join("fleet.toml"))?.contains(NODE), "fleet.toml has the node");
    Ok(())
}

/// The client is killed between the installation and its first request.
fn comes_back(lane: &mut Lane) -> Result<()> {
    ensure!(!lane.adopted, "the machine is a node already");
    let soon = "/etc/systemd/system/bulkhead-adoption.timer.d";
    lane.machine.console(&format!(
        "mkdir -p {soon} && printf '[Timer]\\nOnActiveSec=\\nOnActiveSec=15s\\n' >{soon}/soon.conf"
    ))?;
    let before = lane.machine.console(STATE)?;
    let (root, key) = (format!("root@{ADDRESS}"), lane.one_time.host_key().fingerprint().to_owned());
    let words = ["node", "adopt", &root, "-e", "staging", "--name", NODE, "--yes", "--host-key", &key];
    let mut client = lane.world.spawn(&lane.world.fleet(), &words)?;
    lane.until("the new server serves, and waits", |machine| {
        let waits = "test -e /var/lib/bulkhead/adoption-pending && systemctl is-active --quiet bulkhead-sshd.service";
        Ok(machine.try_console(waits)?.0 == 0)
    })?;
    client.kill()?;
    client.wait()?;
    let (code, _) = lane.machine.try_console("systemctl is-active --quiet ssh.service")?;
    ensure!(code != 0, "the stock server runs beside the node's");
    lane.until("the stock server is back", |machine| {
        let is_back =
            "systemctl is-active --quiet ssh.service && ! test -e /usr/lib/bulkhead && ! test -e /var/lib/bulkhead";
        Ok(machine.try_console(is_back)?.0 == 0)
    })?;
    lane.machine.console(&format!("rm -r {soon}"))?;
    let after = lane.machine.console(STATE)?;
    // Packages stay: only what they brought is new.
    ensure!(before == after, "something else is left:\n{before}\n---\n{after}");
    Ok(())
}

/// A stock machine's state, but for packages.
const STATE: &str = "getent passwd; getent group; ls -d /etc/systemd/system/*ssh* /etc/systemd/system/*bulkhead* \
     /etc/systemd/*-generators /etc/cloud/cloud-init.disabled 2>/dev/null | grep -v adoption.timer.d; readlink /etc/resolv.conf; \
     systemctl is-active ssh.service; systemctl --failed --no-legend --plain; ls /etc/ssh";

/// What a provider's metadata service would be, here.
fn serve_metadata() -> Result<()> {
    let listener = TcpListener::bind((METADATA, 80))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Whoever hangs up early got what there is.
            stream.write_all(b"secrets!").ok();
        }
    });
    Ok(())
}

fn becomes_a_node(lane: &mut Lane) -> Result<()> {
    if !lane.adopted {
        serve_metadata()?;
        // While it is stock it reaches it, or the test below would show nothing.
        ensure!(lane.machine.console(CONNECTS)? == "secrets!", "a stock machine does not reach its metadata");
        // So that there is a package to install.
        lane.machine.console(
            "DEBIAN_FRONTEND=noninteractive apt-get -q -y purge nftables >/dev/null; ! test -e /usr/sbin/nft",
        )?;
        fs::write(lane.world.fleet().join("fleet.toml"), {
            let text = fs::read_to_string(lane.world.fleet().join("fleet.toml"))?;
            format!("# a comment of ours\n{text}")
        })?;
    }
    lane.ensure_adopted()?;
    let text = fs::read_to_string(lane.world.fleet().join("fleet.toml"))?;
    ensure!(text.starts_with("# a comment of ours\n"), "{text}");
    let (address, host_key) = lane.world.address(NODE)?;
    ensure!(address == ADDRESS.to_string(), "{text}");
    let one_time = lane.one_time.host_key();
    ensure!(host_key.parse::<bulkhead_fleet::HostKey>()? != one_time, "the one-time key became the node's");
    let left = lane.machine.console(
        "ls /etc/ssh | grep ssh_host; grep -rlF 'OPENSSH PRIVATE KEY' /etc/ssh /var/lib/cloud /run /root 2>/dev/null; \
         ls -d /var/lib/bulkhead-incoming /var/lib/bulkhead/adoption-pending 2>/dev/null; true",
    )?;
    ensure!(left.trim().is_empty(), "left: {left}");
    let ran = lane.world.run(&lane.world.fleet(), &["node", "ls"])?.expect(0)?;
    ran.says(NODE)?.says("trixie")?;
    for facility in ["limit-memory", "limit-tasks", "limit-cpu", "private-pids"] {
        ensure!(lane.facility(facility)?, "it lacks {facility}");
    }
    let failed = lane
        .machine
        .console("systemctl --failed --no-legend --plain; /usr/lib/bulkhead/bulkhead-agent install --verify")?;
    ensure!(failed.trim() == "[]", "{failed}");
    Ok(())
}

fn again(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    let look = "find /etc /usr/lib/bulkhead /var/lib/bulkhead -newermt @$(stat -c %Y /var/lib/bulkhead/before.json) -type f | wc -l";
    let before = lane.machine.console(look)?;
    let text = fs::read_to_string(lane.world.fleet().join("fleet.toml"))?;
    lane.adopt(&[])?.expect(0)?.says("nothing to change")?;
    let json = lane.adopt(&["-o", "json"])?.expect(0)?.json()?;
    ensure!(json["changed"] == false && json["node"] == NODE, "{json}");
    ensure!(fs::read_to_string(lane.world.fleet().join("fleet.toml"))? == text, "fleet.toml was changed");
    ensure!(lane.machine.console(look)? == before, "files were changed");
    Ok(())
}

/// Every TCP port, each tried once and those that answered anything twice.
fn port_scan(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    let lists = lane.machine.console("ss -Hltn | awk '{print $4}'; ss -Hlun | awk '{print $4}'")?;
    let open = open_ports()?;
    ensure!(open == [22], "open: {open:?}; listening: {lists}");
    Ok(())
}

fn open_ports() -> Result<Vec<u16>> {
    use std::{
        net::{SocketAddr, TcpStream},
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };
    /// Enough that waiting, not counting, takes the time; few enough for the machine's one processor's worth.
    const THREADS: usize = 1000;
    const WITHIN: Duration = Duration::from_millis(600);
    let next = AtomicU32::new(1);
    let mut open: Vec<u16> = thread::scope(|scope| {
        let scan = || {
            let mut found = Vec::new();
            while let Ok(port) = u16::try_from(next.fetch_add(1, Ordering::Relaxed)) {
                if TcpStream::connect_timeout(&SocketAddr::from((ADDRESS, port)), WITHIN).is_ok() {
                    found.push(port);
                }
            }
            found
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(scan)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect()
    });
    open.sort_unstable();
    // The scan must not have missed what is known to be open for being slow.
    if !open.contains(&22) && bulkhead_testkit::qemu::greets(ADDRESS) {
        open.push(22);
    }
    Ok(open)
}

fn logins(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    let key = lane.world.key();
    for (user, more) in [
        ("root", "PreferredAuthentications=publickey"),
        ("root", "PreferredAuthentications=password,keyboard-interactive"),
        ("bulkhead", "PreferredAuthentications=password,keyboard-interactive"),
    ] {
        let output = Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=no", "-o", "NumberOfPasswordPrompts=0"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", more, "-i"])
            .arg(&key)
            .args([&format!("{user}@{ADDRESS}"), "id"])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(255) && said.contains("(publickey)"), "{user}, {more}: {said}");
    }
    // Not a word was said that a later connection would pay for.
    ensure!(lane.facility("private-pids")?);
    Ok(())
}

fn metadata(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    let (code, text) = lane.machine.try_console(CONNECTS)?;
    ensure!(code != 0 && !text.contains("secrets"), "root reaches the metadata service: {text}");
    // The way there is open but for this address.
    lane.machine.console("ip route get 169.254.169.254")?;
    Ok(())
}
