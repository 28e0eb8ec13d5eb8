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

    /// The private half, to be kept until the machine is a node: one that is asked for again gets the same key.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.private
    }

    /// Reads what [`Self::secret`] gave.
    ///
    /// # Errors
    /// It is no private key.
    pub fn from_secret(private: &str) -> Result<Self, ssh_key::Error> {
        let key = PrivateKey::from_openssh(private)?;
        Ok(Self { private: private.to_owned(), public: key.public_key().to_openssh()? })
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

/// What [`OneTimeKey::user_data`] tells a machine; whoever makes machines without cloud-init does as it says.
#[derive(Clone, PartialEq, Eq)]
pub struct FirstBoot {
    /// The private host key, as OpenSSH keeps it in a file.
    pub host_key: String,
    /// The public half, `ssh-ed25519 AAAA…`.
    pub public_host_key: String,
    /// Who may log in as root, in OpenSSH's lines.
    pub authorized_keys: Vec<String>,
}

impl fmt::Debug for FirstBoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstBoot").field("public_host_key", &self.public_host_key).finish_non_exhaustive()
    }
}

impl FirstBoot {
    /// Reads such user data, and no other YAML.
    #[must_use]
    pub fn read(user_data: &str) -> Option<Self> {
        let (_, rest) = user_data.strip_prefix("#cloud-config\n")?.split_once("  ed25519_private: |\n")?;
        let host_key: String =
            rest.lines().map_while(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect();
        let public = rest.lines().find_map(|line| line.strip_prefix("  ed25519_public: "))?;
        let (_, keys) = rest.split_once("\nssh_authorized_keys:\n")?;
        let key = |line: &str| serde_json::from_str(line.strip_prefix("  - ")?).ok();
        let authorized_keys = keys.lines().map(key).collect::<Option<_>>()?;
        // A line break within a key would be another key.
        let is_line = |key: &String| !key.contains(char::is_control);
        let read = Self { host_key, public_host_key: serde_json::from_str(public).ok()?, authorized_keys };
        let is_plain = is_line(&read.public_host_key) && read.authorized_keys.iter().all(is_line);
        (is_plain && !read.host_key.is_empty()).then_some(read)
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
    fn user_data_is_read_back() {
        let key = OneTimeKey::make().unwrap();
        let keys = ["ssh-ed25519 AAAA ann \"the\" admin".to_owned(), "ssh-ed25519 BBBB".to_owned()];
        let read = FirstBoot::read(&key.user_data(&keys)).unwrap();
        assert_eq!(read.authorized_keys, keys);
        assert_eq!(read.public_host_key.parse::<HostKey>().unwrap(), key.host_key());
        assert_eq!(OneTimeKey::from_secret(&read.host_key).unwrap().host_key(), key.host_key());
        assert!(!format!("{read:?}").contains("PRIVATE"));
        assert_eq!(FirstBoot::read(&key.user_data(&[])).unwrap().authorized_keys, Vec::<String>::new());
        for bad in [
            String::new(),
            "#cloud-config\nruncmd: []\n".into(),
            key.user_data(&["a\nb".into()]),
            key.user_data(&[]) + "runcmd: []\n",
        ] {
            assert_eq!(FirstBoot::read(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_key_is_kept() {
        let key = OneTimeKey::make().unwrap();
        let kept = OneTimeKey::from_secret(key.secret()).unwrap();
        assert_eq!((kept.host_key(), kept.user_data(&[])), (key.host_key(), key.user_data(&[])));
        assert!(OneTimeKey::from_secret("no key").is_err());
    }

    #[test]
    fn each_is_another_and_none_is_shown() {
        let (one, other) = (OneTimeKey::make().unwrap(), OneTimeKey::make().unwrap());
        assert_ne!(one.host_key(), other.host_key());
        assert!(!format!("{one:?}").contains("PRIVATE"));
    }
}
