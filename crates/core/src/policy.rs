//! The policy: who must sign what. A JSON document signed by root keys as
//! SSHSIG in the namespace [`NAMESPACE`]; every node pins the one it accepted,
//! and accepts the next only where enough root keys of both signed it.

use crate::{
    name::{EnvironmentName, FleetName, NodeName, PersonName},
    notice::Revoked,
    signed::document_bytes,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// SSHSIG namespace of policies.
pub const NAMESPACE: &str = "policy@bulkhead";
/// The largest policy that anyone reads.
pub const POLICY_MAX_BYTES: usize = 1 << 20;
/// The shortest heartbeat period: a node must not become stale between two runs of a timer.
pub const HEARTBEAT_MIN_S: u32 = 60;
/// The longest: a year.
pub const HEARTBEAT_MAX_S: u32 = 366 * 24 * 3600;
/// The most ways by which an environment may accept an order.
const ACCEPTS_MAX: usize = 8;

/// Who must sign what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Version of this format: 1.
    pub format: u32,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// One more than the policy before; the first is 1.
    pub version: u64,
    /// Who may sign the next policy.
    pub root: Root,
    /// The keys of people and machines, by holder.
    pub keys: BTreeMap<PersonName, Key>,
    /// What each environment demands of an order. One that is not here accepts none.
    pub environments: BTreeMap<EnvironmentName, Environment>,
    /// What the nodes' own keys are: whom a person seals secrets to, and who signs audit logs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<NodeName, NodeKeys>,
    /// What must not run any more, whoever signed it.
    #[serde(default, skip_serializing_if = "Revoked::is_empty")]
    pub revoked: Revoked,
}

/// Root keys and how many of them must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// How many distinct keys.
    pub threshold: u32,
    /// OpenSSH public keys, `ssh-ed25519 AAAA…`.
    pub keys: Vec<String>,
    /// Whether only signatures of security keys count that checked a PIN or finger.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify_user: bool,
}

/// One key and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// OpenSSH public key, `ssh-ed25519 AAAA…` or `sk-ssh-ed25519@openssh.com AAAA…`.
    pub key: String,
    /// What it may do.
    pub roles: BTreeSet<Role>,
    /// Whether its signatures count only where the security key checked a PIN or finger.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify_user: bool,
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sign that an image was built and its tests passed, or did not.
    Green,
    /// Sign orders, revocations and heartbeats.
    Release,
    /// Connect to nodes to bring what is signed, and see what an order must follow.
    Courier,
    /// Connect to nodes to see what runs, its logs and the audit log.
    Observe,
    /// Connect to nodes to see files of services and to talk to services.
    Operate,
    /// Connect from one node to a service's port on another.
    Link,
    /// Enrol bought machines, within a grant.
    Scale,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 7] =
        [Self::Green, Self::Release, Self::Courier, Self::Observe, Self::Operate, Self::Link, Self::Scale];

    /// The word for it, as policies have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Release => "release",
            Self::Courier => "courier",
            Self::Observe => "observe",
            Self::Operate => "operate",
            Self::Link => "link",
            Self::Scale => "scale",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::as_str);
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            let near = crate::name::nearest(text, known).map(|near| format!("; did you mean `{near}`?"));
            format!("`{text}` is no role{}; there are {}", near.unwrap_or_default(), known.join(", "))
        })
    }
}

/// What an environment demands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// An order that runs an image must meet one of these.
    pub accepts: Vec<Demand>,
    /// How many release keys may look into a service with tools (its memory and files). Where this is not said: as
    /// many as may run an image, and none where that takes a green statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<u32>,
    /// How many release keys together may run an image that is not green, with a reason. Not said: none may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_glass: Option<u32>,
    /// A node that has heard nothing signed for longer starts nothing new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_s: Option<u32>,
    /// What a node must offer to run anything.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub requires: BTreeSet<Isolation>,
}

/// One way by which an order is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// How many distinct release keys must have signed the order.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub release: u32,
    /// How many distinct green keys must have stated that the image is green. Where no release key signs the order,
    /// a green key must.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub green: u32,
    /// Whether a person's standing order must cover it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standing: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Demand {
    /// So many release keys.
    #[must_use]
    pub fn release(release: u32) -> Self {
        Self { release, green: 0, standing: false }
    }

    /// A green image and so many release keys.
    #[must_use]
    pub fn green_and_release(release: u32) -> Self {
        Self { release, green: 1, standing: false }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        match self.green {
            0 => {}
            1 => parts.push("green".to_owned()),
            several => parts.push(format!("green by {several}")),
        }
        match self.release {
            0 => {}
            1 => parts.push("1 release key".to_owned()),
            several => parts.push(format!("{several} release keys")),
        }
        if self.standing {
            parts.push("a standing order".to_owned());
        }
        f.write_str(&parts.join(" and "))
    }
}

impl Environment {
    /// Where orders of so many release keys are accepted, and all else is as it comes.
    #[must_use]
    pub fn accepting(demand: Demand) -> Self {
        Self { accepts: vec![demand], look: None, break_glass: None, heartbeat_s: None, requires: BTreeSet::new() }
    }

    /// How many release keys decide about what runs already, and give standing orders: the fewest that some way of
    /// running an image takes without one.
    #[must_use]
    pub fn people(&self) -> u32 {
        let by_hand = self.accepts.iter().filter(|demand| !demand.standing);
        by_hand.map(|demand| demand.release.max(1)).min().unwrap_or(1)
    }

    /// How many release keys may look with tools; `None` where none may.
    #[must_use]
    pub fn lookers(&self) -> Option<u32> {
        let ungreen = self.accepts.iter().filter(|demand| demand.green == 0 && !demand.standing);
        self.look.or_else(|| ungreen.map(|demand| demand.release).min())
    }

    /// What it demands of an order that runs an image, in words.
    #[must_use]
    pub fn shown(&self) -> String {
        self.accepts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", or ")
    }
}

/// What a node may offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Images are read-only file systems, not trees of files.
    SealedImages,
    /// The kernel checks every page of an image as it is read.
    FsVerity,
    /// Each service has process ids of its own.
    PrivatePids,
    /// Limits of memory are enforced.
    LimitMemory,
    /// Limits of processes are enforced.
    LimitTasks,
    /// Limits of CPU are enforced.
    LimitCpu,
}

impl Isolation {
    /// Everything that can be demanded.
    pub const ALL: [Self; 6] =
        [Self::SealedImages, Self::FsVerity, Self::PrivatePids, Self::LimitMemory, Self::LimitTasks, Self::LimitCpu];

    /// The word for it, as policies and `bulkhead node ls` have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SealedImages => "sealed-images",
            Self::FsVerity => "fs-verity",
            Self::PrivatePids => "private-pids",
            Self::LimitMemory => "limit-memory",
            Self::LimitTasks => "limit-tasks",
            Self::LimitCpu => "limit-cpu",
        }
    }
}

/// A node's own keys, made there; the private halves never leave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeKeys {
    /// OpenSSH public key that signs its audit log and receipts.
    pub audit: String,
    /// The X25519 public key that secrets are sealed to, as 64 hexadecimal digits.
    pub sealing: String,
}

impl Policy {
    /// Reads a policy from its exact bytes. Verify signatures before trusting it.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let policy: Self = serde_json::from_slice(bytes).map_err(|error| format!("not a policy: {error}"))?;
        policy.check()?;
        Ok(policy)
    }

    /// Checks what the types cannot; that keys can be read is for whoever verifies.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.format != 1 {
            return Err(format!("policy format {} is not known here", self.format));
        }
        if self.version == 0 {
            return Err("policy versions start at 1".into());
        }
        let distinct: BTreeSet<&str> = self.root.keys.iter().map(|key| key_blob(key)).collect();
        if self.root.threshold == 0 || self.root.threshold as usize > distinct.len() {
            return Err(format!("root threshold {} of {} distinct keys", self.root.threshold, distinct.len()));
        }
        let release = self.holders(Role::Release).count();
        let green = self.holders(Role::Green).count();
        for (name, environment) in &self.environments {
            environment.check(release, green).map_err(|what| format!("environment `{name}` {what}"))?;
        }
        self.revoked.check()
    }

    /// The bytes to sign.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        document_bytes(self)
    }

    /// The keys that have a role, with their holders.
    pub fn holders(&self, role: Role) -> impl Iterator<Item = (&PersonName, &Key)> {
        self.keys.iter().filter(move |(_, key)| key.roles.contains(&role))
    }

    /// The names of those that hold a key with a role, for people.
    #[must_use]
    pub fn names_of(&self, role: Role) -> String {
        let names: Vec<&str> = self.holders(role).map(|(name, _)| name.as_str()).collect();
        if names.is_empty() { "nobody".into() } else { names.join(", ") }
    }
}

impl Environment {
    fn check(&self, release_keys: usize, green_keys: usize) -> Result<(), String> {
        if self.accepts.is_empty() || self.accepts.len() > ACCEPTS_MAX {
            return Err(format!("accepts orders by 1 to {ACCEPTS_MAX} ways"));
        }
        for demand in &self.accepts {
            if demand.release == 0 && demand.green == 0 {
                return Err("demands no signature at all".into());
            }
            if demand.release as usize > release_keys {
                return Err(format!("demands {} release keys, the policy has {release_keys}", demand.release));
            }
            if demand.green as usize > green_keys {
                return Err(format!("demands {} green keys, the policy has {green_keys}", demand.green));
            }
            if demand.standing && release_keys == 0 {
                return Err("demands a standing order, and nobody may sign one".into());
            }
        }
        for (what, count) in [("look", self.look), ("break_glass", self.break_glass)] {
            if count.is_some_and(|count| count == 0 || count as usize > release_keys) {
                return Err(format!("has `{what}` of none, or of more release keys than the policy's {release_keys}"));
            }
        }
        if self.heartbeat_s.is_some_and(|period| !(HEARTBEAT_MIN_S..=HEARTBEAT_MAX_S).contains(&period)) {
            return Err(format!("has a heartbeat outside {HEARTBEAT_MIN_S} seconds to one year"));
        }
        Ok(())
    }
}

/// The base64 part of an OpenSSH public key, which is the key; the rest is its type's name and a comment.
#[must_use]
pub fn key_blob(openssh: &str) -> &str {
    openssh.split_whitespace().nth(1).unwrap_or(openssh)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let key = |roles: &[Role]| Key {
            key: "ssh-ed25519 AAAA".into(),
            roles: roles.iter().copied().collect(),
            verify_user: false,
        };
        Policy {
            format: 1,
            fleet: "acme".parse().unwrap(),
            version: 1,
            root: Root { threshold: 1, keys: vec!["ssh-ed25519 AAAA".into()], verify_user: false },
            keys: [("ada", key(&[Role::Release])), ("bob", key(&[Role::Release])), ("ci", key(&[Role::Green]))]
                .map(|(name, key)| (name.parse().unwrap(), key))
                .into(),
            environments: [("staging".parse().unwrap(), Environment::accepting(Demand::release(1)))].into(),
            nodes: BTreeMap::new(),
            revoked: Revoked::default(),
        }
    }

    #[test]
    fn bytes_and_back() {
        let text = String::from_utf8(policy().to_bytes()).unwrap();
        assert_eq!(Policy::parse(text.as_bytes()), Ok(policy()));
        // One person with one key sees nothing of what they do not use.
        for word in ["green\":", "standing", "heartbeat", "revoked", "nodes", "verify", "look", "break"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        let altered = text.replace("\"version\": 1", "\"version\": 1, \"admin\": true");
        assert!(Policy::parse(altered.as_bytes()).unwrap_err().contains("unknown field `admin`"));
    }

    #[test]
    fn what_is_refused() {
        let check = |change: fn(&mut Policy, &mut Environment), words: &str| {
            let mut changed = policy();
            let mut environment = Environment::accepting(Demand::release(1));
            change(&mut changed, &mut environment);
            changed.environments.insert("staging".parse().unwrap(), environment);
            match (changed.check(), words) {
                (Ok(()), "") => {}
                (Err(error), words) if !words.is_empty() => assert!(error.contains(words), "{error}"),
                (got, words) => panic!("{got:?} instead of {words:?}"),
            }
        };
        check(|_, _| {}, "");
        check(|policy, _| policy.format = 2, "format 2");
        check(|policy, _| policy.version = 0, "start at 1");
        check(|policy, _| policy.root.threshold = 0, "root threshold 0");
        check(|policy, _| policy.root.threshold = 2, "root threshold 2 of 1");
        check(|policy, _| policy.root.keys.push("ssh-ed25519 AAAA again".into()), "");
        check(|_, environment| environment.accepts.clear(), "1 to 8 ways");
        check(|_, environment| environment.accepts = vec![Demand::release(1); 9], "1 to 8 ways");
        check(|_, environment| environment.accepts = vec![Demand::release(1); 8], "");
        check(|_, environment| environment.accepts[0].release = 0, "no signature at all");
        check(|_, environment| environment.accepts[0].release = 2, "");
        check(|_, environment| environment.accepts[0].release = 3, "3 release keys, the policy has 2");
        check(|_, environment| environment.accepts[0].green = 1, "");
        check(|_, environment| environment.accepts[0].green = 2, "2 green keys, the policy has 1");
        check(|_, environment| environment.accepts[0] = Demand { release: 0, green: 1, standing: true }, "");
        check(
            |policy, environment| {
                policy.keys.retain(|name, _| name.as_str() == "ci");
                environment.accepts[0] = Demand { release: 0, green: 1, standing: true };
            },
            "nobody may sign one",
        );
        check(|_, environment| environment.look = Some(0), "`look`");
        check(|_, environment| environment.look = Some(2), "");
        check(|_, environment| environment.look = Some(3), "`look`");
        check(|_, environment| environment.break_glass = Some(0), "`break_glass`");
        check(|_, environment| environment.break_glass = Some(3), "`break_glass`");
        check(|_, environment| environment.heartbeat_s = Some(59), "heartbeat");
        check(|_, environment| environment.heartbeat_s = Some(60), "");
        check(|_, environment| environment.heartbeat_s = Some(HEARTBEAT_MAX_S), "");
        check(|_, environment| environment.heartbeat_s = Some(HEARTBEAT_MAX_S + 1), "heartbeat");
    }

    #[test]
    fn who_decides_without_an_image() {
        let environment = |accepts: &[Demand]| Environment {
            accepts: accepts.to_vec(),
            ..Environment::accepting(Demand::release(1))
        };
        let green = Demand { release: 0, green: 1, standing: false };
        for (accepts, people, lookers) in [
            (vec![Demand::release(1)], 1, Some(1)),
            (vec![Demand::release(2)], 2, Some(2)),
            (vec![Demand::release(1), green.clone()], 1, Some(1)),
            (vec![green], 1, None),
            (vec![Demand::green_and_release(2)], 2, None),
            (vec![Demand::green_and_release(1), Demand::release(3)], 1, Some(3)),
            (vec![Demand { release: 1, green: 0, standing: true }], 1, None),
            (vec![Demand { release: 0, green: 1, standing: true }, Demand::green_and_release(2)], 2, None),
        ] {
            let found = environment(&accepts);
            assert_eq!((found.people(), found.lookers()), (people, lookers), "{}", found.shown());
        }
        let stated = Environment { look: Some(2), ..environment(&[Demand::green_and_release(1)]) };
        assert_eq!(stated.lookers(), Some(2));
    }

    #[test]
    fn demands_in_words() {
        for (demand, words) in [
            (Demand::release(1), "1 release key"),
            (Demand::green_and_release(2), "green and 2 release keys"),
            (Demand { release: 0, green: 1, standing: true }, "green and a standing order"),
            (Demand { release: 0, green: 2, standing: false }, "green by 2"),
        ] {
            assert_eq!(demand.to_string(), words);
        }
    }

    #[test]
    fn roles_in_words() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
        assert!("relase".parse::<Role>().unwrap_err().contains("did you mean `release`"));
    }
}
