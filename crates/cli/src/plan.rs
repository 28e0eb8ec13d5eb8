//! What an order would change, as data and as text.
//!
//! [`plan`] is a pure function of what is wanted and what is known of each
//! node. What is not known (a node that this machine has not asked) is said to
//! be unknown, never guessed.
//!
//! ```text
//! deploy notes to production: image 1a2b3c4d5e6f, 24,012 files, 560 MB
//!
//! NODE    RELEASE  IMAGE                        FILES     TO SEND
//! prod-1  3 → 4    0a1b2c3d4e5f → 1a2b3c4d5e6f  +1 ~2 -0  at most 12 kB
//!
//! ~ /app/server.js
//! service web: memory 256M → 1G
//! ```

use crate::{
    output::{Paint, count, printable, size},
    table::Table,
};
use bulkhead_core::{
    AppName, EnvironmentName, NodeName,
    image::{Image, compare_paths},
    order::{HealthCheck, ServiceSpec},
};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
};

/// How many changed paths are kept as examples.
const EXAMPLES_MAX: usize = 8;

/// What is wanted on every node.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// `deploy`, `promote`, `rollback`.
    pub verb: &'static str,
    /// Which app.
    pub app: &'a AppName,
    /// Where.
    pub environment: &'a EnvironmentName,
    /// The image's id, as text.
    pub image_id: &'a str,
    /// The image, where this machine has its document.
    pub image: Option<&'a Image>,
    /// Every service with its sandbox.
    pub services: &'a [ServiceSpec],
    /// What it is made from, where it was not built.
    pub origin: Option<&'a str>,
}

/// What is known of the app on one node.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// Which node.
    pub node: NodeName,
    /// How it is known.
    pub by: KnownBy,
    /// Counter of the last accepted order; 0 where there was none.
    pub counter: u64,
    /// The live release.
    pub live: Option<u64>,
    /// The live release's image, as text.
    pub image_id: Option<String>,
    /// That image, or where it is not known one that the node holds, where this machine has its document.
    pub image: Option<&'a Image>,
    /// The live release's services, where they are known.
    pub services: Option<Vec<ServiceSpec>>,
    /// Whether the node holds the wanted image already.
    pub holds_wanted: bool,
}

/// How something of a node is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KnownBy {
    /// The node was asked.
    Asked,
    /// This machine remembers it from the last time; it may be out of date, which the node then says.
    Remembered,
    /// Not at all.
    Unknown,
    /// The node was asked and did not answer: the order is not for it.
    Unreachable,
}

/// What an order would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Plan {
    /// `deploy`, `promote` or `rollback`.
    pub verb: String,
    /// The app.
    pub app: AppName,
    /// The environment.
    pub environment: EnvironmentName,
    /// The image's id.
    pub image: String,
    /// How many files the image has, where its document is at hand.
    pub image_files: Option<u64>,
    /// The sum of their sizes.
    pub image_bytes: Option<u64>,
    /// Paths that the lint would have refused, had the manifest not allowed them.
    pub allowed: Vec<String>,
    /// What the release is made from, where it was not built: `rollback to 3`.
    pub origin: Option<String>,
    /// What changes on each node.
    pub nodes: Vec<NodePlan>,
    /// How this folder's manifest differs from the release that is promoted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What changes on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NodePlan {
    /// The node.
    pub node: NodeName,
    /// How the present state is known.
    pub known_by: KnownBy,
    /// The live release, where there is one.
    pub release_from: Option<u64>,
    /// The number the new release gets, where the node's counter is known.
    pub release_to: Option<u64>,
    /// The live image.
    pub image_from: Option<String>,
    /// What changes between the images, where both are at hand.
    pub files: Option<FileChanges>,
    /// The most that is sent, before compression and deltas; absent where unknown.
    pub send_bytes_max: Option<u64>,
    /// What changes of the services; absent where the live ones are unknown.
    pub services: Option<Vec<ServiceChange>>,
    /// Why nothing changes on it: it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
}

/// What changes between two images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FileChanges {
    /// Paths only in the new one.
    pub added: u64,
    /// Paths in both that differ.
    pub changed: u64,
    /// Paths only in the old one.
    pub removed: u64,
    /// The first few of them, each with `+`, `~` or `-` before it.
    pub examples: Vec<String>,
}

/// What changes of one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct ServiceChange {
    /// The service.
    pub service: String,
    /// What becomes of it.
    pub change: Change,
    /// The settings that differ, as the manifest calls them.
    pub fields: Vec<FieldChange>,
}

/// What becomes of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is new.
    Added,
    /// Its settings differ.
    Changed,
    /// It goes.
    Removed,
}

/// A setting that differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct FieldChange {
    /// As the manifest calls it: `memory`, `env.PORT`.
    pub field: String,
    /// Its value now.
    pub from: Option<String>,
    /// Its value then.
    pub to: Option<String>,
}

/// What would change.
#[must_use]
pub fn plan(wanted: Wanted<'_>, known: &[Known<'_>]) -> Plan {
    Plan {
        verb: wanted.verb.into(),
        app: wanted.app.clone(),
        environment: wanted.environment.clone(),
        image: wanted.image_id.into(),
        image_files: wanted.image.map(|image| image.files().count() as u64),
        image_bytes: wanted.image.map(Image::size_bytes),
        allowed: wanted.image.map(|image| image.config().allowed.clone()).unwrap_or_default(),
        origin: wanted.origin.map(str::to_owned),
        nodes: known.iter().map(|known| node_plan(wanted, known)).collect(),
        notes: vec![],
    }
}

fn node_plan(wanted: Wanted<'_>, known: &Known<'_>) -> NodePlan {
    let unchanged = known.image_id.as_deref() == Some(wanted.image_id);
    let files = match (known.image, wanted.image) {
        _ if unchanged => Some(FileChanges::default()),
        // What a node merely holds is not what runs there, and of no use here but to say what is sent.
        (Some(from), Some(to)) if known.image_id.is_some() => Some(file_changes(from, to)),
        _ => None,
    };
    let send_bytes_max = match wanted.image {
        _ if unchanged || known.holds_wanted => Some(0),
        None => None,
        // A node that nothing is known of may hold all of it or nothing.
        Some(to) => Some(new_bytes(known.image, to)),
    };
    let services = match (&known.services, known.by) {
        (Some(live), _) => Some(service_changes(live, wanted.services)),
        (None, KnownBy::Asked) if known.live.is_none() => Some(service_changes(&[], wanted.services)),
        (None, _) => None,
    };
    NodePlan {
        node: known.node.clone(),
        known_by: known.by,
        release_from: known.live,
        release_to: (known.by != KnownBy::Unknown).then(|| known.counter + 1),
        image_from: known.image_id.clone(),
        files,
        send_bytes_max,
        services,
        unreachable: None,
    }
}

fn new_bytes(from: Option<&Image>, to: &Image) -> u64 {
    let Some(from) = from else { return to.distinct_objects().iter().map(|(_, size_bytes)| size_bytes).sum() };
    // What is at the same path in both needs no look at the others; that is nearly all as a rule.
    let mut old = from.files().peekable();
    let mut is_there = |path: &[u8], digest| {
        while old.next_if(|(there, ..)| compare_paths(there, path) == Ordering::Less).is_some() {}
        old.peek().is_some_and(|(there, _, found)| *there == path && *found == digest)
    };
    let mut new: HashMap<_, u64> = to
        .files()
        .filter(|(path, _, digest)| !is_there(path, *digest))
        .map(|(_, size_bytes, digest)| (digest, size_bytes))
        .collect();
    if !new.is_empty() {
        from.files().for_each(|(_, _, digest)| {
            new.remove(&digest);
        });
    }
    new.into_values().sum()
}

/// What changes between two images.
#[must_use]
pub fn file_changes(from: &Image, to: &Image) -> FileChanges {
    let mut changes = FileChanges::default();
    let (mut old, mut new) = (from.entries().iter().peekable(), to.entries().iter().peekable());
    let mut note = |sign: char, path: &[u8], counter: &mut u64| {
        *counter += 1;
        if changes.examples.len() < EXAMPLES_MAX {
            changes.examples.push(format!("{sign} /{}", String::from_utf8_lossy(path)));
        }
    };
    loop {
        let order = match (old.peek(), new.peek()) {
            (Some(old), Some(new)) => compare_paths(&old.path, &new.path),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return changes,
        };
        let (before, after) = match order {
            Ordering::Less => (old.next(), None),
            Ordering::Greater => (None, new.next()),
            Ordering::Equal => (old.next(), new.next()),
        };
        match (before, after) {
            (Some(before), Some(after)) if before != after => note('~', &after.path, &mut changes.changed),
            (Some(before), None) => note('-', &before.path, &mut changes.removed),
            (None, Some(after)) => note('+', &after.path, &mut changes.added),
            _ => {}
        }
    }
}

/// What changes between two sets of services.
#[must_use]
pub fn service_changes(from: &[ServiceSpec], to: &[ServiceSpec]) -> Vec<ServiceChange> {
    let mut changes = Vec::new();
    for new in to {
        match from.iter().find(|old| old.name == new.name) {
            None => changes.push(ServiceChange {
                service: new.name.to_string(),
                change: Change::Added,
                fields: field_changes(&BTreeMap::new(), &settings(new)),
            }),
            Some(old) if old != new => changes.push(ServiceChange {
                service: new.name.to_string(),
                change: Change::Changed,
                fields: field_changes(&settings(old), &settings(new)),
            }),
            Some(_) => {}
        }
    }
    for old in from.iter().filter(|old| !to.iter().any(|new| new.name == old.name)) {
        changes.push(ServiceChange { service: old.name.to_string(), change: Change::Removed, fields: vec![] });
    }
    changes.sort();
    changes
}

fn field_changes(from: &BTreeMap<String, String>, to: &BTreeMap<String, String>) -> Vec<FieldChange> {
    let names: std::collections::BTreeSet<_> = from.keys().chain(to.keys()).collect();
    names
        .into_iter()
        .filter(|name| from.get(*name) != to.get(*name))
        .map(|name| FieldChange { field: name.clone(), from: from.get(name).cloned(), to: to.get(name).cloned() })
        .collect()
}

/// A service's settings as the manifest would write them, by the manifest's names.
fn settings(spec: &ServiceSpec) -> BTreeMap<String, String> {
    let ServiceSpec {
        name: _,
        command,
        workdir,
        env,
        port,
        health,
        volumes,
        memory_max_bytes,
        tasks_max,
        cpu_percent,
        jit,
        drain_ms,
        stop_ms,
        secrets,
    } = spec;
    let mut settings = BTreeMap::new();
    let mut set = |key: &str, value: String| settings.insert(key.to_owned(), value);
    set("command", command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
    set("workdir", workdir.clone());
    for (key, value) in env {
        set(&format!("env.{key}"), quoted(value));
    }
    if let Some(port) = port {
        set("port", port.to_string());
    }
    let check = match &health.check {
        HealthCheck::Http { path } => format!("http {path}"),
        HealthCheck::Tcp => "tcp".into(),
        HealthCheck::StaysUp => "stays up".into(),
    };
    set("health", format!("{check} within {}", milliseconds(health.within_ms)));
    for volume in volumes {
        set(&format!("volumes.{}", volume.name), volume.path.clone());
    }
    if let Some(bytes) = memory_max_bytes {
        set("memory", binary_size(*bytes));
    }
    if let Some(tasks) = tasks_max {
        set("tasks", tasks.to_string());
    }
    if let Some(percent) = cpu_percent {
        set("cpu_percent", percent.to_string());
    }
    set("jit", jit.to_string());
    set("drain", milliseconds(*drain_ms));
    set("stop", milliseconds(*stop_ms));
    if !secrets.is_empty() {
        set("secrets", secrets.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" "));
    }
    settings
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._+-=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("{word:?}") }
}

fn milliseconds(ms: u32) -> String {
    match ms {
        ms if ms % 60_000 == 0 && ms > 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// A limit as a manifest writes it: in powers of 1024 where that is exact.
pub(crate) fn binary_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes.is_multiple_of(1 << shift) && bytes > 0 {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

impl Plan {
    /// The plan with these nodes besides, which did not answer for these reasons and are left as they are.
    #[must_use]
    pub fn leaving(mut self, left: impl IntoIterator<Item = (NodeName, String)>) -> Self {
        self.nodes.extend(left.into_iter().map(|(node, reason)| NodePlan {
            node,
            known_by: KnownBy::Unreachable,
            release_from: None,
            release_to: None,
            image_from: None,
            files: None,
            send_bytes_max: None,
            services: None,
            unreachable: Some(reason),
        }));
        self.nodes.sort_by(|a, b| a.node.cmp(&b.node));
        self
    }

    /// The nodes that the order is for.
    fn reached(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().filter(|node| node.unreachable.is_none())
    }

    /// Whether any node is known not to run this already.
    #[must_use]
    pub fn changes_anything(&self) -> bool {
        self.reached().any(|node| {
            let same_image = node.image_from.as_deref() == Some(self.image.as_str());
            let same_services = node.services.as_ref().is_some_and(Vec::is_empty);
            !(same_image && same_services)
        })
    }

    /// The plan for people.
    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let mut out = String::new();
        let to = short(&self.image);
        let title = format!("{} {} to {}: image {to}", self.verb, self.app, self.environment);
        let origin = self.origin.as_ref().map(|origin| format!(" ({})", printable(origin))).unwrap_or_default();
        let contents = match (self.image_files, self.image_bytes) {
            (Some(files), Some(bytes)) => {
                format!(", {} {}, {}", count(files), if files == 1 { "file" } else { "files" }, size(bytes))
            }
            _ => String::new(),
        };
        putln!(out, "{}{origin}{contents}\n", paint.bold(&title));

        let mut table = Table::new(&["NODE", "RELEASE", "IMAGE", "FILES", "TO SEND"]);
        for node in &self.nodes {
            if node.unreachable.is_some() {
                table.row([node.node.as_str(), "unreachable", "left as it is", "", ""].map(str::to_owned));
                continue;
            }
            table.row([
                node.node.to_string(),
                release_cell(node),
                match &node.image_from {
                    Some(from) if *from == self.image => format!("{to} (unchanged)"),
                    Some(from) => format!("{} → {to}", short(from)),
                    None => to.clone(),
                },
                match &node.files {
                    Some(files) => format!("+{} ~{} -{}", files.added, files.changed, files.removed),
                    None => String::new(),
                },
                match node.send_bytes_max {
                    Some(0) => "nothing".into(),
                    Some(bytes) => format!("at most {}", size(bytes)),
                    None => "unknown".into(),
                },
            ]);
        }
        out.push_str(&table.render(paint));

        for node in &self.nodes {
            if let Some(reason) = &node.unreachable {
                putln!(out, "\n{} does not answer: {}", node.node, printable(reason));
            }
        }

        // Nodes mostly agree, so what changes is said once for all that share it.
        for (nodes, examples, more) in self.grouped_files() {
            putln!(out, "\nfiles{}", self.on(&nodes));
            for example in examples {
                putln!(out, "  {}", printable(example));
            }
            if more > 0 {
                putln!(out, "  … and {} more", count(more));
            }
        }
        for (nodes, changes) in self.grouped_services() {
            let Some(changes) = changes else {
                putln!(out, "\nservices{}: what runs now was not asked", self.on(&nodes));
                continue;
            };
            if changes.is_empty() {
                continue;
            }
            putln!(out, "\nservices{}", self.on(&nodes));
            for change in changes {
                render_change(&mut out, change);
            }
        }
        if !self.notes.is_empty() {
            putln!(
                out,
                "\nthis folder's bulkhead.toml is not what was released (there: the release, here: the folder)"
            );
            for note in &self.notes {
                putln!(out, "  {}", printable(note));
            }
        }
        if !self.allowed.is_empty() {
            putln!(out, "\nallowed by the manifest, which the lint would refuse");
            for path in &self.allowed {
                putln!(out, "  {}", printable(path));
            }
        }
        if self.nodes.iter().any(|node| node.known_by == KnownBy::Remembered) {
            putln!(out, "\n{}", paint.faint("* as this machine remembers it; a node that differs says so"));
        }
        if !self.changes_anything() {
            out.push_str("\nall of it runs there already\n");
        }
        out
    }

    fn on(&self, nodes: &[&NodeName]) -> String {
        if nodes.len() == self.reached().count() {
            return String::new();
        }
        format!(" on {}", nodes.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", "))
    }

    fn grouped_files(&self) -> Vec<(Vec<&NodeName>, &[String], u64)> {
        let mut groups: Vec<(Vec<&NodeName>, &FileChanges)> = Vec::new();
        for node in self.reached() {
            let Some(files) = node.files.as_ref().filter(|files| !files.examples.is_empty()) else { continue };
            match groups.iter_mut().find(|(_, known)| *known == files) {
                Some((nodes, _)) => nodes.push(&node.node),
                None => groups.push((vec![&node.node], files)),
            }
        }
        let more = |files: &FileChanges| files.added + files.changed + files.removed - files.examples.len() as u64;
        groups.into_iter().map(|(nodes, files)| (nodes, files.examples.as_slice(), more(files))).collect()
    }

    fn grouped_services(&self) -> Vec<(Vec<&NodeName>, Option<&[ServiceChange]>)> {
        let mut groups: Vec<(Vec<&NodeName>, Option<&[ServiceChange]>)> = Vec::new();
        for node in self.reached() {
            let changes = node.services.as_deref();
            match groups.iter_mut().find(|(_, known)| *known == changes) {
                Some((nodes, _)) => nodes.push(&node.node),
                None => groups.push((vec![&node.node], changes)),
            }
        }
        groups
    }
}

fn release_cell(node: &NodePlan) -> String {
    let mark = if node.known_by == KnownBy::Remembered { "*" } else { "" };
    match (node.release_from, node.release_to) {
        (Some(from), Some(to)) => format!("{from} → {to}{mark}"),
        (None, Some(to)) => format!("{to}{mark}"),
        (_, None) => "unknown".into(),
    }
}

fn render_change(out: &mut String, change: &ServiceChange) {
    let sign = match change.change {
        Change::Added => '+',
        Change::Changed => '~',
        Change::Removed => '-',
    };
    putln!(out, "  {sign} {}", change.service);
    let width = change.fields.iter().map(|field| field.field.len()).max().unwrap_or(0);
    for field in &change.fields {
        let value = match (&field.from, &field.to) {
            (Some(from), Some(to)) => format!("{} → {}", printable(from), printable(to)),
            (None, Some(to)) => printable(to),
            (Some(from), None) => format!("{} → nothing", printable(from)),
            (None, None) => String::new(),
        };
        putln!(out, "      {:width$}  {value}", printable(&field.field));
    }
}

/// The first 12 digits of an id.
#[must_use]
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        image::{Entry, ImageConfig, Node},
        manifest::Manifest,
    };

    fn image(files: &[(&str, &str)], allowed: &[&str]) -> Image {
        let config = ImageConfig {
            platform: "linux/amd64".into(),
            allowed: allowed.iter().map(|path| (*path).to_owned()).collect(),
            tools: false,
        };
        let mut entries = vec![Entry { path: b"app".to_vec(), node: Node::Directory { mode: 0o755 } }];
        entries.extend(files.iter().map(|(path, contents)| Entry {
            path: format!("app/{path}").into_bytes(),
            node: Node::File {
                mode: 0o644,
                size_bytes: contents.len() as u64,
                digest: bulkhead_core::verity::digest(contents.as_bytes()),
            },
        }));
        Image::new(config, entries).unwrap()
    }

    fn services(environment: &str) -> Vec<ServiceSpec> {
        let manifest = Manifest::parse(
            r#"
            app = "notes"
            [services.web]
            command = ["node", "server.js", "a b"]
            port = 3000
            memory = "256M"
            health = { http = "/health", within = "5s" }
            volumes = { data = "/var/lib/notes" }
            [environments.production.services.web]
            env = { MODE = "fast and loose" }
            memory = "1G"
            "#,
        );
        manifest.unwrap().services_in(&environment.parse().unwrap())
    }

    fn known<'a>(node: &str, by: KnownBy) -> Known<'a> {
        let node = node.parse().unwrap();
        Known { node, by, counter: 0, live: None, image_id: None, image: None, services: None, holds_wanted: false }
    }

    const PLAIN: Paint = Paint { colour: false };

    #[test]
    fn a_node_that_does_not_answer() {
        let (app, environment) = ("notes".parse().unwrap(), "production".parse().unwrap());
        let (image, to) = (image(&[("a.js", "a")], &[]), services("production"));
        let wanted = Wanted {
            verb: "deploy",
            app: &app,
            environment: &environment,
            image_id: &image.id().to_string(),
            image: Some(&image),
            services: &to,
            origin: None,
        };
        let mut live = known("prod-2", KnownBy::Asked);
        (live.live, live.counter, live.image_id) = (Some(3), 3, Some(image.id().to_string()));
        live.services = Some(to.clone());
        let reason = "cannot connect to node prod-1: refused\u{7}".to_owned();
        let plan = plan(wanted, &[live]).leaving([("prod-1".parse().unwrap(), reason)]);
        assert!(!plan.changes_anything());
        insta::assert_snapshot!(plan.render(PLAIN), @r"
        deploy notes to production: image aa0504267b61, 1 file, 1 B

        NODE    RELEASE      IMAGE                     FILES     TO SEND
        prod-1  unreachable  left as it is             -         -
        prod-2  3 → 4        aa0504267b61 (unchanged)  +0 ~0 -0  nothing

        prod-1 does not answer: cannot connect to node prod-1: refused^G

        all of it runs there already
        ");
    }

    #[test]
    fn a_first_and_a_later_deploy() {
        let old = image(&[("a.js", "old"), ("gone.js", "x"), ("same.js", "same")], &[]);
        let new = image(&[("a.js", "newer"), ("same.js", "same"), ("z.js", "zz")], &["/usr/bin/sh"]);
        let (old_id, new_id) = (old.id().to_string(), new.id().to_string());
        let (app, environment) = ("notes".parse().unwrap(), "production".parse().unwrap());
        let to = services("production");
        let wanted = Wanted {
            verb: "deploy",
            app: &app,
            environment: &environment,
            image_id: &new_id,
            image: Some(&new),
            services: &to,
            origin: None,
        };
        let live = Known {
            counter: 3,
            live: Some(3),
            image_id: Some(old_id.clone()),
            image: Some(&old),
            services: Some(services("staging")),
            ..known("prod-1", KnownBy::Asked)
        };
        let remembered =
            Known { node: "prod-2".parse().unwrap(), by: KnownBy::Remembered, services: None, ..live.clone() };
        let fresh = known("prod-3", KnownBy::Asked);
        let unknown = known("prod-4", KnownBy::Unknown);
        let plan = plan(wanted, &[live, remembered, fresh, unknown]);
        assert!(plan.changes_anything());
        insta::assert_snapshot!(plan.render(PLAIN));
        insta::assert_snapshot!(serde_json::to_string_pretty(&plan.nodes[0]).unwrap());
    }

    #[test]
    fn nothing_to_do() {
        let same = image(&[("a.js", "a")], &[]);
        let id = same.id().to_string();
        let (app, environment) = ("notes".parse().unwrap(), "staging".parse().unwrap());
        let to = services("staging");
        let wanted = Wanted {
            verb: "rollback",
            app: &app,
            environment: &environment,
            image_id: &id,
            image: Some(&same),
            services: &to,
            origin: Some("rollback to 2"),
        };
        let live = Known {
            counter: 7,
            live: Some(5),
            image_id: Some(id.clone()),
            image: None,
            services: Some(to.clone()),
            holds_wanted: true,
            ..known("stage-1", KnownBy::Asked)
        };
        let plan = plan(wanted, &[live]);
        assert!(!plan.changes_anything());
        insta::assert_snapshot!(plan.render(PLAIN));
    }
}
