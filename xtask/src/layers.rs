//! The direction of dependencies between the workspace's crates.
//!
//! The table is ARCHITECTURE.md's code map. cargo itself refuses circles, but
//! not that `core` begins to use `store`, or the agent what only an operator's machine needs.

use crate::run;
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// A crate and the workspace's crates that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("bulkhead-core", &[]),
    ("bulkhead-scale", &["bulkhead-core"]),
    ("bulkhead-provider", &["bulkhead-core", "bulkhead-scale"]),
    ("bulkhead-trust", &["bulkhead-core"]),
    ("bulkhead-wire", &["bulkhead-core"]),
    ("bulkhead-store", &["bulkhead-core"]),
    ("bulkhead-image", &["bulkhead-core", "bulkhead-store"]),
    ("bulkhead-fleet", &["bulkhead-core", "bulkhead-trust", "bulkhead-wire", "bulkhead-store"]),
    ("bulkhead-agent", &["bulkhead-core", "bulkhead-trust", "bulkhead-wire", "bulkhead-store"]),
    (
        "bulkhead-pool",
        &[
            "bulkhead-core",
            "bulkhead-trust",
            "bulkhead-wire",
            "bulkhead-store",
            "bulkhead-fleet",
            "bulkhead-scale",
            "bulkhead-provider",
        ],
    ),
    (
        "bulkhead-cli",
        &[
            "bulkhead-core",
            "bulkhead-trust",
            "bulkhead-wire",
            "bulkhead-store",
            "bulkhead-image",
            "bulkhead-fleet",
            "bulkhead-scale",
            "bulkhead-provider",
            "bulkhead-pool",
        ],
    ),
    ("bulkhead-testapp", &[]),
    // Development only: nothing below may depend on these two except as a dev-dependency.
    (
        "bulkhead-testkit",
        &["bulkhead-core", "bulkhead-trust", "bulkhead-wire", "bulkhead-store", "bulkhead-image", "bulkhead-fleet"],
    ),
    ("bulkhead-sim", &["bulkhead-core", "bulkhead-scale"]),
    ("bulkhead-fake-do", &["bulkhead-scale", "bulkhead-sim", "bulkhead-provider"]),
    ("bulkhead-fuzz", &["bulkhead-core", "bulkhead-trust", "bulkhead-wire", "bulkhead-store"]),
    ("xtask", &["bulkhead-testkit", "bulkhead-core", "bulkhead-fuzz"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    /// Set for what lies in the workspace.
    path: Option<String>,
}

/// Compares cargo's view of the workspace with the table.
pub fn check() -> Result<()> {
    let text = run::read(run::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cannot read the output of `cargo metadata`")?;
    let wrong = violations(&metadata);
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("dependencies between crates that ARCHITECTURE.md does not allow:\n  {}", wrong.join("\n  "))
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
            wrong.push(format!("{} is not in the table of xtask/src/layers.rs", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            // Tests may use the test kit, fakes, and whatever their crate may use.
            let is_kit = ["bulkhead-test", "bulkhead-fake"].iter().any(|kit| dependency.name.starts_with(kit));
            let for_tests = dependency.kind.as_deref() == Some("dev") && is_kit;
            if !for_tests && !allowed.contains(&dependency.name.as_str()) {
                wrong.push(format!("{} uses {}", package.name, dependency.name));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependency: &str, kind: Option<&str>) -> Metadata {
        let dependency =
            Dependency { name: dependency.into(), kind: kind.map(Into::into), path: Some("/somewhere".into()) };
        Metadata { packages: vec![Package { name: name.into(), dependencies: vec![dependency] }] }
    }

    #[test]
    fn what_is_refused() {
        let check = |metadata: Metadata, expected: &[&str]| assert_eq!(violations(&metadata), expected);
        check(package("bulkhead-trust", "bulkhead-core", None), &[]);
        check(package("bulkhead-core", "bulkhead-store", None), &["bulkhead-core uses bulkhead-store"]);
        check(package("bulkhead-agent", "bulkhead-fleet", None), &["bulkhead-agent uses bulkhead-fleet"]);
        check(package("bulkhead-agent", "bulkhead-testkit", Some("dev")), &[]);
        check(package("bulkhead-agent", "bulkhead-testkit", None), &["bulkhead-agent uses bulkhead-testkit"]);
        check(package("bulkhead-core", "bulkhead-store", Some("dev")), &["bulkhead-core uses bulkhead-store"]);
        check(
            package("bulkhead-utils", "bulkhead-core", None),
            &["bulkhead-utils is not in the table of xtask/src/layers.rs"],
        );
    }

    #[test]
    fn the_table_goes_one_way() {
        for (index, (name, allowed)) in ALLOWED.iter().enumerate() {
            for dependency in *allowed {
                let place = ALLOWED.iter().position(|(other, _)| other == dependency);
                assert!(place.is_some_and(|place| place < index), "{name} may use {dependency}, which comes later");
            }
        }
    }
}
