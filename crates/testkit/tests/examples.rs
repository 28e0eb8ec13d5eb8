//! The manifests of `examples/` are ones that the product takes.

use bulkhead_core::{manifest::Manifest, order::HealthCheck};
use std::path::Path;

fn manifest(example: &str) -> Manifest {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(example).join("bulkhead.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Manifest::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn notes() {
    let manifest = manifest("notes");
    assert_eq!(manifest.app.as_str(), "notes");
    assert_eq!(manifest.image.packages, ["nodejs"]);
    let services = manifest.services_in(&"production".parse().unwrap());
    assert_eq!(services.len(), 1);
    assert_eq!(services[0].port, Some(3000));
    assert_eq!(services[0].health.check, HealthCheck::Http { path: "/health".into() });
    assert_eq!(services[0].env["NOTES_DIR"], services[0].volumes[0].path);
    assert!(services[0].jit, "node needs executable memory");
}

#[test]
fn hello_static() {
    let manifest = manifest("hello-static");
    assert!(manifest.image.packages.is_empty(), "the image holds one file");
    assert_eq!(manifest.image.copy.keys().collect::<Vec<_>>(), ["/usr/bin/hello-static"]);
    assert!(!manifest.services_in(&"staging".parse().unwrap())[0].jit);
}
