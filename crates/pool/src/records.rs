//! What is known of machines that are nodes or on the way there.
//!
//! ```text
//! DIR/nodes/NODE.json   how the node is reached, how it became one, which instances have which numbers
//! DIR/grants/ID.json    signed grants that instances were started with, for as long as any may have to be stopped
//! ```
//!
//! A number is on disk before an order is sent that uses it, and is given away
//! again only after the order that ended its use was carried out.

use crate::durable::{self, FileError};
use bulkhead_core::{AppName, NodeName, OrderId, SignedText, fleet::FleetNode, grant::Grant};
use bulkhead_scale::{InstanceId, ServerId, Time};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// When a machine was how far, by this machine's clock; absent where it was not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Milestones {
    /// The provider was asked for it.
    pub asked: Option<Time>,
    /// The provider said where it is.
    pub located: Option<Time>,
    /// Its stock SSH server let this side in.
    pub reached: Option<Time>,
    /// Packages that it missed were there.
    pub packaged: Option<Time>,
    /// It was laid out as a node.
    pub laid_out: Option<Time>,
    /// It answered as a node.
    pub greeted: Option<Time>,
    /// The first instance was to be started: one that was ready before anything was wanted of it waited until then.
    pub begun: Option<Time>,
    /// The first instance ran.
    pub first_instance: Option<Time>,
}

impl Milestones {
    /// Each part of the way from the request to the first instance, in its order, and how many milliseconds it took.
    #[must_use]
    pub fn parts(&self) -> Vec<(&'static str, u64)> {
        let marks = [
            ("located", self.located),
            ("reached", self.reached),
            ("packages", self.packaged),
            ("laid out", self.laid_out),
            ("greeted", self.greeted),
            ("first instance", self.first_instance),
        ];
        let mut before = self.asked;
        let mut parts = Vec::new();
        for (what, at) in marks {
            // Nobody waited for it meanwhile.
            let from = if what == "first instance" { before.max(self.begun) } else { before };
            if let (Some(from), Some(at)) = (from, at) {
                parts.push((what, at.since(from)));
            }
            before = at.or(before);
        }
        parts
    }
}

/// A machine's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name as a node.
    pub name: NodeName,
    /// The provider's number of the machine.
    pub server: ServerId,
    /// How it is reached as a node. It has no host key before it was laid out as one.
    pub node: FleetNode,
    /// Whether somebody adopted it by hand, so that `fleet.toml` has it too.
    pub is_adopted: bool,
    /// How it became a node.
    pub milestones: Milestones,
    /// The digests of the notices that it was brought.
    #[serde(default)]
    pub notices: BTreeSet<String>,
    /// The instances that have numbers there.
    #[serde(default)]
    pub instances: BTreeMap<InstanceId, Numbered>,
}

/// An instance that has a number on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// The app that was granted.
    pub app: AppName,
    /// The instance runs as `APP-NUMBER`.
    pub number: u32,
    /// The grant that it was last to be started with.
    pub grant: OrderId,
}

impl NodeRecord {
    /// Gives an instance a number for what is granted: the one that it has, or the lowest that is free.
    ///
    /// # Errors
    /// All are taken.
    pub(crate) fn number(&mut self, instance: InstanceId, grant: &Grant, id: OrderId) -> Result<AppName, String> {
        let known = self.instances.get(&instance).filter(|known| known.app == grant.app).map(|known| known.number);
        let number = known.map_or_else(
            || {
                let of_app = self.instances.values().filter(|known| known.app == grant.app);
                let taken: BTreeSet<u32> = of_app.map(|known| known.number).collect();
                (1..=grant.instances).find(|number| !taken.contains(number))
            },
            Some,
        );
        let (number, name) = number
            .and_then(|number| Some((number, grant.instance(number)?)))
            .ok_or_else(|| format!("the grant is for {} instances on a machine, and all are taken", grant.instances))?;
        self.instances.insert(instance, Numbered { app: grant.app.clone(), number, grant: id });
        Ok(name)
    }
}

/// The records of a directory.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Records {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), changing: Mutex::default() }
    }

    /// A machine's record, by its name as a node.
    pub(crate) fn get(&self, name: &str) -> Result<Option<NodeRecord>, FileError> {
        durable::read_json(&path(&self.directory, name))
    }

    /// Replaces what is there.
    pub(crate) fn put(&self, name: &str, record: &NodeRecord) -> Result<(), FileError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        durable::write_json(&path(&self.directory, name), record)
    }

    /// Forgets a machine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FileError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        durable::remove(&path(&self.directory, name))
    }

    /// Changes a record, durably before this returns. `None` where there is none.
    pub(crate) fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut NodeRecord) -> T,
    ) -> Result<Option<(NodeRecord, T)>, FileError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.change_alone(name, change)
    }

    fn change_alone<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut NodeRecord) -> T,
    ) -> Result<Option<(NodeRecord, T)>, FileError> {
        let Some(mut record) = self.get(name)? else { return Ok(None) };
        let before = record.clone();
        let result = change(&mut record);
        if record != before {
            durable::write_json(&path(&self.directory, name), &record)?;
        }
        Ok(Some((record, result)))
    }

    /// Gives an instance a number, as [`NodeRecord::number`] does, and keeps the grant, with which it will be stopped.
    pub(crate) fn number(
        &self,
        name: &str,
        instance: InstanceId,
        grant: &Grant,
        signed: &SignedText,
    ) -> Result<Result<(NodeRecord, AppName), String>, FileError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let id = Grant::id(signed.text.as_bytes());
        let path = self.grant_path(id);
        if !path.exists() {
            durable::write_json(&path, signed)?;
        }
        Ok(match self.change_alone(name, |record| record.number(instance, grant, id))? {
            Some((record, app)) => app.map(|app| (record, app)),
            None => Err("there is no record of it".to_owned()),
        })
    }

    pub(crate) fn grant(&self, id: OrderId) -> Result<Option<SignedText>, FileError> {
        durable::read_json(&self.grant_path(id))
    }

    fn grant_path(&self, id: OrderId) -> PathBuf {
        self.directory.join("grants").join(format!("{id}.json"))
    }

    /// Removes all records but those of names that are known, and grants that no record names.
    pub(crate) fn forget(&self, is_known: impl Fn(&str) -> bool) -> Result<(), FileError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        for name in durable::names(&self.directory.join("nodes"), ".json")? {
            if !is_known(&name) {
                durable::remove(&path(&self.directory, &name))?;
            }
        }
        let of_use: BTreeSet<String> = records(&self.directory)?
            .values()
            .flat_map(|record| record.instances.values().map(|known| known.grant.to_string()))
            .collect();
        let grants = self.directory.join("grants");
        for id in durable::names(&grants, ".json")? {
            if !of_use.contains(&id) {
                durable::remove(&grants.join(format!("{id}.json")))?;
            }
        }
        Ok(())
    }
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join("nodes").join(format!("{name}.json"))
}

/// All records of a loop's directory, by the machine's name as a node.
///
/// # Errors
/// One cannot be read.
pub fn records(directory: &Path) -> Result<BTreeMap<String, NodeRecord>, FileError> {
    let mut all = BTreeMap::new();
    for name in durable::names(&directory.join("nodes"), ".json")? {
        // One that is removed at this moment is of a machine that is gone.
        if let Some(record) = durable::read_json(&path(directory, &name))? {
            all.insert(name, record);
        }
    }
    Ok(all)
}

/// The nodes that a loop made of the machines that it bought, as `fleet.toml` would have them.
///
/// # Errors
/// A record cannot be read.
pub fn nodes(directory: &Path) -> Result<BTreeMap<NodeName, FleetNode>, FileError> {
    let made = |record: NodeRecord| {
        (!record.is_adopted && record.milestones.greeted.is_some()).then_some((record.name, record.node))
    };
    Ok(records(directory)?.into_values().filter_map(made).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bulkhead_core::{
        ImageId, Timestamp,
        order::{Health, HealthCheck, Run, ServiceSpec},
    };

    pub(crate) fn grant(instances: u32) -> Grant {
        let service = ServiceSpec {
            name: "web".parse().unwrap(),
            command: vec!["/bin/web".into()],
            workdir: "/".into(),
            env: BTreeMap::new(),
            port: None,
            health: Health { check: HealthCheck::StaysUp, within_ms: 1000 },
            volumes: vec![],
            memory_max_bytes: None,
            tasks_max: None,
            cpu_percent: None,
            jit: false,
            drain_ms: 0,
            stop_ms: 1000,
            secrets: BTreeSet::new(),
        };
        Grant {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            pool: "kernels".parse().unwrap(),
            app: "notes".parse().unwrap(),
            run: Run::new(ImageId([7; 32]), vec![service]),
            secrets: BTreeMap::new(),
            scratch: false,
            key: "ssh-ed25519 AAAA".into(),
            machines: 3,
            instances,
            issued: Timestamp(1_000),
            not_after: Timestamp(2_000),
        }
    }

    pub(crate) fn record(name: &str) -> NodeRecord {
        let json = serde_json::json!({ "environment": "staging", "address": "192.0.2.1", "pool": "kernels" });
        NodeRecord {
            name: name.parse().unwrap(),
            server: ServerId(1),
            node: serde_json::from_value(json).unwrap(),
            is_adopted: false,
            milestones: Milestones::default(),
            notices: BTreeSet::new(),
            instances: BTreeMap::new(),
        }
    }

    #[test]
    fn numbers_are_durable_and_the_lowest_free() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        let give = |records: &Records, instance: u64, instances: u32| {
            let grant = grant(instances);
            let signed =
                SignedText { text: String::from_utf8(grant.to_bytes()).unwrap(), signatures: vec!["by ann".into()] };
            let given = records.number("k-t-1", InstanceId(instance), &grant, &signed).unwrap();
            assert_eq!(records.grant(Grant::id(signed.text.as_bytes())).unwrap(), Some(signed));
            given.map(|(_, name)| name.to_string())
        };
        assert_eq!(records.change("k-t-1", |_| ()).unwrap(), None);
        records.put("k-t-1", &record("k-t-1")).unwrap();
        assert_eq!(give(&records, 10, 3).unwrap(), "notes-1");
        assert_eq!(give(&records, 11, 3).unwrap(), "notes-2");
        // After a crash the same instance has the same number.
        let records = Records::new(folder.path());
        assert_eq!(give(&records, 11, 3).unwrap(), "notes-2");
        records.change("k-t-1", |record| record.instances.remove(&InstanceId(10))).unwrap();
        assert_eq!(give(&records, 12, 3).unwrap(), "notes-1");
        assert_eq!(give(&records, 13, 3).unwrap(), "notes-3");
        assert!(give(&records, 14, 3).is_err());
        // A grant for fewer does not cover the number that it has.
        assert!(give(&records, 13, 2).is_err());
        assert_eq!(records.get("k-t-1").unwrap().unwrap().instances.len(), 3);
        let grants = || durable::names(&folder.path().join("grants"), ".json").unwrap().len();
        records.forget(|_| true).unwrap();
        assert_eq!(grants(), 1, "the one for two instances started none");
        records.forget(|_| false).unwrap();
        assert_eq!(grants(), 0);
    }

    #[test]
    fn what_is_known_of_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path());
        assert_eq!(nodes(folder.path()).unwrap(), BTreeMap::new());
        let greeted = Milestones { greeted: Some(Time(9)), ..Milestones::default() };
        records.put("k-t-1", &record("k-t-1")).unwrap();
        records.put("k-t-2", &NodeRecord { milestones: greeted, ..record("k-t-2") }).unwrap();
        records.put("k-t-3", &NodeRecord { milestones: greeted, is_adopted: true, ..record("web-1") }).unwrap();
        let names = |found: BTreeMap<NodeName, FleetNode>| found.into_keys().map(|name| name.to_string()).collect();
        let found: Vec<String> = names(nodes(folder.path()).unwrap());
        assert_eq!(found, ["k-t-2"]);
        records.forget(|name| name == "k-t-3").unwrap();
        assert_eq!(super::records(folder.path()).unwrap().into_keys().collect::<Vec<_>>(), ["k-t-3"]);
    }

    #[test]
    fn the_way_to_the_first_instance_in_its_parts() {
        let at = |ms| Some(Time(ms));
        let milestones = Milestones {
            asked: at(100),
            located: at(300),
            greeted: at(1000),
            first_instance: at(1500),
            ..Milestones::default()
        };
        assert_eq!(milestones.parts(), [("located", 200), ("greeted", 700), ("first instance", 500)]);
        assert_eq!(Milestones::default().parts(), []);
    }
}
