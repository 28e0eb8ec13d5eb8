//! Policies as files that people pass around, without a node.

use crate::{Folder, Ran};
use bulkhead_cli::notices::{notices, revoked};
use bulkhead_core::{notice::Revoked, policy::Policy};
use bulkhead_wire::Paper;
use std::process::Command;

impl Folder {
    /// Runs the program with a key of this folder.
    fn run_with_key(&self, words: &str, key: &str) -> Ran {
        let words: Vec<&str> = words.split_whitespace().collect();
        let output = self.command().env("BULKHEAD_KEY", self.path().join(key)).args(words).output().unwrap();
        self.ran(&output)
    }

    fn key(&self, name: &str) {
        let status = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(self.path().join(name))
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn policy(&self) -> Policy {
        Policy::parse(self.read("policy.json").as_bytes()).unwrap()
    }
}

fn says(ran: &Ran, code: i32, words: &str) {
    assert!(ran.code == code && (ran.stdout.contains(words) || ran.stderr.contains(words)), "{words}: {}", ran.all());
}

#[test]
fn one_person_changes_it_in_one_command() {
    let folder = Folder::initialised();
    folder.key("ci");
    let require = "policy require -e production green+release --green-key ci.pub --break-glass 1 --yes";
    says(&folder.run_with_key(require, "key"), 0, "green and 1 release key");
    let policy = folder.policy();
    assert_eq!((policy.version, policy.keys.len()), (2, 2));
    assert_eq!(policy.environments[&"production".parse().unwrap()].break_glass, Some(1));
    assert_eq!(policy.environments[&"staging".parse().unwrap()].shown(), "1 release key");
    // Without a key at hand it stays a proposal.
    says(&folder.run("key revoke ci --yes"), 3, "demands 1 green keys, the policy has 0");
    says(&folder.run("policy require -e staging 2-release --yes"), 3, "demands 2 release keys, the policy has 1");
    let ran = folder.run("policy require -e canary release --yes");
    says(&ran, 0, "signed by nobody yet");
    assert_eq!(folder.policy().version, 2);
    says(&folder.run("policy diff"), 0, "+    \"canary\": {");
    says(&folder.run("policy drop"), 0, "policy version 2");
    says(&folder.run("policy diff"), 3, "nothing is proposed");
}

#[test]
fn a_root_key_under_no_name_is_shown_and_taken_out() {
    let folder = Folder::initialised();
    folder.key("safe");
    folder.write("box.pub", &folder.read("safe.pub").replace(" safe", " root@a-machine"));
    for (file, shown) in [("safe.pub", " noted as `safe`"), ("box.pub", "")] {
        says(&folder.run_with_key(&format!("policy roots 1 key.pub {file} --yes"), "key"), 0, "of 2 root key(s)");
        let ran = folder.run("policy show");
        let line = ran.stdout.lines().find(|line| line.contains("root key(s)")).unwrap().to_owned();
        let print = line.split([' ', ',']).rfind(|word| word.starts_with("SHA256:"));
        let print = print.unwrap().to_owned();
        assert!(line.ends_with(&format!("{print}{shown}")), "{line}");
        says(&folder.run_with_key("key revoke safe --yes", "key"), 3, &print);
        says(&folder.run_with_key("key revoke SHA256:else --yes", "key"), 3, "with the fingerprint SHA256:else");
        says(&folder.run_with_key(&format!("key revoke {print} --yes"), "key"), 0, "of 1 root key(s)");
        says(&folder.run_with_key("key revoke safe.pub --yes", "key"), 3, "no key like that of safe.pub");
    }
    says(&folder.run_with_key("key revoke ada --yes", "key"), 3, "bulkhead policy roots THRESHOLD KEY");
}

#[test]
fn two_roots_pass_a_proposal_around() {
    let folder = Folder::initialised();
    folder.key("bob");
    says(&folder.run_with_key("key add bob bob.pub --role root --yes", "key"), 0, "policy version 2");
    folder.write("editor", "#!/bin/sh\nsed -i 's/\"threshold\": 1/\"threshold\": 2/' \"$1\"\n");
    let output = folder
        .command()
        .env("BULKHEAD_KEY", folder.path().join("key"))
        .env("EDITOR", format!("sh {}", folder.path().join("editor").display()))
        .args(["policy", "edit", "--yes"])
        .output()
        .unwrap();
    says(&folder.ran(&output), 0, "wanting: 0 of the present root keys, 1 of the new");
    says(
        &folder.run_with_key("policy sign --yes", "key"),
        3,
        "none of the keys at hand is a root key that has yet to sign",
    );
    says(&folder.run("policy push --yes"), 3, "proposed and NOT in force");
    says(&folder.run_with_key("policy sign --yes", "bob"), 0, "policy version 3");
    assert_eq!(folder.policy().root.threshold, 2);
    // A change of the proposal makes its signatures worth nothing.
    folder.key("eve");
    says(&folder.run_with_key("key add eve eve.pub --role observe --yes", "key"), 0, "wanting: 1 of the present");
    says(&folder.run_with_key("key add eve eve.pub --role operate --yes", "bob"), 0, "wanting: 1 of the present");
    says(&folder.run_with_key("policy sign --yes", "key"), 0, "policy version 4");
    let stock = Command::new("ssh-keygen")
        .args(["-Y", "check-novalidate", "-n", "policy@bulkhead", "-s"])
        .arg(folder.write(
            "one.sig",
            serde_json::from_str::<Vec<String>>(&folder.read("policy.json.sig")).unwrap()[0].as_str(),
        ))
        .stdin(std::fs::File::open(folder.path().join("policy.json")).unwrap())
        .output()
        .unwrap();
    assert!(stock.status.success(), "{stock:?}");
}

#[test]
fn a_policy_that_somebody_else_put_here_is_not_believed() {
    let folder = Folder::initialised();
    says(&folder.run_with_key("policy require -e canary release --yes", "key"), 0, "policy version 2");
    let good: Vec<(&str, String)> = ["policy.json", "policy.json.sig"].map(|name| (name, folder.read(name))).to_vec();
    // Another fleet of the same name, with keys of its own: it vouches for itself.
    let fleet = folder.read("fleet.toml");
    let stranger = Folder::with(&[("fleet.toml", &fleet)]);
    assert_eq!(stranger.run("init --new-key key").code, 0);
    for name in ["policy.json", "policy.json.sig"] {
        folder.write(name, &stranger.read(name));
    }
    says(&folder.run("policy show"), 5, "this machine has seen version 2 here");
    for (words, version) in [("canary", 2), ("third", 3)] {
        let command = format!("policy require -e {words} release --yes");
        says(&stranger.run_with_key(&command, "key"), 0, &format!("policy version {version}"));
    }
    for name in ["policy.json", "policy.json.sig", ".bulkhead/policies/2.json", ".bulkhead/policies/3.json"] {
        folder.write(name, &stranger.read(name));
    }
    says(&folder.run("policy show"), 5, "does not follow from the one that this machine knows");
    says(&folder.run("policy require -e x release --yes"), 5, "does not follow");
    for (name, text) in &good {
        folder.write(name, text);
    }
    says(&folder.run("policy show"), 0, "policy version 2");
}

#[test]
fn an_interruption_between_the_two_files_costs_nothing() {
    let folder = Folder::initialised();
    let old: Vec<(&str, String)> = ["policy.json", "policy.json.sig"].map(|name| (name, folder.read(name))).to_vec();
    says(&folder.run_with_key("policy require -e canary release --yes", "key"), 0, "policy version 2");
    let new: Vec<(&str, String)> = ["policy.json", "policy.json.sig"].map(|name| (name, folder.read(name))).to_vec();
    // The new document with the old signatures.
    folder.write(old[1].0, &old[1].1);
    says(&folder.run("policy show"), 0, "policy version 2");
    // The old document with the new signatures, on a machine that has seen nothing.
    folder.write(old[0].0, &old[0].1);
    folder.write(new[1].0, &new[1].1);
    std::fs::remove_dir_all(folder.path().join("home")).unwrap();
    says(&folder.run("policy show"), 0, "policy version 1");
}

#[test]
fn an_editor_that_changes_nothing_proposes_nothing() {
    let folder = Folder::initialised();
    let output = folder.command().env("EDITOR", "true").args(["policy", "edit", "--yes"]).output().unwrap();
    says(&folder.ran(&output), 2, "nothing was changed");
    assert!(!folder.path().join("policy.next.json").exists());
}

#[test]
fn what_is_declined_is_not_proposed() {
    let folder = Folder::initialised();
    folder.key("bob");
    let ask = "policy require -e canary release";
    // Without a terminal nobody can be asked, and nothing may be left of the question.
    says(&folder.run(ask), 2, "there is no terminal to ask at");
    assert!(!folder.path().join("policy.next.json").exists());
    // A proposal that others have signed survives a change that makes no sense.
    says(&folder.run_with_key("key add bob bob.pub --role root --yes --only-propose", "key"), 0, "signed enough");
    let before = folder.read("policy.next.json.sig");
    says(&folder.run("policy require -e staging 9-release --yes"), 3, "demands 9 release keys");
    assert_eq!(folder.read("policy.next.json.sig"), before);
    says(&folder.run("policy push --yes"), 0, "policy version 2");
}

#[test]
fn what_is_left_of_an_enacted_proposal_is_none() {
    let folder = Folder::initialised();
    says(&folder.run_with_key("policy require -e canary release --yes --only-propose", "key"), 0, "signed enough");
    let left = ["policy.next.json", "policy.next.json.sig"].map(|name| (name, folder.read(name)));
    says(&folder.run("policy push --yes"), 0, "policy version 2");
    for (name, text) in &left {
        folder.write(name, text);
    }
    says(&folder.run("policy push --yes"), 0, "policy version 2");
    says(&folder.run("policy diff"), 3, "nothing is proposed");
}

#[test]
fn notices_are_kept_for_nodes_that_come_later() {
    let folder = Folder::initialised();
    let order = "ab".repeat(32);
    let ran = folder.run_with_key(&format!("revoke --order {order} --reason lost --yes"), "key");
    says(
        &ran,
        0,
        "there is no node yet; it is kept in .bulkhead/notices, and machines that a loop buys are brought it",
    );
    says(&folder.run_with_key("policy heartbeat", "key"), 0, "it is kept in .bulkhead/notices");
    let papers: Vec<Paper> = notices(folder.path()).unwrap().into_iter().map(|(paper, _)| paper).collect();
    assert_eq!(papers, [Paper::Revocation, Paper::Heartbeat]);
    let of = |policy: &Policy| revoked(folder.path(), policy).unwrap().orders;
    let policy = folder.policy();
    assert_eq!(of(&policy), [order.parse().unwrap()].into());
    // Whoever signed it must be somebody by the policy.
    let other = Folder::initialised();
    assert!(of(&Policy { fleet: policy.fleet.clone(), ..other.policy() }).is_empty());
    // What the policy itself revokes counts too.
    let more = "cd".repeat(32).parse().unwrap();
    let listed = Revoked { orders: [more].into(), ..Revoked::default() };
    assert_eq!(of(&Policy { revoked: listed, ..policy }), [order.parse().unwrap(), more].into());
    // A node that is away is brought it later.
    let fleet =
        folder.read("fleet.toml") + "\n[nodes.a]\nenvironment = \"staging\"\naddress = \"127.0.0.1\"\nport = 1\n";
    folder.write("fleet.toml", &fleet);
    let ran = folder.run_with_key(&format!("revoke --order {order} --reason lost --yes"), "key");
    says(&ran, 4, "it is kept in .bulkhead/notices");
}
