//! The generated documentation: `docs/cli.md`, `docs/manifest.md` and the JSON
//! schemas, all from the code that reads and prints, so that they cannot drift.
//! `bulkhead generate-docs docs` writes them; a test compares them.

use crate::{
    args::Cli,
    commands::{
        attack::AttackReport,
        audit::AuditReport,
        build::BuildReport,
        ci::MarkReport,
        init::InitReport,
        local::LocalReport,
        logs::ShownLine,
        look::LookReport,
        node::{AdoptReport, NodeLsReport, NodeReleaseReport},
        open::OpenReport,
        order::OrderFileReport,
        policy::{BroughtTo, PolicyReport},
        pool::{PoolAskedReport, PoolCostReport, PoolGrantReport, PoolLsReport, PoolPlanReport, ToldLine},
        ps::PsReport,
        releases::ReleasesReport,
        secret::{SecretLsReport, SecretReport},
        standing::StandingReport,
    },
    error::{ErrorReport, Kind},
    instances::InstancesReport,
    orders::OrderReport,
    plan::Plan,
};
use bulkhead_core::{
    fleet::Fleet,
    manifest::{ImageSection, Manifest},
};
use clap::CommandFactory as _;
use schemars::{Schema, schema_for};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const GENERATED: &str = "<!-- Written by `bulkhead generate-docs docs` from the code. Do not edit. -->\n";
/// Help text is wrapped at this width, wherever it is generated.
const WIDTH: usize = 100;

/// Every generated file: its name in `docs` and its contents.
#[must_use]
pub fn files() -> Vec<(&'static str, String)> {
    vec![
        ("cli.md", commands_page()),
        ("manifest.md", manifest_page()),
        ("bulkhead.schema.json", schema_file(&schema_for!(Manifest), "bulkhead.toml")),
        ("fleet.schema.json", schema_file(&schema_for!(Fleet), "fleet.toml")),
    ]
}

fn schema_file(schema: &Schema, title: &str) -> String {
    let mut value = schema.as_value().clone();
    if let Some(object) = value.as_object_mut() {
        object.insert("title".into(), title.into());
    }
    format!("{value:#}\n")
}

/// The shape that a command prints with `-o json`.
fn shape_of(command: &str) -> Option<Schema> {
    Some(match command {
        "init" => schema_for!(InitReport),
        "local up" | "local ls" | "local down" => schema_for!(LocalReport),
        "node ls" => schema_for!(NodeLsReport),
        "node adopt" => schema_for!(AdoptReport),
        "node release" => schema_for!(NodeReleaseReport),
        "build" => schema_for!(BuildReport),
        "plan" => schema_for!(Plan),
        "deploy" | "promote" | "rollback" | "secret rotate" | "start" | "stop" | "restart" | "rm" => {
            schema_for!(OrderReport)
        }
        "scale" => schema_for!(InstancesReport),
        "pool ls" => schema_for!(PoolLsReport),
        "pool plan" => schema_for!(PoolPlanReport),
        "pool cost" => schema_for!(PoolCostReport),
        "pool log" => schema_for!(ToldLine),
        "pool grant" => schema_for!(PoolGrantReport),
        "pool freeze"
        | "pool thaw"
        | "pool cordon"
        | "pool uncordon"
        | "pool drain"
        | "pool discard"
        | "pool release-orphan" => schema_for!(PoolAskedReport),
        "releases" => schema_for!(ReleasesReport),
        "policy show" | "policy edit" | "policy require" | "policy sign" | "policy push" | "policy drop"
        | "key add" | "key rotate" | "key revoke" => schema_for!(PolicyReport),
        "policy diff" => schema_for!(Vec<String>),
        "policy heartbeat" | "revoke" => schema_for!(Vec<BroughtTo>),
        "standing" => schema_for!(StandingReport),
        "order show" | "order sign" => schema_for!(OrderFileReport),
        "ci mark" => schema_for!(MarkReport),
        "ps" => schema_for!(PsReport),
        "logs" => schema_for!(ShownLine),
        "secret set" | "secret rm" => schema_for!(SecretReport),
        "secret ls" => schema_for!(SecretLsReport),
        "attack" => schema_for!(AttackReport),
        "audit" => schema_for!(AuditReport),
        "open" => schema_for!(OpenReport),
        "look" => schema_for!(LookReport),
        _ => return None,
    })
}

fn commands_page() -> String {
    let mut page = format!(
        "{GENERATED}\n# Commands\n\n\
         Every command prints its result on standard output, as text or with `-o json` as one JSON document\n\
         (`logs`, `pool log`: one a line). Progress, questions and the time it took go to standard error. A command that\n\
         changes something shows its plan and asks; `--yes` agrees beforehand, and without a terminal and\n\
         without `--yes` it refuses.\n\n"
    );
    page.push_str("## Exit codes\n\n| code | meaning |\n|---|---|\n| 0 | done |\n");
    for kind in Kind::ALL {
        putln!(page, "| {} | {} |", kind.exit_code(), kind.meaning());
    }
    page.push_str(
        "\nA command that asks several nodes, or brings them something, ends with 9 where some did it and others did\n\
         not, whatever the reason, and with the reason's own code where none did. An order (`deploy`, `promote`,\n\
         `rollback`, `start`, `stop`, `restart`, `rm`) leaves a node that cannot be reached as it is: where that is\n\
         all that is wrong, the code is 4. A node that the command line names and `fleet.toml` does not have is 2.\n",
    );
    page.push_str(
        "\n## Environment variables\n\n\
         | variable | meaning |\n|---|---|\n\
         | `BULKHEAD_FLEET` | the folder of `fleet.toml`, as `--fleet` |\n\
         | `BULKHEAD_ENV` | the environment, as `-e` |\n\
         | `BULKHEAD_KEY` | a private key file to use before all others |\n\
         | `BULKHEAD_CACHE` | where this machine keeps what saves time |\n\
         | `BULKHEAD_STATE` | where this machine keeps what it must not forget: what it saw of nodes' audit logs, and the database of a pool's loop, without which every machine that was bought is an orphan |\n\
         | `BULKHEAD_MIRROR` | a Debian mirror to use instead of `http://deb.debian.org/debian` |\n\
         | `BULKHEAD_DIGITALOCEAN_TOKEN`, `BULKHEAD_HETZNER_TOKEN` | what a pool's machines are bought with |\n\
         | `BULKHEAD_DIGITALOCEAN_TOKEN_FILE`, `BULKHEAD_HETZNER_TOKEN_FILE` | a file that has it |\n\
         | `BULKHEAD_DIGITALOCEAN_API`, `BULKHEAD_HETZNER_API` | the provider's address, if it is not its own |\n\
         | `BULKHEAD_LOCAL` | where local nodes' state lies |\n\
         | `BULKHEAD_AGENT` | the agent's binary for nodes: local ones, adopted ones, and machines that a loop buys |\n\
         | `SSH_AUTH_SOCK` | the ssh-agent |\n\
         | `NO_COLOR` | no colours, if set to anything |\n\n",
    );
    let mut shapes = Shapes::default();
    let mut root = Cli::command().term_width(WIDTH);
    root.build();
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        command_section(&mut page, &mut shapes, &[command.get_name()], command);
    }
    putln!(page, "## JSON shapes\n");
    let error = schema_for!(ErrorReport);
    let name = shapes.add(&error);
    putln!(
        page,
        "Fields marked `?` may be null. A command that fails prints [{name}](#{}), unless its result already\nsays what went wrong.\n",
        anchor(&name)
    );
    page.push_str(&shapes.render());
    page
}

fn command_section(page: &mut String, shapes: &mut Shapes, path: &[&str], command: &clap::Command) {
    let visible = |command: &&clap::Command| !command.is_hide_set() && command.get_name() != "help";
    let children: Vec<&clap::Command> = command.get_subcommands().filter(visible).collect();
    if !children.is_empty() {
        for child in children {
            command_section(page, shapes, &[path, &[child.get_name()]].concat(), child);
        }
        return;
    }
    let name = path.join(" ");
    let help = command.clone().term_width(WIDTH).render_long_help().to_string();
    putln!(page, "## `bulkhead {name}`\n\n```text\n{}\n```\n", trimmed(&help));
    if let Some(schema) = shape_of(&name) {
        let shape = shapes.add(&schema);
        putln!(page, "With `-o json`: [{shape}](#{}).\n", anchor(&shape));
    }
}

/// Without trailing spaces, and without the options that every command has.
fn trimmed(help: &str) -> String {
    let own = help.split("\nEverywhere:\n").next().unwrap_or(help);
    own.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

fn anchor(title: &str) -> String {
    title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == '-').collect()
}

/// Documented objects, by name.
#[derive(Default)]
struct Shapes(BTreeMap<String, Value>);

impl Shapes {
    /// Adds a schema and all it refers to; gives its name.
    fn add(&mut self, schema: &Schema) -> String {
        let mut value = schema.as_value().clone();
        let name = value["title"].as_str().unwrap_or("Result").to_owned();
        if let Some(Value::Object(definitions)) = value.get_mut("$defs").map(Value::take) {
            for (name, definition) in definitions {
                self.0.insert(name, definition);
            }
        }
        self.0.insert(name.clone(), value);
        name
    }

    fn render(&self) -> String {
        let mut out = String::new();
        for (name, schema) in &self.0 {
            let Some(properties) = schema["properties"].as_object() else { continue };
            putln!(out, "### {name}\n\n{}\n\n{}", description(schema), self.table(properties, "field"));
        }
        out
    }

    fn table(&self, properties: &Map<String, Value>, key: &str) -> String {
        let mut out = format!("| {key} | type | meaning |\n|---|---|---|\n");
        for (name, property) in properties {
            let meaning = self.meaning(property).replace('|', "\\|");
            putln!(out, "| `{name}` | {} | {meaning} |", self.type_of(property));
        }
        out
    }

    /// The property's own words, with those of the values it can have.
    fn meaning(&self, property: &Value) -> String {
        let own = description(property);
        match reference(property).and_then(|name| self.0.get(name)) {
            Some(target) if target["properties"].is_object() => own,
            Some(target) if own.is_empty() => description(target),
            _ => own,
        }
    }

    fn type_of(&self, schema: &Value) -> String {
        if let Some(name) = reference(schema) {
            let Some(target) = self.0.get(name) else { return name.to_owned() };
            if target["properties"].is_object() {
                return format!("[{name}](#{})", anchor(name));
            }
            return self.type_of(target);
        }
        if let Some(choices) = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
            let nullable = choices.iter().any(|choice| choice["type"] == "null");
            let names: Vec<String> = choices
                .iter()
                .filter(|choice| choice["type"] != "null")
                .map(|choice| match choice["const"].as_str() {
                    Some(word) => format!("`{word}`"),
                    None => self.type_of(choice),
                })
                .collect();
            return names.join(", ") + if nullable { "?" } else { "" };
        }
        if let Some(words) = schema["enum"].as_array() {
            return words
                .iter()
                .filter_map(Value::as_str)
                .map(|word| format!("`{word}`"))
                .collect::<Vec<_>>()
                .join(", ");
        }
        let one = |kind: &str| match kind {
            "array" => format!("list of {}", self.type_of(&schema["items"])),
            "object" => {
                let patterns = schema["patternProperties"].as_object().and_then(|patterns| patterns.values().next());
                match patterns.or(schema.get("additionalProperties")).filter(|values| values.is_object()) {
                    Some(values) => format!("table of {}", self.type_of(values)),
                    None => "table".into(),
                }
            }
            kind => kind.to_owned(),
        };
        match &schema["type"] {
            Value::String(kind) => one(kind),
            Value::Array(kinds) => {
                let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
                let names: Vec<String> = kinds.iter().filter(|kind| **kind != "null").map(|kind| one(kind)).collect();
                names.join(" or ") + if kinds.contains(&"null") { "?" } else { "" }
            }
            _ => "anything".into(),
        }
    }
}

/// The definition that a schema refers to, also where it may be null.
fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str().and_then(|path| path.rsplit('/').next())
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn manifest_page() -> String {
    let mut shapes = Shapes::default();
    let manifest = shapes.add(&schema_for!(Manifest));
    let mut page = format!(
        "{GENERATED}\n# bulkhead.toml\n\n\
         What an app is, in its folder, checked in. An unknown key is refused, with the nearest known one.\n\
         Editors that know JSON schemas complete it with [bulkhead.schema.json](bulkhead.schema.json):\n\
         write `#:schema PATH/bulkhead.schema.json` as the first line.\n\n\
         ```toml\n{EXAMPLE}```\n\n"
    );
    let sections: [(&str, &str, &str); 6] = [
        ("Top level", &manifest, ""),
        ("`[image]`", "ImageSection", ""),
        ("`[services.NAME]`", "ServiceSection", ""),
        ("`health`", "HealthSection", ""),
        ("`[environments.NAME]`", "EnvironmentSection", ""),
        (
            "`[environments.NAME.services.NAME]`",
            "ServiceOverride",
            "Variables of a service in an environment come from the service, then the environment, then here; the last one counts.",
        ),
    ];
    for (title, name, note) in sections {
        manifest_section(&mut page, &shapes, title, name, note);
    }
    let defaults = ImageSection::default();
    putln!(
        page,
        "Defaults of `[image]`: `source = {:?}`, `to = {:?}`, `suite = {:?}`, `platform = {:?}`; lists are empty.\n\n\
         Defaults of a service: `health.within = \"30s\"`, `drain = \"10s\"`, `stop = \"10s\"`; no limits.\n",
        defaults.source,
        defaults.to.0,
        defaults.suite,
        defaults.platform.as_str()
    );

    let mut fleet_shapes = Shapes::default();
    let fleet = fleet_shapes.add(&schema_for!(Fleet));
    page.push_str("# fleet.toml\n\n");
    manifest_section(&mut page, &fleet_shapes, "Top level of fleet.toml", &fleet, "");
    manifest_section(&mut page, &fleet_shapes, "`[nodes.NAME]`", "FleetNode", "");
    manifest_section(&mut page, &fleet_shapes, "`[tools]`", "Tools", "");
    manifest_section(&mut page, &fleet_shapes, "`[pools.NAME]`", "PoolSection", "See docs/elasticity.md.");
    manifest_section(&mut page, &fleet_shapes, "`[pools.NAME.consolidation]`", "ConsolidationSection", "");
    manifest_section(&mut page, &fleet_shapes, "`[scaling]`", "ScalingSection", "");
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn manifest_section(page: &mut String, shapes: &Shapes, title: &str, name: &str, note: &str) {
    let Some(schema) = shapes.0.get(name) else { return };
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    putln!(
        page,
        "## {title}\n\n{}{}\n",
        description(schema),
        if note.is_empty() { String::new() } else { format!(" {note}") }
    );
    let mut table = String::from("| key | type | meaning |\n|---|---|---|\n");
    for (key, property) in properties {
        let kind = plain_type(shapes, property);
        let mark = if required.contains(&key.as_str()) { " (required)" } else { "" };
        let meaning = shapes.meaning(property).replace('|', "\\|");
        putln!(table, "| `{key}`{mark} | {kind} | {meaning} |");
    }
    page.push_str(&table);
    page.push('\n');
}

/// A type for a page whose sections have titles of their own: no links, and no mark for what may be left out.
fn plain_type(shapes: &Shapes, property: &Value) -> String {
    let kind = shapes.type_of(property);
    let mut out = String::new();
    let mut rest = kind.trim_end_matches('?');
    while let Some((before, after)) = rest.split_once('[') {
        let Some((_, end)) = after.split_once(')') else { break };
        out.push_str(before);
        out.push_str("section");
        rest = end;
    }
    out.push_str(rest);
    out.replace("table of section", "sections")
        .replace("list of string", "list of strings")
        .replace("table of string", "table of strings")
}

const EXAMPLE: &str = r#"app = "notes"

[image]
packages = ["nodejs"]          # Debian packages, cut down to what runs
exclude = ["*.test.js"]

[services.web]
command = ["node", "server.js"]
port = 3000
env = { PORT = "3000" }
health = { http = "/health", within = "30s" }
volumes = { data = "/var/lib/notes" }
memory = "256M"

[environments.production.services.web]
memory = "1G"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_manifest() {
        assert!(Manifest::parse(EXAMPLE).is_ok());
    }

    /// What people are told to type stands in the help.
    #[test]
    fn documents_name_no_hidden_command() {
        let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut paths: Vec<_> = ["README.md", "SECURITY.md", "CONTRIBUTING.md"].map(|name| top.join(name)).to_vec();
        for folder in ["docs", "docs/runbooks"] {
            let entries = std::fs::read_dir(top.join(folder)).unwrap().map(|entry| entry.unwrap().path());
            paths.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
        }
        let (mut seen, command) = (0, Cli::command());
        for path in paths {
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines().flat_map(|line| line.split("bulkhead ").skip(1)) {
                let mut known = &command;
                for word in line.split(|sign: char| !sign.is_ascii_lowercase() && sign != '-') {
                    let Some(found) = known.find_subcommand(word) else { break };
                    // It writes these very documents.
                    let is_shown = !found.is_hide_set() || word == "generate-docs";
                    assert!(is_shown, "{}: `{line}` is hidden from help", path.display());
                    (seen, known) = (seen + 1, found);
                }
            }
        }
        assert!(seen > 50, "only {seen} commands were found");
    }

    #[test]
    fn checked_in_files_are_the_generated_ones() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
        for (name, contents) in files() {
            let present = std::fs::read_to_string(docs.join(name)).unwrap_or_default();
            assert!(present == contents, "docs/{name} is out of date: run `bulkhead generate-docs docs`");
        }
    }
}
