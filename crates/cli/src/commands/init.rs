//! `bulkhead init`.

use crate::{
    Context,
    error::{Error, Kind, Result},
    output::Paint,
    session::{home, identities, sign_error},
    starter,
    workspace::{FLEET, FleetFiles, MANIFEST, POLICY, POLICY_SIGNATURES, read_if_present, read_text, write_durably},
};
use bulkhead_core::{
    FleetName, PersonName,
    policy::{NAMESPACE, Policy},
};
use bulkhead_fleet::{
    agent::{Agent, default_address},
    sign::Signer,
};
use bulkhead_trust::PublicKey;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Writes what is missing of manifest, fleet and policy; never overwrites
///
/// `bulkhead.toml` is guessed from the folder, `fleet.toml` is named after it,
/// and `policy.json` makes your own SSH key its first root and release key,
/// signed with that key (a touch, for a security key). The key is
/// `~/.ssh/id_ed25519` or the only Ed25519 key of your agent.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The key to use: its file or its `.pub` file.
    #[arg(long, value_name = "PATH", conflicts_with = "new_key")]
    pub key: Option<PathBuf>,

    /// Makes a new key here with `ssh-keygen`, without a passphrase, and uses it.
    #[arg(long, value_name = "PATH")]
    pub new_key: Option<PathBuf>,
}

/// What was done.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InitReport {
    /// The fleet's name.
    pub fleet: String,
    /// Files that were written.
    pub written: Vec<String>,
    /// Files that were there and were left alone.
    pub kept: Vec<String>,
    /// The fingerprint of the key, where one was used.
    pub key: Option<String>,
}

/// Writes what is missing.
///
/// # Errors
/// There is no key, or a file that is there is wrong.
pub async fn run(context: &Context, args: &InitArgs) -> Result<()> {
    let fleet_directory = match &context.places.fleet {
        Some(named) => named.clone(),
        None => FleetFiles::directory(&context.places)?.unwrap_or_else(|| PathBuf::from(".")),
    };
    let manifest_path = context.places.manifest.clone().unwrap_or_else(|| MANIFEST.into());
    let fleet_path = fleet_directory.join(FLEET);
    let policy_path = fleet_directory.join(POLICY);
    let signatures_path = fleet_directory.join(POLICY_SIGNATURES);

    let (fleet, new_fleet) = match read_if_present(&fleet_path)? {
        Some(_) => (FleetFiles::read(fleet_directory.clone())?.fleet.fleet, None),
        None => {
            let name = named_after(&fleet_directory, "fleet")?;
            let text = starter::fleet(&name);
            (name, Some(text))
        }
    };
    // Everything that can fail comes before the first file is written.
    let policy = policy(context, args, &fleet, &policy_path, &signatures_path).await?;
    let new_manifest = match read_if_present(&manifest_path)? {
        Some(_) => None,
        None => Some(guessed_manifest(&manifest_path)?),
    };

    let is_new_policy = policy.document.is_some();
    let mut report = InitReport { fleet: fleet.to_string(), written: vec![], kept: vec![], key: policy.key };
    let files = [
        (&manifest_path, new_manifest.map(String::into_bytes)),
        (&fleet_path, new_fleet.map(String::into_bytes)),
        (&policy_path, policy.document),
        (&signatures_path, policy.signatures),
    ];
    for (path, contents) in files {
        let shown = path.strip_prefix(".").unwrap_or(path).display().to_string();
        match contents {
            Some(contents) => {
                write_durably(path, &contents)?;
                report.written.push(shown);
            }
            None => report.kept.push(shown),
        }
    }
    if is_new_policy {
        // Trust begins here, whatever was called the same before.
        FleetFiles::read(fleet_directory.clone())?.unpin()?;
    }
    FleetFiles::read(fleet_directory)?.policy()?;
    context.ui.result(&report, render)
}

/// What is to be written of the policy.
struct NewPolicy {
    document: Option<Vec<u8>>,
    signatures: Option<Vec<u8>>,
    key: Option<String>,
}

/// A new policy with its signature, or the missing signature of the one that is there.
async fn policy(
    context: &Context,
    args: &InitArgs,
    fleet: &FleetName,
    policy_path: &Path,
    signatures_path: &Path,
) -> Result<NewPolicy> {
    let present = read_if_present(policy_path)?;
    if read_if_present(signatures_path)?.is_some() {
        if present.is_none() {
            return Err(Error::configuration(format!(
                "{} is there without {}",
                signatures_path.display(),
                policy_path.display()
            ))
            .hint("bring the policy back from version control, or remove its signatures"));
        }
        return Ok(NewPolicy { document: None, signatures: None, key: None });
    }
    let mut identities = identities(context)?;
    let (bytes, wanted) = match &present {
        Some(text) => {
            let policy = Policy::parse(text.as_bytes())
                .map_err(|what| Error::configuration(format!("{}: {what}", policy_path.display())))?;
            (text.clone().into_bytes(), policy.root.keys)
        }
        None => {
            let chosen = choose_key(args).await?;
            let person = person(&chosen.line)?;
            let policy = starter::policy(fleet, &person, &chosen.line);
            if let Some(file) = chosen.private {
                identities = identities.with_file(file);
            }
            (policy.to_bytes(), vec![chosen.line])
        }
    };
    let signer = Signer::find(&identities, wanted.iter().map(String::as_str)).await;
    let signer = signer.map_err(|error| sign_error(&error).hint("load your key with `ssh-add`"))?;
    let signature = signer.sign(NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?;
    let mut list = serde_json::to_vec_pretty(&[signature])
        .map_err(|error| Error::during(Kind::Internal, "the signature cannot be written", &error))?;
    list.push(b'\n');
    Ok(NewPolicy {
        document: present.is_none().then_some(bytes),
        signatures: Some(list),
        key: Some(signer.public_key().fingerprint()),
    })
}

/// A key that was chosen.
struct Chosen {
    /// Its public half, as an OpenSSH line.
    line: String,
    /// The file of its private half, where it is known.
    private: Option<PathBuf>,
}

async fn choose_key(args: &InitArgs) -> Result<Chosen> {
    if let Some(path) = &args.new_key {
        make_key(path)?;
        return key_of_file(path);
    }
    if let Some(path) = &args.key {
        return key_of_file(path);
    }
    let usual = home()?.join(".ssh/id_ed25519");
    if usual.with_extension("pub").is_file() {
        return key_of_file(&usual);
    }
    let in_agent = agent_keys().await;
    match in_agent.as_slice() {
        [only] => Ok(Chosen { line: only.clone(), private: None }),
        [] => Err(Error::configuration("no SSH key was found for the policy's first root and release key")
            .hint("make one: `ssh-keygen -t ed25519`")
            .hint("or one for this fleet alone: `bulkhead init --new-key PATH`")
            .hint("or name one: `bulkhead init --key PATH`")),
        several => {
            let mut error = Error::configuration("the agent holds several Ed25519 keys");
            error.causes.extend(several.iter().cloned());
            Err(error.hint("choose one: `bulkhead init --key PATH`"))
        }
    }
}

/// The agent's Ed25519 keys as OpenSSH lines; none where there is no agent.
async fn agent_keys() -> Vec<String> {
    let Some(address) = default_address() else { return vec![] };
    let Ok(mut agent) = Agent::connect(&address).await else { return vec![] };
    let keys = agent.keys().await.unwrap_or_default();
    keys.into_iter()
        .filter_map(|key| {
            let public = PublicKey::from_blob(&key.blob).ok()?;
            Some(format!("{} {}", public.to_openssh(), key.comment).trim().to_owned())
        })
        .collect()
}

/// The key of a file, which may be named by either half.
fn key_of_file(path: &Path) -> Result<Chosen> {
    let named_public = path.extension().is_some_and(|extension| extension == "pub");
    let (public, private) = if named_public {
        (path.to_owned(), path.with_extension(""))
    } else {
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        (PathBuf::from(public), path.to_owned())
    };
    let text = read_text(&public)?;
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    PublicKey::parse(&line).map_err(|error| {
        Error::during(Kind::Configuration, format!("{} is not a key that can sign", public.display()), &error)
            .hint("Ed25519 keys can, also those of security keys: `ssh-keygen -t ed25519`")
    })?;
    Ok(Chosen { line, private: private.is_file().then_some(private) })
}

fn make_key(path: &Path) -> Result<()> {
    if path.exists() {
        return Err(Error::configuration(format!("{} is there already", path.display()))
            .hint("use it with `--key PATH`, or name another path"));
    }
    let output = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "bulkhead", "-f"])
        .arg(path)
        .output()
        .map_err(|error| {
            Error::during(Kind::Configuration, "cannot run `ssh-keygen`", &error)
                .hint("it comes with OpenSSH: on Debian the package `openssh-client`, on Windows an optional feature")
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::configuration(format!("`ssh-keygen` made no key at {}: {said}", path.display())))
}

/// The holder's name: who the key's comment or the system says you are.
fn person(line: &str) -> Result<PersonName> {
    let comment = line.split_whitespace().nth(2).and_then(|comment| comment.split('@').next());
    let user = std::env::var("USER").or_else(|_| std::env::var("USERNAME")).ok();
    let text = comment.filter(|text| *text != "bulkhead").map(str::to_owned).or(user).unwrap_or_default();
    starter::name_from(&text, "owner").ok_or_else(|| Error::new(Kind::Internal, "no name for the key's holder"))
}

/// A name after the folder.
fn named_after<N: std::str::FromStr>(directory: &Path, fallback: &str) -> Result<N> {
    let whole = std::fs::canonicalize(directory)
        .map_err(|error| Error::during(Kind::Configuration, format!("cannot find {}", directory.display()), &error))?;
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    starter::name_from(&name, fallback).ok_or_else(|| Error::new(Kind::Internal, "no name for this folder"))
}

fn guessed_manifest(path: &Path) -> Result<String> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let app: bulkhead_core::AppName = named_after(directory, "app")?;
    let entries = std::fs::read_dir(directory)
        .map_err(|error| Error::during(Kind::Configuration, format!("cannot list {}", directory.display()), &error))?;
    let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let package_json = read_if_present(&directory.join("package.json"))?;
    Ok(starter::manifest(app.as_str(), &starter::Found { package_json, files }))
}

fn render(report: &InitReport, paint: Paint) -> String {
    let mut out = String::new();
    for path in &report.written {
        putln!(out, "wrote  {path}");
    }
    for path in &report.kept {
        putln!(out, "kept   {}", paint.faint(path));
    }
    if let Some(key) = &report.key {
        putln!(out, "\nfleet {}: {key} is its root and release key", paint.bold(&report.fleet));
    }
    out.push_str("\nnext: look at bulkhead.toml, then `bulkhead local up` and `bulkhead deploy -e staging`\n");
    out
}
