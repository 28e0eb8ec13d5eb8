//! What bad input gets: a sentence, an exit code, and nothing changed.

use crate::Folder;

const MANIFEST: &str = "app = \"notes\"\n[services.web]\ncommand = [\"node\", \"server.js\"]\nport = 3000\n";
const FLEET: &str = "fleet = \"acme\"\n[nodes.prod-1]\nenvironment = \"production\"\naddress = \"192.0.2.1\"\n";

#[test]
fn help() {
    insta::assert_snapshot!(Folder::new().run("--help").all());
}

#[test]
fn manifests() {
    let check = |name: &str, manifest: &str| {
        let folder = Folder::with(&[("bulkhead.toml", manifest)]);
        let ran = folder.run("build");
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        insta::assert_snapshot!(name, ran.all());
    };
    check("manifest_unknown_key", "app = \"a\"\n[services.web]\ncomand = [\"node\"]\n");
    check("manifest_wrong_type", "app = \"a\"\n[services.web]\ncommand = \"node\"\n");
    check("manifest_port_out_of_range", "app = \"a\"\n[services.web]\ncommand = [\"node\"]\nport = 70000\n");
    check("manifest_duplicate_service", "app = \"a\"\n[services.web]\ncommand = [\"node\"]\n[services.web]\n");
    check(
        "manifest_health_without_port",
        "app = \"a\"\n[services.web]\ncommand = [\"x\"]\nhealth = { http = \"/\" }\n",
    );
    let unknown_service = "app = \"a\"\n[services.web]\ncommand = [\"x\"]\n[environments.p.services.wep]\n";
    check("manifest_unknown_service", unknown_service);
}

#[test]
fn files_that_are_missing_or_wrong() {
    let check = |name: &str, files: &[(&str, &str)], words: &str, code: i32| {
        let ran = Folder::with(files).run(words);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        insta::assert_snapshot!(name, ran.all());
    };
    check("no_manifest", &[], "build", 3);
    check("no_fleet", &[("bulkhead.toml", MANIFEST)], "plan -e staging", 3);
    check("no_fleet_json", &[("bulkhead.toml", MANIFEST)], "-o json plan -e staging", 3);
    check(
        "fleet_unknown_key",
        &[("fleet.toml", "fleet = \"a\"\n[nodes.n]\nenvironment = \"p\"\nadress = \"x\"\n")],
        "ps",
        3,
    );
    check("no_policy", &[("fleet.toml", FLEET)], "ps", 3);
    let unsigned = r#"{"format":1,"fleet":"acme","version":1,"root":{"threshold":1,"keys":["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q"]},"keys":{},"environments":{}}"#;
    let files = [("fleet.toml", FLEET), ("policy.json", unsigned), ("policy.json.sig", "[]")];
    check("policy_not_signed", &files, "ps", 3);
    check("no_such_folder", &[], "-C nowhere build", 2);
}

#[test]
fn environments() {
    let folder = Folder::initialised();
    folder.write("bulkhead.toml", MANIFEST);
    folder.write("fleet.toml", &format!("{}{}", folder.read("fleet.toml"), FLEET.split_once('\n').unwrap().1));
    let check = |name: &str, words: &str, code: i32| {
        let ran = folder.run(words);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        insta::assert_snapshot!(name, ran.all());
    };
    check("unknown_environment", "plan -e prodution", 3);
    check("environment_needed", "plan", 2);
    check("no_terminal_without_yes", "deploy -e production", 2);
    check("no_terminal_without_yes_rm", "rm -e production notes", 2);
    check("bad_target", "open -e production notes", 2);
    check("promote_to_itself", "promote production production --yes", 2);
    check("look_needs_a_path", "look -e production notes/web -- cat", 2);
    folder.write("bulkhead.toml", &format!("{MANIFEST}[environments.production]\nnodes = [\"prod-2\"]\n"));
    check("manifest_names_unknown_node", "plan -e production", 3);
}

#[test]
fn a_changed_policy_is_refused() {
    let folder = Folder::initialised();
    folder.write("policy.json", &folder.read("policy.json").replace("\"version\": 1", "\"version\": 2"));
    let ran = folder.run("ps");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("policy.json: the policy needs 1 of its 1 root keys"), "{}", ran.stderr);
}

#[test]
fn usage_errors_as_json() {
    let ran = Folder::new().run("-o json deploy");
    assert_eq!(ran.code, 2);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&report["error"]["kind"], &report["error"]["exit_code"]), (&"usage".into(), &2.into()));
}
