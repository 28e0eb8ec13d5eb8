//! The order of things: scan, packages, closure, lint, document.

use crate::{
    base,
    closure::{self, Closure, ClosureError, Question},
    debian::{
        DebianError, Packages, Suite, Wanted,
        deb::{FileCache, ItemKind},
        lock,
        signature::Keyring,
    },
    lint,
    pattern::Pattern,
    report::{Finding, Large, Omission, PackageUse, Phase, Progress, Report, Rule},
    sbom::{self, Component},
    scan::{self, Excludes, Found, Scan, ScanError},
    sources::{Source, Sources},
    tree::{FileNode, Kind, Node, Origin, Tree, file_name, parent, shown, spell},
};
use bulkhead_core::{
    ImageId,
    digest::{hex, sha256},
    image::{self, Entry, Image, ImageConfig, ImageError},
    manifest::Manifest,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// How many of the biggest omissions of one reason are named.
const BIGGEST_SHOWN: usize = 5;
/// Allowed paths beyond this many bytes are recorded by the patterns that allow
/// them: a node takes 256 KiB of configuration.
const ALLOWED_MAX_BYTES: usize = 64 << 10;

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run services from: no shell, no tool.
    App,
    /// To look into services from outside: all programs of the packages that are named, and nothing of the
    /// folder. Its lock file is `tools.lock`. Nodes run no service from it.
    Tools,
}

/// What to build.
#[derive(Clone, Copy)]
pub struct BuildRequest<'a> {
    /// What for.
    pub purpose: Purpose,
    /// The folder that holds `bulkhead.toml`; for tools `fleet.toml`.
    pub folder: &'a Path,
    /// That file, parsed.
    pub manifest: &'a Manifest,
    /// Where caches go; made if it is not there.
    pub cache_dir: &'a Path,
    /// A Debian mirror instead of `http://deb.debian.org/debian`. Security updates
    /// are taken from the same address with `-security` appended.
    pub mirror: Option<&'a str>,
    /// Refuse to write or change `bulkhead.lock`.
    pub locked: bool,
    /// Hears how it goes.
    pub progress: &'a dyn Progress,
}

impl std::fmt::Debug for BuildRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildRequest")
            .field("purpose", &self.purpose)
            .field("folder", &self.folder)
            .field("cache_dir", &self.cache_dir)
            .field("mirror", &self.mirror)
            .field("locked", &self.locked)
            .finish_non_exhaustive()
    }
}

/// A built image.
#[derive(Debug)]
pub struct Built {
    /// The image.
    pub image: Image,
    /// Its id.
    pub id: ImageId,
    /// Its document.
    pub document: Vec<u8>,
    /// Where its files' contents are.
    pub sources: Sources,
    /// What there is to say about it.
    pub report: Report,
}

/// What sort of error it is: decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The manifest, lock file or folder must change.
    Configuration,
    /// The lint refused.
    Refused,
    /// A mirror cannot be reached, or sent what cannot be believed.
    Remote,
    /// This machine's disk or file system.
    Host,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The folder to copy could not be scanned.
    #[error("scanning failed")]
    Scan(#[source] ScanError),
    /// What `image.source` or `image.copy` names is not there.
    #[error("[image] {key}: {} does not exist", path.display())]
    NoSuchFile {
        /// The manifest's key.
        key: String,
        /// The file or folder.
        path: PathBuf,
    },
    /// A value of the manifest is not a place in an image or a pattern.
    #[error("[image] {key}: `{value}` {what}")]
    Value {
        /// The manifest's key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        what: String,
    },
    /// There are no packages.
    #[error("the Debian packages could not be had")]
    Debian(#[source] DebianError),
    /// It cannot be told what runs.
    #[error("it cannot be worked out what the services need")]
    Closure(#[source] ClosureError),
    /// Files of packages vanished from the cache while it was in use.
    #[error("the cache at {} has lost the file {file}", cache_dir.display())]
    CacheLost {
        /// The cache.
        cache_dir: PathBuf,
        /// The file's path in the image.
        file: String,
    },
    /// The lint found what must not be in an image.
    #[error("{}", crate::report::refusal(findings))]
    Refused {
        /// All of it.
        findings: Vec<Finding>,
    },
    /// What was collected is not a valid image.
    #[error("the image cannot be made")]
    Image(#[source] ImageError),
}

impl BuildError {
    /// What sort of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Scan(ScanError::Pattern { .. })
            | Self::Image(_)
            | Self::NoSuchFile { .. }
            | Self::Value { .. }
            | Self::Debian(
                DebianError::Suite { .. }
                | DebianError::NoSuchPackage { .. }
                | DebianError::TooManyPackages { .. }
                | DebianError::LockMalformed { .. }
                | DebianError::Locked { .. },
            ) => ErrorKind::Configuration,
            Self::Closure(ClosureError::Read { .. }) | Self::Scan(_) | Self::CacheLost { .. } => ErrorKind::Host,
            Self::Debian(DebianError::LockFile { .. } | DebianError::Cache { .. } | DebianError::Keys(_)) => {
                ErrorKind::Host
            }
            Self::Closure(_) => ErrorKind::Configuration,
            Self::Debian(_) => ErrorKind::Remote,
            Self::Refused { .. } => ErrorKind::Refused,
        }
    }
}

/// Builds an image.
///
/// # Errors
/// See [`BuildError`]. Nothing but caches was changed then, and `bulkhead.lock` if
/// the packages were found.
pub fn build(request: &BuildRequest<'_>) -> Result<Built, BuildError> {
    let keyring = Keyring::debian().map_err(|error| BuildError::Debian(DebianError::Keys(error)))?;
    let now_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    build_with(request, &keyring, now_seconds)
}

/// [`build`] with the keys and the time that packages are judged by.
pub(crate) fn build_with(request: &BuildRequest<'_>, keyring: &Keyring, now_seconds: u64) -> Result<Built, BuildError> {
    match build_once(request, keyring, now_seconds) {
        // Listings outlived the files they list: unpack again what was downloaded, once.
        Err(BuildError::CacheLost { .. } | BuildError::Closure(ClosureError::Read { .. })) => {
            let listings = request.cache_dir.join("packages");
            match fs::remove_dir_all(&listings) {
                Ok(()) | Err(_) => build_once(request, keyring, now_seconds),
            }
        }
        other => other,
    }
}

fn elapsed_ms(since: &mut Instant) -> f64 {
    let now = Instant::now();
    let elapsed = now.duration_since(*since).as_secs_f64() * 1000.0;
    *since = now;
    elapsed
}

fn patterns(key: &'static str, values: &[String]) -> Result<Vec<Pattern>, BuildError> {
    let parse = |value: &String| {
        Pattern::new(value).map_err(|error| BuildError::Value { key, value: value.clone(), what: error.to_string() })
    };
    values.iter().map(parse).collect()
}

fn build_once(request: &BuildRequest<'_>, keyring: &Keyring, now_seconds: u64) -> Result<Built, BuildError> {
    let begun = Instant::now();
    let mut clock = begun;
    let manifest = request.manifest;
    let section = &manifest.image;
    let allow = patterns("allow", &section.allow)?;
    let suite = Suite::named(&section.suite).map_err(BuildError::Debian)?;
    let mut report = Report::default();
    let mut omitted = Omitted::default();

    let is_tools = request.purpose == Purpose::Tools;
    let scans = if is_tools { vec![] } else { scan_all(request)? };
    report.timings.scan_ms = elapsed_ms(&mut clock);

    let lock = request.folder.join(if is_tools { lock::TOOLS_FILE_NAME } else { lock::FILE_NAME });
    let wanted = Wanted {
        lock: &lock,
        cache_dir: request.cache_dir,
        suite,
        platform: section.platform,
        names: &section.packages,
        mirror: request.mirror,
        locked: request.locked,
        keyring,
        now_seconds,
        progress: request.progress,
    };
    let packages = wanted.get().map_err(BuildError::Debian)?;
    report.lock_changed = packages.lock_changed;
    report.timings.packages_ms = elapsed_ms(&mut clock);

    request.progress.advance(Phase::Closure, 0, 0, "");
    let cache = FileCache::new(request.cache_dir);
    let mut findings = Vec::new();
    let candidates = collect(request, suite, &packages, scans, &cache, &mut findings, &mut omitted, &mut report)?;
    let names: Vec<String> = packages.unpacked.iter().map(|package| package.name.clone()).collect();
    let disk = |file: &FileNode| cache.path(&file.digest);
    let question = Question { tree: &candidates, manifest, packages: &names, tools: is_tools, disk: &disk };
    let mut closure = closure::close(&question).map_err(BuildError::Closure)?;
    let used = keep_metadata(&candidates, &packages, &mut closure);
    let mut tree = candidates;
    tree.prune(&closure.kept, |path, number, file| {
        let name = &packages.unpacked[number].name;
        omitted.add("of packages, not needed by what runs", format!("{} ({name})", shown(path)), file.size_bytes);
    });
    report.timings.closure_ms = elapsed_ms(&mut clock);

    request.progress.advance(Phase::Lint, 0, 0, "");
    let app = spell(section.to.0.as_bytes());
    let (refused, mut warnings) = lint::lint(&tree, section.platform, &app);
    findings.extend(refused.into_iter().filter(|finding| !is_tools || !finding.rule.is_about_tools()));
    findings.append(&mut closure.findings);
    findings.extend(missing_modules(&tree, &app, manifest));
    warnings.append(&mut closure.warnings);
    warnings.extend(packages.warnings.iter().cloned());
    warnings.extend(development_dependencies(&tree, &app));
    let verdict = lint::judge(findings, warnings, &allow);
    report.timings.lint_ms = elapsed_ms(&mut clock);
    report.warnings = verdict.warnings;
    if !verdict.refused.is_empty() {
        return Err(BuildError::Refused { findings: verdict.refused });
    }

    request.progress.advance(Phase::Write, 0, 0, "");
    describe(request, &mut tree, &packages, &used, suite, &mut report);
    report.omitted = omitted.list();
    let config = ImageConfig {
        platform: section.platform.as_str().into(),
        allowed: allowed(&verdict.allowed, section),
        tools: is_tools,
    };
    report.allowed = verdict.allowed;
    let nodes = tree.into_nodes();
    let mut sources = Sources::with_capacity(nodes.len());
    let mut entries = Vec::with_capacity(nodes.len());
    for (path, node) in nodes {
        let node = match node.kind {
            Kind::Directory => image::Node::Directory { mode: 0o755 },
            Kind::Symlink { target } => image::Node::Symlink { target },
            // Allowed by the manifest, and yet nothing that can be there.
            Kind::Device => continue,
            Kind::File(file) => {
                report.files += 1;
                report.bytes += file.size_bytes;
                let source = match file.source {
                    Some(source) => source,
                    None if cache.has(&file.digest, file.size_bytes) => Source::Disk(cache.path(&file.digest)),
                    None => {
                        let cache_dir = request.cache_dir.to_owned();
                        return Err(BuildError::CacheLost { cache_dir, file: shown(&path) });
                    }
                };
                sources.add(file.digest, source, &path);
                let mode = if file.executable { 0o755 } else { 0o644 };
                image::Node::File { mode, size_bytes: file.size_bytes, digest: file.digest }
            }
        };
        entries.push(Entry { path, node });
    }
    let image = Image::new(config, entries).map_err(BuildError::Image)?;
    let document = image.encode();
    let id = ImageId::of(&document);
    report.timings.write_ms = elapsed_ms(&mut clock);
    report.timings.total_ms = begun.elapsed().as_secs_f64() * 1000.0;
    Ok(Built { image, id, document, sources, report })
}

/// The scans with the places in the image that they land at, the app's folder first.
fn scan_all(request: &BuildRequest<'_>) -> Result<Vec<(String, Scan)>, BuildError> {
    let section = &request.manifest.image;
    let index = request.cache_dir.join("index");
    let exists = |key: &str, path: &Path| match fs::metadata(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(BuildError::NoSuchFile { key: key.to_owned(), path: path.to_owned() })
        }
        Err(source) => Err(BuildError::Scan(ScanError::Stat { path: path.to_owned(), source })),
    };
    let one = |key: &str, path: &Path, to: &str| -> Result<(String, Scan), BuildError> {
        exists(key, path)?;
        let excludes =
            Excludes::new(&section.exclude, &request.folder.join(".bulkheadignore")).map_err(BuildError::Scan)?;
        let scan = scan::scan(path, to, &excludes, &index, request.progress).map_err(BuildError::Scan)?;
        Ok((to.to_owned(), scan))
    };
    let mut scans = vec![one("source", &request.folder.join(&section.source), &section.to.0)?];
    for (to, from) in &section.copy {
        let absolute = if to.starts_with('/') { to.clone() } else { format!("/{to}") };
        if !bulkhead_core::manifest::is_clean_absolute(&absolute) {
            let what = "is not a clean path in the image".to_owned();
            return Err(BuildError::Value { key: "copy", value: to.clone(), what });
        }
        scans.push(one(&format!("copy.\"{to}\""), &request.folder.join(from), &absolute)?);
    }
    Ok(scans)
}

/// Everything that could be in the image, later things over earlier ones:
/// packages, what every image has, the app, single copies.
#[expect(clippy::too_many_arguments, reason = "the one place where all parts of a build meet")]
fn collect(
    request: &BuildRequest<'_>,
    suite: Suite,
    packages: &Packages,
    scans: Vec<(String, Scan)>,
    cache: &FileCache,
    findings: &mut Vec<Finding>,
    omitted: &mut Omitted,
    report: &mut Report,
) -> Result<Tree, BuildError> {
    let mut tree = Tree::default();
    base::add_links(&mut tree, request.manifest.image.platform);
    for (number, package) in packages.unpacked.iter().enumerate() {
        let origin = Origin::Package(number);
        for item in &package.listing.items {
            let kind = match &item.kind {
                ItemKind::Directory => Kind::Directory,
                ItemKind::Symlink { target } => Kind::Symlink { target: target.clone().into_bytes() },
                ItemKind::Device => Kind::Device,
                ItemKind::File { mode, size, digest, facts, capabilities } => Kind::File(Box::new(FileNode {
                    executable: mode & 0o100 != 0,
                    size_bytes: *size,
                    digest: *digest,
                    facts: *facts,
                    source: None,
                    is_setuid: mode & 0o6000 != 0,
                    is_world_writable: mode & 0o002 != 0,
                    has_capabilities: *capabilities,
                })),
            };
            let path = spell(item.path.as_bytes());
            tree.insert_parents(&path, origin);
            tree.insert(&path, Node { origin, kind });
        }
    }
    certificates(&mut tree, packages, cache)?;
    base::add_files(&mut tree, suite);
    for (to, scan) in scans {
        let to = to.trim_start_matches('/').as_bytes();
        report.files_read += scan.files_read;
        findings.extend(scan.findings);
        for (reason, path, bytes) in scan.omitted {
            omitted.add(&reason, path, bytes);
        }
        if !to.is_empty() {
            tree.insert_parents(&spell(to), Origin::App);
        }
        for (path, found) in scan.entries {
            let kind = match found {
                Found::Directory => Kind::Directory,
                Found::Symlink { target } => Kind::Symlink { target },
                Found::File { size_bytes, digest, facts, disk } => Kind::File(Box::new(FileNode {
                    executable: facts.looks_executable(),
                    size_bytes,
                    digest,
                    facts,
                    source: Some(Source::Disk(disk)),
                    is_setuid: false,
                    is_world_writable: false,
                    has_capabilities: false,
                })),
            };
            let path = match (to, path.as_slice()) {
                (b"", b"") => continue,
                (to, b"") => to.to_vec(),
                (b"", path) => path.to_vec(),
                (to, path) => [to, b"/", path].concat(),
            };
            tree.insert(&path, Node { origin: Origin::App, kind });
        }
    }
    base::add_mount_points(&mut tree, request.manifest);
    if request.purpose == Purpose::Tools {
        base::add_for_tools(&mut tree);
    }
    Ok(tree)
}

/// Debian's `ca-certificates` makes its bundle when it is installed; here it is made of the same files.
fn certificates(tree: &mut Tree, packages: &Packages, cache: &FileCache) -> Result<(), BuildError> {
    let Some(number) = packages.unpacked.iter().position(|package| package.name == "ca-certificates") else {
        return Ok(());
    };
    let mut bundle = Vec::new();
    for (path, node) in tree.below(b"usr/share/ca-certificates") {
        if let Kind::File(file) = &node.kind
            && path.ends_with(b".crt")
        {
            let read = fs::read(cache.path(&file.digest));
            bundle
                .extend(read.map_err(|source| BuildError::Closure(ClosureError::Read { path: shown(path), source }))?);
        }
    }
    let origin = Origin::Package(number);
    let link = Kind::Symlink { target: b"/etc/ssl/certs/ca-certificates.crt".to_vec() };
    for (path, kind) in [("etc/ssl/certs/ca-certificates.crt", base::made(&bundle)), ("usr/lib/ssl/cert.pem", link)] {
        tree.insert_parents(path.as_bytes(), origin);
        if tree.get(path.as_bytes()).is_none() {
            tree.insert(path.as_bytes(), Node { origin, kind });
        }
    }
    Ok(())
}

/// Keeps the copyright file of each package of which something is kept; gives their numbers.
fn keep_metadata(tree: &Tree, packages: &Packages, closure: &mut Closure) -> BTreeSet<usize> {
    let used: BTreeSet<usize> = closure
        .kept
        .iter()
        .filter_map(|path| match tree.get(path) {
            Some(Node { origin: Origin::Package(number), kind: Kind::File(_) | Kind::Symlink { .. } }) => Some(*number),
            _ => None,
        })
        .collect();
    for number in &used {
        let path = format!("usr/share/doc/{}/copyright", packages.unpacked[*number].name);
        let mut via = Vec::new();
        if let Some(target) = tree.resolve(path.as_bytes(), &mut via) {
            closure.kept.extend(via);
            closure.kept.insert(target);
        }
    }
    used
}

#[derive(Deserialize)]
struct PackageJson {
    name: Option<String>,
    version: Option<String>,
    #[serde(default)]
    dependencies: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, rename = "devDependencies")]
    dev_dependencies: BTreeMap<String, serde::de::IgnoredAny>,
}

fn read_package_json(file: &FileNode) -> Option<PackageJson> {
    let mut text = Vec::new();
    io::Read::read_to_end(&mut file.source.as_ref()?.open().ok()?, &mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The app's own `package.json`.
fn package_json(tree: &Tree, app: &[u8]) -> Option<PackageJson> {
    let Some(Node { kind: Kind::File(file), .. }) = tree.get(&[app, b"/package.json"].concat()) else { return None };
    read_package_json(file)
}

/// Programs that look for what `package.json` names in `node_modules`.
const NODE_PROGRAMS: [&str; 2] = ["node", "nodejs"];

/// `npm ci` was forgotten, or its result left out: the first `require` would end the app.
fn missing_modules(tree: &Tree, app: &[u8], manifest: &Manifest) -> Option<Finding> {
    // Every folder above is looked into; Yarn has a file instead.
    let folders = std::iter::successors(Some(app), |path| (!path.is_empty()).then(|| parent(path).unwrap_or_default()));
    let join = |path: &[u8], name: &[u8]| if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
    let is_there = |path: &[u8]| [&b"node_modules"[..], b".pnp.cjs"].iter().any(|n| tree.get(&join(path, n)).is_some());
    let program = |command: &[String]| {
        let name = command.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default().to_owned();
        NODE_PROGRAMS.contains(&name.as_str())
    };
    let runs_node = manifest.services.values().any(|service| program(&service.command));
    let names = package_json(tree, app)?.dependencies;
    if !runs_node || names.is_empty() || folders.into_iter().any(is_there) {
        return None;
    }
    let shown_names: Vec<&str> = names.keys().take(5).map(String::as_str).collect();
    Some(Finding {
        rule: Rule::MissingModules,
        path: shown(&[app, b"/node_modules"].concat()),
        sentence: format!(
            "is missing, and package.json has {} dependencies ({}{}): run `npm ci --omit=dev` first; of a bundle that \
             needs none of them, leave package.json out",
            names.len(),
            shown_names.join(", "),
            if names.len() > shown_names.len() { ", …" } else { "" }
        ),
    })
}

fn development_dependencies(tree: &Tree, app: &[u8]) -> Option<Finding> {
    let names = package_json(tree, app)?.dev_dependencies;
    let is_there = |name: &&String| tree.get(&[app, b"/node_modules/", name.as_bytes()].concat()).is_some();
    let found: Vec<&str> = names.keys().filter(is_there).map(String::as_str).collect();
    (!found.is_empty()).then(|| Finding {
        rule: Rule::DevDependency,
        path: shown(&[app, b"/node_modules"].concat()),
        sentence: format!(
            "has {} development dependencies ({}{}): install with `npm ci --omit=dev`",
            found.len(),
            found.iter().take(5).copied().collect::<Vec<_>>().join(", "),
            if found.len() > 5 { ", …" } else { "" }
        ),
    })
}

/// The npm packages of an image. Reading a thousand `package.json` takes as long as all
/// the rest of a build, so what was read is kept under the digest of them all.
fn npm_components(tree: &Tree, cache_dir: &Path) -> Vec<Component> {
    let mut files: Vec<&FileNode> = Vec::new();
    let mut text = String::new();
    for (path, node) in tree.iter() {
        if let Kind::File(file) = &node.kind
            && file_name(path) == b"package.json"
            && is_npm_package(path)
        {
            files.push(file);
            text.push_str(&format!("{}\n", file.digest));
        }
    }
    if files.is_empty() {
        return Vec::new();
    }
    let kept = cache_dir.join("npm").join(format!("{}.json", hex(&sha256(text.as_bytes())[..16])));
    let known = fs::read(&kept).ok().and_then(|text| serde_json::from_slice::<Vec<(String, String)>>(&text).ok());
    let pairs = known.unwrap_or_else(|| {
        let mut pairs: Vec<(String, String)> = files
            .into_iter()
            .filter_map(|file| read_package_json(file).and_then(|package| Some((package.name?, package.version?))))
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        let write = || -> io::Result<()> {
            let directory = cache_dir.join("npm");
            fs::create_dir_all(&directory)?;
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            serde_json::to_writer(&mut file, &pairs)?;
            file.persist(&kept)?;
            Ok(())
        };
        // A cache that cannot be written costs time at the next build and nothing else.
        drop(write());
        pairs
    });
    pairs.iter().map(|(name, version)| Component::npm(name, version)).collect()
}

/// Whether a `package.json` is that of an installed package: `node_modules/NAME` or `node_modules/@SCOPE/NAME`.
fn is_npm_package(path: &[u8]) -> bool {
    let mut parts = path.rsplit(|byte| *byte == b'/').skip(2);
    match parts.next() {
        Some(b"node_modules") => true,
        Some(scope) if scope.starts_with(b"@") => parts.next() == Some(b"node_modules"),
        _ => false,
    }
}

/// Adds what the image says of itself: package metadata and the SBOM.
fn describe(
    request: &BuildRequest<'_>,
    tree: &mut Tree,
    packages: &Packages,
    used: &BTreeSet<usize>,
    suite: Suite,
    report: &mut Report,
) {
    let mut counts: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for (_, node) in tree.iter() {
        if let (Origin::Package(number), Kind::File(file)) = (node.origin, &node.kind) {
            let count = counts.entry(number).or_default();
            count.0 += 1;
            count.1 += file.size_bytes;
        }
    }
    let mut components = Vec::new();
    for number in used {
        let package = &packages.unpacked[*number];
        let control = format!("{}\n", package.listing.control.trim_end());
        base::add(tree, &format!("var/lib/dpkg/status.d/{}", package.name), control.as_bytes());
        components.push(Component::debian(&package.name, &package.version, &package.architecture, suite.name));
        let (files, bytes) = counts.get(number).copied().unwrap_or_default();
        let (name, version) = (package.name.clone(), package.version.clone());
        report.packages.push(PackageUse { name, version, files, bytes });
    }
    let npm = npm_components(tree, request.cache_dir);
    report.npm_packages = npm.iter().map(|component| format!("{}@{}", component.name, component.version)).collect();
    components.extend(npm);
    components.sort_unstable();
    let app = request.manifest.app.as_str();
    base::add(tree, "usr/share/sbom/spdx.json", &sbom::spdx(app, &components));
    base::add(tree, "usr/share/sbom/cyclonedx.json", &sbom::cyclonedx(app, &components));
}

fn allowed(findings: &[Finding], section: &bulkhead_core::manifest::ImageSection) -> Vec<String> {
    let paths: BTreeSet<&str> = findings.iter().map(|finding| finding.path.as_str()).collect();
    let mut allowed: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    if allowed.iter().map(String::len).sum::<usize>() > ALLOWED_MAX_BYTES {
        allowed = section.allow.clone();
        allowed.sort_unstable();
        allowed.dedup();
    }
    allowed
}

/// What was left out, by reason.
#[derive(Default)]
struct Omitted {
    reasons: BTreeMap<String, Omission>,
}

impl Omitted {
    fn add(&mut self, reason: &str, path: String, bytes: u64) {
        if !self.reasons.contains_key(reason) {
            let omission = Omission { reason: reason.to_owned(), count: 0, bytes: 0, biggest: vec![] };
            self.reasons.insert(reason.to_owned(), omission);
        }
        let Some(omission) = self.reasons.get_mut(reason) else { return };
        omission.count += 1;
        omission.bytes += bytes;
        let at = omission.biggest.partition_point(|large| large.bytes >= bytes);
        if at < BIGGEST_SHOWN {
            omission.biggest.insert(at, Large { path, bytes });
            omission.biggest.truncate(BIGGEST_SHOWN);
        }
    }

    fn list(self) -> Vec<Omission> {
        let mut all: Vec<Omission> = self.reasons.into_values().collect();
        all.sort_by_key(|omission| std::cmp::Reverse(omission.bytes));
        all
    }
}

#[cfg(test)]
mod tests;
