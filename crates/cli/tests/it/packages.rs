//! Debian packages that are not to be had or not to be believed. What a real archive lacks is tested in the
//! image crate, which has an archive of its own.

use crate::{Folder, Ran};
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

const MANIFEST: &str =
    "app = \"a\"\n[image]\npackages = [\"nodejs\"]\n[services.web]\ncommand = [\"node\", \"x.js\"]\n";

fn build(mirror: &str) -> Ran {
    let folder = Folder::with(&[("bulkhead.toml", MANIFEST), ("x.js", "")]);
    let output = folder.command().env("BULKHEAD_MIRROR", mirror).arg("build").output().unwrap();
    assert!(!folder.path().join("bulkhead.lock").exists());
    folder.ran(&output)
}

#[test]
fn an_index_that_is_not_signed_by_debian() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("http://{}/debian", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Whatever is asked: text that looks like an index and is signed by nobody.
            let text = "Origin: Debian\nSuite: stable\nCodename: trixie\nSHA256:\n";
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok_and(|count| count > 0) {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
                stream.write_all(&[head.as_bytes(), text.as_bytes()].concat()).ok();
            }
        }
    });
    let ran = build(&mirror);
    assert!([3, 4].contains(&ran.code), "{}", ran.all());
    assert!(ran.stderr.contains("is not signed by a Debian archive key"), "{}", ran.all());
}

#[test]
fn a_mirror_that_cannot_be_reached() {
    let ran = build("http://127.0.0.1:9/debian");
    assert_eq!(ran.code, 4, "{}", ran.all());
    assert!(
        ran.stderr.contains("http://127.0.0.1:9/debian") && ran.stderr.contains("cannot be reached"),
        "{}",
        ran.all()
    );
}
