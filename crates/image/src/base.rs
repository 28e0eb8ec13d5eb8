//! The few files and directories that every image has.

use crate::{
    content::Facts,
    debian::Suite,
    sources::Source,
    tree::{FileNode, Kind, Node, Origin, Tree},
};
use bulkhead_core::manifest::{Manifest, Platform};

/// Mount points and what programs expect to be there.
const DIRECTORIES: [&str; 16] = [
    "dev",
    "etc",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/sbin",
    "var/cache",
    "var/lib",
    "var/log",
    "var/tmp",
    "home",
    "root",
    "usr/local/bin",
];

const PASSWD: &str = "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n";

fn os_release(suite: Suite) -> String {
    let name = suite.name;
    match suite.version {
        Some(version) => format!(
            "PRETTY_NAME=\"Debian GNU/Linux {version} ({name})\"\nNAME=\"Debian GNU/Linux\"\n\
             VERSION_ID=\"{version}\"\nVERSION=\"{version} ({name})\"\nVERSION_CODENAME={name}\nID=debian\n\
             HOME_URL=\"https://www.debian.org/\"\n"
        ),
        None => format!(
            "PRETTY_NAME=\"Debian GNU/Linux {name}\"\nNAME=\"Debian GNU/Linux\"\nVERSION_CODENAME={name}\nID=debian\n\
             HOME_URL=\"https://www.debian.org/\"\n"
        ),
    }
}

/// A file that the build makes.
pub(crate) fn made(contents: &[u8]) -> Kind {
    Kind::File(Box::new(FileNode {
        executable: false,
        size_bytes: contents.len() as u64,
        digest: bulkhead_core::verity::digest(contents),
        facts: Facts::default(),
        source: Some(Source::Memory(contents.into())),
        is_setuid: false,
        is_world_writable: false,
        has_capabilities: false,
    }))
}

/// Adds a file that the build makes, with the directories above it.
pub(crate) fn add(tree: &mut Tree, path: &str, contents: &[u8]) {
    tree.insert_parents(path.as_bytes(), Origin::Base);
    tree.insert(path.as_bytes(), Node { origin: Origin::Base, kind: made(contents) });
}

/// Adds the links that later paths are spelled by.
pub(crate) fn add_links(tree: &mut Tree, platform: Platform) {
    let directory = |tree: &mut Tree, path: &str| {
        tree.insert_parents(path.as_bytes(), Origin::Base);
        tree.insert(path.as_bytes(), Node { origin: Origin::Base, kind: Kind::Directory });
    };
    for path in DIRECTORIES {
        directory(tree, path);
    }
    let mut links = vec!["bin", "lib", "sbin"];
    if platform == Platform::Amd64 {
        links.push("lib64");
        directory(tree, "usr/lib64");
    }
    for link in links {
        let kind = Kind::Symlink { target: format!("usr/{link}").into_bytes() };
        tree.insert(link.as_bytes(), Node { origin: Origin::Base, kind });
    }
}

/// Adds the files. An empty
/// `/etc/resolv.conf` is there to be mounted over: the image is read-only.
pub(crate) fn add_files(tree: &mut Tree, suite: Suite) {
    let os_release = os_release(suite);
    let files = [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/hosts", HOSTS),
        ("etc/nsswitch.conf", NSSWITCH),
        ("etc/resolv.conf", ""),
        ("usr/lib/os-release", os_release.as_str()),
    ];
    for (path, contents) in files {
        add(tree, path, contents.as_bytes());
    }
    let kind = Kind::Symlink { target: b"../usr/lib/os-release".to_vec() };
    tree.insert(b"etc/os-release", Node { origin: Origin::Base, kind });
}

/// What of busybox goes by names of its own, where no package has a program of that name.
const APPLETS: [&str; 24] = [
    "awk",
    "cmp",
    "egrep",
    "fgrep",
    "find",
    "grep",
    "gunzip",
    "gzip",
    "hexdump",
    "less",
    "nc",
    "netstat",
    "ping",
    "sed",
    "sh",
    "strings",
    "tar",
    "time",
    "traceroute",
    "vi",
    "wget",
    "which",
    "xargs",
    "xxd",
];

/// What tools expect: a shell and what scripts use, and a debugger's settings.
pub(crate) fn add_for_tools(tree: &mut Tree) {
    if tree.get(b"usr/bin/busybox").is_some() {
        for name in APPLETS {
            let path = format!("usr/bin/{name}").into_bytes();
            if tree.get(&path).is_none() {
                let kind = Kind::Symlink { target: b"busybox".to_vec() };
                tree.insert(&path, Node { origin: Origin::Base, kind });
            }
        }
    }
    // The programs that are debugged lie there, not in the tool image.
    add(tree, "etc/gdb/gdbinit", b"set sysroot /target\nset debuginfod enabled off\n");
}

/// The directories that nodes mount volumes on and services start in, unless the app brings them.
pub(crate) fn add_mount_points(tree: &mut Tree, manifest: &Manifest) {
    let services = manifest.services.values();
    let paths = services.flat_map(|service| service.volumes.values().chain(&service.workdir));
    for path in paths.chain([&manifest.image.to]) {
        let path = path.0.trim_start_matches('/').as_bytes();
        if tree.resolve(path, &mut Vec::new()).is_none() {
            let path = crate::tree::spell(path);
            tree.insert_parents(&path, Origin::Base);
            tree.insert(&path, Node { origin: Origin::Base, kind: Kind::Directory });
        }
    }
}
