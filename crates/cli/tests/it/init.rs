//! `bulkhead init`.

use crate::Folder;
use bulkhead_core::{
    fleet::Fleet,
    manifest::{Manifest, parse_toml},
    policy::Policy,
};

#[test]
fn writes_what_is_missing_and_never_overwrites() {
    let folder = Folder::new();
    folder.write("package.json", r#"{"scripts":{"start":"node src/main.js"}}"#);
    let ran = folder.run("-o json init --new-key key");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let written = ["bulkhead.toml", "fleet.toml", "policy.json", "policy.json.sig"];
    assert_eq!(report["written"], serde_json::json!(written));

    let manifest = Manifest::parse(&folder.read("bulkhead.toml")).unwrap();
    assert_eq!(manifest.services.values().next().unwrap().command, ["node", "src/main.js"]);
    let fleet: Fleet = parse_toml(&folder.read("fleet.toml")).unwrap();
    let policy = folder.read("policy.json");
    let signatures: Vec<String> = serde_json::from_str(&folder.read("policy.json.sig")).unwrap();
    let verified = bulkhead_trust::pin_first_policy(policy.as_bytes(), &signatures, &fleet.fleet).unwrap();
    let policy: &Policy = verified.value();
    assert_eq!(policy.root.keys, [folder.read("key.pub").trim()]);
    assert_eq!(policy.environments.len(), 2);

    let before: Vec<String> = written.iter().map(|name| folder.read(name)).collect();
    let ran = folder.run("-o json init");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["written"], &report["kept"]), (&serde_json::json!([]), &serde_json::json!(written)));
    assert_eq!(before, written.iter().map(|name| folder.read(name)).collect::<Vec<_>>());
}

#[test]
fn signs_a_policy_whose_signature_is_missing() {
    let folder = Folder::initialised();
    let before = folder.read("policy.json");
    std::fs::remove_file(folder.path().join("policy.json.sig")).unwrap();
    let ran = folder.run("init");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let output = folder.command().env("BULKHEAD_KEY", folder.path().join("key")).arg("init").output().unwrap();
    assert!(output.status.success());
    assert_eq!(folder.read("policy.json"), before);
    assert!(folder.path().join("policy.json.sig").is_file());
}

#[test]
fn an_app_below_a_fleet_gets_a_manifest_alone() {
    let folder = Folder::initialised();
    std::fs::create_dir(folder.path().join("shop")).unwrap();
    let ran = folder.run("-C shop -o json init");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["written"], serde_json::json!(["bulkhead.toml"]));
    assert_eq!(Manifest::parse(&folder.read("shop/bulkhead.toml")).unwrap().app.as_str(), "shop");
}

#[test]
fn without_a_key_it_says_how_to_make_one() {
    let folder = Folder::new();
    let ran = folder.run("init");
    insta::assert_snapshot!(ran.all());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
