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

/// One rule for all commands: a node that the command line names and fleet.toml does not have is a wrong command line.
#[test]
fn nodes_that_are_not_there() {
    let folder = Folder::initialised();
    folder.write("bulkhead.toml", MANIFEST);
    let other = "[nodes.stage-1]\nenvironment = \"staging\"\naddress = \"192.0.2.2\"\n";
    folder.write("fleet.toml", &format!("{}{}{other}", folder.read("fleet.toml"), FLEET.split_once('\n').unwrap().1));
    for words in [
        "attack -e production",
        "audit",
        "audit -e production",
        "look -e production notes/web --node",
        "open -e production notes/web 8080 --node",
        "promote production staging --yes --node",
        "rollback -e production notes --yes --node",
        "standing -e production --uses 1 --days 1 --yes --node",
        "node release --yes",
    ] {
        for (node, says) in [("prod-2", "did you mean `prod-1`?"), ("nobody", "there are"), ("stage-1", "`staging`")] {
            // To these any node is right.
            if node == "stage-1" && (words == "audit" || words.starts_with("node release")) {
                continue;
            }
            let ran = folder.run(&format!("{words} {node}"));
            assert!(ran.code == 2 && ran.stderr.contains(says), "{words} {node}: {}", ran.all());
        }
    }
}

/// The policy says it, so no tool image need be built to find it out.
#[test]
fn whoever_may_not_look_waits_for_no_tools() {
    let folder = Folder::initialised();
    let tools = "[tools]\npackages = [\"strace\"]\n";
    folder.write("fleet.toml", &format!("{}{}{tools}", folder.read("fleet.toml"), FLEET.split_once('\n').unwrap().1));
    let run = |words: &str| {
        let mut command = folder.command();
        // Whoever builds goes here, and fails.
        command.env("BULKHEAD_MIRROR", "http://127.0.0.1:1/").env("BULKHEAD_KEY", folder.path().join("key"));
        folder.ran(&command.args(words.split_whitespace()).output().unwrap())
    };
    let key = folder.path().join("ci");
    let made = std::process::Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key).status();
    assert!(made.unwrap().success());
    let require = "policy require -e production green+release --green-key ci.pub --yes --only-propose";
    assert_eq!(run(require).code, 0);
    // Its only node is away.
    assert_eq!(run("policy push --yes").code, 4);
    let ran = run("look -e production notes/web -- strace -c -p 1");
    assert!(ran.code == 5 && ran.stderr.contains("the policy lets nobody look with tools"), "{}", ran.all());
    assert!(ran.stderr.contains("policy require -e production --look NUMBER"), "{}", ran.all());
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
