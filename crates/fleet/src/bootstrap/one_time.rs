//! A host key for one connection: how a machine that a program buys is known
//! the first time it is met.
//!
//! The program makes a key, hands it to the machine in its user data, and pins
//! the first connection to it. Over that connection the machine becomes a node,
//! which makes its own host key and tells it; then the one-time key is removed
//! ([`super::Machine::clear`]). Whoever can read the user data, the provider
//! above all, could stand in for the machine until then, and not after.

use crate::ssh::HostKey;
use russh::keys::{
    Algorithm, PrivateKey,
    key::safe_rng,
    ssh_key::{self, LineEnding},
};
use std::fmt;

/// A host key to be used once. Its private half is in the user data alone.
pub struct OneTimeKey {
    private: String,
    public: String,
}

impl fmt::Debug for OneTimeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneTimeKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl OneTimeKey {
    /// Makes one.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn make() -> Result<Self, ssh_key::Error> {
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)?;
        let private = key.to_openssh(LineEnding::LF)?.to_string();
        Ok(Self { private, public: key.public_key().to_openssh()? })
    }

    /// What the first connection must show; for [`crate::resolve_machine`].
    #[must_use]
    pub fn host_key(&self) -> HostKey {
        self.public.parse().expect("a public key that was made here names itself")
    }

    /// cloud-init(1) user data: the machine has this host key and no other, lets these keys (OpenSSH lines) in as root,
    /// and nobody by password.
    #[must_use]
    pub fn user_data(&self, authorized_keys: &[String]) -> String {
        let mut text = "#cloud-config\n# The host key of one connection; whoever makes it has the machine drop it.\n\
                        ssh_deletekeys: true\nssh_genkeytypes: []\nssh_keys:\n  ed25519_private: |\n"
            .to_owned();
        for line in self.private.lines() {
            text.push_str(&format!("    {line}\n"));
        }
        text.push_str(&format!("  ed25519_public: {}\n", quoted(&self.public)));
        text.push_str("ssh_pwauth: false\ndisable_root: false\nusers: []\nssh_authorized_keys:\n");
        for key in authorized_keys {
            text.push_str(&format!("  - {}\n", quoted(key)));
        }
        text
    }
}

/// A YAML scalar in double quotes, in which JSON's escapes hold.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text.trim()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_brings_the_key_that_is_pinned() {
        let key = OneTimeKey::make().unwrap();
        let text = key.user_data(&["ssh-ed25519 AAAA ann \"the\" admin\nruncmd: x".to_owned()]);
        assert!(text.starts_with("#cloud-config\n"));
        // What is indented below `ed25519_private` is the private half of what is pinned.
        let block = text.split_once("ed25519_private: |\n").unwrap().1;
        let private: String =
            block.lines().map_while(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect();
        let private = PrivateKey::from_openssh(&private).unwrap();
        let public = private.public_key().to_openssh().unwrap();
        assert_eq!(public.parse::<HostKey>().unwrap(), key.host_key());
        assert!(text.contains(&format!("ed25519_public: \"{public}\"")));
        // Text from elsewhere stays one scalar.
        assert!(text.contains(r#"  - "ssh-ed25519 AAAA ann \"the\" admin\nruncmd: x""#), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("runcmd")));
    }

    #[test]
    fn each_is_another_and_none_is_shown() {
        let (one, other) = (OneTimeKey::make().unwrap(), OneTimeKey::make().unwrap());
        assert_ne!(one.host_key(), other.host_key());
        assert!(!format!("{one:?}").contains("PRIVATE"));
    }
}
