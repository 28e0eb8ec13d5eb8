//! `fleet.toml`, edited in place: comments and order stay, and nothing is written where nothing changed.

use crate::{
    error::{Error, Kind, Result},
    workspace::{FLEET, FleetFiles, read_text, write_durably},
};
use bulkhead_core::{NodeName, fleet::FleetNode};
use toml_edit::{DocumentMut, Item, Table, value};

/// Changes the file durably.
///
/// # Errors
/// It cannot be read or written, or is no TOML.
pub fn edit(files: &FleetFiles, change: impl FnOnce(&mut DocumentMut)) -> Result<()> {
    let path = files.directory.join(FLEET);
    let text = read_text(&path)?;
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error| Error::during(Kind::Configuration, format!("{} is not TOML", path.display()), &error))?;
    change(&mut document);
    let new = document.to_string();
    if new == text { Ok(()) } else { write_durably(&path, new.as_bytes()) }
}

/// Enters a node, or brings its entry up to date.
pub fn set(document: &mut DocumentMut, name: &NodeName, node: &FleetNode) {
    let nodes = document.entry("nodes").or_insert_with(|| {
        let mut nodes = Table::new();
        // `[nodes.NAME]` alone says it all; an empty `[nodes]` above it says nothing.
        nodes.set_implicit(true);
        Item::Table(nodes)
    });
    let Some(nodes) = nodes.as_table_like_mut() else { return };
    if nodes.get(name.as_str()).is_none() {
        nodes.insert(name.as_str(), Item::Table(Table::new()));
    }
    let Some(entry) = nodes.get_mut(name.as_str()).and_then(Item::as_table_like_mut) else { return };
    for (key, wanted) in [
        ("environment", Some(node.environment.to_string())),
        ("address", Some(node.address.clone())),
        ("host_key", node.host_key.clone()),
        ("provider", node.provider.clone()),
        ("pool", node.pool.as_ref().map(ToString::to_string)),
    ] {
        let found = entry.get(key).and_then(Item::as_str).map(str::to_owned);
        match wanted {
            Some(wanted) if found.as_deref() != Some(wanted.as_str()) => drop(entry.insert(key, value(wanted))),
            None if found.is_some() => drop(entry.remove(key)),
            _ => {}
        }
    }
    let port = entry.get("port").and_then(Item::as_integer);
    match node.port {
        Some(wanted) if port != Some(wanted.into()) => drop(entry.insert("port", value(i64::from(wanted)))),
        None if port.is_some() => drop(entry.remove("port")),
        _ => {}
    }
}

/// Takes a node out.
pub fn remove(document: &mut DocumentMut, name: &NodeName) {
    if let Some(nodes) = document.get_mut("nodes").and_then(Item::as_table_like_mut) {
        nodes.remove(name.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_wrote_stays() {
        let text = "fleet = \"acme\" # ours\n\n# the old one\n[nodes.a] # do not touch\nenvironment = \"staging\" # yes\naddress = \"203.0.113.7\"\nport = 2222\n";
        let mut document: DocumentMut = text.parse().unwrap();
        let node = |address: &str, port| FleetNode {
            environment: "staging".parse().unwrap(),
            address: address.into(),
            port,
            host_key: Some("ssh-ed25519 AAAA".into()),
            provider: None,
            pool: Some("iron".parse().unwrap()),
        };
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        set(&mut document, &a, &node("203.0.113.7", Some(2222)));
        set(&mut document, &b, &node("203.0.113.8", Some(2200)));
        set(&mut document, &b, &node("203.0.113.8", None));
        let wanted = format!(
            "{text}host_key = \"ssh-ed25519 AAAA\"\npool = \"iron\"\n\n[nodes.b]\nenvironment = \"staging\"\naddress = \"203.0.113.8\"\nhost_key = \"ssh-ed25519 AAAA\"\npool = \"iron\"\n"
        );
        assert_eq!(document.to_string(), wanted);
        remove(&mut document, &b);
        assert_eq!(document.to_string(), format!("{text}host_key = \"ssh-ed25519 AAAA\"\npool = \"iron\"\n"));
    }
}
