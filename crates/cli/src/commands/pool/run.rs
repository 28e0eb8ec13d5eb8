//! `bulkhead pool run`.

use crate::{
    Context,
    deployment::{document_of_held, payload_of_held},
    error::{Error, Kind, Result},
    grants::statements_about,
    notices::{keep_revocations, notices, revoked},
    output::printable,
    pools::{self, GrantFile, Pools, database_error, grants, machines_granted},
    session::{Session, now, sign_error},
    workspace::{FLEET, FleetFiles, PolicyFiles, read_if_present, write_durably, write_json},
};
use bulkhead_core::{
    EnvironmentName, NodeName, PoolName, SignedText, Timestamp,
    fleet::{FleetNode, PoolProvider},
    grant::Grant,
    notice::Revoked,
    policy::{Role, key_blob},
};
use bulkhead_fleet::{bootstrap::find_agent, sign::Signer};
use bulkhead_pool::{
    Database, Enrolment, FleetNodes, Granted, Grants, Means, NodeMeans, Nodes, PoolSettings, Provided, ReadNotices,
    ReadPolicy, Runner, Sealed, node_name, system_clock,
};
use bulkhead_provider::Provider;
use bulkhead_scale::{Machine, State, Time};
use clap::Args;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, mpsc},
};
use tokio::runtime::Handle;

/// What an interruption means.
const ENDS: &str = "what runs goes on; the next `bulkhead pool run` takes up what was under way";

/// Buys machines, starts and stops instances, and gives machines back, until it is interrupted
///
/// One at a time for a fleet, on a machine that reaches the provider and the nodes. It needs the key of the role
/// `scale`, which must have `courier` and `observe` too, and the provider's token in `BULKHEAD_DIGITALOCEAN_TOKEN` or
/// `BULKHEAD_HETZNER_TOKEN`. Killed at any moment it forgets nothing. See docs/elasticity.md.
#[derive(Debug, Args)]
pub(super) struct RunArgs {}

/// Runs the loop.
pub(super) async fn run(context: &Context, _: &RunArgs) -> Result<()> {
    let files = FleetFiles::load(&context.places)?;
    let pools = Pools::of(&files.fleet)?;
    let directory = pools::directory(&files.fleet.fleet)?;
    std::fs::create_dir_all(&directory)
        .map_err(|error| Error::during(Kind::Internal, format!("cannot make {}", directory.display()), &error))?;
    let session = Session::of(context, files)?;
    check_environments(&session)?;
    let signer = signer(&session).await?;
    // An agent or a device does not open anything. What that keeps from starting is said when it is asked for.
    let opener = signer.sealing_key().await.map_err(|error| shown(sign_error(&error)));
    let agent = agent().await?;
    // Before leases are read, and anything is asked: another loop may have it.
    let database = Database::open(&directory.join("pool.sqlite")).map_err(|error| database_error(&error))?;
    check_provider(&database, &pools, &directory)?;
    let provider = pools::provider(&session.files.fleet, &directory, || local(&session.files))?;
    let folder = Folder {
        context: context.clone(),
        session: session.clone(),
        directory: directory.clone(),
        key: signer.public_key().to_openssh(),
        newest: Mutex::default(),
        refused: Mutex::default(),
        known: Mutex::default(),
        runtime: Handle::current(),
    };

    let (sender, told) = mpsc::channel::<String>();
    // It goes to the log that `pool log` shows.
    let say = move |text: &str| drop(sender.send(text.to_owned()));
    // Nobody else's key opens a machine that is not a node yet.
    let enrolment = Arc::new(Enrolment::new(&directory, vec![signer.public_key().to_openssh()]));
    let provided = Provided::new(Arc::clone(&provider), pools::wanted(&session.files.fleet)?, Box::new(say.clone()))
        .enrolling(Arc::clone(&enrolment));
    let nodes = Arc::new(
        FleetNodes::new(NodeMeans {
            fleet: session.files.fleet.fleet.clone(),
            policy: policy(session.files.clone()),
            notices: notices_of(session.files.clone(), directory.clone()),
            identities: session.identities.clone(),
            timeouts: session.timeouts,
            ssh: session.ssh().clone(),
            memory: session.memory.clone(),
            signer,
            opener,
            agent: agent.into(),
            directory: directory.clone(),
            pools: settings(&session),
            adopted: session.files.fleet.nodes.clone(),
            provider,
            enrolment,
            grants: Arc::new(folder),
            runtime: Handle::current(),
            log: Box::new(say),
        })
        .map_err(Error::configuration)?,
    );
    let ui = Arc::clone(&context.ui);
    let means = Means {
        servers: Arc::new(provided),
        nodes: Arc::clone(&nodes) as Arc<dyn Nodes>,
        clock: system_clock(),
        log: Box::new(move |at: Time, text: &str| ui.note(&format!("{at} {}", printable(text)))),
        told,
    };
    let fleet = session.files.fleet.fleet.clone();
    let names: Vec<&str> = pools.pools.iter().map(|pool| pool.name.as_str()).collect();
    context.ui.note(&format!("pools of {fleet}: {}; what is decided is in `bulkhead pool log`", names.join(", ")));
    context.ui.stage(ENDS);
    let work = tokio::task::spawn_blocking(move || {
        let mut runner =
            Runner::new(database, fleet, pools.limits, pools.pools, means).map_err(|error| database_error(&error))?;
        let machines = runner.scaler().machines().filter(|machine| machine.state != State::Gone);
        let names: BTreeSet<String> = machines.map(|machine| node_name(&machine.name).to_owned()).collect();
        nodes.forget(|name| names.contains(name)).map_err(|error| Error::of(Kind::Internal, &error))?;
        stop_strays(&runner, &nodes)?;
        runner.run(&AtomicBool::new(false)).map_err(|error| database_error(&error))
    });
    work.await.map_err(|error| Error::during(Kind::Internal, "the loop ended early", &error))?
}

/// Reads the policy as every command does: one that does not follow from what this machine knows is not believed.
fn policy(files: FleetFiles) -> ReadPolicy {
    Box::new(move || {
        let PolicyFiles { policy, bytes, signatures } = files.policy().map_err(shown)?;
        let text = String::from_utf8(bytes).map_err(|error| format!("the policy is not text: {error}"))?;
        Ok((SignedText { text, signatures }, policy.version))
    })
}

fn shown(error: Error) -> String {
    std::iter::once(error.message).chain(error.causes).collect::<Vec<_>>().join(": ")
}

/// Reads what was revoked, and the newest heartbeat, from beside `fleet.toml`. A revocation that this loop once read
/// there counts though it be there no more.
fn notices_of(files: FleetFiles, directory: PathBuf) -> ReadNotices {
    let read = move || {
        keep_revocations(&files.directory, &directory, &files.policy()?.policy)?;
        let mut all = notices(&directory)?;
        for notice in notices(&files.directory)? {
            if !all.contains(&notice) {
                all.push(notice);
            }
        }
        Ok(all)
    };
    Box::new(move || read().map_err(shown))
}

/// What runs on machines and is on no record: a start that a killed loop had begun, and that was given up meanwhile.
fn stop_strays(runner: &Runner, nodes: &Arc<FleetNodes>) -> Result<()> {
    let strays = nodes
        .strays(|instance| runner.scaler().instance(instance).is_some())
        .map_err(|error| Error::of(Kind::Internal, &error))?;
    let machines = runner.scaler().machines().filter(|machine| machine.state != State::Gone);
    let machines: BTreeMap<String, Machine> =
        machines.map(|machine| (node_name(&machine.name).to_owned(), machine.clone())).collect();
    let nodes = Arc::clone(nodes);
    std::thread::spawn(move || {
        for (name, instance) in strays {
            if let Some(machine) = machines.get(&name) {
                // What does not stop now is tried by the next loop; the machine is kept as long as it runs.
                nodes.stop(machine, instance, "");
            }
        }
    });
    Ok(())
}

/// Machines of another provider must be gone before this one is asked: it would say that they are.
fn check_provider(database: &Database, pools: &Pools, directory: &Path) -> Result<()> {
    let path = directory.join("provider");
    let known = read_if_present(&path)?.map(|text| text.trim().to_owned());
    let wanted = pools.provider.map(PoolProvider::as_str).unwrap_or_default();
    if known.as_deref() == Some(wanted) {
        return Ok(());
    }
    let rows = database.rows().map_err(|error| database_error(&error))?;
    let there = rows.machines.iter().filter(|machine| machine.state != State::Gone).count();
    if let Some(known) = known.filter(|_| there > 0) {
        let message =
            format!("{there} machines from {known} are on record, and {FLEET} has no pool from there any more");
        return Err(Error::configuration(message)
            .hint("put the pool back with `machines_max = 0`, and run this until `bulkhead pool ls` shows none"));
    }
    write_durably(&path, format!("{wanted}\n").as_bytes())
}

/// The policy must have the pools' environments, or nodes of them would take no order.
fn check_environments(session: &Session) -> Result<()> {
    session.files.fleet.pools.values().try_for_each(|section| session.environment(&section.environment).map(drop))
}

fn settings(session: &Session) -> BTreeMap<PoolName, PoolSettings> {
    let of = |(name, section): (&PoolName, &bulkhead_core::fleet::PoolSection)| {
        let settings = PoolSettings {
            environment: section.environment.clone(),
            provider: section.provider.as_str().to_owned(),
            is_adopted: section.provider == PoolProvider::Fixed,
        };
        (name.clone(), settings)
    };
    session.files.fleet.pools.iter().map(of).collect()
}

/// The scale key at hand.
async fn signer(session: &Session) -> Result<Signer> {
    let policy = &session.policy.policy;
    let scale: Vec<_> = policy.holders(Role::Scale).collect();
    let keys = scale.iter().map(|(_, key)| key.key.as_str());
    if scale.is_empty() {
        return Err(Error::configuration("the policy gives nobody the role `scale`").hint(
            "`bulkhead key add NAME FILE --role scale --role courier --role observe`, with a key made for the loop",
        ));
    }
    let signer = Signer::find(&session.identities, keys).await.map_err(|error| sign_error(&error))?;
    let found = signer.public_key().to_openssh();
    let holder = scale.iter().find(|(_, key)| key_blob(&key.key) == key_blob(&found));
    for role in [Role::Courier, Role::Observe] {
        if let Some((name, key)) = holder
            && !key.roles.contains(&role)
        {
            let message = format!("`{name}` has the role `scale` but not `{role}`: it could not connect to nodes");
            return Err(Error::configuration(message).hint(format!("`bulkhead policy edit` can give it `{role}`")));
        }
    }
    Ok(signer)
}

async fn agent() -> Result<Vec<u8>> {
    let path = find_agent()
        .map_err(|error| Error::of(Kind::Configuration, &error).hint("name the binary for nodes in BULKHEAD_AGENT"))?;
    tokio::fs::read(&path)
        .await
        .map_err(|error| Error::during(Kind::Configuration, format!("cannot read {}", path.display()), &error))
}

#[cfg(target_os = "linux")]
fn local(files: &FleetFiles) -> Result<Arc<dyn Provider>> {
    let local = crate::commands::local::fleet::open(files)?;
    Ok(Arc::new(bulkhead_pool::LocalProvider::new(local, &files.fleet.fleet)))
}

#[cfg(not(target_os = "linux"))]
fn local(_: &FleetFiles) -> Result<Arc<dyn Provider>> {
    Err(Error::configuration("machines of provider `local` run on Linux only"))
}

/// The grants beside `fleet.toml`. Each is read anew for every start, so that a new one counts at once.
struct Folder {
    context: Context,
    session: Session,
    /// Where the loop keeps what it knows.
    directory: PathBuf,
    /// Its key.
    key: String,
    /// Whoever looks which grant is the newest that was acted on has it alone.
    newest: Mutex<()>,
    /// What was said of files that count for nothing.
    refused: Mutex<BTreeSet<String>>,
    /// What was last read of each file, with what it took time to find.
    known: Mutex<BTreeMap<(PoolName, String), Granted>>,
    /// What waits for nodes that have the image. It is asked from threads of its own.
    runtime: Handle,
}

impl Folder {
    /// The grants that count: signed by enough people, and not revoked.
    fn valid(&self) -> Result<Vec<GrantFile>> {
        let files = &self.session.files;
        let policy = files.policy()?.policy;
        keep_revocations(&files.directory, &self.directory, &policy)?;
        let revoked = revoked(&self.directory, &policy)?;
        let is_revoked = |file: &GrantFile| revoked.orders.contains(&Grant::id(file.signed.text.as_bytes()));
        let refused = |error: &Error| {
            // They are read every few seconds.
            if self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(error.message.clone()) {
                self.context.ui.warn(error);
            }
        };
        Ok(grants(files, &refused)?.into_iter().filter(|file| !is_revoked(file)).collect())
    }

    fn is_ours(&self, file: &GrantFile) -> bool {
        key_blob(&file.grant.key) == key_blob(&self.key)
    }

    /// Takes a grant, unless it is older than one that this loop acted on.
    fn take(&self, file: GrantFile) -> Result<GrantFile> {
        let _alone = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        go_on(&self.directory.join("newest.json"), &file.grant)?;
        Ok(file)
    }

    fn find(&self, pool: &PoolName, workload: &str) -> Result<GrantFile> {
        let of_it = |file: &GrantFile| file.grant.pool == *pool && file.grant.workload() == workload;
        let (ours, others): (Vec<_>, Vec<_>) =
            self.valid()?.into_iter().filter(of_it).partition(|file| self.is_ours(file));
        // The newest is what people want now; one that lasts longer may be an old one that somebody kept.
        let newest = ours.into_iter().max_by_key(|file| file.grant.issued);
        let again = "`bulkhead pool grant` in the app's folder gives one";
        match newest {
            None if !others.is_empty() => Err(Error::configuration(format!(
                "the grant for {workload} is for another key than this loop's; {again}"
            ))),
            None => Err(Error::configuration(format!("no grant lets {workload} run in {pool}; {again}"))),
            Some(file) if file.grant.not_after <= now() => {
                let message = format!("the grant for {workload} ended at {}; {again}", file.grant.not_after);
                Err(Error::configuration(message))
            }
            Some(file) => self.take(file),
        }
    }

    /// Nodes that may have the image, should this machine's cache have lost it.
    fn holders(&self, environment: &EnvironmentName) -> Vec<(NodeName, FleetNode)> {
        let fleet = &self.session.files.fleet;
        let listed = fleet.nodes.iter().map(|(name, node)| (name.clone(), node.clone()));
        listed.chain(pools::bought(&fleet.fleet)).filter(|(_, node)| node.environment == *environment).collect()
    }

    async fn granted(&self, file: GrantFile) -> Result<Granted> {
        let secrets = file.secrets()?;
        let GrantFile { signed, grant, .. } = file;
        let image = grant.run.image;
        let holders = self.holders(&grant.environment);
        let names: Vec<NodeName> = holders.iter().map(|(name, _)| name.clone()).collect();
        // Nobody is asked for what is here.
        let is_here = self.session.memory.document(image).is_some();
        let mut early = if is_here { BTreeMap::new() } else { self.session.begin(&holders)? };
        let (document, decoded) = document_of_held(&self.session, image, &mut early, &names).await?;
        let statements = statements_about(&self.session.files.directory, image)?;
        let payload = payload_of_held(&self.context, &self.session, document, decoded, &holders)?;
        Ok(Granted { signed, grant, statements, payload, secrets })
    }
}

/// Notes a grant as the newest that is acted on, for its pool and service. Whoever may write beside `fleet.toml` can put an
/// old one back, which people signed once and would not sign again: with an old image, and old values of secrets.
fn go_on(path: &Path, grant: &Grant) -> Result<()> {
    let mut newest: BTreeMap<String, Timestamp> = match read_if_present(path)? {
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| Error::during(Kind::Internal, format!("cannot read {}", path.display()), &error))?,
        None => BTreeMap::new(),
    };
    let (workload, issued) = (grant.workload(), grant.issued);
    let known = newest.insert(format!("{}/{workload}", grant.pool), issued);
    match known {
        Some(known) if known > issued => {
            let what =
                format!("the grant for {workload} was made at {issued}, and this loop has acted on one of {known}");
            let again = "`bulkhead pool grant` in the app's folder gives a new one";
            Err(Error::configuration(format!("{what}: it does not go back; {again}")))
        }
        Some(known) if known == issued => Ok(()),
        _ => write_json(path, &newest),
    }
}

impl Grants for Folder {
    fn granted(&self, pool: &PoolName, workload: &str) -> std::result::Result<Granted, String> {
        let file = self.find(pool, workload).map_err(shown)?;
        let key = (pool.clone(), workload.to_owned());
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known().get(&key).filter(|found| found.signed == file.signed).cloned();
        if let Some(found) = found {
            // What CI said of the image since is of use, and secrets that were missing may have come.
            let statements = statements_about(&self.session.files.directory, file.grant.run.image).map_err(shown)?;
            let secrets = file.secrets().map_err(shown)?;
            return Ok(Granted { statements, secrets, ..found });
        }
        // Nodes may be asked for the image, and who hangs must not hold up starts of other services.
        let granted = self.runtime.block_on(self.granted(file)).map_err(shown)?;
        known().insert(key, granted.clone());
        Ok(granted)
    }

    fn known(&self, pool: &PoolName, workload: &str) -> std::result::Result<(Grant, Sealed), String> {
        let file = self.find(pool, workload).map_err(shown)?;
        let secrets = file.secrets().map_err(shown)?;
        Ok((file.grant, secrets))
    }

    /// `fleet.toml` says more, and is signed by nobody.
    fn machines(&self, pool: &PoolName) -> std::result::Result<u32, String> {
        let valid = self.valid().map_err(shown)?;
        let granted = machines_granted(valid.iter().filter(|file| self.is_ours(file)), &Revoked::default());
        Ok(granted.get(pool).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_older_grant_is_taken_than_the_newest_that_was_acted_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("newest.json");
        let of = |service: &str, issued: i64| {
            let json = serde_json::json!({
                "format": 1, "fleet": "acme", "environment": "staging", "pool": "kernels", "app": "notes",
                "run": { "image": bulkhead_core::ImageId::of(b"x"), "services": [
                    bulkhead_core::order::ServiceSpec::new(service.parse().unwrap(), vec!["x".into()])
                ] },
                "key": "", "machines": 1, "instances": 1, "issued": issued, "not_after": 99,
            });
            go_on(&path, &serde_json::from_value(json).unwrap())
        };
        of("web", 10).unwrap();
        of("web", 10).unwrap();
        of("web", 20).unwrap();
        // Also by the next loop, and for this service alone.
        assert!(of("web", 10).unwrap_err().message.contains("it does not go back"));
        assert!(of("web", 19).is_err());
        of("worker", 10).unwrap();
        of("web", 20).unwrap();
    }
}
