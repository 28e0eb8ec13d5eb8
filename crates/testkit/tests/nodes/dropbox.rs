//! The drop box: a pack put there by the stock `sftp`, and taken from there by an order.

use crate::orders::ssh;
use anyhow::{Context as _, Result, ensure};
use bulkhead_testkit::world::{App, World, noise};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_pack_put_by_stock_sftp", good_pack),
    ("a_pack_over_a_base_and_one_that_lacks_something", partial_packs),
    ("a_corrupted_pack_runs_nothing", corrupted),
    ("what_is_no_pack_or_no_file_in_the_box", no_pack),
    ("a_pack_that_changes_while_it_is_read", swapped),
    ("a_pack_of_a_huge_size", giant),
    ("the_box_takes_and_gives_nothing", write_only),
    ("a_pack_is_not_written_into_the_app", inside),
];

/// Each on a node of its own: sessions of the drop box's account end, whoever's they are.
pub(crate) const QUOTA_TESTS: &[(&str, crate::Test)] = &[("a_box_over_its_quota_is_emptied", over_quota)];

const SERVE: &[&str] = &["serve", "3000"];
const WEB: &str = "port = 3000\ndrain = \"1s\"\nstop = \"1s\"";
const BOX: &str = "/var/lib/bulkhead/drop/in";

/// Runs commands of the stock `sftp` on a node's drop box: exit code and all that it said.
fn sftp(world: &World, node: &str, commands: &str) -> Result<(i32, String)> {
    sftp_as(world, node, "bulkhead-drop", commands)
}

/// Likewise as another of the node's accounts.
pub(crate) fn sftp_as(world: &World, node: &str, account: &str, commands: &str) -> Result<(i32, String)> {
    let ssh = ssh(world, node, account)?;
    let mut words: Vec<_> = ssh.get_args().map(ToOwned::to_owned).collect();
    words.retain(|word| word != "-T");
    let address = words.pop().context("no address")?;
    let mut child = Command::new("sftp")
        .args(["-b", "-"])
        .args(words)
        .arg(address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("sftp cannot be started")?;
    child.stdin.take().context("no stdin")?.write_all(commands.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code().unwrap_or(-1), said))
}

fn put(world: &World, node: &str, file: &str, name: &str) -> Result<()> {
    let (code, said) = sftp(world, node, &format!("put {file} {name}\n"))?;
    ensure!(code == 0, "put: {said}");
    Ok(())
}

fn box_of(world: &World, node: &str) -> Result<String> {
    world.on_node(node, &["ls", "-A", BOX])
}

fn pack(app: &App<'_>, file: &str, more: &[&str]) -> Result<String> {
    let path = app.folder.join("..").join(file).display().to_string();
    let ran = app.run(&[&["build", "--pack", &path, "-o", "json"], more].concat())?.expect(0)?;
    ensure!(ran.json()?["pack"]["name"] == file, "{ran}");
    Ok(path)
}

fn good_pack(world: &World) -> Result<()> {
    let app = world.app("dropped", SERVE, WEB)?;
    fs::write(app.folder.join("large.bin"), noise(5 << 20, 51))?;
    let path = app.folder.join("../dropped.pack").display().to_string();
    let ran = app.run(&["build", "--pack", &path])?.expect(0)?;
    ran.says("sftp bulkhead-drop@")?.says("put")?.says("bulkhead deploy -e ENV --dropped dropped.pack")?;
    for node in ["prod-1", "prod-2"] {
        put(world, node, &path, "dropped.pack")?;
    }
    let deploy = ["deploy", "-e", "production", "--yes", "--dropped", "dropped.pack", "-o", "json"];
    let ran = app.run(&deploy)?.expect(0)?;
    for node in ran.json()?["nodes"].as_array().context("no nodes")? {
        let sent = node["timings"]["sent_bytes"].as_u64().context("nothing said of bytes")?;
        ensure!(sent < 1 << 20, "{sent} bytes were sent, which are in the pack: {ran}");
    }
    for node in ["prod-1", "prod-2"] {
        app.serves(node, "1")?;
        ensure!(!box_of(world, node)?.contains("dropped.pack"), "the pack is still there");
    }
    Ok(())
}

fn partial_packs(world: &World) -> Result<()> {
    let app = world.app("dropped-part", SERVE, WEB)?;
    fs::write(app.folder.join("large.bin"), noise(3 << 20, 52))?;
    app.deploy("staging", 0)?;
    let built = app.run(&["build", "-o", "json"])?.expect(0)?.json()?;
    let base = built["image"].as_str().context("no image")?.to_owned();
    app.write("version.txt", "2 of dropped-part")?;
    let path = pack(&app, "part.pack", &["--base", &base[..12]])?;
    let bytes = fs::metadata(&path)?.len();
    ensure!(bytes < 1 << 20, "{bytes} bytes, though the base has nearly all");
    app.run(&["build", "--pack", &path, "--base", "0123456789ab"])?.expect(3)?.says("0123456789ab")?;
    // One more file changes after the pack was made: it is sent besides.
    app.write("later.txt", "later of dropped-part")?;
    put(world, "stage-1", &path, "part.pack")?;
    app.run(&["deploy", "-e", "staging", "--yes", "--dropped", "part.pack"])?.expect(0)?;
    app.serves("stage-1", "2 of dropped-part")?;
    ensure!(app.get("stage-1", "/read/app/later.txt")?.1 == "later of dropped-part", "the later file is missing");
    Ok(())
}

fn corrupted(world: &World) -> Result<()> {
    let app = world.app("dropped-bad", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    app.write("version.txt", "2 of dropped-bad")?;
    fs::write(app.folder.join("zz.bin"), noise(200_000, 53))?;
    let path = pack(&app, "bad.pack", &[])?;
    let good = fs::read(&path)?;
    let halved = good[..good.len() / 2].to_vec();
    let mut flipped = good.clone();
    // Within the noise, which is stored as it is: only its digest can tell.
    let at = good.len() - 50_000;
    flipped[at] ^= 1;
    for bad in [flipped, halved, b"no pack at all".to_vec(), vec![]] {
        fs::write(&path, bad)?;
        put(world, "stage-1", &path, "bad.pack")?;
        let ran = app.run(&["deploy", "-e", "staging", "--yes", "--dropped", "bad.pack"])?.expect(5)?;
        ran.says("bad.pack")?.says("leave `--dropped` out")?;
        app.serves("stage-1", "1")?;
        ensure!(!box_of(world, "stage-1")?.contains("bad.pack"), "the bad pack is still there");
    }
    app.deploy("staging", 0)?;
    app.serves("stage-1", "2 of dropped-bad")
}

/// A courier writes into the very file that the keeper reads: what runs is what was signed, or nothing is.
fn swapped(world: &World) -> Result<()> {
    let app = world.app("dropped-swapped", SERVE, WEB)?;
    app.deploy("staging", 0)?;
    let mut serving = "1".to_owned();
    let mut taken = 0;
    for round in 0..6_u64 {
        let new = format!("{round} of dropped-swapped");
        app.write("version.txt", &new)?;
        let large = noise(6 << 20, 60 + round);
        fs::write(app.folder.join("large.bin"), &large)?;
        let path = pack(&app, "swapped.pack", &[])?;
        put(world, "stage-1", &path, "swapped.pack")?;
        let good = fs::read(&path)?;
        let evil: Vec<u8> = good.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at > 4096)).collect();
        let in_box = app.node_root("stage-1")?.join(BOX.trim_start_matches('/')).join("swapped.pack");
        let stays = fs::OpenOptions::new().write(true).open(in_box)?;
        let running = AtomicBool::new(true);
        let ran = thread::scope(|scope| {
            scope.spawn(|| {
                // The later the round, the longer the good one is there.
                let pause = Duration::from_millis(round * round * 4);
                while running.load(Ordering::Relaxed) {
                    stays.write_all_at(&evil, 0).ok();
                    stays.write_all_at(&good, 0).ok();
                    thread::park_timeout(pause);
                }
            });
            let ran = app.run(&["deploy", "-e", "staging", "--yes", "--dropped", "swapped.pack"]);
            running.store(false, Ordering::Relaxed);
            ran
        })?;
        match ran.code {
            0 => {
                (serving, taken) = (new, taken + 1);
                let (_, read) = app.get("stage-1", "/read/app/large.bin")?;
                ensure!(read == String::from_utf8_lossy(&large), "what runs is not what was signed");
            }
            _ => drop(ran.expect(5)?.says("swapped.pack")?),
        }
        app.serves("stage-1", &serving)?;
    }
    // Nothing came into the store under another's name.
    world.on_node("stage-1", &["systemctl", "start", "bulkhead-scrub.service"])?;
    ensure!(taken < 6, "nobody wrote while the keeper read");
    app.deploy("staging", 0)?;
    app.serves("stage-1", "5 of dropped-swapped")
}

/// As long as a file system lets a file be, and nearly nothing of it on the disk: SFTP can make that by one request.
fn giant(world: &World) -> Result<()> {
    let app = world.app("dropped-giant", SERVE, WEB)?;
    app.write("own.txt", "of dropped-giant")?;
    let good = pack(&app, "giant.pack", &[])?;
    let fill = world.folder().join("giant-empty").display().to_string();
    fs::write(&fill, "")?;
    // One that is nothing else, and one that begins as it should.
    for (file, code) in [(&fill, 5), (&good, 0)] {
        put(world, "stage-1", file, "giant.pack")?;
        world.on_node("stage-1", &["truncate", "--size=7T", &format!("{BOX}/giant.pack")])?;
        let began = Instant::now();
        let ran = app.run(&["deploy", "-e", "staging", "--yes", "--dropped", "giant.pack"])?;
        ensure!(began.elapsed() < Duration::from_secs(30), "the keeper read for {:?}", began.elapsed());
        ran.expect(code)?;
        ensure!(!box_of(world, "stage-1")?.contains("giant.pack"), "it is still there");
        ensure!((code == 0) == app.socket("stage-1").is_ok(), "what runs is not what was said");
    }
    app.serves("stage-1", "1")
}

fn no_pack(world: &World) -> Result<()> {
    let app = world.app("dropped-not", SERVE, WEB)?;
    app.write("own.txt", "of dropped-not")?;
    let deploy = |name: &str| app.run(&["deploy", "-e", "staging", "--yes", "--dropped", name]);
    for bad in ["../../policy/policy.json", "..", ".hidden", "a/b", ""] {
        deploy(bad)?.expect(2)?.says("drop box")?;
    }
    deploy("absent.pack")?.expect(5)?.says("absent.pack")?.says("it is not there")?;
    // What sftp cannot make, but root of the node could have.
    world.on_node("stage-1", &["ln", "-s", "/etc/shadow", &format!("{BOX}/link.pack")])?;
    world.on_node("stage-1", &["mkfifo", &format!("{BOX}/fifo.pack")])?;
    world.on_node("stage-1", &["mkdir", &format!("{BOX}/directory.pack")])?;
    // Endless, where it can be made.
    let device = format!("mknod {BOX}/device.pack c 1 5 || true");
    world.on_node("stage-1", &["sh", "-c", &device])?;
    for name in ["link.pack", "fifo.pack", "directory.pack", "device.pack"] {
        deploy(name)?.expect(5)?.says(name)?;
        world.on_node("stage-1", &["rm", "-rf", &format!("{BOX}/{name}")])?;
    }
    ensure!(app.socket("stage-1").is_err(), "something runs");
    Ok(())
}

fn write_only(world: &World) -> Result<()> {
    let file = world.folder().join("some-file");
    fs::write(&file, "some bytes")?;
    put(world, "stage-1", &file.display().to_string(), "some-file")?;
    let mine = world.folder().join("fetched");
    for refused in [
        format!("get some-file {}", mine.display()),
        format!("get /etc/passwd {}", mine.display()),
        "ls".into(),
        "rm some-file".into(),
        "rename some-file other".into(),
        "mkdir folder".into(),
        "symlink /etc/passwd link".into(),
        "ln some-file hard".into(),
        format!("put {} ../outside", file.display()),
        format!("put {} /outside", file.display()),
    ] {
        let (code, said) = sftp(world, "stage-1", &format!("{refused}\n"))?;
        // `sftp` counts a listing that was refused as done.
        ensure!(code != 0 || said.contains("Permission denied"), "`{refused}` was done: {said}");
    }
    ensure!(!mine.exists() || fs::metadata(&mine)?.len() == 0, "something was fetched");
    let left = box_of(world, "stage-1")?;
    ensure!(left.contains("some-file") && !left.contains("other") && !left.contains("link"), "{left}");
    world.on_node("stage-1", &["rm", "-f", &format!("{BOX}/some-file")])?;
    Ok(())
}

/// It would be a file of the next image, and that one's pack another.
fn inside(world: &World) -> Result<()> {
    let app = world.app("unpacked", SERVE, WEB)?;
    fs::create_dir(app.folder.join("sub"))?;
    let alias = app.folder.join("../unpacked-alias");
    std::os::unix::fs::symlink(&app.folder, &alias)?;
    let absolute = app.folder.join("sub/x.pack").display().to_string();
    let aliased = alias.join("x.pack").display().to_string();
    for path in ["x.pack", "sub/x.pack", "./sub/../x.pack", &absolute, &aliased] {
        app.run(&["build", "--pack", path])?.expect(2)?.says("is in the app's folder")?.says("such as `../FILE`")?;
    }
    let left = [app.folder.join("x.pack"), app.folder.join("sub/x.pack")];
    ensure!(!left.iter().any(|path| path.exists()), "a pack was written");
    pack(&app, "unpacked.pack", &[]).map(drop)
}

/// A courier fills the box: by bytes, with a file that is held open and goes on being written to, and by number.
fn over_quota(world: &World) -> Result<()> {
    /// Slow enough to be seen before the file system is full, of which the box leaves a twentieth.
    const PACE_KBIT: &str = "60000";
    let node = "stage-1";
    let run = |script: &str| world.on_node(node, &["sh", "-c", script]);
    let waits = || run("systemctl is-active bulkhead-drop.path; systemctl is-active bulkhead-drop.service || true");
    // A small file system, which the box may fill but for a twentieth.
    run(&format!(
        "mount -t tmpfs -o size=256M,mode=0300,uid=$(id -u bulkhead-drop),gid=$(id -g bulkhead-drop) tmpfs {BOX} \
         && systemctl restart bulkhead-drop.path bulkhead-sshd.service"
    ))?;
    // A boot looks at it once, for some seconds.
    within(|| Ok(waits()? == "active\ninactive\n")).context("it runs, though nobody writes")?;
    let small = world.folder().join("within-quota").display().to_string();
    fs::write(&small, noise(1 << 20, 81))?;
    put(world, node, &small, "small")?;
    run(&format!("head -c 200M /dev/zero >{BOX}/others"))?;

    let large = world.folder().join("over-quota");
    fs::File::create(&large)?.set_len(2 << 30)?;
    let sftp_batch = |batch: &Path| -> Result<Command> {
        let ssh: Vec<_> = ssh(world, node, "bulkhead-drop")?.get_args().map(ToOwned::to_owned).collect();
        let mut command = Command::new("sftp");
        command.args(["-l", PACE_KBIT, "-b"]).arg(batch).args(ssh.iter().filter(|word| *word != "-T"));
        Ok(command)
    };
    let batch = world.folder().join("one-large-file");
    fs::write(&batch, format!("put {} large\n", large.display()))?;
    let output = sftp_batch(&batch)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // In sftp's words or in ssh's, by which of them notices first.
    let is_ended = ["onnection", "roken pipe"].iter().any(|words| said.contains(words));
    ensure!(!output.status.success() && is_ended, "its session was not ended: {said}");
    // What is held open goes on growing where nobody looks for it by name: the file system itself is asked.
    let used = || run(&format!("ls -A {BOX}; df --output=used -B1M {BOX} | tail -1"));
    within(|| Ok(used()?.trim() == "0")).with_context(|| format!("there is: {:?}", used()))?;
    let said = "journalctl --quiet -o cat -t bulkhead-drop";
    ensure!(run(said)?.contains("its sessions are ended: it holds"), "{}", run(said)?);

    // It is watched again, and whoever stays within it is left alone.
    put(world, node, &small, "small")?;
    within(|| Ok(waits()? == "active\ninactive\n")).context("it does not end")?;
    ensure!(box_of(world, node)? == "small\n", "{}", box_of(world, node)?);

    let empty = world.folder().join("empty");
    fs::write(&empty, "")?;
    let commands: String = (0..10_001).map(|number| format!("put {} {number}\n", empty.display())).collect();
    let batch = world.folder().join("many-files");
    fs::write(&batch, commands)?;
    // It may be ended before its own end.
    sftp_batch(&batch)?.stdout(Stdio::null()).status()?;
    within(|| Ok(box_of(world, node)?.is_empty())).context("more than 10,000 files stay")?;
    ensure!(run(said)?.contains("it holds more than 10000 files"), "{}", run(said)?);
    within(|| Ok(waits()? == "active\ninactive\n")).context("it does not end")?;

    let app = world.app("dropped-within", SERVE, WEB)?;
    let path = pack(&app, "within.pack", &[])?;
    put(world, node, &path, "within.pack")?;
    app.run(&["deploy", "-e", "staging", "--yes", "--dropped", "within.pack"])?.expect(0)?;
    app.serves(node, "1")
}

fn within(is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + bulkhead_testkit::world::PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < end, "not in {:?}", bulkhead_testkit::world::PATIENCE);
    }
    Ok(())
}
