//! `bulkhead pool grant`.

use crate::{
    Context,
    args::Environment,
    deployment::{build_image, keep_contents, note_build},
    error::{Error, Kind, Result},
    git,
    grants::{read_signed, write_signed},
    notices::revoked,
    output::Paint,
    plan::binary_size,
    pools::{self, GrantFile, Pools, grant_file, grant_path, scale_key, secrets_path},
    proposal::name_of,
    secrets::{digests, for_grant},
    session::{Purpose, Session, now, sign_error},
    workspace::{App, FleetFiles, shown, write_json},
};
use bulkhead_core::{
    OrderId, PersonName, PoolName, SecretDigest, SecretName, ServiceName, SignedText, Timestamp,
    grant::{Grant, NAMESPACE},
    name::nearest,
    notice::Revoked,
    order::{Run, ServiceSpec},
};
use bulkhead_trust::read_grant;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

const DAY_S: i64 = 24 * 3600;

/// Allows a pool's loop to run one service of this app, from the image that this folder gives
///
/// Signed with as many release keys as the environment demands of people. The loop, with the key that the policy gives
/// the role `scale`, may then run exactly this service from exactly this image on nodes of the pool, and stop it
/// again; nothing else. Any one release key ends it early: `bulkhead revoke --order ID`.
#[derive(Debug, Args)]
pub(super) struct GrantArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: PoolName,

    #[command(flatten)]
    environment: Environment,

    /// The service, where the app has several.
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,

    /// For how many days.
    #[arg(long, value_name = "NUMBER", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=366))]
    days: u16,

    /// On how many machines at most; the pool's `machines_max` by default.
    #[arg(long, value_name = "NUMBER")]
    machines: Option<u32>,

    /// How many instances on one machine at most; the pool's slots by default, and no fewer.
    #[arg(long, value_name = "NUMBER")]
    instances: Option<u32>,

    /// Lets the service have its volumes: each instance its own, and each is deleted with its instance.
    #[arg(long)]
    scratch: bool,

    /// Whose key may act on it, where the policy gives several the role `scale`.
    #[arg(long, value_name = "PERSON")]
    key: Option<PersonName>,

    /// The file to write, if it is not the one in `.bulkhead/grants` beside `fleet.toml`, where the loop looks.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Refuses to change `bulkhead.lock`.
    #[arg(long)]
    locked: bool,

    /// Goes on without a question.
    #[arg(short, long)]
    yes: bool,
}

/// What was granted.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolGrantReport {
    /// Its id, by which it can be revoked.
    pub grant: String,
    /// The file that has it.
    pub file: String,
    /// The pool.
    pub pool: String,
    /// What may run there, `APP/SERVICE`.
    pub workload: String,
    /// From which image.
    pub image: String,
    /// On how many machines.
    pub machines: u32,
    /// How many on each.
    pub instances: u32,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
    /// The grant that the file had before, where that holds on: its key may act on it until it ends or is revoked.
    pub before: Option<String>,
}

/// Builds, shows what is allowed, asks, signs.
pub(super) async fn run(context: &Context, args: &GrantArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let app = App::load(&context.places)?;
    let files = FleetFiles::load(&context.places)?;
    let environment = &args.environment.environment;
    let section = pools::section(&files.fleet, &args.pool)?;
    if section.environment != *environment {
        let message = format!("pool `{}` is for `{}`, and not for `{environment}`", args.pool, section.environment);
        return Err(Error::usage(message));
    }
    let pools = Pools::of(&files.fleet)?;
    let pool = pools.named(&args.pool)?;
    let service = service(app.manifest.services_in(environment), args.service.as_ref())?;
    let machines = args.machines.or(pool.caps.machines).ok_or_else(|| {
        Error::usage(format!("on how many machines? pool `{}` has no `machines_max`", args.pool))
            .hint("say `--machines NUMBER`")
    })?;
    let needs = pools::needs(pool, &service);
    if !pool.machine.fits(needs) {
        return Err(does_not_fit(&args.pool, pool.machine, needs));
    }
    let slots = pool.machine.slots;
    if args.instances.is_some_and(|instances| instances < slots) {
        let message = format!("a machine of pool `{}` takes {slots}: the loop would start more than that", args.pool);
        return Err(Error::usage(message).hint(format!("say `--instances {slots}` or more")));
    }
    let session = Session::of(context, files)?;
    pools::check(&session.files.fleet, &session.policy.policy)?;
    let key = scale_key(&session.policy.policy, args.key.as_ref())?;

    let sealed =
        for_grant(&session.files.directory, environment, &args.pool, &app.manifest.app, &service.secrets, &key)?;
    let directory = app.directory.clone();
    let (built, source, signers) = tokio::join!(
        build_image(context, &app, args.locked),
        tokio::task::spawn_blocking(move || git::source(&directory)),
        session.signers(environment, Purpose::People),
    );
    let (built, signers) = (built?, signers?);
    note_build(context, &built);

    let issued = now();
    let grant = Grant {
        format: 1,
        fleet: session.files.fleet.fleet.clone(),
        environment: environment.clone(),
        pool: args.pool.clone(),
        app: app.manifest.app.clone(),
        run: Run { source: source.ok().flatten(), ..Run::new(built.id, vec![service]) },
        secrets: digests(&sealed),
        scratch: args.scratch,
        key,
        machines,
        instances: args.instances.unwrap_or(pool.machine.slots),
        issued,
        not_after: issued.plus_s(i64::from(args.days) * DAY_S),
    };
    grant.check().map_err(|what| {
        let error = Error::configuration(format!("no node would accept this grant: {what}"));
        let has_volumes = grant.run.services.iter().any(|service| !service.volumes.is_empty());
        if has_volumes && !grant.scratch {
            error.hint("`--scratch` says so: then nothing that an instance stores outlives it")
        } else {
            error
        }
    })?;
    let file = args.out.clone().unwrap_or_else(|| grant_path(&session.files.directory, &args.pool, &grant.workload()));
    app.must_be_outside(&file)?;
    let holder = name_of(&session.policy.policy, &grant.key);
    let replaced = grant_file(file.clone()).ok().filter(|old| old.grant != grant);
    // What nobody signed is nothing to compare with.
    let policy = &session.policy.policy;
    let signed = replaced.as_ref().filter(|old| read_grant(&old.signed, policy, environment).is_ok());
    let known = signed.map(|old| &old.grant.secrets);
    context.ui.preview(|paint| preview(&grant, known, &holder, paint))?;
    context.ui.confirm("\nSign this grant?", args.yes).await?;
    // The loop sends the image from here, long after this folder has gone on.
    keep_contents(context, &session, built).await?;
    let bytes = grant.to_bytes();
    let mut signatures = Vec::with_capacity(signers.len());
    for signer in signers {
        signatures.push(signer.sign(NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?);
    }
    let id = Grant::id(&bytes);
    let text =
        String::from_utf8(bytes).map_err(|error| Error::during(Kind::Internal, "the grant is not text", &error))?;
    let before = before(&file, &grant, issued, &revoked(&session.files.directory, &session.policy.policy)?);
    if !sealed.is_empty() {
        write_json(&secrets_path(&file, id), &sealed)?;
    }
    write_signed(&file, &SignedText { text, signatures })?;
    replaced.iter().for_each(GrantFile::forget_secrets);
    let report = PoolGrantReport {
        grant: id.to_string(),
        file: shown(&file).to_string(),
        pool: grant.pool.to_string(),
        workload: grant.workload(),
        image: grant.run.image.to_string(),
        machines,
        instances: grant.instances,
        not_after: grant.not_after.0,
        before: before.as_ref().map(|(id, _)| id.to_string()),
    };
    context.ui.result(&report, |report, paint| {
        let what = paint.bold(&format!("grant {id}"));
        format!(
            "{what}: {} in {}, until {}, in {}\nnext: `bulkhead start {} --count 1`\n",
            report.workload, report.pool, grant.not_after, report.file, report.workload
        )
    })?;
    if let Some((id, not_after)) = before {
        context.ui.note(&format!(
            "the grant before it holds on until {not_after}, and the loop's key may act on it: `bulkhead revoke --order {id} --reason …` ends it"
        ));
    }
    Ok(())
}

/// The grant that a file has, which a new one for the same replaces there but does not end, and when it ends.
fn before(file: &Path, new: &Grant, now: Timestamp, revoked: &Revoked) -> Option<(OrderId, Timestamp)> {
    // A file that has none is replaced as any other.
    let bytes = read_signed(file).ok()?.text.into_bytes();
    let (old, id) = (Grant::parse(&bytes).ok()?, Grant::id(&bytes));
    let is_for_the_same = old.fleet == new.fleet && old.pool == new.pool && old.workload() == new.workload();
    let holds = is_for_the_same && old != *new && old.not_after > now && !revoked.orders.contains(&id);
    holds.then_some((id, old.not_after))
}

/// An instance that no machine of a pool can hold.
pub(crate) fn does_not_fit(pool: &PoolName, machine: bulkhead_scale::Room, needs: bulkhead_scale::Room) -> Error {
    Error::configuration(format!(
        "no machine of pool `{pool}` can hold one instance: it has {machine}, one needs {needs}"
    ))
    .hint("give the service less `memory` or `cpu_percent`, or the pool's machines more")
}

/// The one that is named, or the only one.
fn service(mut services: Vec<ServiceSpec>, wanted: Option<&ServiceName>) -> Result<ServiceSpec> {
    let names: Vec<String> = services.iter().map(|service| service.name.to_string()).collect();
    let place = match wanted {
        Some(wanted) => services.iter().position(|service| service.name == *wanted),
        None if services.len() == 1 => Some(0),
        None => {
            return Err(Error::usage("a grant is about one service: name it with `--service`")
                .hint(format!("there are {}", names.join(", "))));
        }
    };
    place.map(|place| services.swap_remove(place)).ok_or_else(|| {
        let wanted = wanted.map_or("", ServiceName::as_str);
        let error = Error::usage(format!("the app has no service `{wanted}`"));
        match nearest(wanted, names.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("there are {}", names.join(", "))),
        }
    })
}

/// `known` are the values that the grant before has, where there is one.
fn preview(grant: &Grant, known: Option<&BTreeMap<SecretName, SecretDigest>>, holder: &str, paint: Paint) -> String {
    let service = grant.service();
    let mut out = format!(
        "{} may, without asking anybody:\n",
        paint.bold(&format!("{holder}, for pool {} of {} ({})", grant.pool, grant.fleet, grant.environment))
    );
    let mut line = |what: &str, how: &str| putln!(out, "  {what:<9} {how}");
    line("run", &format!("{} and nothing else, as {}", grant.workload(), service.command.join(" ")));
    line("from", &format!("image {}", grant.run.image.short()));
    if let Some(source) = &grant.run.source {
        let dirty = if source.dirty { ", with changes" } else { "" };
        line("source", &format!("{}{dirty}", source.commit));
    }
    if !service.volumes.is_empty() {
        let names: Vec<&str> = service.volumes.iter().map(|volume| volume.name.as_str()).collect();
        line("store", &format!("{} for as long as an instance lasts; it is deleted with it", names.join(", ")));
    }
    if !service.secrets.is_empty() {
        // Whoever can put another value there can also take away what it would be compared with.
        let mark = |name: &SecretName| match known.map(|known| known.get(name) == grant.secrets.get(name)) {
            None => format!("{name} (with no grant before to compare)"),
            Some(false) => format!("{name} (changed)"),
            Some(true) => name.to_string(),
        };
        let names: Vec<String> = service.secrets.iter().map(mark).collect();
        line("read", &format!("{}, as sealed to the pool now", names.join(", ")));
    }
    let memory = service.memory_max_bytes.map(|bytes| format!("{} of memory", binary_size(bytes)));
    let cpu = service.cpu_percent.map(|percent| format!("{percent} % of a core"));
    let tasks = service.tasks_max.map(|tasks| format!("{tasks} tasks"));
    let limits: Vec<String> = [memory, cpu, tasks].into_iter().flatten().collect();
    let unlimited = "no limits of memory, processor or tasks".to_owned();
    line("each with", &if limits.is_empty() { unlimited } else { limits.join(", ") });
    line("at most", &format!("{} on each of {} machines", grant.instances, grant.machines));
    line("until", &grant.not_after.to_string());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::ImageId;

    fn spec(name: &str) -> ServiceSpec {
        ServiceSpec::new(name.parse().unwrap(), vec![name.into(), "--serve".into()])
    }

    #[test]
    fn one_service() {
        let of = |names: &[&str], wanted: Option<&str>| {
            let wanted = wanted.map(|name| name.parse().unwrap());
            service(names.iter().map(|name| spec(name)).collect(), wanted.as_ref())
                .map(|service| service.name.to_string())
        };
        assert_eq!(of(&["web"], None).unwrap(), "web");
        assert_eq!(of(&["web", "kernel"], Some("kernel")).unwrap(), "kernel");
        assert!(of(&["web", "kernel"], None).unwrap_err().message.contains("--service"));
        assert_eq!(of(&["web", "kernel"], Some("kernle")).unwrap_err().hints, ["did you mean `kernel`?"]);
    }

    fn grant() -> Grant {
        let mut kernel = spec("kernel");
        kernel.secrets = ["TOKEN".parse().unwrap()].into();
        (kernel.memory_max_bytes, kernel.cpu_percent) = (Some(256 << 20), Some(50));
        Grant {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "production".parse().unwrap(),
            pool: "kernels".parse().unwrap(),
            app: "notes".parse().unwrap(),
            run: Run::new(ImageId::of(b"image"), vec![kernel]),
            secrets: [("TOKEN".parse().unwrap(), SecretDigest([7; 32]))].into(),
            scratch: false,
            key: "ssh-ed25519 AAAA".into(),
            machines: 10,
            instances: 23,
            issued: Timestamp(0),
            not_after: Timestamp(90 * DAY_S),
        }
    }

    #[test]
    fn what_is_replaced_and_holds_on_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("grant.json");
        let new = Grant { issued: Timestamp(5), ..grant() };
        let of = |now, revoked: &Revoked| before(&file, &new, Timestamp(now), revoked).map(|(id, _)| id);
        let nothing = Revoked::default();
        assert_eq!(of(5, &nothing), None);
        let keep = |grant: &Grant| {
            let text = String::from_utf8(grant.to_bytes()).unwrap();
            write_signed(&file, &SignedText { text, signatures: vec![] }).unwrap();
            Grant::id(&grant.to_bytes())
        };
        let id = keep(&grant());
        assert_eq!(of(5, &nothing), Some(id));
        assert_eq!(of(91 * DAY_S, &nothing), None);
        assert_eq!(of(5, &Revoked { orders: [id].into(), ..Revoked::default() }), None);
        keep(&Grant { app: "other".parse().unwrap(), ..grant() });
        assert_eq!(of(5, &nothing), None);
    }

    #[test]
    fn what_is_signed_in_words() {
        let known = BTreeMap::new();
        assert!(preview(&grant(), Some(&known), "scaler", Paint { colour: false }).contains("TOKEN (changed), as"));
        insta::assert_snapshot!(preview(&grant(), None, "scaler", Paint { colour: false }), @r"
        scaler, for pool kernels of acme (production) may, without asking anybody:
          run       notes/kernel and nothing else, as kernel --serve
          from      image 6105d6cc76af
          read      TOKEN (with no grant before to compare), as sealed to the pool now
          each with 256M of memory, 50 % of a core
          at most   23 on each of 10 machines
          until     1970-04-01T00:00:00Z
        ");
    }
}
