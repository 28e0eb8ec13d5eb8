//! `fleet.toml`: the nodes and how to reach them. It lives in the team's
//! repository and holds nothing secret.

use crate::{
    manifest::{ByteSize, Platform},
    name::{EnvironmentName, FleetName, NodeName, PoolName},
};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::collections::BTreeMap;

/// The fleet's inventory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// The fleet's name; every order carries it.
    pub fleet: FleetName,
    /// The nodes, by name.
    #[serde(default)]
    pub nodes: BTreeMap<NodeName, FleetNode>,
    /// The tools that `bulkhead look` brings to nodes, in an image of their own.
    #[serde(default)]
    pub tools: Tools,
    /// Machines that are bought and given back by program, by the name of their pool.
    #[serde(default)]
    pub pools: BTreeMap<PoolName, PoolSection>,
    /// What holds for all pools together.
    #[serde(default)]
    pub scaling: ScalingSection,
}

/// The tool image. Its packages are pinned in `tools.lock` beside this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Tools {
    /// Debian packages, of which every program is a tool. With `busybox` among them, what it knows is there too.
    pub packages: Vec<String>,
    /// The Debian suite that they come from.
    pub suite: String,
    /// The platform of the nodes.
    pub platform: Platform,
}

impl Default for Tools {
    fn default() -> Self {
        let packages =
            ["busybox", "coreutils", "gdb", "iproute2", "lsof", "ncurses-base", "procps", "strace", "tcpdump"];
        Self { packages: packages.map(str::to_owned).to_vec(), suite: "trixie".into(), platform: Platform::Amd64 }
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FleetNode {
    /// The one environment it belongs to.
    pub environment: EnvironmentName,
    /// Host name, address, or a `Host` of `~/.ssh/config`.
    pub address: String,
    /// SSH port, where it is not 22 and `~/.ssh/config` does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The node's SSH host key, as `ssh-ed25519 AAAA…`. Without it `~/.ssh/known_hosts` must know the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// Who made the machine: absent for one adopted by hand, `local` for `bulkhead local up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The pool that it is a machine of: it runs instances of granted apps, and deploys pass it by. Those of a `fixed`
    /// pool stand in `fleet.toml`; those that are bought in what the loop that buys them keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

/// A pool: machines of one kind from one provider, for one environment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PoolSection {
    /// The environment of its nodes.
    pub environment: EnvironmentName,
    /// Where its machines come from. All pools of a fleet have the same.
    pub provider: PoolProvider,
    /// How many instances one machine takes, as experiments found: 23 where nothing is said.
    #[serde(default = "slots_default")]
    pub slots: u32,
    /// Which experiment found that number: a note for people, which `bulkhead pool ls` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_note: Option<String>,
    /// The memory of one machine that instances may use. Where it is said, each instance takes its service's `memory`
    /// of it; where it is not, only slots count.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// The processor time of one machine that instances may use, in hundredths of a core. Where it is said, each
    /// instance takes its service's `cpu_percent` of it.
    #[serde(default)]
    pub cpu_percent: Option<u32>,
    /// What one machine costs an hour, in dollars, such as `"0.03571"`. Nothing for `fixed` and `local`.
    #[serde(default)]
    pub price: Option<String>,
    /// How many machines there are at least.
    #[serde(default)]
    pub machines_min: u32,
    /// How many machines there are at most. Whoever pays for machines must say it.
    #[serde(default)]
    pub machines_max: Option<u32>,
    /// What all its machines together may cost an hour, in dollars.
    #[serde(default)]
    pub per_hour: Option<String>,
    /// What it may cost in a month of the calendar (UTC), in dollars. It ends buying, and never what runs.
    #[serde(default)]
    pub per_month: Option<String>,
    /// A machine on which nothing runs for so long is given back: ten minutes where nothing is said.
    #[serde(default)]
    pub idle: Option<Span>,
    /// What is kept free for what comes next: a number of slots, or `"p95"` for as many as were asked for while a
    /// machine boots in 95 of 100 such times.
    #[serde(default)]
    pub headroom: HeadroomSetting,
    /// Whether instances are moved together, so that machines fall empty.
    #[serde(default)]
    pub consolidation: Option<ConsolidationSection>,
    /// A machine that is no node after so long is given up: ten minutes where nothing is said.
    #[serde(default)]
    pub boot_max: Option<Span>,
    /// How long emptying a machine may take: ten minutes where nothing is said.
    #[serde(default)]
    pub drain_max: Option<Span>,
    /// Region or location, by the provider's name for it.
    #[serde(default)]
    pub region: Option<String>,
    /// Size or server type, by the provider's name for it.
    #[serde(default)]
    pub size: Option<String>,
    /// What machines boot: one of the provider's images by name, or a snapshot by its number.
    #[serde(default)]
    pub image: Option<String>,
    /// SSH keys that the provider knows and puts on new machines: fingerprints, ids or (Hetzner) names.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// A private network: a VPC's UUID at DigitalOcean, a network's number at Hetzner.
    #[serde(default)]
    pub network: Option<String>,
    /// Tags at DigitalOcean, labels without value at Hetzner.
    #[serde(default)]
    pub tags: Vec<String>,
    /// At DigitalOcean: addresses, such as `203.0.113.7` or `2001:db8::/32`, from which alone the provider's firewall
    /// lets anybody reach port 22 of the machines. The loop's and people's must be among them. Where nothing is said
    /// there is no such firewall.
    #[serde(default)]
    pub ssh_from: Vec<String>,
}

fn slots_default() -> u32 {
    23
}

/// Where the machines of a pool come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PoolProvider {
    /// Bought at DigitalOcean.
    DigitalOcean,
    /// Bought at Hetzner.
    Hetzner,
    /// Machines that are there and stand in this file as nodes of the pool.
    Fixed,
    /// Virtual nodes on this machine, to try a pool out.
    Local,
}

impl PoolProvider {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DigitalOcean => "digitalocean",
            Self::Hetzner => "hetzner",
            Self::Fixed => "fixed",
            Self::Local => "local",
        }
    }
}

/// When instances are moved together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ConsolidationSection {
    /// Only machines are emptied that use at most so many of a hundred slots.
    pub below_percent: u8,
    /// And at most one in so long.
    pub every: Span,
}

/// What holds for all pools together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ScalingSection {
    /// How many machines there are at most.
    pub machines_max: Option<u32>,
    /// What all machines together may cost an hour, in dollars.
    pub per_hour: Option<String>,
    /// What they may cost in a month of the calendar (UTC), in dollars.
    pub per_month: Option<String>,
    /// How many machines are asked for in any ten minutes at most: 20 where nothing is said.
    pub creations: Option<u32>,
}

/// A span of time such as `30s`, `10m`, `2h` or `1d`, kept in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub u64);

/// No span of a pool is longer: 30 days.
const SPAN_MAX_MS: u64 = 30 * 24 * 3_600_000;

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad =
            || de::Error::custom(format!("`{text}` is not a duration up to 30 days: write `30s`, `10m`, `2h` or `1d`"));
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
        let split = units.iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, *ms)));
        let (digits, unit_ms): (&str, u64) = split.ok_or_else(bad)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(unit_ms).filter(|ms| *ms <= SPAN_MAX_MS).map(Self).ok_or_else(bad)
    }
}

/// How much a pool keeps free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadroomSetting {
    /// So many slots.
    Slots(u32),
    /// As much as was asked for while a machine boots, in so many of a hundred such times.
    Percentile(u8),
}

impl Default for HeadroomSetting {
    fn default() -> Self {
        Self::Slots(0)
    }
}

impl<'de> Deserialize<'de> for HeadroomSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl de::Visitor<'_> for Either {
            type Value = HeadroomSetting;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of slots, or \"p95\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<HeadroomSetting, E> {
                let slots = u32::try_from(number);
                slots.map(HeadroomSetting::Slots).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<HeadroomSetting, E> {
                let slots = u32::try_from(number);
                slots.map(HeadroomSetting::Slots).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<HeadroomSetting, E> {
                let percentile = text.strip_prefix('p').and_then(|digits| digits.parse().ok());
                let percentile = percentile.filter(|percentile| (1..=100).contains(percentile));
                percentile
                    .map(HeadroomSetting::Percentile)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(feature = "schema")]
mod schema {
    use super::{HeadroomSetting, Span};

    impl schemars::JsonSchema for Span {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Span".into()
        }
        fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({
                "type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$",
                "description": "A duration such as `30s`, `10m`, `2h` or `1d`, at most 30 days."
            })
        }
    }

    impl schemars::JsonSchema for HeadroomSetting {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Headroom".into()
        }
        fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({
                "description": "A number of slots, or `p95`.",
                "oneOf": [
                    {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32},
                    {"type": "string", "pattern": "^p[0-9]{1,3}$"}
                ]
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse_toml;

    #[test]
    fn pools() {
        let text = "fleet = \"acme\"\n[pools.kernels]\nenvironment = \"production\"\nprovider = \"digitalocean\"\nmemory = \"4G\"\nidle = \"2h\"\nheadroom = \"p95\"\nconsolidation = { below_percent = 50, every = \"5m\" }\n[scaling]\nmachines_max = 9\n";
        let fleet: Fleet = parse_toml(text).unwrap();
        let pool = &fleet.pools[&"kernels".parse().unwrap()];
        assert_eq!((pool.slots, pool.idle), (23, Some(Span(7_200_000))));
        assert_eq!(pool.headroom, HeadroomSetting::Percentile(95));
        assert_eq!(pool.consolidation.unwrap().every, Span(300_000));
        assert_eq!(fleet.scaling.machines_max, Some(9));
        for (from, to) in [
            ("\"2h\"", "\"2\""),
            ("\"2h\"", "\"+2h\""),
            ("\"2h\"", "\"31d\""),
            ("\"p95\"", "\"p0\""),
            ("\"p95\"", "-1"),
            ("\"p95\"", "true"),
            ("idle", "idel"),
            ("digitalocean", "aws"),
        ] {
            assert!(parse_toml::<Fleet>(&text.replace(from, to)).is_err(), "{to}");
        }
        let slots: Fleet = parse_toml(&text.replace("\"p95\"", "5")).unwrap();
        assert_eq!(slots.pools[&"kernels".parse().unwrap()].headroom, HeadroomSetting::Slots(5));
    }
}
