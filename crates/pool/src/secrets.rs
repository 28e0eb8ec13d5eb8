//! Secrets of a pool: people seal them to the key of its loop, which seals them again to each node that it gives an
//! instance.
//!
//! Nobody can seal to a machine that is yet to be bought. So whoever holds the loop's key reads the secrets of its
//! pools, as whoever may enrol machines there could anyway; and no other's. Which values there are the grant says: it
//! has the digests of what is sealed to the pool, and whoever else writes beside `fleet.toml` changes nothing.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_core::{AppName, NodeName, SecretDigest, SecretName, grant::Grant};
use bulkhead_trust::sealing::{Purpose, Recipient, SealingKey, seal};
use bulkhead_wire::SECRETS_MAX_BYTES;
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Sealed values by name, in base64.
pub type Sealed = BTreeMap<SecretName, String>;

/// Values that were opened.
pub(crate) struct Opened(BTreeMap<SecretName, Zeroizing<Vec<u8>>>);

/// Opens the values that a grant names.
///
/// # Errors
/// One is not there, is another than was granted, or was sealed to another key, or a node would not take so much; a
/// sentence.
pub(crate) fn open(key: &Result<SealingKey, String>, grant: &Grant, sealed: &Sealed) -> Result<Opened, String> {
    let mut opened = BTreeMap::new();
    let mut left = SECRETS_MAX_BYTES;
    for (name, digest) in &grant.secrets {
        let key = key.as_ref().map_err(|why| format!("the loop's key opens no secrets: {why}"))?;
        let what = |what: &str| format!("secret `{name}` of pool `{}`: {what}", grant.pool);
        let text = sealed.get(name).ok_or_else(|| what("its sealed value is not here any more"))?;
        let bytes = STANDARD.decode(text).map_err(|_| what("what is here is not base64"))?;
        left = left.checked_sub(bytes.len()).ok_or_else(|| {
            what(&format!("all together are more than the {SECRETS_MAX_BYTES} bytes that a node takes"))
        })?;
        if SecretDigest::of(&bytes) != *digest {
            return Err(what(
                "what is here is not the value that was granted: `bulkhead pool grant` grants the new one",
            ));
        }
        let value = key.open(&purpose(grant, Recipient::Pool(&grant.pool), &grant.app, name), &bytes);
        opened.insert(name.clone(), value.map_err(|error| what(&error.to_string()))?);
    }
    Ok(Opened(opened))
}

impl Opened {
    /// Seals them to a node, for an instance that is called `app` there.
    ///
    /// # Errors
    /// The node's key is none; a sentence.
    pub(crate) fn seal_to(&self, key: &str, node: &NodeName, grant: &Grant, app: &AppName) -> Result<Sealed, String> {
        let mut sealed = Sealed::new();
        for (name, value) in &self.0 {
            let mut seed = Zeroizing::new([0; 32]);
            getrandom::fill(seed.as_mut()).map_err(|error| format!("the system gives no random numbers: {error}"))?;
            let bytes = seal(key, &purpose(grant, Recipient::Node(node), app, name), value, seed);
            let bytes = bytes.map_err(|error| format!("secret `{name}` cannot be sealed to {node}: {error}"))?;
            sealed.insert(name.clone(), STANDARD.encode(bytes));
        }
        Ok(sealed)
    }
}

/// The digests that an order pins.
pub(crate) fn digests(sealed: &Sealed) -> BTreeMap<SecretName, SecretDigest> {
    let digest = |text: &String| STANDARD.decode(text).map(|bytes| SecretDigest::of(&bytes)).ok();
    sealed.iter().filter_map(|(name, text)| Some((name.clone(), digest(text)?))).collect()
}

fn purpose<'a>(grant: &'a Grant, to: Recipient<'a>, app: &'a AppName, name: &'a SecretName) -> Purpose<'a> {
    Purpose { fleet: &grant.fleet, environment: &grant.environment, to, app, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_granted_reaches_the_node_it_runs_on() {
        let loops = Ok(SealingKey::from_seed(&[1; 32]));
        let name: SecretName = "TOKEN".parse().unwrap();
        let mut grant = crate::records::tests::grant(2);
        let sealed_to = |key: &SealingKey, grant: &Grant, value: &[u8]| {
            let to = purpose(grant, Recipient::Pool(&grant.pool), &grant.app, &name);
            seal(&key.public(), &to, value, Zeroizing::new([2; 32])).unwrap()
        };
        let to = loops.as_ref().unwrap();
        let bytes = sealed_to(to, &grant, b"value");
        grant.secrets = BTreeMap::from([(name.clone(), SecretDigest::of(&bytes))]);
        let here = |bytes: &[u8]| Sealed::from([(name.clone(), STANDARD.encode(bytes))]);

        let (node_key, node) = (SealingKey::from_seed(&[3; 32]), "kernels-t-1".parse().unwrap());
        let app = grant.instance(1).unwrap();
        let opened = open(&loops, &grant, &here(&bytes)).ok().unwrap();
        let again = opened.seal_to(&node_key.public(), &node, &grant, &app).unwrap();
        let came = STANDARD.decode(&again[&name]).unwrap();
        assert_eq!(digests(&again)[&name], SecretDigest::of(&came));
        let value = node_key.open(&purpose(&grant, Recipient::Node(&node), &app, &name), &came).unwrap();
        assert_eq!(**value, *b"value");

        let refused = |key: &Result<SealingKey, String>, sealed: &Sealed, words: &str| {
            let error = open(key, &grant, sealed).err().unwrap();
            assert!(error.contains(words), "{error}");
        };
        refused(&Err("an agent holds it".into()), &here(&bytes), "opens no secrets: an agent");
        refused(&loops, &Sealed::new(), "not here any more");
        // Another value that somebody sealed, who may write beside fleet.toml and sign nothing.
        refused(&loops, &here(&sealed_to(to, &grant, b"other")), "not the value that was granted");
        refused(&Ok(node_key), &here(&bytes), "sealed for another");
        assert!(opened.seal_to("none", &node, &grant, &app).unwrap_err().contains("cannot be sealed"));
        // Without secrets no key is asked for.
        grant.secrets.clear();
        assert!(open(&Err("none".into()), &grant, &Sealed::new()).is_ok());
    }
}
