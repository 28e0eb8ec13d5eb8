//! Keys by which machines are known until they are nodes.
//!
//! ```text
//! DIR/enrolling/NODE   a one-time host key, from before its machine is asked for until it is a node or gone
//! ```
//!
//! A key is on disk before the request that tells it to a machine is sent: a
//! loop that is killed knows the machine again, and asked for the same machine
//! once more it tells the same key.

use crate::durable::{self, FileError};
use bulkhead_fleet::bootstrap::OneTimeKey;
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// A directory of one-time keys.
#[derive(Debug)]
pub struct Enrolment {
    directory: PathBuf,
    authorized_keys: Vec<String>,
    /// Two requests for one machine must not each make a key.
    making: Mutex<()>,
}

/// Why a machine cannot be known.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// Its file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The key.
    #[error("the one-time key of {name} cannot be made or read: {what}")]
    Key {
        /// Of which machine.
        name: String,
        /// What is wrong.
        what: String,
    },
}

/// The part of a machine's name before the first dot: its name as a node.
#[must_use]
pub fn node_name(machine: &str) -> &str {
    machine.split('.').next().unwrap_or_default()
}

impl Enrolment {
    /// Keys in `DIR/enrolling`. Machines let these public keys (OpenSSH lines) in as root: those who make nodes of them.
    #[must_use]
    pub fn new(directory: &Path, authorized_keys: Vec<String>) -> Self {
        Self { directory: directory.join("enrolling"), authorized_keys, making: Mutex::default() }
    }

    /// What a machine of this name is told at its first boot. The same for as long as it is enrolling.
    ///
    /// # Errors
    /// Its key cannot be made, or is not on disk.
    pub fn user_data(&self, machine: &str) -> Result<String, EnrolmentError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let key = match self.key(machine)? {
            Some(key) => key,
            None => {
                let key = OneTimeKey::make().map_err(|error| bad(machine, &error))?;
                durable::write(&self.path(machine), key.secret().as_bytes())?;
                key
            }
        };
        Ok(key.user_data(&self.authorized_keys))
    }

    /// The key that a machine shows until it is a node; `None` where none was made, or it is of use no more.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn key(&self, machine: &str) -> Result<Option<OneTimeKey>, EnrolmentError> {
        let secret = durable::read(&self.path(machine))?;
        secret.map(|secret| OneTimeKey::from_secret(&secret).map_err(|error| bad(machine, &error))).transpose()
    }

    /// Removes a key: its machine is a node.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, machine: &str) -> Result<(), EnrolmentError> {
        Ok(durable::remove(&self.path(machine))?)
    }

    /// Removes the keys of all machines but those whose name as a node is known.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn forget(&self, is_known: impl Fn(&str) -> bool) -> Result<(), EnrolmentError> {
        for name in durable::names(&self.directory, "")? {
            if !is_known(&name) {
                durable::remove(&self.directory.join(name))?;
            }
        }
        Ok(())
    }

    fn path(&self, machine: &str) -> PathBuf {
        self.directory.join(node_name(machine))
    }
}

fn bad(machine: &str, error: &dyn std::fmt::Display) -> EnrolmentError {
    EnrolmentError::Key { name: machine.to_owned(), what: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_fleet::bootstrap::FirstBoot;

    #[test]
    fn one_key_for_a_machine_however_often_it_is_asked_for() {
        const NAME: &str = "web-t-1.acme.bulkhead";
        let folder = tempfile::tempdir().unwrap();
        let enrolment = Enrolment::new(folder.path(), vec!["ssh-ed25519 AAAA ann".into()]);
        assert!(enrolment.key(NAME).unwrap().is_none());
        let told = enrolment.user_data(NAME).unwrap();
        // Another process, after this one was killed.
        let again = Enrolment::new(folder.path(), vec!["ssh-ed25519 AAAA ann".into()]);
        assert_eq!(again.user_data(NAME).unwrap(), told);
        assert_ne!(again.user_data("web-t-2.acme.bulkhead").unwrap(), told);
        let read = FirstBoot::read(&told).unwrap();
        assert_eq!(again.key(NAME).unwrap().unwrap().host_key(), read.public_host_key.parse().unwrap());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(folder.path().join("enrolling/web-t-1")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        again.forget(|name| name == "web-t-1").unwrap();
        assert!(again.key(NAME).unwrap().is_some() && again.key("web-t-2.acme.bulkhead").unwrap().is_none());
        again.remove(NAME).unwrap();
        again.remove(NAME).unwrap();
        assert!(again.key(NAME).unwrap().is_none());
        std::fs::write(folder.path().join("enrolling/web-t-1"), "no key").unwrap();
        assert!(matches!(again.user_data(NAME), Err(EnrolmentError::Key { .. })));
    }
}
