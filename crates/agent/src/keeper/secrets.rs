//! A secret on its way to a service: what came with an order is held against the
//! digest that the order pins, opened with the node's own key, and wrapped again
//! by systemd under the key of this machine (`systemd-creds`). Only that form is
//! what units name, so services start after a boot with nobody connected and
//! without the node's sealing key.
//!
//! A value is in the keeper's memory and in a pipe to `systemd-creds`, and
//! nowhere else: not in an argument, an environment, a log or a file.

use super::{OrFail, failure};
use crate::{
    keys,
    state::{Paths, Secret},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_core::{AppName, SecretDigest, SecretName, node::NodeIdentity, order::Target};
use bulkhead_trust::sealing::{Purpose, Recipient, SEALED_MAX_BYTES};
use bulkhead_wire::{Failure, FailureKind, SECRETS_MAX_BYTES};
use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

/// systemd's own tool: from version 250.
const PROGRAM: &str = "systemd-creds";
/// The key of this machine's systemd, without which nothing can be wrapped.
const HOST_KEY: &str = "/var/lib/systemd/credential.secret";
/// What is told of what the program says when it fails.
const MESSAGE_MAX_CHARS: usize = 400;

/// The rule by which an order is refused whose secrets are not what it says.
pub const RULE: &str = "secret";

fn refused(name: &SecretName, what: impl std::fmt::Display) -> Box<Failure> {
    failure(FailureKind::Refused, RULE, format!("secret `{name}`: {what}"))
}

/// Opens and wraps all secrets that an order pins for this node.
///
/// # Errors
/// The first that did not come, is another one than the order pins, or cannot be opened; or this node cannot wrap it.
pub fn wrap(
    paths: &Paths,
    identity: &NodeIdentity,
    app: &AppName,
    target: &Target,
    came: &BTreeMap<SecretName, String>,
) -> Result<Vec<Secret>, Box<Failure>> {
    if target.secrets.is_empty() {
        return Ok(vec![]);
    }
    let key = keys::sealing(paths).or_fail()?;
    let mut left = SECRETS_MAX_BYTES;
    let mut wrapped = Vec::with_capacity(target.secrets.len());
    for (name, digest) in &target.secrets {
        let sealed = pinned(name, *digest, came.get(name), &mut left)?;
        let purpose = Purpose {
            fleet: &identity.fleet,
            environment: &identity.environment,
            to: Recipient::Node(&identity.node),
            app,
            name,
        };
        let value = key.open(&purpose, &sealed).map_err(|error| refused(name, error))?;
        let credential = encrypt(name, &value)?;
        wrapped.push(Secret { name: name.clone(), sealed, credential });
    }
    Ok(wrapped)
}

/// The sealed value that the order pins. `left` is how much may come yet.
fn pinned(
    name: &SecretName,
    digest: SecretDigest,
    came: Option<&String>,
    left: &mut usize,
) -> Result<Vec<u8>, Box<Failure>> {
    let text = came.ok_or_else(|| refused(name, "its sealed value did not come with the order"))?;
    if text.len() > SEALED_MAX_BYTES.div_ceil(3) * 4 {
        return Err(refused(name, "what came is longer than a sealed value can be"));
    }
    let sealed = STANDARD.decode(text).map_err(|error| refused(name, format!("what came is not base64: {error}")))?;
    if SecretDigest::of(&sealed) != digest {
        return Err(refused(name, "what came is not the sealed value that the order pins for this node"));
    }
    *left = left
        .checked_sub(sealed.len())
        .ok_or_else(|| refused(name, format!("all sealed values together are more than {SECRETS_MAX_BYTES} bytes")))?;
    Ok(sealed)
}

fn encrypt(name: &SecretName, value: &[u8]) -> Result<Vec<u8>, Box<Failure>> {
    let failed = |what: String| failure(FailureKind::Node, RULE, format!("secret `{name}` cannot be wrapped: {what}"));
    let mut child = Command::new(PROGRAM)
        .args(["encrypt", "--with-key=host", &format!("--name={name}"), "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot run {PROGRAM}: {error}")))?;
    // It reads all before it writes anything. Where it ends early, what it says is the reason.
    let given = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(value));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(MESSAGE_MAX_CHARS).collect();
        return Err(failed(format!("{PROGRAM}: {}: {said}", output.status)));
    }
    given.map_err(|error| failed(error.to_string()))?;
    Ok(output.stdout)
}

/// Has systemd make its key for this machine, where there is none: the keeper may not write where that lies.
///
/// # Errors
/// It could not.
pub fn make_host_key() -> Result<(), String> {
    if std::path::Path::new(HOST_KEY).exists() {
        return Ok(());
    }
    let output =
        Command::new(PROGRAM).arg("setup").output().map_err(|error| format!("cannot run {PROGRAM}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(MESSAGE_MAX_CHARS).collect();
    Err(format!("{PROGRAM} setup: {}: {said}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_order_pins() {
        let name: SecretName = "KEY".parse().unwrap();
        let (sealed, text) = (b"sealed".to_vec(), STANDARD.encode(b"sealed"));
        let digest = SecretDigest::of(&sealed);
        let check = |digest, came: Option<&str>, mut left: usize| {
            let came = came.map(str::to_owned);
            pinned(&name, digest, came.as_ref(), &mut left).map_err(|failure| failure.message)
        };
        assert_eq!(check(digest, Some(&text), 6), Ok(sealed));
        let long = "A".repeat(SEALED_MAX_BYTES * 2);
        for (digest, came, left, says) in [
            (digest, None, 6, "did not come"),
            (SecretDigest([0; 32]), Some(text.as_str()), 6, "not the sealed value that the order pins"),
            (digest, Some("!"), 6, "not base64"),
            (digest, Some(long.as_str()), 6, "longer than"),
            (digest, Some(text.as_str()), 5, "together"),
        ] {
            let message = check(digest, came, left).unwrap_err();
            assert!(message.starts_with("secret `KEY`: ") && message.contains(says), "{message}");
        }
    }
}
