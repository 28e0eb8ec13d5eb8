//! The files that commands work on, and where they are found.
//!
//! | file | found |
//! |---|---|
//! | `bulkhead.toml` | in the current folder, or `--manifest FILE` |
//! | `fleet.toml`, `policy.json`, `policy.json.sig` | in the current folder or the nearest parent that has a `fleet.toml`, or `--fleet DIR` |
//!
//! What the commands keep for the team lies in `.bulkhead` beside `fleet.toml`, to be checked in: policies that were in
//! force, statements about images, notices, grants, sealed secrets, witnessed ends of audit logs. No image ever holds it.
//!
//! `policy.json.sig` is a JSON list of armoured SSHSIG signatures over the exact
//! bytes of `policy.json`. The policy is verified before a word of it is used.

use crate::{
    error::{Error, Kind, Result},
    pools,
    session::state_directory,
};
use bulkhead_core::{
    AppName, EnvironmentName, NodeName, SignedText,
    digest::{hex, sha256},
    fleet::{Fleet, FleetNode},
    manifest::{Manifest, parse_toml},
    name::nearest,
    policy::{POLICY_MAX_BYTES, Policy},
};
use serde::Serialize;
use std::{
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// The manifest's file name.
pub const MANIFEST: &str = "bulkhead.toml";
/// The inventory's file name.
pub const FLEET: &str = "fleet.toml";
/// The policy's file name.
pub const POLICY: &str = "policy.json";
/// The file name of the policy's signatures.
pub const POLICY_SIGNATURES: &str = "policy.json.sig";

/// No file of a person's making is larger; a larger one is the wrong file.
const TEXT_MAX_BYTES: u64 = 4 << 20;

/// Where to look, as the command line says.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `--manifest`.
    pub manifest: Option<PathBuf>,
    /// `--fleet`.
    pub fleet: Option<PathBuf>,
}

/// A manifest and where it lies.
#[derive(Debug, Clone)]
pub struct App {
    /// The file.
    pub path: PathBuf,
    /// The folder it lies in; paths in the manifest are relative to it.
    pub directory: PathBuf,
    /// What it says.
    pub manifest: Manifest,
}

/// A fleet's files.
#[derive(Debug, Clone)]
pub struct FleetFiles {
    /// The folder they lie in.
    pub directory: PathBuf,
    /// What `fleet.toml` says.
    pub fleet: Fleet,
}

/// A verified policy with its exact bytes and signatures.
#[derive(Debug, Clone)]
pub struct PolicyFiles {
    /// `policy.json` as it was signed.
    pub bytes: Vec<u8>,
    /// Its signatures.
    pub signatures: Vec<String>,
    /// What it says.
    pub policy: Policy,
}

/// Reads a text file of a person's making.
///
/// # Errors
/// It cannot be read, or is far too large.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(TEXT_MAX_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| Error::during(Kind::Configuration, format!("cannot read {}", shown(path)), &error))?;
    if text.len() as u64 > TEXT_MAX_BYTES {
        return Err(Error::configuration(format!("{} is over 4 MiB: this is the wrong file", shown(path))));
    }
    Ok(text)
}

/// Writes a file that must be whole or absent: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// It cannot be written.
pub fn write_durably(path: &Path, contents: &[u8]) -> Result<()> {
    // A name of its own: two commands may write the same file at once, and one of them wins whole.
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".bulkhead-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let write = || {
        let mut file = builder.tempfile_in(&folder)?;
        file.write_all(contents)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_directory(&folder)
    };
    write().map_err(|error| Error::during(Kind::Internal, format!("cannot write {}", path.display()), &error))
}

/// Writes a value as indented JSON into a file that must be whole or absent, and makes the folder that it goes to.
///
/// # Errors
/// It cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let place = path.display();
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::during(Kind::Internal, format!("{place} cannot be encoded"), &error))?;
    bytes.push(b'\n');
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Error::during(Kind::Internal, format!("cannot make {}", parent.display()), &error))?;
    }
    write_durably(path, &bytes)
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as where directories can be flushed")]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// A path as a person would write it: without a leading `./`.
pub(crate) fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(".").unwrap_or(path).display()
}

/// The folder that a file lies in, never empty.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

impl App {
    /// Finds and reads the manifest.
    ///
    /// # Errors
    /// There is none, or it is wrong.
    pub fn load(places: &Places) -> Result<Self> {
        let path = places.manifest.clone().unwrap_or_else(|| MANIFEST.into());
        if matches!(path.try_exists(), Ok(false)) {
            return Err(Error::configuration(format!("{} does not exist", shown(&path)))
                .hint("go to the app's folder, or name it with `-C DIR` or `--manifest FILE`")
                .hint("`bulkhead init` writes a first one"));
        }
        let text = read_text(&path)?;
        let manifest = Manifest::parse(&text).map_err(|error| Error::manifest(&path, &error))?;
        Ok(Self { directory: folder_of(&path), path, manifest })
    }

    /// Demands that a file to be written is none that the next image would hold: in this app's folder only what is
    /// below `.bulkhead` is never part of one.
    ///
    /// # Errors
    /// It is.
    pub fn must_be_outside(&self, file: &Path) -> Result<()> {
        // Folders that are not there yet lie where the nearest one that is there lies.
        let mut directory = folder_of(file);
        let mut beyond = PathBuf::new();
        while !directory.exists() {
            let Some(name) = directory.file_name().map(PathBuf::from) else { break };
            beyond = name.join(&beyond);
            directory = folder_of(&directory);
        }
        let (Ok(directory), Ok(folder)) = (directory.canonicalize(), self.directory.canonicalize()) else {
            return Ok(());
        };
        let directory = directory.join(beyond);
        if directory.starts_with(&folder) && !directory.starts_with(folder.join(".bulkhead")) {
            let message = format!("{} is in the app's folder: it would be part of the next image", file.display());
            return Err(Error::usage(message).hint("write it elsewhere, such as `../FILE` or `.bulkhead/FILE`"));
        }
        Ok(())
    }

    /// Checks what the manifest says of an environment against the fleet.
    ///
    /// # Errors
    /// It names a node that is not there.
    pub fn nodes_in(&self, files: &FleetFiles, environment: &EnvironmentName) -> Result<Vec<(NodeName, FleetNode)>> {
        let all = files.nodes_in(environment)?;
        let known = files.policy()?.policy.environments;
        if let Some(name) = self.manifest.environments.keys().find(|name| !known.contains_key(*name)) {
            let message = format!("{}: the policy has no environment `{name}`", self.path.display());
            let known: Vec<&str> = known.keys().map(EnvironmentName::as_str).collect();
            return Err(suggest(Error::configuration(message), name.as_str(), &known));
        }
        let Some(wanted) = self.manifest.environments.get(environment).and_then(|section| section.nodes.as_ref())
        else {
            return Ok(all);
        };
        for name in wanted {
            if !all.iter().any(|(known, _)| known == name) {
                let place = self.path.display();
                let message = format!(
                    "{place}: [environments.{environment}] names node `{name}`, which {FLEET} does not have there"
                );
                let known: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
                return Err(suggest(Error::configuration(message), name.as_str(), &known));
            }
        }
        let chosen: Vec<_> = all.into_iter().filter(|(name, _)| wanted.contains(name)).collect();
        if chosen.is_empty() {
            let message = format!("{}: [environments.{environment}] names no node", self.path.display());
            return Err(Error::configuration(message));
        }
        Ok(chosen)
    }
}

impl FleetFiles {
    /// Finds and reads `fleet.toml`.
    ///
    /// # Errors
    /// There is none, or it is wrong.
    pub fn load(places: &Places) -> Result<Self> {
        let directory = Self::directory(places)?.ok_or_else(|| {
            Error::configuration(format!("no {FLEET} here or in any folder above"))
                .hint("`bulkhead init` writes one with a policy of your own")
                .hint("or name its folder with `--fleet DIR` or BULKHEAD_FLEET")
        })?;
        Self::read(directory)
    }

    /// Reads `fleet.toml` of a folder.
    ///
    /// # Errors
    /// It is wrong.
    pub fn read(directory: PathBuf) -> Result<Self> {
        let path = directory.join(FLEET);
        let text = read_text(&path)?;
        let fleet = parse_toml(&text).map_err(|error| Error::manifest(&path, &error))?;
        Ok(Self { directory, fleet })
    }

    /// The folder with the nearest `fleet.toml`.
    ///
    /// # Errors
    /// A folder was named and has none, or the current folder is unknown.
    pub fn directory(places: &Places) -> Result<Option<PathBuf>> {
        if let Some(named) = &places.fleet {
            if named.join(FLEET).is_file() {
                return Ok(Some(named.clone()));
            }
            return Err(Error::configuration(format!("{} has no {FLEET}", named.display())));
        }
        if Path::new(FLEET).is_file() {
            return Ok(Some(PathBuf::from(".")));
        }
        let here = std::env::current_dir()
            .map_err(|error| Error::during(Kind::Internal, "the current folder is unknown", &error))?;
        Ok(here.ancestors().find(|folder| folder.join(FLEET).is_file()).map(Path::to_owned))
    }

    /// Reads and verifies the policy.
    ///
    /// # Errors
    /// It is missing, or not signed as it says it must be.
    pub fn policy(&self) -> Result<PolicyFiles> {
        let path = self.directory.join(POLICY);
        let text = read_text(&path).map_err(|error| error.hint("`bulkhead init` writes a first one"))?;
        let place = shown(&path);
        if text.len() > POLICY_MAX_BYTES {
            return Err(Error::configuration(format!("{place} is over 1 MiB")));
        }
        let signatures_path = self.directory.join(POLICY_SIGNATURES);
        let signatures = match read_signatures(&signatures_path)? {
            Some(signatures) => signatures,
            None => return Err(Error::configuration(format!("{} does not exist", shown(&signatures_path)))),
        };
        // Git on Windows may have given it that system's line endings, which nobody signed; inside JSON's strings there
        // are none, so this takes nothing away.
        let bytes = text.replace("\r\n", "\n").into_bytes();
        let mut signatures = signatures;
        let mut verified = bulkhead_trust::pin_first_policy(&bytes, &signatures, &self.fleet.fleet);
        if verified.is_err()
            && let Some(kept) = self.kept_signatures(&bytes)
        {
            signatures = kept;
            verified = bulkhead_trust::pin_first_policy(&bytes, &signatures, &self.fleet.fleet);
        }
        let verified = verified.map_err(|refusal| {
            let mut error = Error::configuration(format!("{place}: {}", refusal.message));
            error.hints.extend(refusal.hint);
            error
        })?;
        let policy = verified.into_value();
        let files = PolicyFiles { bytes, signatures, policy };
        self.follow_pinned(&files)?;
        Ok(files)
    }

    /// The signatures over exactly these bytes in the history: a new policy's files are two, and whoever was interrupted
    /// between them has replaced one alone.
    fn kept_signatures(&self, bytes: &[u8]) -> Option<Vec<String>> {
        let version = Policy::parse(bytes).ok()?.version;
        let text = read_text(&self.directory.join(".bulkhead/policies").join(format!("{version}.json"))).ok()?;
        let signed: SignedText = serde_json::from_str(&text).ok()?;
        (signed.text.as_bytes() == bytes).then_some(signed.signatures)
    }

    /// Where this machine keeps the policy that it saw last in this folder.
    fn pin_path(&self) -> Result<PathBuf> {
        let directory = std::fs::canonicalize(&self.directory).map_err(|error| {
            Error::during(Kind::Configuration, format!("cannot find {}", self.directory.display()), &error)
        })?;
        // Not by the fleet's name, which whoever can write here chooses.
        let name = format!("{}.json", &hex(&sha256(directory.as_os_str().as_encoded_bytes()))[..16]);
        Ok(state_directory()?.join("policies").join(name))
    }

    /// A policy vouches for itself only once: the first that this machine sees in a folder. Each later one must follow
    /// from that by signatures, as for nodes, or whoever can write to the repository could put their own in its place.
    fn follow_pinned(&self, files: &PolicyFiles) -> Result<()> {
        let path = self.pin_path()?;
        let Some(text) = read_if_present(&path)? else { return self.pin(files) };
        let broken = |what: String| {
            Error::configuration(format!("{}: {what}", path.display()))
                .hint("it is this machine's own memory of the policy; remove it only if you know why it is damaged")
        };
        let signed: SignedText = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if signed.text.as_bytes() == files.bytes {
            return Ok(());
        }
        let mut pinned = Policy::parse(signed.text.as_bytes()).map_err(broken)?;
        let refused = |why: String| {
            Error::new(Kind::Refused, format!("{}: {why}", shown(&self.directory.join(POLICY))))
                .hint("look at how it came here: `git log policy.json`")
                .hint(format!("if this fleet was truly made anew, remove {}", path.display()))
        };
        let version = files.policy.version;
        if version <= pinned.version {
            return Err(refused(format!(
                "it is version {version}, and this machine has seen version {} here: this folder is out of date, or it was replaced",
                pinned.version
            )));
        }
        for next in pinned.version + 1..version {
            let step = read_text(&self.directory.join(".bulkhead/policies").join(format!("{next}.json")))
                .map_err(|error| refused(format!("version {next} before it is missing: {}", error.message)))?;
            let step: SignedText = serde_json::from_str(&step).map_err(|error| refused(error.to_string()))?;
            pinned = bulkhead_trust::accept_policy(step.text.as_bytes(), &step.signatures, &pinned)
                .map_err(|refusal| refused(format!("version {next} before it: {}", refusal.message)))?
                .into_value();
        }
        bulkhead_trust::accept_policy(&files.bytes, &files.signatures, &pinned).map_err(|refusal| {
            refused(format!("it does not follow from the one that this machine knows: {}", refusal.message))
        })?;
        self.pin(files)
    }

    /// Remembers a policy as the one to follow from. `bulkhead init` does, where it makes a first one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn pin(&self, files: &PolicyFiles) -> Result<()> {
        let path = self.pin_path()?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| Error::during(Kind::Internal, format!("cannot make {}", parent.display()), &error))?;
        }
        let text = String::from_utf8(files.bytes.clone())
            .map_err(|error| Error::during(Kind::Internal, "the policy is not text", &error))?;
        let signed = SignedText { text, signatures: files.signatures.clone() };
        let bytes = serde_json::to_vec(&signed)
            .map_err(|error| Error::during(Kind::Internal, "the policy cannot be remembered", &error))?;
        write_durably(&path, &bytes)
    }

    /// Forgets what policy was seen here.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn unpin(&self) -> Result<()> {
        let path = self.pin_path()?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::during(Kind::Internal, format!("cannot remove {}", path.display()), &error)),
        }
    }

    /// The nodes of an environment that orders go to, by name: those of pools are passed by.
    ///
    /// # Errors
    /// It has none.
    pub fn nodes_in(&self, environment: &EnvironmentName) -> Result<Vec<(NodeName, FleetNode)>> {
        let all = self.all_nodes_in(environment)?;
        let nodes: Vec<_> = all.into_iter().filter(|(_, node)| node.pool.is_none()).collect();
        if nodes.is_empty() {
            return Err(Error::configuration(format!("`{environment}` has no nodes but those of pools"))
                .hint("orders go to none of them: `bulkhead pool grant` says what runs there"));
        }
        Ok(nodes)
    }

    /// The nodes of an environment, or all, that orders go to.
    ///
    /// # Errors
    /// The environment has none.
    pub fn nodes(&self, environment: Option<&EnvironmentName>) -> Result<Vec<(NodeName, FleetNode)>> {
        match environment {
            Some(environment) => self.nodes_in(environment),
            None => Ok(self.every_node().into_iter().filter(|(_, node)| node.pool.is_none()).collect()),
        }
    }

    /// Every node of an environment, by name: for commands that look, and for what all nodes must know.
    ///
    /// # Errors
    /// It has none.
    pub fn all_nodes_in(&self, environment: &EnvironmentName) -> Result<Vec<(NodeName, FleetNode)>> {
        let nodes: Vec<_> =
            self.every_node().into_iter().filter(|(_, node)| node.environment == *environment).collect();
        if nodes.is_empty() {
            let path = self.directory.join(FLEET);
            let message = format!("{} has no node in environment `{environment}`", shown(&path));
            let environments = self.environments();
            let known: Vec<&str> = environments.iter().map(EnvironmentName::as_str).collect();
            let error = suggest(Error::configuration(message), environment.as_str(), &known);
            return Err(if known.is_empty() { error.hint("`bulkhead local up` makes local nodes") } else { error });
        }
        Ok(nodes)
    }

    /// As [`Self::all_nodes_in`], or every node.
    ///
    /// # Errors
    /// The environment has none.
    pub fn all_nodes(&self, environment: Option<&EnvironmentName>) -> Result<Vec<(NodeName, FleetNode)>> {
        environment.map_or_else(|| Ok(self.every_node()), |environment| self.all_nodes_in(environment))
    }

    /// Those of `fleet.toml`, and after them those that this machine's loop bought.
    fn every_node(&self) -> Vec<(NodeName, FleetNode)> {
        let mut nodes: Vec<_> = self.fleet.nodes.iter().map(|(name, node)| (name.clone(), node.clone())).collect();
        let mut bought = pools::bought(&self.fleet.fleet);
        // A machine of a fixed pool stands in `fleet.toml` already, and is no second node while it is leased.
        bought.retain(|(_, one)| !nodes.iter().any(|(_, node)| (&node.address, node.port) == (&one.address, one.port)));
        nodes.extend(bought);
        nodes
    }

    /// Of these nodes the one that was named.
    ///
    /// # Errors
    /// It is none of them.
    pub fn named(&self, nodes: &[(NodeName, FleetNode)], wanted: &NodeName) -> Result<(NodeName, FleetNode)> {
        if let Some(found) = nodes.iter().find(|(name, _)| name == wanted) {
            return Ok(found.clone());
        }
        let known: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
        let place = shown(&self.directory.join(FLEET)).to_string();
        Err(match self.fleet.nodes.get(wanted) {
            Some(elsewhere) => Error::usage(format!(
                "node `{wanted}` is in environment `{}`, which was not asked for",
                elsewhere.environment
            ))
            .hint(format!("there are {}", known.join(", "))),
            None => suggest(Error::usage(format!("{place} has no node `{wanted}`")), wanted.as_str(), &known),
        })
    }

    /// The environments that have nodes.
    #[must_use]
    pub fn environments(&self) -> Vec<EnvironmentName> {
        let set: std::collections::BTreeSet<_> =
            self.every_node().into_iter().map(|(_, node)| node.environment).collect();
        set.into_iter().collect()
    }

    /// The environment meant where none was named: the only one there is.
    ///
    /// # Errors
    /// There are several.
    pub fn environment_or_only(&self, named: Option<&EnvironmentName>) -> Result<EnvironmentName> {
        if let Some(named) = named {
            return Ok(named.clone());
        }
        let all = self.environments();
        match all.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(Error::configuration(format!("{} has no nodes", shown(&self.directory.join(FLEET))))
                .hint("`bulkhead local up` makes local nodes")),
            several => {
                let names: Vec<&str> = several.iter().map(EnvironmentName::as_str).collect();
                Err(Error::usage("the fleet has several environments: name one with `-e ENV`")
                    .hint(format!("there are {}", names.join(", "))))
            }
        }
    }
}

/// A file of signatures: a JSON list of armoured SSHSIG; `None` where there is none.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_signatures(path: &Path) -> Result<Option<Vec<String>>> {
    let Some(text) = read_if_present(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        let what = format!("{} is not a JSON list of signatures", shown(path));
        Error::during(Kind::Configuration, what, &error)
    })
}

/// The app meant where none was named: the one whose manifest is here.
///
/// # Errors
/// There is no manifest, or it is wrong.
pub fn app_or_local(named: Option<&AppName>, places: &Places) -> Result<AppName> {
    match named {
        Some(named) => Ok(named.clone()),
        None => App::load(places)
            .map(|app| app.manifest.app)
            .map_err(|error| error.hint("or name the app on the command line")),
    }
}

/// Adds the nearest known word to an error, or all of them.
fn suggest(error: Error, word: &str, known: &[&str]) -> Error {
    match nearest(word, known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if known.is_empty() => error,
        None => error.hint(format!("there are {}", known.join(", "))),
    }
}

/// The contents of a file, or nothing where there is none.
///
/// # Errors
/// It is there and cannot be read.
pub fn read_if_present(path: &Path) -> Result<Option<String>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        _ => read_text(path).map(Some),
    }
}
