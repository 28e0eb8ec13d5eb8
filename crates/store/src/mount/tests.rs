#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use super::*;
use crate::{
    pack::{self, Item, Nothing, Options},
    store::Push,
};
use bulkhead_core::{
    image::{Entry, ImageConfig},
    verity,
};
use std::{
    collections::HashMap,
    os::unix::fs::{FileExt, MetadataExt},
};

fn entry(path: &str, node: Node) -> Entry {
    Entry { path: path.into(), node }
}

fn file(mode: u16, bytes: &[u8]) -> Node {
    Node::File { mode, size_bytes: bytes.len() as u64, digest: verity::digest(bytes) }
}

/// Puts an image of these contents into the store.
fn put(push: &Push<'_>, entries: Vec<Entry>, contents: &[&[u8]]) -> ImageId {
    let contents: HashMap<_, _> = contents.iter().map(|bytes| (verity::digest(bytes), bytes.to_vec())).collect();
    let items: Vec<_> = contents
        .iter()
        .map(|(digest, bytes)| Item { digest: *digest, size_bytes: bytes.len() as u64, base: None })
        .collect();
    let mut packed = Vec::new();
    pack::encode(&items, &contents, &Nothing, &mut packed, None, &Options::default()).unwrap();
    let wanted = items.iter().map(|item| (item.digest, item.size_bytes)).collect();
    push.ingest(&mut packed.as_slice(), &wanted).unwrap();
    let image =
        Image::new(ImageConfig { platform: "linux/amd64".into(), allowed: Vec::new(), tools: false }, entries).unwrap();
    push.put_document(image.id(), &image.encode()).unwrap();
    image.id()
}

/// Unmounts also where a test fails.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0).unwrap();
    }
}

#[test]
fn every_tier_shows_the_image() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let big = vec![7u8; 5 << 20];
    let long = "t".repeat(1500);
    // Links of about a block, and directories of several blocks: what the metadata's writer has to place.
    let lengths = (4060..4096).step_by(5);
    let links = lengths.map(|length| entry(&format!("many/l{length}"), Node::Symlink { target: vec![b'l'; length] }));
    let files = (0..1000).map(|number| entry(&format!("many/{number:040}"), file(0o644, b"#!\n")));
    let mut many: Vec<_> = links.chain(files).collect();
    many.push(entry("many", Node::Directory { mode: 0o755 }));
    let id = put(
        &store.push().unwrap(),
        [
            many,
            vec![
                entry("bin", Node::Directory { mode: 0o755 }),
                entry("bin/run", file(0o755, b"#!\n")),
                entry("bin/again", file(0o644, b"#!\n")),
                entry("empty", file(0o600, b"")),
                entry("big", file(0o444, &big)),
                entry("secret", Node::Directory { mode: 0o700 }),
                entry("link", Node::Symlink { target: b"bin/run".to_vec() }),
                entry("aa", file(0o644, b"the name of an object's directory")),
                entry("long", Node::Symlink { target: long.clone().into_bytes() }),
                entry("proc", Node::Directory { mode: 0o555 }),
            ],
        ]
        .concat(),
        &[b"#!\n", b"", &big, b"the name of an object's directory"],
    );
    let image = store.image(id).unwrap().unwrap();
    let facilities = detect(&store).unwrap();
    let metadata = metadata_path(&store, id);
    let target = Mounted(directory.path().join("target"));
    let at = |path: &str| target.0.join(path);
    for tier in [None, Some(Tier::File), Some(Tier::Loop), Some(Tier::Tree)] {
        fs::create_dir_all(&target.0).unwrap();
        let verity = facilities.has_verity;
        match tier {
            None => mount(&store, id, &target.0).unwrap(),
            Some(Tier::Tree) => mount_tree(&store, &image, id, &target.0).unwrap(),
            Some(tier) => match mount_composefs(&store, tier, &metadata, "test", verity, &target.0) {
                Ok(()) => {}
                Err(error) if tier != facilities.tier => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    eprintln!("skipped: no {tier:?} here: {error}: {source:?}");
                    continue;
                }
                Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
            },
        }
        assert!(is_mounted(&target.0).unwrap());
        assert_eq!(fs::read(at("bin/run")).unwrap(), b"#!\n");
        assert_eq!(fs::read(at("big")).unwrap(), big);
        assert_eq!(fs::read(at("empty")).unwrap(), b"");
        assert_eq!(fs::read(at("aa")).unwrap(), b"the name of an object's directory");
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("bin/run"));
        assert_eq!(fs::read_link(at("long")).unwrap(), Path::new(&long));
        let modes = [("bin", 0o755), ("bin/run", 0o755), ("bin/again", 0o644), ("empty", 0o600), ("big", 0o444)];
        for (path, mode) in modes.into_iter().chain([("secret", 0o700), ("proc", 0o555), (".", 0o755)]) {
            let found = fs::symlink_metadata(at(path)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (mode, 0, 0), "{tier:?} {path}");
        }
        let mut names: Vec<_> =
            fs::read_dir(&target.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["aa", "big", "bin", "empty", "link", "long", "many", "proc", "secret"], "{tier:?}");
        for entry in image.entries().iter().filter(|entry| entry.path.starts_with(b"many/")) {
            let path = at(std::str::from_utf8(&entry.path).unwrap());
            match &entry.node {
                Node::Symlink { target } => {
                    assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target, "{tier:?}");
                }
                _ => assert_eq!(fs::read(path).unwrap(), b"#!\n", "{tier:?}"),
            }
        }
        assert_eq!(fs::read_dir(at("many")).unwrap().count(), 1008);
        let denied = fs::write(at("bin/run"), b"x").unwrap_err();
        assert_eq!(Errno::from_io_error(&denied), Some(Errno::ROFS), "{tier:?}");
        let flags = rustix::fs::statvfs(&target.0).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::NODEV | rustix::fs::StatVfsMountFlags::NOSUID));
        // Mounting again changes nothing; a file in use makes unmounting lazy, and stays readable.
        mount(&store, id, &target.0).unwrap();
        let open = fs::File::open(at("big")).unwrap();
        unmount(&target.0).unwrap();
        assert!(!is_mounted(&target.0).unwrap() && !target.0.exists());
        let mut end = [0; 4];
        open.read_exact_at(&mut end, (5 << 20) - 4).unwrap();
        assert_eq!(end, [7; 4]);
        unmount(&target.0).unwrap();
    }
    // A collection that does not keep the image takes what was derived from it along.
    store.collection().unwrap().collect(&Default::default(), None, &[]).unwrap();
    for directory in ["metadata", "trees", "documents", "tmp"] {
        let left: Vec<_> = fs::read_dir(store.root().join(directory)).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.ends_with("modes")), "{left:?}");
    }
    assert_eq!(walk(&store.root().join("trees")), 0);
}

fn walk(path: &Path) -> u64 {
    fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| if entry.file_type().unwrap().is_dir() { walk(&entry.path()) } else { 1 })
        .sum()
}

#[test]
fn what_a_service_user_may_read() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    assert_eq!(fs::metadata(store.root()).unwrap().mode() & 0o777, 0o700);
    let entries = vec![entry("public", file(0o644, b"for all\n")), entry("private", file(0o600, b"for root\n"))];
    let id = put(&store.push().unwrap(), entries, &[b"for all\n", b"for root\n"]);
    let target = Mounted(directory.path().join("target"));
    mount(&store, id, &target.0).unwrap();
    let cat = |name: &str| {
        use std::os::unix::process::CommandExt;
        std::process::Command::new("cat").arg(target.0.join(name)).uid(65534).gid(65534).output().unwrap()
    };
    assert_eq!(cat("public").stdout, b"for all\n");
    assert!(!cat("private").status.success());
}

/// A mount is made while an image's objects are still on their way.
#[test]
fn objects_that_come_after_the_mount() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    if detect(&store).unwrap().tier == Tier::Tree {
        eprintln!("skipped: a tree of hard links needs its objects");
        return;
    }
    let push = store.push().unwrap();
    // What tells whether the kernel is to check contents.
    put(&push, vec![entry("here", file(0o644, b"here\n"))], &[b"here\n"]);
    let entries = vec![entry("here", file(0o644, b"here\n")), entry("late", file(0o644, b"late\n"))];
    let config = ImageConfig { platform: "linux/amd64".into(), allowed: Vec::new(), tools: false };
    let image = Image::new(config, entries.clone()).unwrap();
    prepare(&store, image.id(), &image).unwrap();
    let target = Mounted(directory.path().join("target"));
    mount(&store, image.id(), &target.0).unwrap();
    assert_eq!(fs::read(target.0.join("here")).unwrap(), b"here\n");
    assert_eq!(fs::metadata(target.0.join("late")).unwrap().len(), 5);
    assert!(fs::read(target.0.join("late")).is_err());
    assert_eq!(put(&push, entries, &[b"here\n", b"late\n"]), image.id());
    assert_eq!(fs::read(target.0.join("late")).unwrap(), b"late\n");
}

#[test]
fn an_image_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let error = mount(&store, ImageId([1; 32]), &directory.path().join("target")).unwrap_err();
    assert!(matches!(error, MountError::Store { source: StoreError::NoImage { .. }, .. }), "{error}");
    unmount(&directory.path().join("never")).unwrap();
    assert!(!is_mounted(&directory.path().join("never")).unwrap());
}
