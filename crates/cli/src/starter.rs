//! What `bulkhead init` writes: first versions of a person's files, guessed
//! from the folder. Pure: text in, text out.

use bulkhead_core::{
    FleetName, PersonName,
    name::NAME_MAX,
    notice::Revoked,
    policy::{Demand, Environment, Key, Policy, Role, Root},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

/// A name made from any text: what does not fit is dropped; nothing left gives `fallback`.
#[must_use]
pub(crate) fn name_from<N: FromStr>(text: &str, fallback: &str) -> Option<N> {
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            'a'..='z' => name.push(c),
            '0'..='9' if !name.is_empty() => name.push(c),
            '-' | '_' | '.' | ' ' if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
        if name.len() == NAME_MAX {
            break;
        }
    }
    let name = name.trim_end_matches('-');
    name.parse().or_else(|_| fallback.parse()).ok()
}

/// A first `fleet.toml`.
#[must_use]
pub(crate) fn fleet(name: &FleetName) -> String {
    format!(
        "# The nodes of this fleet and how to reach them. Holds nothing secret: check it in.\n\
         fleet = \"{name}\"\n\
         \n\
         # `bulkhead local up` adds nodes on this machine. A machine of yours looks like this:\n\
         #\n\
         # [nodes.prod-1]\n\
         # environment = \"production\"\n\
         # address = \"203.0.113.7\"\n\
         # host_key = \"ssh-ed25519 AAAA…\"\n"
    )
}

/// A first policy: one person's key is its root, may sign orders and may connect.
#[must_use]
pub(crate) fn policy(fleet: &FleetName, person: &PersonName, key: &str) -> Policy {
    let environments = ["staging", "production"];
    let environment = Environment::accepting(Demand::release(1));
    let roles = BTreeSet::from([Role::Release, Role::Courier, Role::Observe, Role::Operate]);
    Policy {
        format: 1,
        fleet: fleet.clone(),
        version: 1,
        root: Root { threshold: 1, keys: vec![key.to_owned()], verify_user: false },
        keys: [(person.clone(), Key { key: key.to_owned(), roles, verify_user: false })].into(),
        environments: environments.iter().filter_map(|name| Some((name.parse().ok()?, environment.clone()))).collect(),
        nodes: BTreeMap::new(),
        revoked: Revoked::default(),
    }
}

/// What the folder holds that a manifest can be guessed from.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The text of `package.json`.
    pub(crate) package_json: Option<String>,
    /// Names of files in the folder.
    pub(crate) files: Vec<String>,
}

/// A first `bulkhead.toml`.
#[must_use]
pub(crate) fn manifest(app: &str, found: &Found) -> String {
    let mut text =
        format!("# What {app} is made of and how it runs. All keys: docs/manifest.md.\napp = \"{app}\"\n\n[image]\n");
    let command = match &found.package_json {
        Some(package) => {
            text.push_str(
                "# Debian packages, cut down to what runs. Install your own dependencies first: `npm ci --omit=dev`.\n\
                 packages = [\"nodejs\"]\n",
            );
            vec!["node".to_owned(), node_entry(package, &found.files)]
        }
        None => {
            putln!(
                text,
                "# The program is linked statically or brings its libraries; Debian packages can be named here.\n\
                 packages = []\n\
                 # Only the program goes in; leave `exclude` out to copy the whole folder.\n\
                 exclude = [\"*\", \"!{app}\"]"
            );
            vec![format!("/app/{app}")]
        }
    };
    let words: Vec<String> = command.iter().map(|word| format!("{word:?}")).collect();
    put!(
        text,
        "\n[services.web]\n\
         command = [{}]\n\
         # The port it listens on inside its own private network; nothing listens on the node itself.\n\
         port = 3000\n\
         env = {{ PORT = \"3000\" }}\n\
         # Healthy when a GET of this path answers with 200 to 399. Leave it out to check the port alone.\n\
         health = {{ http = \"/\", within = \"30s\" }}\n\
         memory = \"256M\"\n\
         # Data that outlives releases: volume = directory.\n\
         # volumes = {{ data = \"/var/lib/{app}\" }}\n\
         \n\
         # What differs in one environment.\n\
         # [environments.production.services.web]\n\
         # memory = \"1G\"\n",
        words.join(", ")
    );
    text
}

/// The script that a Node.js package starts with.
fn node_entry(package_json: &str, files: &[String]) -> String {
    let package: serde_json::Value = serde_json::from_str(package_json).unwrap_or_default();
    let started = package["scripts"]["start"].as_str().and_then(|script| script.strip_prefix("node "));
    let plain = |path: &&str| !path.is_empty() && path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    if let Some(script) = started.map(str::trim).filter(plain) {
        return script.to_owned();
    }
    if let Some(main) = package["main"].as_str().filter(plain) {
        return main.to_owned();
    }
    let usual = ["server.js", "server.mjs", "index.js", "index.mjs", "app.js", "main.js"];
    usual.into_iter().find(|name| files.iter().any(|file| file == name)).unwrap_or("server.js").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        AppName,
        fleet::Fleet,
        manifest::{Manifest, parse_toml},
    };

    #[test]
    fn names_from_folders() {
        for (text, name) in [
            ("My App", "my-app"),
            ("2024_site.v2", "site-v2"),
            ("---", "app"),
            ("ünïcode", "ncode"),
            ("trailing-", "trailing"),
            (&"x".repeat(60), &"x".repeat(40)),
        ] {
            assert_eq!(name_from::<AppName>(text, "app").unwrap().as_str(), name, "{text}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let node = Found { package_json: Some(r#"{"scripts":{"start":"node src/server.js"}}"#.into()), files: vec![] };
        for found in [Found::default(), node] {
            let manifest = Manifest::parse(&manifest("notes", &found)).unwrap();
            assert_eq!(manifest.services.len(), 1);
        }
        let fleet_name: FleetName = "acme".parse().unwrap();
        assert_eq!(parse_toml::<Fleet>(&fleet(&fleet_name)).unwrap().fleet, fleet_name);
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q ada";
        let policy = policy(&fleet_name, &"ada".parse().unwrap(), key);
        assert_eq!(Policy::parse(&policy.to_bytes()), Ok(policy));
    }

    #[test]
    fn what_a_node_package_starts_with() {
        let entry = |package: &str, files: &[&str]| {
            node_entry(package, &files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(entry(r#"{"scripts":{"start":"node a.js"},"main":"b.js"}"#, &[]), "a.js");
        assert_eq!(entry(r#"{"scripts":{"start":"node a.js && b"},"main":"b.js"}"#, &[]), "b.js");
        assert_eq!(entry("{}", &["index.js"]), "index.js");
        assert_eq!(entry("not json", &[]), "server.js");
    }
}
