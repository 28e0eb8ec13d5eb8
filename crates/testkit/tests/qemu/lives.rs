//! Boots, power cuts, and the end as a node.

use crate::{Lane, NODE, Test, adopted::WEB, say};
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::qemu::{self, ADDRESS};
use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("services_come_back_after_a_boot_with_nobody_connected", reboot),
    ("a_power_cut_in_a_deploy_leaves_a_whole_release", power_cut),
    ("released_it_is_the_stock_machine_again", uninstall),
];

fn deploy(lane: &Lane, app: &str, version: &str) -> Result<()> {
    let app = lane.world.app(app, &["serve", "3000"], WEB)?;
    app.write("version.txt", version)?;
    app.deploy("staging", 0).map(drop)
}

fn reboot(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    deploy(lane, "steady", "one")?;
    let boot = lane.machine.console("cat /proc/sys/kernel/random/boot_id")?;
    let began = Instant::now();
    lane.machine.reboot()?;
    ensure!(lane.machine.console("cat /proc/sys/kernel/random/boot_id")? != boot, "it did not boot");
    ensure!(lane.served("steady")? == "one", "another release is served");
    say(&format!("serves {:.0} s after it was told to boot", began.elapsed().as_secs_f64()));
    let sessions =
        lane.machine.console("journalctl -b -u bulkhead-sshd.service --no-pager | grep -c Accepted || true")?;
    ensure!(sessions.trim() == "0", "somebody was connected: {sessions}");
    let ssh =
        lane.machine.console("systemctl is-active ssh.service cloud-init.service bulkhead-nftables.service || true")?;
    ensure!(ssh.lines().eq(["inactive", "inactive", "active"]), "{ssh}");
    let failed = lane.machine.console("systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "{failed}");
    Ok(())
}

fn power_cut(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    deploy(lane, "cut", "0")?;
    let began = Instant::now();
    deploy(lane, "cut", "probe")?;
    let usual = began.elapsed();
    let mut old = "probe".to_owned();
    for (round, share) in [0.35, 0.7].into_iter().enumerate() {
        let new = format!("round-{round}");
        let mut child = {
            let app = lane.world.app("cut", &["serve", "3000"], WEB)?;
            app.write("version.txt", &new)?;
            app.spawn_deploy("staging")?
        };
        let moment = Instant::now() + usual.mul_f64(share);
        while Instant::now() < moment {
            thread::park_timeout(moment.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        }
        lane.machine.cut_power()?;
        // It would wait long for a machine that is gone.
        child.kill()?;
        child.wait()?;
        lane.machine.start()?;
        lane.machine.await_ssh()?;
        let served = lane.served("cut")?;
        ensure!(served == old || served == new, "{served} is served, not {old} or {new}");
        say(&format!(
            "power cut after {:.1} s of {:.1} s: {served} serves",
            usual.as_secs_f64() * share,
            usual.as_secs_f64()
        ));
        lane.machine.console("systemctl start bulkhead-scrub.service")?;
        old = served;
    }
    deploy(lane, "cut", "after")?;
    ensure!(lane.served("cut")? == "after", "a deploy after it changes nothing");
    Ok(())
}

fn uninstall(lane: &mut Lane) -> Result<()> {
    lane.ensure_adopted()?;
    {
        let more = format!("{WEB}volumes = {{ data = \"/var/lib/data\" }}");
        let app = lane.world.app("keeper-of-data", &["serve", "3000"], &more)?;
        app.deploy("staging", 0)?;
    }
    lane.served("keeper-of-data")?;
    lane.get("keeper-of-data", "/append/var/lib/data/notes/hello")?;
    let report = lane
        .machine
        .console("systemd-run --quiet --wait --pipe --unit=release /usr/lib/bulkhead/bulkhead-agent uninstall")?;
    let report: serde_json::Value = serde_json::from_str(&report).with_context(|| report.clone())?;
    ensure!(report["changes"].as_array().is_some_and(|changes| changes.len() > 20), "{report:#}");
    ensure!(qemu::greets(ADDRESS), "no SSH server greets");
    let output = Command::new("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-i"])
        .arg(lane.world.key())
        .args([&format!("root@{ADDRESS}"), "systemctl is-active ssh.service"])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("active"), "root's login did not come back: {said}");
    let left = lane.machine.console(
        "getent passwd bulkhead bulkhead-drop; getent group bulkhead bulkhead-drop; nft list ruleset; \
         ls -d /usr/lib/bulkhead /etc/bulkhead /run/bulkhead /etc/cloud/cloud-init.disabled 2>/dev/null; \
         find /etc/systemd /run/systemd/system -name '*bulkhead*'; find /etc/systemd -lname /dev/null -name 'ssh*'; \
         systemctl list-units --all --no-legend --plain 'bulkhead*.service' 'bulkhead*.socket'; systemctl --failed --no-legend --plain; \
         mount | grep bulkhead; pgrep -a testapp; true",
    )?;
    ensure!(left.trim().is_empty(), "left: {left}");
    let kept =
        lane.machine.console("cat /var/lib/bulkhead/volumes/keeper-of-data/data/notes; ls -A /var/lib/bulkhead")?;
    ensure!(kept.trim() == "hello\nvolumes", "volumes: {kept}");
    // And it can be adopted again, this time by an account with sudo.
    lane.machine.console(
        "useradd -m deb && cp -r /root/.ssh /home/deb/ && chown -R deb /home/deb && \
         echo 'deb ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/deb",
    )?;
    lane.machine.reboot()?;
    lane.adopted = false;
    let key = lane.machine.console("cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub")?;
    let machine = format!("deb@{ADDRESS}");
    let words = ["node", "adopt", &machine, "-e", "staging", "--name", NODE, "--yes", "--host-key", key.trim()];
    lane.world.run(&lane.world.fleet(), &words)?.expect(0)?.says("adopted")?;
    lane.adopted = true;
    ensure!(lane.world.address(NODE)?.1 != key.trim(), "the stock host key became the node's");
    Ok(())
}
