//! Signatures that stock `ssh-keygen -Y verify` accepts.

use crate::{Agent, make_key, program};
use bulkhead_fleet::{
    Identities,
    sign::{SignError, Signer},
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

const MESSAGE: &[u8] = b"a message\n";

async fn check(identities: &Identities, public: &str, directory: &Path) {
    let keygen = program("ssh-keygen").unwrap();
    let signer = Signer::find(identities, [public]).await.unwrap();
    let signature = signer.sign("order@bulkhead", MESSAGE).await.unwrap();
    fs::write(directory.join("allowed"), format!("ann {public}")).unwrap();
    fs::write(directory.join("message.sig"), signature).unwrap();
    fs::write(directory.join("message"), MESSAGE).unwrap();
    for (namespace, good) in [("order@bulkhead", true), ("policy@bulkhead", false)] {
        let verified = Command::new(&keygen)
            .args(["-Y", "verify", "-I", "ann", "-n", namespace, "-f"])
            .arg(directory.join("allowed"))
            .arg("-s")
            .arg(directory.join("message.sig"))
            .stdin(fs::File::open(directory.join("message")).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert_eq!(verified.unwrap().success(), good, "{namespace}");
    }
}

#[tokio::test]
async fn ssh_keygen_accepts_them() {
    if program("ssh-keygen").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    make_key(&path("key"), "");
    make_key(&path("other"), "");
    let public = |name: &str| fs::read_to_string(path(name).with_extension("pub")).unwrap();
    let mut files = Identities::new(directory.path()).with_file(path("other")).with_file(path("key"));
    files.agent = None;
    check(&files, &public("key"), directory.path()).await;

    let Some(agent) = Agent::start(&[path("other"), path("key")]) else { return };
    let mut held = Identities::new(directory.path());
    held.agent = Some(agent.address());
    check(&held, &public("key"), directory.path()).await;

    make_key(&path("elsewhere"), "");
    let error = Signer::find(&held, [public("elsewhere").as_str()]).await.unwrap_err();
    assert!(matches!(&error, SignError::NoKey { wanted, .. } if wanted.len() == 1), "{error}");
    let error = Signer::find(&held, ["ssh-rsa AAAA"]).await.unwrap_err();
    assert!(matches!(error, SignError::Wanted { .. }), "{error}");
}
