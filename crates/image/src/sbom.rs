//! What an image is made of, for scanners and lawyers.
//!
//! Debian's metadata as scanners of other minimal images expect it
//! (`/var/lib/dpkg/status.d/PACKAGE`), and the same with the npm packages as
//! SPDX 2.3 and CycloneDX 1.5. There are no times and no random ids in them: the
//! documents are functions of the image.

use bulkhead_core::digest::{hex, sha256};
use serde_json::{Value, json};

/// A package of either kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Component {
    /// Its package URL (github.com/package-url/purl-spec).
    pub(crate) purl: String,
    pub(crate) name: String,
    pub(crate) version: String,
}

/// A character of a package URL that needs no escape.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~' | b':') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

impl Component {
    pub(crate) fn debian(name: &str, version: &str, architecture: &str, suite: &str) -> Self {
        Self {
            purl: format!("pkg:deb/debian/{}@{}?arch={architecture}&distro={suite}", escape(name), escape(version)),
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }

    pub(crate) fn npm(name: &str, version: &str) -> Self {
        let path: Vec<String> = name.split('/').map(escape).collect();
        Self {
            purl: format!("pkg:npm/{}@{}", path.join("/"), escape(version)),
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }
}

fn text(value: &Value) -> Vec<u8> {
    // Keys stand in sorted order here, so the text does not depend on whether serde_json sorts its maps.
    format!("{value:#}\n").into_bytes()
}

/// The SPDX 2.3 document.
pub(crate) fn spdx(app: &str, components: &[Component]) -> Vec<u8> {
    let listing: String = components.iter().map(|component| format!("{}\n", component.purl)).collect();
    let id = hex(&sha256(format!("{app}\n{listing}").as_bytes())[..16]);
    let reference = |component: &Component| format!("SPDXRef-{}", hex(&sha256(component.purl.as_bytes())[..12]));
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-image", "downloadLocation": "NOASSERTION", "filesAnalyzed": false, "name": app,
        "primaryPackagePurpose": "CONTAINER",
    })];
    packages.extend(components.iter().map(|component| {
        json!({
            "SPDXID": reference(component), "downloadLocation": "NOASSERTION",
            "externalRefs": [{
                "referenceCategory": "PACKAGE-MANAGER", "referenceLocator": component.purl, "referenceType": "purl",
            }],
            "filesAnalyzed": false, "name": component.name, "versionInfo": component.version,
        })
    }));
    let mut relationships = vec![json!({
        "relatedSpdxElement": "SPDXRef-image", "relationshipType": "DESCRIBES", "spdxElementId": "SPDXRef-DOCUMENT",
    })];
    relationships.extend(components.iter().map(|component| {
        json!({
            "relatedSpdxElement": reference(component), "relationshipType": "CONTAINS",
            "spdxElementId": "SPDXRef-image",
        })
    }));
    text(&json!({
        "SPDXID": "SPDXRef-DOCUMENT",
        "creationInfo": { "created": "1970-01-01T00:00:00Z", "creators": ["Tool: bulkhead"] },
        "dataLicense": "CC0-1.0", "documentNamespace": format!("https://bulkhead.invalid/spdx/{app}/{id}"),
        "name": app, "packages": packages, "relationships": relationships, "spdxVersion": "SPDX-2.3",
    }))
}

/// The CycloneDX 1.5 document.
pub(crate) fn cyclonedx(app: &str, components: &[Component]) -> Vec<u8> {
    let components: Vec<Value> = components
        .iter()
        .map(|component| {
            json!({
                "bom-ref": component.purl, "name": component.name, "purl": component.purl, "type": "library",
                "version": component.version,
            })
        })
        .collect();
    text(&json!({
        "bomFormat": "CycloneDX", "components": components,
        "metadata": { "component": { "bom-ref": "image", "name": app, "type": "container" } },
        "specVersion": "1.5", "version": 1,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let components =
            [Component::debian("libstdc++6", "1:2-3+b1", "amd64", "trixie"), Component::npm("@scope/thing", "1.0.0")];
        assert_eq!(components[0].purl, "pkg:deb/debian/libstdc%2B%2B6@1:2-3%2Bb1?arch=amd64&distro=trixie");
        assert_eq!(components[1].purl, "pkg:npm/%40scope/thing@1.0.0");
        let spdx: Value = serde_json::from_slice(&spdx("notes", &components)).unwrap();
        assert_eq!(spdx["packages"].as_array().unwrap().len(), 3);
        assert_eq!(spdx["packages"][2]["versionInfo"], "1.0.0");
        let cyclonedx: Value = serde_json::from_slice(&cyclonedx("notes", &components)).unwrap();
        assert_eq!(cyclonedx["components"][1]["purl"], "pkg:npm/%40scope/thing@1.0.0");
    }
}
