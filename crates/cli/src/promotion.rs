//! What `promote` makes of a release and of this folder's manifest.
//!
//! From the release come the image and, of each service, all that belongs to
//! the program: command, workdir, port, health check, volumes, jit, drain, stop.
//! From the manifest, as it has them for the environment promoted to, comes
//! what belongs to the place: environment variables, memory, tasks, cpu_percent
//! and the nodes, which is all that an `[environments]` section can say.
//!
//! A manifest that has changed since the release was made is no reason to
//! refuse, but is said. One that has not got a service of the release says
//! nothing of what that service gets, and then nothing is promoted.

use crate::{
    error::{Error, Result},
    plan::{Change, service_changes},
};
use bulkhead_core::order::ServiceSpec;

/// What is to run, and what a person should know before agreeing to it.
#[derive(Debug, PartialEq, Eq)]
pub struct Promotion {
    /// The services.
    pub services: Vec<ServiceSpec>,
    /// How this folder's manifest differs from the release, a line each.
    pub notes: Vec<String>,
}

/// Whether a setting, as the manifest calls it, belongs to the place and not to the program.
fn is_of_place(field: &str) -> bool {
    field.starts_with("env.") || ["memory", "tasks", "cpu_percent"].contains(&field)
}

/// Makes a promotion of what runs (`release`) and of what the manifest says of the environment it
/// runs in (`from`) and of the one that it is promoted to (`to`).
///
/// # Errors
/// The release has a service that the manifest has not.
pub fn promotion(release: &[ServiceSpec], from: &[ServiceSpec], to: &[ServiceSpec]) -> Result<Promotion> {
    let mut services = Vec::with_capacity(release.len());
    for released in release {
        let Some(there) = to.iter().find(|there| there.name == released.name) else {
            let message = format!(
                "the release has a service `{}`, of which this folder's bulkhead.toml says nothing: \
                 what it gets where it is promoted to is not known",
                released.name
            );
            return Err(Error::configuration(message)
                .hint("promote from a folder whose bulkhead.toml has it, such as the commit of the release")
                .hint("or deploy what this folder has first"));
        };
        services.push(ServiceSpec {
            env: there.env.clone(),
            memory_max_bytes: there.memory_max_bytes,
            tasks_max: there.tasks_max,
            cpu_percent: there.cpu_percent,
            ..released.clone()
        });
    }
    Ok(Promotion { services, notes: notes(release, from) })
}

fn notes(release: &[ServiceSpec], manifest: &[ServiceSpec]) -> Vec<String> {
    let mut notes = Vec::new();
    for change in service_changes(release, manifest) {
        let service = change.service;
        match change.change {
            Change::Added => notes.push(format!("{service}: not in the release, and so not promoted")),
            // Refused above.
            Change::Removed => {}
            Change::Changed => notes.extend(change.fields.into_iter().map(|field| {
                let value = |value: Option<String>| value.unwrap_or_else(|| "nothing".into());
                let taken = if is_of_place(&field.field) { "bulkhead.toml" } else { "the release" };
                let (runs, says) = (value(field.from), value(field.to));
                format!("{service}: {} is {runs} there, {says} here; {taken} decides", field.field)
            })),
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::manifest::Manifest;

    const RELEASED: &str = r#"
        app = "notes"
        [services.web]
        command = ["node", "server.js"]
        port = 3000
        memory = "256M"
        env = { A = "1", B = "1" }
        [environments.production]
        env = { LEVEL = "warn" }
        [environments.production.services.web]
        memory = "1G"
    "#;

    fn services(manifest: &str, environment: &str) -> Vec<ServiceSpec> {
        Manifest::parse(manifest).unwrap().services_in(&environment.parse().unwrap())
    }

    fn promoted(here: &str) -> Result<Promotion> {
        let release = services(RELEASED, "staging");
        promotion(&release, &services(here, "staging"), &services(here, "production"))
    }

    #[test]
    fn a_manifest_that_is_the_releases() {
        let expected = Promotion { services: services(RELEASED, "production"), notes: vec![] };
        assert_eq!(promoted(RELEASED).unwrap(), expected);
    }

    #[test]
    fn a_manifest_that_has_changed_since() {
        let here = RELEASED
            .replace("server.js", "main.js")
            .replace("port = 3000", "port = 4000")
            .replace("B = \"1\"", "B = \"2\"")
            + "[services.worker]\ncommand = [\"node\", \"worker.js\"]\n";
        let promotion = promoted(&here).unwrap();
        let [web] = promotion.services.as_slice() else { panic!("{promotion:?}") };
        assert_eq!((web.command[1].as_str(), web.port), ("server.js", Some(3000)));
        assert_eq!((web.env["B"].as_str(), web.env["LEVEL"].as_str()), ("2", "warn"));
        assert_eq!(web.memory_max_bytes, Some(1 << 30));
        insta::assert_snapshot!(promotion.notes.join("\n"), @r"
        web: command is node server.js there, node main.js here; the release decides
        web: env.B is 1 there, 2 here; bulkhead.toml decides
        web: port is 3000 there, 4000 here; the release decides
        worker: not in the release, and so not promoted
        ");
    }

    #[test]
    fn a_manifest_without_a_service_of_the_release() {
        let error = promoted(&RELEASED.replace("services.web", "services.site")).unwrap_err();
        assert!(error.message.contains("a service `web`"), "{error}");
    }
}
