//! What `plan`, `deploy`, `promote` and `rollback` share: what runs on the
//! nodes now, the image that shall run, and the plan that follows from both.

use crate::{
    Context,
    error::{Error, Kind, Result},
    left::{Left, answered},
    output::seconds,
    plan::{Change, FieldChange, Known, KnownBy, Plan, ServiceChange, Wanted, plan},
    proof::Proof,
    secrets::{digests, for_order},
    session::{Answer, As, Session, app_of, cache_directory, node_error},
    workspace::{App, FLEET, FleetFiles, write_durably},
};
use bulkhead_core::{
    AppName, FileDigest, FleetName, ImageId, NodeName, OrderId, RunId, SecretDigest, SecretName,
    fleet::{FleetNode, Tools},
    image::Image,
    manifest::{AbsolutePath, ImageSection, Manifest},
    order::{Order, Run, ServiceSpec},
};
use bulkhead_fleet::{
    NodeClient, NodeError,
    memory::KnownImage,
    push::{Early, Payload},
};
use bulkhead_image::{BuildError, BuildRequest, Built, ErrorKind, Phase, Purpose, Sources};
use bulkhead_store::{
    cache::Cache,
    pack::{self, Contents, Item, Nothing, Options},
};
use bulkhead_wire::{NodeStatus, Release, distinct_objects};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

/// What runs of an app on a node now, as far as it is known.
#[derive(Debug, Clone)]
pub struct Present {
    /// Which node.
    pub node: NodeName,
    /// How it is known.
    pub by: KnownBy,
    /// Counter of the last accepted order.
    pub counter: u64,
    /// The live release's number.
    pub live: Option<u64>,
    /// The live release's image.
    pub image: Option<ImageId>,
    /// The live release's services.
    pub services: Option<Vec<ServiceSpec>>,
    /// The images that the node holds.
    pub images: Vec<ImageId>,
    /// The secrets that the live release's order pins for it.
    pub secrets: BTreeMap<SecretName, SecretDigest>,
    /// The live release as the node tells it; none where it was not asked.
    pub told: Option<Release>,
}

/// What any one release key may put back in the place of an order's: what runs now, if all nodes agree on it. To be
/// listed is as good as to be signed in full, so a node's word is not enough: it must be what this machine itself had
/// signed, or what an order proves that was. Where glass was broken for it, it is nothing to go back to on one key.
#[must_use]
pub fn fallback(proof: &Proof, present: &[Present]) -> BTreeSet<RunId> {
    let run = |present: &Present| {
        let (image, services) = match (&present.told, present.by) {
            (Some(told), _) if told.break_glass.is_none() => {
                let proven = proof.release(&present.node, told).ok()?;
                (proven.image?, proven.services)
            }
            (None, KnownBy::Remembered) => (present.image?, present.services.clone()?),
            _ => return None,
        };
        Some(Run::new(image, services).id())
    };
    // Each node lets in what is live there; what another has would keep this order from it.
    let all: Option<BTreeSet<RunId>> = present.iter().map(run).collect();
    all.filter(|all| all.len() == 1).unwrap_or_default()
}

/// What nodes said of an app when they were asked.
#[derive(Debug, Default)]
pub struct Asked {
    /// The connections over which it was asked.
    pub early: Early,
    /// What runs on those that answered.
    pub present: Vec<Present>,
    /// The others, which an order leaves as they are.
    pub left: Vec<Left>,
}

/// Asks every node what runs of an app.
///
/// # Errors
/// No node answers.
pub async fn asked(session: &Session, nodes: &[(NodeName, FleetNode)], app: &AppName) -> Result<Asked> {
    from_answers(Early::new(), session.ask_all(nodes, As::Courier, status_and_document(session, app)).await?, app)
}

/// As [`asked`], over connections that were begun already, which come back.
///
/// # Errors
/// No node answers.
pub async fn asked_over(session: &Session, early: Early, app: &AppName) -> Result<Asked> {
    let (early, answers) = session.ask_over(early, status_and_document(session, app)).await;
    from_answers(early, answers, app)
}

fn from_answers(early: Early, answers: Vec<Answer<NodeStatus>>, app: &AppName) -> Result<Asked> {
    let (statuses, left) = answered(answers)?;
    let present = statuses.into_iter().map(|(node, status)| present(node, &status, app)).collect();
    Ok(Asked { early, present, left })
}

impl Asked {
    /// Of these nodes those that the order is for.
    #[must_use]
    pub fn reached(&self, mut nodes: Vec<(NodeName, FleetNode)>) -> Vec<(NodeName, FleetNode)> {
        nodes.retain(|(node, _)| !self.left.iter().any(|left| left.node == *node));
        nodes
    }
}

type Asking<T> = Pin<Box<dyn Future<Output = std::result::Result<T, NodeError>> + Send>>;

/// Asks for a node's status, and for the live image's document where this machine does not know it: without
/// that, a plan cannot say which files change. Of several nodes that run one image, one is asked.
fn status_and_document(
    session: &Session,
    app: &AppName,
) -> impl Fn(NodeClient) -> Asking<NodeStatus> + Clone + Send + Sync + 'static {
    let (memory, app) = (session.memory.clone(), app.clone());
    let asked: Arc<Mutex<BTreeSet<ImageId>>> = Arc::default();
    move |client| {
        let (memory, app, asked) = (memory.clone(), app.clone(), Arc::clone(&asked));
        Box::pin(async move {
            let status = client.status().await?;
            let live = app_of(&status, &app).and_then(|known| known.live.as_ref()?.image);
            if let Some(image) = live
                && memory.document(image).is_none()
                && asked.lock().unwrap_or_else(PoisonError::into_inner).insert(image)
                && let Ok(document) = client.image_document(image).await
            {
                // A plan that says less is no reason to fail.
                memory.keep_document(image, &document).ok();
            }
            Ok(status)
        })
    }
}

/// What a node's status says of an app.
#[must_use]
pub fn present(node: NodeName, status: &NodeStatus, app: &AppName) -> Present {
    let by = KnownBy::Asked;
    let Some(known) = app_of(status, app) else {
        let (images, secrets) = (vec![], BTreeMap::new());
        let told = None;
        return Present { node, by, counter: 0, live: None, image: None, services: None, images, secrets, told };
    };
    let secrets = known.live.as_ref().map(|live| pinned(&node, live)).unwrap_or_default();
    Present {
        node,
        by,
        secrets,
        counter: known.position.counter,
        live: known.live.as_ref().map(|release| release.number),
        image: known.live.as_ref().and_then(|release| release.image),
        services: known.live.as_ref().map(|release| release.services.clone()),
        images: known.images.clone(),
        told: known.live.clone(),
    }
}

/// What a node's history of an app says of it. It costs a node a fraction of what its status does, for which it
/// measures disks and volumes.
#[must_use]
pub fn present_by_history(node: NodeName, releases: &[Release]) -> Present {
    let live = live_of(releases);
    let mut images: Vec<ImageId> = Vec::new();
    for release in releases.iter().rev().filter(|release| release.image_present) {
        images.extend(release.image.filter(|image| !images.contains(image)));
    }
    Present {
        secrets: live.map(|live| pinned(&node, live)).unwrap_or_default(),
        node,
        by: KnownBy::Asked,
        // A history has every order that was accepted.
        counter: releases.last().map_or(0, |release| release.number),
        live: live.map(|release| release.number),
        image: live.and_then(|release| release.image),
        services: live.map(|release| release.services.clone()),
        images,
        told: live.cloned(),
    }
}

/// What this machine remembers of an app, without asking anyone.
#[must_use]
pub fn remembered(session: &Session, nodes: &[(NodeName, FleetNode)], app: &AppName) -> Vec<Present> {
    let fleet = &session.files.fleet.fleet;
    nodes
        .iter()
        .map(|(node, _)| {
            let known = session.memory.recall(fleet, node, app);
            let nothing = known.position.counter == 0;
            // What was made live last counts only while no other order came after it.
            let live = recall_live(fleet, node, app).filter(|live| Some(live.order) == known.position.previous);
            Present {
                node: node.clone(),
                by: if nothing { KnownBy::Unknown } else { KnownBy::Remembered },
                counter: known.position.counter,
                live: live.as_ref().map(|live| live.release),
                // The newest image that the node holds may have failed there, or its app been removed since.
                image: live.as_ref().map(|live| live.image),
                secrets: live.as_ref().map(|live| live.secrets.clone()).unwrap_or_default(),
                services: live.map(|live| live.services),
                images: known.images,
                told: None,
            }
        })
        .collect()
}

/// The last release that this machine made live on a node.
#[derive(Debug, Serialize, Deserialize)]
pub struct MadeLive {
    /// Its order.
    pub order: OrderId,
    /// Its number.
    pub release: u64,
    /// Its image.
    pub image: ImageId,
    /// Its services.
    pub services: Vec<ServiceSpec>,
    /// The secrets that its order pins.
    #[serde(default)]
    pub secrets: BTreeMap<SecretName, SecretDigest>,
}

/// What a release's order pins for its node, as far as the order can be read.
fn pinned(node: &NodeName, release: &Release) -> BTreeMap<SecretName, SecretDigest> {
    let order = release.signed.as_ref().and_then(|signed| Order::parse(signed.text.as_bytes()).ok());
    order.and_then(|mut order| order.targets.remove(node)).map(|target| target.secrets).unwrap_or_default()
}

fn live_path(fleet: &FleetName, node: &NodeName, app: &AppName) -> Result<PathBuf> {
    Ok(cache_directory()?.join("live").join(fleet.as_str()).join(node.as_str()).join(format!("{app}.json")))
}

fn recall_live(fleet: &FleetName, node: &NodeName, app: &AppName) -> Option<MadeLive> {
    // A memory that cannot be read is no memory.
    let text = std::fs::read(live_path(fleet, node, app).ok()?).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Remembers what was made live, for the next plan.
///
/// # Errors
/// It cannot be written; only a later plan says less then.
pub fn remember_live(fleet: &FleetName, node: &NodeName, app: &AppName, live: &MadeLive) -> Result<()> {
    let path = live_path(fleet, node, app)?;
    let text =
        serde_json::to_vec(live).map_err(|error| Error::during(Kind::Internal, "cannot remember a release", &error))?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Error::during(Kind::Internal, format!("cannot make {}", parent.display()), &error))?;
    }
    write_durably(&path, &text)
}

/// Forgets what was made live: the app was removed.
pub fn forget_live(fleet: &FleetName, node: &NodeName, app: &AppName) {
    // It no longer fits the last order, so whatever stays of it is not believed.
    if let Ok(path) = live_path(fleet, node, app) {
        std::fs::remove_file(path).ok();
    }
}

/// An order that changed nothing of what runs came after another: what that one made live counts on.
///
/// # Errors
/// As [`remember_live`].
pub fn still_live(
    fleet: &FleetName,
    node: &NodeName,
    app: &AppName,
    before: Option<OrderId>,
    order: OrderId,
) -> Result<()> {
    match recall_live(fleet, node, app).filter(|live| Some(live.order) == before) {
        Some(live) => remember_live(fleet, node, app, &MadeLive { order, ..live }),
        None => Ok(()),
    }
}

/// The plan from what is wanted and what is known.
#[must_use]
pub fn plan_over(
    session: &Session,
    wanted: Wanted<'_>,
    wanted_id: ImageId,
    present: &[Present],
    left: &[Left],
) -> Plan {
    let base = |node: &Present| node.image.or(node.images.first().copied());
    let ids: BTreeSet<ImageId> = present.iter().filter_map(base).filter(|id| *id != wanted_id).collect();
    let images: BTreeMap<ImageId, Arc<KnownImage>> =
        ids.into_iter().filter_map(|id| Some((id, session.memory.image(id)?))).collect();
    let known: Vec<Known<'_>> = present
        .iter()
        .map(|node| Known {
            node: node.node.clone(),
            by: node.by,
            counter: node.counter,
            live: node.live,
            image_id: node.image.map(|id| id.to_string()),
            image: base(node).and_then(|id| images.get(&id)).map(|known| &known.image),
            services: node.services.clone(),
            holds_wanted: node.images.contains(&wanted_id),
        })
        .collect();
    let mut plan = plan(wanted, &known);
    for node in &mut plan.nodes {
        let Some(now) = present.iter().find(|present| present.node == node.node) else { continue };
        let (folder, policy) = (&session.files.directory, &session.policy.policy);
        let sealed = for_order(folder, policy, wanted.environment, wanted.app, wanted.services, [&node.node]);
        // What is missing is said when the order is made.
        let then = sealed.ok().and_then(|mut sealed| sealed.remove(&node.node)).map(|sealed| digests(&sealed));
        if let (Some(changes), Some(then)) = (&mut node.services, then) {
            add_secrets(changes, wanted.services, &now.secrets, &then);
        }
    }
    plan.leaving(left.iter().map(|left| (left.node.clone(), left.reason())))
}

/// Adds the secrets of services that get another value; new ones are among the settings that change.
fn add_secrets(
    changes: &mut Vec<ServiceChange>,
    services: &[ServiceSpec],
    now: &BTreeMap<SecretName, SecretDigest>,
    then: &BTreeMap<SecretName, SecretDigest>,
) {
    for service in services {
        let differs = |name: &&SecretName| now.get(*name).is_some_and(|now| then.get(*name) != Some(now));
        let fields = service.secrets.iter().filter(differs).map(|name| FieldChange {
            field: format!("secrets.{name}"),
            from: now.get(name).map(|digest| format!("sealed {}", digest.short())),
            to: then.get(name).map(|digest| format!("sealed {}", digest.short())),
        });
        let fields: Vec<FieldChange> = fields.collect();
        if fields.is_empty() {
            continue;
        }
        match changes.iter_mut().find(|change| change.service == service.name.as_str()) {
            Some(change) => change.fields.extend(fields),
            None => changes.push(ServiceChange { service: service.name.to_string(), change: Change::Changed, fields }),
        }
    }
    changes.sort();
}

/// Builds the app's image, on a thread of its own.
///
/// # Errors
/// The folder, manifest, packages or lint stand against it.
pub async fn build_image(context: &Context, app: &App, locked: bool) -> Result<Built> {
    build(context, Purpose::App, app, locked).await
}

/// Builds the fleet's tool image, as `[tools]` of `fleet.toml` says. Its packages are pinned beside that file.
///
/// # Errors
/// The packages stand against it.
pub async fn build_tools(context: &Context, files: &FleetFiles) -> Result<Built> {
    let Tools { packages, suite, platform } = files.fleet.tools.clone();
    // Where the tree of what is looked into is seen.
    let to = AbsolutePath("/target".into());
    let image = ImageSection { packages, suite, platform, to, ..ImageSection::default() };
    let app = "tools".parse().map_err(|error| Error::during(Kind::Internal, "a name is no name", &error))?;
    let manifest = Manifest { app, image, services: BTreeMap::new(), environments: BTreeMap::new() };
    let (directory, path) = (files.directory.clone(), files.directory.join(FLEET));
    build(context, Purpose::Tools, &App { path, directory, manifest }, false).await
}

async fn build(context: &Context, purpose: Purpose, app: &App, locked: bool) -> Result<Built> {
    let (ui, app) = (Arc::clone(&context.ui), app.clone());
    let cache = cache_directory()?.join("image");
    let mirror = std::env::var("BULKHEAD_MIRROR").ok().filter(|address| !address.is_empty());
    let work = tokio::task::spawn_blocking(move || {
        let progress = BuildProgress(&ui);
        let request = BuildRequest {
            purpose,
            folder: &app.directory,
            manifest: &app.manifest,
            cache_dir: &cache,
            mirror: mirror.as_deref(),
            locked,
            progress: &progress,
        };
        bulkhead_image::build(&request).map_err(|error| build_error(&app, &error))
    });
    let built = match work.await {
        Ok(built) => built,
        Err(error) => Err(Error::during(Kind::Internal, "building failed", &error)),
    };
    context.ui.clear();
    built
}

struct BuildProgress<'a>(&'a crate::output::Ui);

impl bulkhead_image::Progress for BuildProgress<'_> {
    fn advance(&self, phase: Phase, done: u64, total: u64, what: &str) {
        let word = match phase {
            Phase::Scan => "scanning",
            Phase::Index => "reading package indices",
            Phase::Download => "downloading packages",
            Phase::Unpack => "unpacking packages",
            Phase::Closure => "working out what runs",
            Phase::Lint => "looking for what must not be in an image",
            Phase::Write => "writing the image",
        };
        let amount = match (phase, total) {
            (Phase::Index | Phase::Download, 0) => crate::output::size(done),
            (Phase::Index | Phase::Download, total) => {
                format!("{} of {}", crate::output::size(done), crate::output::size(total))
            }
            (_, 0) => crate::output::count(done),
            (_, total) => format!("{} of {}", crate::output::count(done), crate::output::count(total)),
        };
        self.0.progress(&format!("{word}  {amount}  {what}"));
    }
}

fn build_error(app: &App, error: &BuildError) -> Error {
    let kind = match error.kind() {
        // The lint speaks about the user's own files; nothing was sent anywhere.
        ErrorKind::Configuration | ErrorKind::Refused => Kind::Configuration,
        ErrorKind::Remote => Kind::Unreachable,
        ErrorKind::Host => Kind::Internal,
    };
    let mut folded = Error::of(kind, error);
    folded.message = format!("{}: {}", app.path.display(), folded.message);
    folded
}

/// Says on standard error how long a build took, where no moving line said so.
pub fn note_build(context: &Context, built: &Built) {
    let took = std::time::Duration::from_secs_f64(built.report.timings.total_ms.max(0.0) / 1000.0);
    context.ui.step(&format!("built {} in {}", built.id.short(), seconds(took)));
    if let Some(first) = built.report.warnings.first() {
        let count = built.report.warnings.len();
        let more = if count == 1 { String::new() } else { format!(" (and {} more: `bulkhead build`)", count - 1) };
        context.ui.note(&format!("warning: {} {}{more}", first.path, first.sentence));
    }
}

/// The release of a history that is live.
#[must_use]
pub fn live_of(releases: &[Release]) -> Option<&Release> {
    releases.iter().rev().find(|release| release.live)
}

/// Files of an image where the build found them.
struct BuiltContents(Sources);

impl Contents for BuiltContents {
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        self.0.open(digest)
    }

    /// Bases of large files are read in windows, so a file on disk is sought in.
    fn read_at(&self, digest: &FileDigest, offset: u64, length: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(path) = self.0.disk_path(digest) else {
            let Some(mut reader) = self.0.open(digest)? else { return Ok(None) };
            io::copy(&mut reader.by_ref().take(offset), &mut io::sink())?;
            return exactly(reader, length).map(Some);
        };
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        exactly(file, length).map(Some)
    }
}

fn exactly(reader: impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    if reader.take(length as u64).read_to_end(&mut bytes)? == length {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// How much of what was sent is kept. Some ten images and their changes; a deploy reads a fraction of it.
const SENT_MAX_BYTES: u64 = 4 << 30;

/// What this machine kept of what it sent. Without it a push sends more, so a
/// cache that cannot be opened is told and done without.
fn sent_before(context: &Context) -> Option<Arc<Cache>> {
    let opened = cache_directory().and_then(|directory| {
        let opened = Cache::open(&directory.join("sent")).and_then(|mut cache| {
            cache.shrink(SENT_MAX_BYTES)?;
            Ok(cache)
        });
        opened.map_err(|error| Error::during(Kind::Internal, "changed files are sent whole", &error))
    });
    opened.map(Arc::new).map_err(|error| context.ui.warn(&error)).ok()
}

/// What a push sends of a built image.
#[must_use]
pub fn payload_of(context: &Context, built: Built) -> Payload {
    Payload {
        image: Arc::new(built.image),
        document: Arc::new(built.document),
        contents: Arc::new(BuiltContents(built.sources)),
        cache: sent_before(context),
        holders: None,
        options: Options::default(),
        dropped: None,
    }
}

/// Keeps all of a built image on this machine, as a deploy does of what it sends: whoever sends it later finds it
/// although its sources have changed.
///
/// # Errors
/// It cannot be kept, or a file changed since it was scanned.
pub async fn keep_contents(context: &Context, session: &Session, built: Built) -> Result<()> {
    let failed = |error: &dyn std::error::Error| Error::during(Kind::Internal, "cannot keep the image", error);
    session.memory.keep_document(built.id, &built.document).map_err(|error| failed(&error))?;
    let payload = payload_of(context, built);
    // Why there is none was told.
    let Some(cache) = payload.cache else {
        return Err(Error::new(Kind::Internal, "cannot keep the image: there is no cache"));
    };
    let items: Vec<Item> = distinct_objects(&payload.image)
        .into_iter()
        .filter(|(digest, _)| !cache.has(digest))
        .map(|(digest, size_bytes)| Item { digest, size_bytes, base: None })
        .collect();
    if items.is_empty() {
        return Ok(());
    }
    context.ui.progress("keeping the image");
    let kept = tokio::task::spawn_blocking(move || {
        let mut keep = cache.writer().map_err(|error| failed(&error))?;
        pack::encode(&items, &*payload.contents, &Nothing, &mut io::sink(), Some(&mut keep), &payload.options)
            .map_err(|error| Error::during(Kind::Configuration, "cannot keep the image", &error))?;
        keep.commit().map_err(|error| failed(&error))
    });
    let kept = kept.await.map_err(|error| Error::during(Kind::Internal, "cannot keep the image", &error))?;
    context.ui.clear();
    kept
}

/// What a push sends of an image that was not built here. Its contents are what this machine
/// still has of it; the rest is fetched from these nodes, which hold the image.
///
/// # Errors
/// A node's SSH setting makes no sense.
pub fn payload_of_held(
    context: &Context,
    session: &Session,
    document: Vec<u8>,
    image: Image,
    holders: &[(NodeName, FleetNode)],
) -> Result<Payload> {
    Ok(Payload {
        image: Arc::new(image),
        document: Arc::new(document),
        contents: Arc::new(Nothing),
        cache: sent_before(context),
        holders: Some(session.targets(holders)?),
        options: Options::default(),
        dropped: None,
    })
}

/// The document of an image that was not built here: from this machine, or from the first of these
/// connections that gives it.
///
/// # Errors
/// None gives it.
pub async fn document_of_held(
    session: &Session,
    image: ImageId,
    holders: &mut Early,
    names: &[NodeName],
) -> Result<(Vec<u8>, Image)> {
    let decode = |document: Vec<u8>| Image::decode(&document).map(|image| (document, image));
    if let Some(Ok(known)) = session.memory.document(image).map(decode) {
        return Ok(known);
    }
    let mut last = None;
    for name in names {
        let Some(client) = session.over(holders, name).await else { continue };
        match client.image_document(image).await {
            Ok(document) => match decode(document) {
                Ok((document, decoded)) => {
                    // An optimisation, as all memory.
                    session.memory.keep_document(image, &document).ok();
                    return Ok((document, decoded));
                }
                Err(error) => {
                    let what = format!("{name} gave no valid document of image {}", image.short());
                    last = Some(Error::during(Kind::Refused, what, &error));
                }
            },
            Err(error) => last = Some(node_error(&error)),
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::configuration(format!("image {} is neither on this machine nor on a node that was asked", image.short()))
            .hint("the same command on the machine that built it")
            .hint("`bulkhead deploy` builds it anew from the app's own sources")
    }))
}
