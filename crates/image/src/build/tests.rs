//! Whole builds: from made-up folders, a made-up archive, and Debian's own.

use super::*;
use crate::{
    debian::{deb::tests::make, signature::tests::TestKey},
    report::Silent,
};
use bulkhead_store::pack::Contents as _;
use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
};

/// The first second of 2026: Debian's keys are good, made-up ones as well.
const NOW: u64 = 1_767_225_600;

struct Bed {
    purpose: Purpose,
    folder: tempfile::TempDir,
    cache: tempfile::TempDir,
    manifest: Manifest,
    keyring: Keyring,
    mirror: Option<String>,
}

impl Bed {
    fn new(image: &str, command: &str) -> Self {
        let text = format!("app = \"notes\"\n[image]\n{image}\n[services.web]\ncommand = [\"{command}\"]\n");
        Self {
            purpose: Purpose::App,
            folder: tempfile::tempdir().unwrap(),
            cache: tempfile::tempdir().unwrap(),
            manifest: Manifest::parse(&text).unwrap(),
            keyring: Keyring::of("fake", &TestKey::new(1).public()),
            mirror: None,
        }
    }

    fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    /// A program that needs nothing.
    fn program(&self, path: &str) -> &Self {
        self.write(path, Elf::default().bytes())
    }

    fn build_locked(&self, locked: bool) -> Result<Built, BuildError> {
        let request = BuildRequest {
            purpose: self.purpose,
            folder: self.folder.path(),
            manifest: &self.manifest,
            cache_dir: self.cache.path(),
            mirror: self.mirror.as_deref(),
            locked,
            progress: &Silent,
        };
        build_with(&request, &self.keyring, NOW)
    }

    fn build(&self) -> Result<Built, BuildError> {
        self.build_locked(false)
    }

    /// The whole chain of what went wrong.
    fn failure(&self) -> String {
        chain(&self.build().unwrap_err())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

fn paths(built: &Built) -> Vec<String> {
    built.image.entries().iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

/// A minimal ELF file with what the dynamic linker reads.
#[derive(Default)]
struct Elf<'a> {
    interpreter: Option<&'a str>,
    needed: &'a [&'a str],
    runpath: Option<&'a str>,
    /// A library and the version needed of it.
    needs: Option<(&'a str, &'a str)>,
    has: Option<&'a str>,
}

impl Elf<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut string = |text: &str| {
            let at = strings.len() as u64;
            strings.extend(text.as_bytes());
            strings.push(0);
            at
        };
        let mut dynamic: Vec<(u64, u64)> = self.needed.iter().map(|name| (1, string(name))).collect();
        if let Some(runpath) = self.runpath {
            dynamic.push((29, string(runpath)));
        }
        let interpreter = self.interpreter.map(|path| (string(path), path.len() as u64 + 1));
        let mut versions = Vec::new();
        let word = |out: &mut Vec<u8>, value: u64| out.extend(&u32::try_from(value).unwrap().to_le_bytes());
        let half = |out: &mut Vec<u8>, value: u16| out.extend(value.to_le_bytes());
        const STRINGS: u64 = 1024;
        const VERSIONS: u64 = 768;
        const DYNAMIC: u64 = 512;
        if let Some((library, version)) = self.needs {
            half(&mut versions, 1);
            half(&mut versions, 1);
            word(&mut versions, string(library));
            word(&mut versions, 16);
            word(&mut versions, 0);
            word(&mut versions, 0);
            word(&mut versions, 0);
            word(&mut versions, string(version));
            word(&mut versions, 0);
            dynamic.push((0x6fff_fffe, VERSIONS));
        } else if let Some(version) = self.has {
            for value in [1, 0, 1, 1] {
                half(&mut versions, value);
            }
            word(&mut versions, 0);
            word(&mut versions, 20);
            word(&mut versions, 0);
            word(&mut versions, string(version));
            word(&mut versions, 0);
            dynamic.push((0x6fff_fffc, VERSIONS));
        }
        dynamic.push((5, STRINGS));
        dynamic.push((10, strings.len() as u64));
        dynamic.push((0, 0));
        let total = STRINGS + strings.len() as u64;
        let mut segments = vec![(1u32, 0u64, total), (2, DYNAMIC, dynamic.len() as u64 * 16)];
        segments.extend(interpreter.map(|(at, length)| (3, STRINGS + at, length)));
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        out.resize(16, 0);
        half(&mut out, 3);
        half(&mut out, 62);
        out.extend(1u32.to_le_bytes());
        for value in [0u64, 64, 0] {
            out.extend(value.to_le_bytes());
        }
        out.extend(0u32.to_le_bytes());
        for value in [64u16, 56, u16::try_from(segments.len()).unwrap(), 64, 0, 0] {
            half(&mut out, value);
        }
        for (kind, offset, size) in segments {
            out.extend(kind.to_le_bytes());
            out.extend(4u32.to_le_bytes());
            for value in [offset, offset, offset, size, size, 8] {
                out.extend(value.to_le_bytes());
            }
        }
        out.resize(usize::try_from(DYNAMIC).unwrap(), 0);
        for (tag, value) in dynamic {
            out.extend(tag.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        assert!(out.len() as u64 <= VERSIONS);
        out.resize(usize::try_from(VERSIONS).unwrap(), 0);
        out.extend(versions);
        out.resize(usize::try_from(STRINGS).unwrap(), 0);
        out.extend(strings);
        out
    }
}

#[test]
fn same_inputs_same_id() {
    let id = |seconds: u64, mode: u32| {
        let bed = Bed::new("", "/app/server");
        bed.program("server").write("lib/a.js", "a").write("lib/deep/b.js", "b").write("README", "");
        fs::create_dir(bed.folder.path().join("empty")).unwrap();
        let file = fs::File::options().write(true).open(bed.folder.path().join("lib/a.js")).unwrap();
        file.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::symlink("lib/a.js", bed.folder.path().join("link")).unwrap();
        }
        let _ = mode;
        let built = bed.build().unwrap();
        assert_eq!(Image::decode(&built.document).unwrap(), built.image);
        assert!(paths(&built).contains(&"app/empty".to_owned()));
        built.id.to_string()
    };
    let first = id(1, 0o600);
    assert_eq!(first, id(1_700_000_000, 0o777));
    // Of exactly these inputs, on any host and day. A change of it means that everyone's images change.
    #[cfg(unix)]
    insta::assert_snapshot!(first, @"9afed2d7e238b74bad3625fddbd6ecca1c6d00f8c24a695d97ab5594e3767000");
}

#[test]
fn folders_are_copied_to_any_place() {
    let bed = Bed::new("to = \"/opt/web\"\ncopy = { \"/srv/a/b\" = \"lib\", \"/srv/empty\" = \"empty\" }", "./server");
    bed.program("server").write("lib/deep/a.js", "a");
    fs::create_dir(bed.folder.path().join("empty")).unwrap();
    let paths = paths(&bed.build().unwrap());
    for path in ["opt/web/lib/deep/a.js", "srv/a/b", "srv/a/b/deep/a.js", "srv/empty"] {
        assert!(paths.contains(&path.to_owned()), "{path} is not in {paths:?}");
    }
}

#[test]
fn modes_follow_from_contents() {
    let bed = Bed::new("", "/app/server");
    bed.program("server").write("run", "#!/app/server\n").write("text", "#").write("c.node", Elf::default().bytes());
    #[cfg(unix)]
    for (name, mode) in [("server", 0o600), ("run", 0o644), ("text", 0o755)] {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(bed.folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let built = bed.build().unwrap();
    for (path, expected) in [("server", 0o755), ("run", 0o755), ("text", 0o644), ("c.node", 0o755)] {
        let entry = built.image.get(format!("app/{path}").as_bytes()).unwrap();
        let image::Node::File { mode, .. } = entry.node else { panic!("{path} is not a file") };
        assert_eq!(u32::from(mode), expected, "{path}");
    }
}

#[test]
fn unchanged_files_are_not_read_again() {
    let bed = Bed::new("", "/app/server");
    bed.program("server").write("a", "old").write("b", "b");
    let old = UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let touch = |name: &str| {
        fs::File::options().write(true).open(bed.folder.path().join(name)).unwrap().set_modified(old).unwrap();
    };
    touch("a");
    // Until its times are older than a tick, a file is read each time: then and only then is the index trusted.
    let deadline = Instant::now() + std::time::Duration::from_secs(10);
    let first = bed.build().unwrap();
    while bed.build().unwrap().report.files_read > 0 {
        assert!(Instant::now() < deadline, "files stay unsettled");
    }
    assert_eq!(bed.build().unwrap().id, first.id);
    // Same size, same modification time: only the time of change differs.
    bed.write("a", "new");
    touch("a");
    let second = bed.build().unwrap();
    assert_ne!(second.id, first.id);
    assert!(second.report.files_read >= 1);
    fs::remove_file(bed.folder.path().join("b")).unwrap();
    assert!(!paths(&bed.build().unwrap()).contains(&"app/b".to_owned()));
    // A damaged index is as good as none.
    for entry in fs::read_dir(bed.cache.path().join("index")).unwrap() {
        fs::write(entry.unwrap().path(), b"bulkhead-index-1\nrubbish").unwrap();
    }
    assert_eq!(bed.build().unwrap().report.files_read, 2);
}

#[test]
fn what_is_left_out() {
    let bed = Bed::new("exclude = [\"*.log\", \"!keep.log\", \"/build/\"]", "/app/server");
    bed.program("server").write(".bulkheadignore", "secret\n# comment\n").write(".gitignore", "node_modules\n");
    for path in [
        ".git/config",
        "sub/.git",
        "bulkhead.toml",
        "bulkhead.lock",
        "fleet.toml",
        "policy.json.sig",
        "policy.next.json",
        "policy.next.json.sig",
        ".bulkhead/green/a.json",
    ] {
        bed.write(path, "x");
    }
    for path in ["a.log", "keep.log", "build/x", "sub/build/x", "secret", "node_modules/m/index.js", "sub/fleet.toml"] {
        bed.write(path, "x");
    }
    let built = bed.build().unwrap();
    let app: Vec<String> =
        paths(&built).into_iter().filter_map(|path| path.strip_prefix("app/").map(str::to_owned)).collect();
    let expected = [
        ".gitignore",
        "keep.log",
        "node_modules",
        "node_modules/m",
        "node_modules/m/index.js",
        "server",
        "sub",
        "sub/build",
        "sub/build/x",
        "sub/fleet.toml",
    ];
    assert_eq!(app, expected);
    let reason = |text: &str| built.report.omitted.iter().find(|omission| omission.reason.contains(text)).unwrap();
    assert_eq!(reason("*.log").count, 1);
    assert_eq!(reason("/build/").biggest[0].path, "build/");
    assert_eq!(reason("own files").count, 8);
}

#[test]
fn a_forgotten_npm_ci_is_told() {
    let needing = r#"{ "name": "notes", "dependencies": { "fastify": "^5", "pg": "^8" } }"#;
    let bed = |command: &str, package: &str| {
        let bed = Bed::new("", command);
        bed.program("node").program("server").write("server.js", "").write("package.json", package);
        bed
    };
    let said = bed("/app/node", needing).failure();
    for words in ["/app/node_modules is missing", "2 dependencies (fastify, pg)", "`npm ci --omit=dev`"] {
        assert!(said.contains(words), "{said}");
    }
    // What needs none: no dependencies, no node, all there, Yarn's way, or allowed by name.
    assert!(bed("/app/node", r#"{ "name": "notes", "devDependencies": { "tap": "1" } }"#).build().is_ok());
    assert!(bed("/app/server", needing).build().is_ok());
    for path in ["node_modules/pg/index.js", ".pnp.cjs"] {
        let bed = bed("/app/node", needing);
        bed.write(path, "");
        assert!(bed.build().is_ok(), "{path}");
    }
    let allowing = Bed::new("allow = [\"/app/node_modules\"]", "/app/node");
    allowing.program("node").write("package.json", needing);
    assert!(allowing.build().is_ok());
}

#[test]
fn what_is_refused() {
    let key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n";
    let bed = Bed::new("copy = { \"/usr/bin/sh\" = \"server\" }", "/app/server");
    let mut pe = b"MZ".to_vec();
    pe.resize(0x3c, 0);
    pe.extend(0x40u32.to_le_bytes());
    pe.extend(b"PE\0\0");
    bed.program("server").write("key.pem", key).write(".env", "A=b").write(".env.example", "A=");
    bed.write(".npmrc", "//r/:_authToken=x\n").write("node_modules/a/b.node", &pe).write("node_modules/npm/x.js", "");
    bed.write("c.node", Elf { needed: &["libnone.so.1"], ..Elf::default() }.bytes());
    bed.write("etc/curl.js", "");
    for tool in ["bash", "gcc-14", "ssh", "gdb", "nc"] {
        bed.write(tool, "#!/bin/sh\n");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        bed.write("raised", "");
        fs::set_permissions(bed.folder.path().join("raised"), fs::Permissions::from_mode(0o4755)).unwrap();
        std::os::unix::fs::symlink("../../../etc", bed.folder.path().join("out")).unwrap();
        std::os::unix::fs::symlink("nowhere", bed.folder.path().join("dangling")).unwrap();
        std::os::unix::net::UnixListener::bind(bed.folder.path().join("socket")).unwrap();
    }
    let BuildError::Refused { findings } = bed.build().unwrap_err() else { panic!("not refused") };
    let found: Vec<(Rule, &str)> = findings.iter().map(|finding| (finding.rule, finding.path.as_str())).collect();
    let mut expected = vec![
        (Rule::Shell, "/app/bash"),
        (Rule::Shell, "/usr/bin/sh"),
        (Rule::Compiler, "/app/gcc-14"),
        (Rule::Ssh, "/app/ssh"),
        (Rule::Debugger, "/app/gdb"),
        (Rule::NetworkTool, "/app/nc"),
        (Rule::PackageManager, "/app/node_modules/npm"),
        (Rule::ForeignBinary, "/app/node_modules/a/b.node"),
        (Rule::UnresolvedLibrary, "/app/c.node"),
        (Rule::PrivateKey, "/app/key.pem"),
        (Rule::EnvFile, "/app/.env"),
        (Rule::NpmToken, "/app/.npmrc"),
    ];
    if cfg!(unix) {
        expected.extend([
            (Rule::SpecialFile, "/app/socket"),
            (Rule::EscapingLink, "/app/out"),
            (Rule::Setuid, "/app/raised"),
        ]);
    }
    expected.sort_unstable();
    assert_eq!(found, expected);
    let message = BuildError::Refused { findings }.to_string();
    assert!(message.contains("/app/c.node needs the library libnone.so.1"), "{message}");

    // Allowed by name, all of it goes in, and the image says so.
    let mut bed = bed;
    bed.manifest.image.allow = vec!["/app/**".into(), "/usr/bin/sh".into()];
    let built = bed.build().unwrap();
    let mut allowed: Vec<String> = expected.iter().map(|(_, path)| (*path).to_owned()).collect();
    allowed.sort_unstable();
    assert_eq!(built.image.config().allowed, allowed);
    assert_eq!(built.report.allowed.len(), expected.len());
    assert!(!paths(&built).contains(&"app/socket".to_owned()));
    if cfg!(unix) {
        assert!(built.report.warnings.iter().any(|finding| finding.rule == Rule::DanglingLink));
    }
}

#[cfg(unix)]
#[test]
fn odd_files() {
    use std::os::unix::ffi::OsStrExt as _;
    let bed = Bed::new("", "/app/server");
    let long = "n".repeat(255);
    bed.program("server").write(&format!("{long}/{long}/{long}"), "deep").write("one", "same");
    fs::hard_link(bed.folder.path().join("one"), bed.folder.path().join("two")).unwrap();
    fs::write(bed.folder.path().join(std::ffi::OsStr::from_bytes(b"not\xffutf8")), "x").unwrap();
    std::os::unix::fs::symlink("/app/one", bed.folder.path().join("absolute")).unwrap();
    let built = bed.build().unwrap();
    let digest = |path: &[u8]| match built.image.get(path).unwrap().node {
        image::Node::File { digest, .. } => digest,
        _ => panic!("not a file"),
    };
    assert_eq!(digest(b"app/one"), digest(b"app/two"));
    assert!(built.image.get(b"app/not\xffutf8").is_some());
    assert!(matches!(built.image.get(b"app/absolute").unwrap().node, image::Node::Symlink { .. }));
    let mut text = String::new();
    built.sources.open(&digest(b"app/one")).unwrap().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "same");
}

#[test]
fn programs_that_are_not_there() {
    let check = |image: &str, command: &str, file: &str, contents: &str, expected: &str| {
        let bed = Bed::new(image, command);
        match contents {
            "" => bed.program(file),
            script => bed.write(file, script),
        };
        let failure = bed.failure();
        assert!(failure.contains(expected), "{failure}");
    };
    check("", "node", "a", "", "no program `node` in the image: add \"nodejs\" to [image] packages");
    check("", "/app/run", "run", "#!/usr/bin/env node\n", "write `command = [\"node\", \"/app/run\", …]`");
    check("", "./run", "run", "#!/bin/sh\n", "is a script for /bin/sh, which is not in the image");
    check("", "./run", "run", "#!/usr/bin/node\r\n", "/app/run ends its lines as Windows does");
    check("", "/app/run", "run", "echo", "/app/run is there, but it is neither a Linux program nor a script");
    check("keep = [\"/usr/share/zoneinfo\"]", "/app/run", "run", "", "keep: no package of the image has");
    check("source = \"dist\"", "/app/run", "run", "", "[image] source: ");
    check("suite = \"stable\"", "/app/run", "run", "", "choose bookworm, trixie");
    check("allow = [\"/a[\"]", "/app/run", "run", "", "[image] allow: `/a[`");
}

/// A Debian archive on a loopback port.
struct Archive {
    url: String,
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

fn hex_sha256(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

impl Archive {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/debian", listener.local_addr().unwrap());
        let files: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
        let shared = Arc::clone(&files);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|bytes| bytes == 1) {
                    request.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let answer = match shared.lock().unwrap().get(path) {
                    Some(body) => {
                        let head =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                        [head.as_bytes(), body].concat()
                    }
                    None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
                };
                // A client that went away has its answer already.
                drop(stream.write_all(&answer));
            }
        });
        let archive = Self { url, files };
        archive.publish(1, "trixie");
        archive
    }

    fn set(&self, path: &str, contents: Vec<u8>) {
        self.files.lock().unwrap().insert(path.to_owned(), contents);
    }

    fn change(&self, part: &str) {
        for (path, contents) in self.files.lock().unwrap().iter_mut() {
            if path.contains(part) {
                *contents.last_mut().unwrap() ^= 1;
            }
        }
    }

    /// Signs and offers everything, under the name of a suite.
    fn publish(&self, seed: u64, codename: &str) {
        let libc = Elf { has: Some("GLIBC_2.34"), ..Elf::default() }.bytes();
        let linker = Elf { runpath: Some("/linker"), ..Elf::default() }.bytes();
        let web = Elf {
            interpreter: Some("/lib64/ld-linux-x86-64.so.2"),
            needed: &["libx.so.1", "libc.so.6"],
            needs: Some(("libc.so.6", "GLIBC_2.34")),
            ..Elf::default()
        }
        .bytes();
        let libx = Elf { needed: &["libprivate.so"], runpath: Some("$ORIGIN/x"), ..Elf::default() }.bytes();
        let library = Elf { has: Some("P_1"), ..Elf::default() }.bytes();
        let triplet = "./usr/lib/x86_64-linux-gnu";
        let (libc_path, libx_path) = (format!("{triplet}/libc.so.6"), format!("{triplet}/libx.so.1.2"));
        let (libx_link, private) = (format!("{triplet}/libx.so.1->libx.so.1.2"), format!("{triplet}/x/libprivate.so"));
        type Files<'a> = Vec<(&'a str, u32, &'a [u8])>;
        let packages: [(&str, &str, Files<'_>); 3] = [
            (
                "web",
                "Depends: libx (>= 1), libc6\n",
                vec![("./usr/bin/web", 0o755, &web), ("./usr/bin/bash", 0o755, b"#!")],
            ),
            (
                "libx",
                "",
                vec![
                    (&libx_path, 0o644, &libx),
                    (&libx_link, 0o777, b""),
                    (&private, 0o644, &library),
                    ("./usr/share/doc/libx/copyright", 0o644, b"free"),
                    ("./usr/share/big", 0o644, b"not needed"),
                ],
            ),
            ("libc6", "", vec![(&libc_path, 0o755, &libc), ("./lib64/ld-linux-x86-64.so.2", 0o755, &linker)]),
        ];
        let mut index = String::new();
        for (name, depends, files) in packages {
            let control = format!("Package: {name}\nVersion: 1.0\nArchitecture: amd64\n{depends}");
            let deb = make(&control, &files, "xz");
            let path = format!("pool/{name}_1.0_amd64.deb");
            index.push_str(&format!(
                "{control}Filename: {path}\nSize: {}\nSHA256: {}\n\n",
                deb.len(),
                hex_sha256(&deb)
            ));
            self.set(&format!("/debian/{path}"), deb);
        }
        for (place, name, text) in [
            ("debian", codename.to_owned(), index.as_str()),
            ("debian", format!("{codename}-updates"), ""),
            ("debian-security", format!("{codename}-security"), ""),
        ] {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(text.as_bytes()).unwrap();
            let packages = encoder.finish().unwrap();
            let release = format!(
                "Codename: {name}\nValid-Until: Thu, 01 Jan 2026 00:00:01 UTC\nSHA256:\n {} {} main/binary-amd64/Packages.xz\n",
                hex_sha256(&packages),
                packages.len()
            );
            let suite = name.replace(codename, "trixie");
            self.set(&format!("/{place}/dists/{suite}/InRelease"), TestKey::new(seed).sign(&release).into_bytes());
            self.set(&format!("/{place}/dists/{suite}/main/binary-amd64/Packages.xz"), packages);
        }
    }
}

fn bed_with(archive: &Archive, image: &str) -> Bed {
    let mut bed = Bed::new(image, "web");
    bed.mirror = Some(archive.url.clone());
    bed.write("index.html", "hello");
    bed
}

#[test]
fn packages_are_cut_down_to_what_runs() {
    let archive = Archive::new();
    let bed = bed_with(&archive, "packages = [\"web\"]");
    let first = bed.build().unwrap();
    assert!(first.report.lock_changed);
    let all = paths(&first);
    for path in [
        "usr/bin/web",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/x86_64-linux-gnu/libx.so.1",
        "usr/lib/x86_64-linux-gnu/libx.so.1.2",
        "usr/lib/x86_64-linux-gnu/x/libprivate.so",
        "usr/share/doc/libx/copyright",
        "var/lib/dpkg/status.d/libx",
        "usr/share/sbom/spdx.json",
    ] {
        assert!(all.contains(&path.to_owned()), "{path} is missing of {all:?}");
    }
    assert!(!all.contains(&"usr/bin/bash".to_owned()) && !all.contains(&"usr/share/big".to_owned()));
    let names: Vec<&str> = first.report.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, ["libc6", "libx", "web"]);

    // From here on nothing is asked of the archive.
    archive.files.lock().unwrap().clear();
    let second = bed.build_locked(true).unwrap();
    assert_eq!((second.id, second.report.lock_changed), (first.id, false));
    // Files lost from the cache come back from the packages.
    fs::remove_dir_all(bed.cache.path().join("files")).unwrap();
    assert_eq!(bed.build().unwrap().id, first.id);
}

#[test]
fn an_image_of_tools_has_the_programs_of_the_packages_that_are_named_and_is_marked() {
    let archive = Archive::new();
    let mut bed = bed_with(&archive, "packages = [\"web\"]\nto = \"/target\"");
    bed.write("secret.txt", "no part of it").write(".env", "A=b");
    let plain = bed_with(&archive, "packages = [\"web\"]\nto = \"/target\"").build().unwrap();
    bed.purpose = Purpose::Tools;
    let built = bed.build().unwrap();
    assert!(built.image.config().tools && !plain.image.config().tools);
    let all = paths(&built);
    for path in ["usr/bin/web", "usr/bin/bash", "usr/lib/x86_64-linux-gnu/libx.so.1", "target", "tmp", "proc", "dev"] {
        assert!(all.contains(&path.to_owned()), "{path} is missing of {all:?}");
    }
    assert!(!all.iter().any(|path| path.contains("secret") || path.contains("index.html") || path.contains(".env")));
    assert!(bed.folder.path().join("tools.lock").exists() && !bed.folder.path().join("bulkhead.lock").exists());
    assert_eq!(bed.build_locked(true).unwrap().id, built.id);
}

#[test]
fn another_machine_with_the_lock_file_builds_the_same() {
    let archive = Archive::new();
    let first = bed_with(&archive, "packages = [\"web\"]");
    let id = first.build().unwrap().id;
    let second = bed_with(&archive, "packages = [\"web\"]");
    second.write("bulkhead.lock", fs::read(first.folder.path().join("bulkhead.lock")).unwrap());
    assert_eq!(second.build_locked(true).unwrap().id, id);
}

/// Whoever writes to the cache or to the lock file of an operator's machine: what he gets, and no more.
#[test]
fn what_an_altered_cache_or_lock_file_gives() {
    let archive = Archive::new();
    let web = "packages = [\"web\"]";
    let bed = bed_with(&archive, web);
    let built = bed.build().unwrap();
    let lock = fs::read_to_string(bed.folder.path().join("bulkhead.lock")).unwrap();
    let program = |built: &Built| {
        let mut files = built.image.files();
        files.find(|(path, ..)| *path == b"usr/bin/web").map(|(_, size_bytes, digest)| (size_bytes, digest)).unwrap()
    };
    let (size_bytes, digest) = program(&built);
    let cached = built.sources.disk_path(&digest).unwrap().to_owned();
    let good = fs::read(&cached).unwrap();

    // Other contents of a package's file: the image names what the package holds, and the file is not that.
    let mut evil = good.clone();
    evil.push(b'!');
    fs::write(&cached, &evil[1..]).unwrap();
    let refused = chain(&bed.build().unwrap_err());
    assert!(refused.contains("/usr/bin/web begins like an ELF file but is not a whole one"), "{refused}");
    fs::write(&cached, &evil).unwrap();
    assert_eq!(program(&bed.build().unwrap()), (size_bytes, digest));
    assert_ne!(bulkhead_core::verity::digest(&evil), digest);
    fs::write(&cached, &good).unwrap();

    // What is kept of what a package holds: his code is in the next image, and the lock file says nothing of it.
    let evil_digest = bulkhead_core::verity::digest(&evil);
    let name = evil_digest.to_string();
    let directory = bed.cache.path().join("files").join(&name[..2]);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(&name[2..]), &evil).unwrap();
    for listing in fs::read_dir(bed.cache.path().join("packages")).unwrap() {
        let path = listing.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        if text.contains(&digest.to_string()) {
            let size = |size_bytes: u64| format!("\"size\":{size_bytes}");
            let text = text.replace(&digest.to_string(), &name).replace(&size(size_bytes), &size(evil.len() as u64));
            fs::write(&path, text).unwrap();
        }
    }
    let taken = bed.build_locked(true).unwrap();
    assert_eq!(program(&taken), (evil.len() as u64, evil_digest));
    assert_eq!(fs::read_to_string(bed.folder.path().join("bulkhead.lock")).unwrap(), lock);
    // By that another machine finds it out: from the same lock file it builds another image.
    let other = bed_with(&archive, web);
    other.write("bulkhead.lock", &lock);
    assert_eq!(other.build_locked(true).unwrap().id, built.id);

    // Another digest in the lock file: no package has it.
    let deb = "/debian/pool/web_1.0_amd64.deb";
    let pinned = hex_sha256(&archive.files.lock().unwrap()[deb]);
    let other = bed_with(&archive, web);
    other.write("bulkhead.lock", lock.replace(&pinned, &"0".repeat(64)));
    let failure = other.failure();
    assert!(failure.contains("web_1.0_amd64.deb has the sha256") && failure.contains("is expected"), "{failure}");

    // That of another file that the mirror has, such as an older version: not under the name of the one that it takes
    // the place of. It is taken where the lock file says what it is, for whoever reads its changes to see.
    let old = make("Package: web\nVersion: 0.9\nArchitecture: amd64\n", &[("./usr/bin/web", 0o755, &good)], "xz");
    let wanted = archive.files.lock().unwrap()[deb].len();
    let hidden = lock
        .replace(&pinned, &hex_sha256(&old))
        .replace("pool/web_1.0_amd64.deb", "pool/web_0.9_amd64.deb")
        .replace(&format!("size = {wanted}\n"), &format!("size = {}\n", old.len()));
    archive.set("/debian/pool/web_0.9_amd64.deb", old);
    let other = bed_with(&archive, web);
    other.write("bulkhead.lock", &hidden);
    let failure = other.failure();
    assert!(failure.contains("Version is `0.9` in it, and `1.0` where it is asked for"), "{failure}");
    let named = hidden.replace("name = \"web\"\nversion = \"1.0\"", "name = \"web\"\nversion = \"0.9\"");
    other.write("bulkhead.lock", named);
    let older = other.build_locked(true).unwrap();
    assert_ne!(older.id, built.id);
    assert!(older.report.packages.iter().any(|package| package.name == "web" && package.version == "0.9"));
}

#[test]
fn what_cannot_be_believed() {
    let check = |damage: &dyn Fn(&Archive), image: &str, kind: ErrorKind, expected: &[&str]| {
        let archive = Archive::new();
        damage(&archive);
        let bed = bed_with(&archive, image);
        let error = bed.build().unwrap_err();
        let message = chain(&error);
        assert_eq!(error.kind(), kind, "{message}");
        for part in expected {
            assert!(message.contains(part), "{message}");
        }
        assert!(!bed.folder.path().join("bulkhead.lock").exists());
    };
    let web = "packages = [\"web\"]";
    let nothing: &dyn Fn(&Archive) = &|_| {};
    let unknown: &dyn Fn(&Archive) = &|archive| archive.publish(2, "trixie");
    let older: &dyn Fn(&Archive) = &|archive| archive.publish(1, "bookworm");
    let index: &dyn Fn(&Archive) = &|archive| archive.change("Packages.xz");
    let package: &dyn Fn(&Archive) = &|archive| archive.change("libx_1.0");
    let empty: &dyn Fn(&Archive) = &|archive| archive.files.lock().unwrap().clear();
    let tampered: &dyn Fn(&Archive) = &|archive| {
        for (path, text) in archive.files.lock().unwrap().iter_mut() {
            if path.ends_with("InRelease") {
                *text = String::from_utf8(text.clone()).unwrap().replace("Valid-Until", "Valid-After").into_bytes();
            }
        }
    };
    check(unknown, web, ErrorKind::Remote, &["the index of suite trixie", "/dists/trixie/InRelease", "unknown key"]);
    check(tampered, web, ErrorKind::Remote, &["is not signed by a Debian archive key", "the text was changed"]);
    check(older, web, ErrorKind::Remote, &["is the index of `bookworm` and not of `trixie`"]);
    check(index, web, ErrorKind::Remote, &["Packages.xz has the sha256"]);
    check(package, web, ErrorKind::Remote, &["libx_1.0_amd64.deb has the sha256", "is expected"]);
    check(empty, web, ErrorKind::Remote, &["answers with status 404"]);
    check(nothing, "packages = [\"weeb\"]", ErrorKind::Configuration, &["no package `weeb`", "did you mean `web`?"]);
    let locked = bed_with(&Archive::new(), web).build_locked(true).unwrap_err();
    assert!(chain(&locked).contains("bulkhead.lock does not exist"), "{}", chain(&locked));
}

#[test]
fn versions_of_symbols_are_checked() {
    let archive = Archive::new();
    let bed = bed_with(&archive, "packages = [\"web\"]");
    bed.write(
        "a.node",
        Elf { needed: &["libc.so.6"], needs: Some(("libc.so.6", "GLIBC_9.99")), ..Elf::default() }.bytes(),
    );
    let failure = bed.failure();
    assert!(failure.contains("/app/a.node needs GLIBC_9.99 of libc.so.6"), "{failure}");
}

/// What follows downloads from Debian's ordinary mirror.
const HOST: &str = "http://deb.debian.org/debian/dists/trixie/InRelease";

fn debian_can_be_reached() -> bool {
    let config = ureq::Agent::config_builder().timeout_global(Some(std::time::Duration::from_secs(20))).build();
    let answer = ureq::Agent::from(config).get(HOST).call();
    if let Err(error) = &answer {
        let mut out = std::io::stderr().lock();
        writeln!(out, "skipped: Debian's mirror cannot be reached ({error})").unwrap();
    }
    answer.is_ok()
}

fn debian(image: &str, command: &str) -> Bed {
    let mut bed = Bed::new(image, command);
    bed.keyring = Keyring::debian().unwrap();
    bed
}

/// Lays an image out as a folder, as a node would show it.
#[cfg(target_os = "linux")]
fn lay_out(built: &Built) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().unwrap();
    for entry in built.image.entries() {
        let path = root.path().join(std::str::from_utf8(&entry.path).unwrap());
        match &entry.node {
            image::Node::Directory { .. } => fs::create_dir(&path).unwrap(),
            image::Node::Symlink { target } => {
                std::os::unix::fs::symlink(std::str::from_utf8(target).unwrap(), &path).unwrap();
            }
            image::Node::File { mode, digest, .. } => {
                let mut reader = built.sources.open(digest).unwrap().unwrap();
                io::copy(&mut reader, &mut fs::File::create(&path).unwrap()).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(u32::from(*mode))).unwrap();
            }
        }
    }
    root
}

#[cfg(target_os = "linux")]
fn run_in(root: &Path, command: &[&str]) -> Option<std::process::Output> {
    let chroot = ["/usr/sbin/chroot", "/usr/bin/chroot"].into_iter().find(|path| Path::new(path).exists())?;
    let output = std::process::Command::new(chroot).arg(root).args(command).env_clear().output().ok()?;
    if String::from_utf8_lossy(&output.stderr).contains("cannot change root directory") {
        return None;
    }
    Some(output)
}

#[test]
fn debians_node_runs_from_what_is_kept() {
    if !debian_can_be_reached() {
        return;
    }
    for suite in ["trixie", "bookworm", "forky"] {
        let image = format!("suite = \"{suite}\"\npackages = [\"nodejs\", \"ca-certificates\"]");
        let bed = debian(&image, "node");
        bed.write("server.js", SERVER).write("module.mjs", MODULE).write("common.cjs", "exports.named = 1;");
        let built = bed.build().unwrap_or_else(|error| panic!("{suite}: {}", chain(&error)));
        let all = paths(&built);
        assert!(all.iter().all(|path| !path.ends_with("/sh") && !path.contains("corepack")), "{all:?}");
        assert!(all.contains(&"etc/ssl/certs/ca-certificates.crt".to_owned()));
        // Offline and from the lock file: the same.
        let mut again = bed;
        again.mirror = Some("http://127.0.0.1:9/debian".into());
        assert_eq!(again.build_locked(true).unwrap().id, built.id);
        #[cfg(target_os = "linux")]
        {
            let root = lay_out(&built);
            for (command, expected) in [
                (["/usr/bin/node", "/app/server.js"].as_slice(), "200 hello"),
                (&["/usr/bin/node", "/app/module.mjs"], "1 42"),
            ] {
                let Some(output) = run_in(root.path(), command) else {
                    let mut out = std::io::stderr().lock();
                    writeln!(out, "skipped: running the image needs root and chroot").unwrap();
                    return;
                };
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!((text.trim(), output.status.success()), (expected, true), "{suite} {command:?}: {error}");
            }
        }
    }
}

/// Serves, asks itself by name with `fetch`, and looks at what Debian's build loads from files.
const SERVER: &str = r#"
const http = require('http'), crypto = require('crypto'), zlib = require('zlib');
crypto.createHash('sha256').update('x').digest('hex');
zlib.brotliCompressSync('x');
new Intl.DateTimeFormat('de', { timeZone: 'Europe/Berlin' }).format(0);
const server = http.createServer((request, response) => response.end('hello'));
server.listen(0, '127.0.0.1', async () => {
  const answer = await fetch(`http://localhost:${server.address().port}/`).catch((error) => ({ status: String(error.cause), text: () => '' }));
  console.log(answer.status, await answer.text());
  server.close();
});
"#;

/// Imports a CommonJS module by name: that takes cjs-module-lexer.
const MODULE: &str =
    "import { named } from './common.cjs';\nconst value = await Promise.resolve(42);\nconsole.log(named, value);\n";

#[test]
fn python_needs_its_library_named() {
    if !debian_can_be_reached() {
        return;
    }
    let bare = debian("packages = [\"python3-minimal\"]", "python3").build().unwrap();
    assert!(bare.report.warnings.iter().any(|finding| finding.rule == Rule::RuntimeData), "{:?}", bare.report.warnings);
    let image = "packages = [\"python3\", \"tzdata\"]\nkeep = [\"/usr/lib/python3.13\"]";
    let bed = debian(image, "python3");
    bed.write("a.py", "import json, sqlite3, ssl, hashlib, zoneinfo; print(zoneinfo.ZoneInfo('Europe/Berlin'))");
    let built = bed.build().unwrap_or_else(|error| panic!("{}", chain(&error)));
    #[cfg(target_os = "linux")]
    if let Some(output) = run_in(lay_out(&built).path(), &["/usr/bin/python3", "/app/a.py"]) {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "Europe/Berlin", "{error}");
    }
    let _ = built;
}

#[test]
fn a_package_that_debian_does_not_have() {
    if !debian_can_be_reached() {
        return;
    }
    let failure = debian("packages = [\"nodesj\"]", "node").failure();
    assert!(failure.contains("`nodesj` in Debian trixie: did you mean `nodejs`"), "{failure}");
}
