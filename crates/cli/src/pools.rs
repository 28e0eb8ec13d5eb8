//! `[pools]` and `[scaling]` of `fleet.toml` as the loop takes them, and where the loop keeps what it knows.
//!
//! ```text
//! STATE/pools/FLEET/pool.sqlite       what the loop knows, see `bulkhead_pool`
//! STATE/pools/FLEET/leases.json       machines of a fixed pool that are leased
//! STATE/pools/FLEET/nodes/NAME.json   a node that it bought
//! STATE/pools/FLEET/newest.json       when the newest grant was made that it acted on, for each pool and service
//! STATE/pools/FLEET/.bulkhead/notices its own copy of what was revoked
//! .bulkhead/grants/POOL.APP.SERVICE.json   beside fleet.toml: what may run there, signed
//! .bulkhead/grants/ID.secrets              the values that the grant of this id pins, sealed to its loop
//! ```
//!
//! A provider's token is in no file of the fleet: it comes from the environment, or from a file that the environment
//! names.

use crate::{
    error::{Error, Kind, Result},
    grants::read_signed,
    session::{now, state_directory},
    workspace::{FLEET, FleetFiles, read_if_present, read_text, shown},
};
use bulkhead_core::{
    EnvironmentName, FleetName, NodeName, OrderId, PersonName, PoolName, SignedText,
    fleet::{Fleet, FleetNode, HeadroomSetting, PoolProvider, PoolSection, Span},
    grant::Grant,
    name::nearest,
    notice::Revoked,
    order::ServiceSpec,
    policy::{Policy, Role},
};
use bulkhead_pool::Sealed;
use bulkhead_provider::{
    DigitalOcean, Fixed, FixedMachine, Hetzner, Image, Provider, Settings, Token, UserData, Wanted,
};
use bulkhead_scale::{Billing, Caps, Consolidation, Headroom, Limits, Micros, Pool, Room, SECOND_MS};
use bulkhead_trust::{order::CLOCK_SKEW_S, read_grant};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The folder of grants, beside `fleet.toml`.
pub const GRANTS: &str = ".bulkhead/grants";

/// The pools of a fleet.
#[derive(Debug, Clone)]
pub struct Pools {
    /// Each, as a scaler takes it.
    pub pools: Vec<Pool>,
    /// What holds for all together.
    pub limits: Limits,
    /// Where their machines come from; none where there are no pools.
    pub provider: Option<PoolProvider>,
}

impl Pools {
    /// Reads them.
    ///
    /// # Errors
    /// A key is missing or wrong, or pools have several providers.
    pub fn of(fleet: &Fleet) -> Result<Self> {
        let pools = fleet.pools.iter().map(|(name, section)| pool(name, section)).collect::<Result<Vec<_>>>()?;
        let mut providers = fleet.pools.iter().map(|(name, section)| (name, section.provider));
        let first = providers.next();
        if let Some((first, provider)) = first
            && let Some((other, another)) = providers.find(|(_, another)| *another != provider)
        {
            return Err(Error::configuration(format!(
                "{FLEET}: pool `{first}` is from {}, `{other}` from {}; for now all pools of a fleet come from one provider",
                provider.as_str(),
                another.as_str()
            )));
        }
        if let [first, second, ..] = fleet.pools.keys().collect::<Vec<_>>()[..]
            && matches!(fleet.pools[first].provider, PoolProvider::Fixed)
        {
            return Err(Error::configuration(format!(
                "{FLEET}: `{first}` and `{second}` are both fixed; for now a fleet has one pool of fixed machines"
            )));
        }
        // What these two say is so at once.
        let is_here = first.is_some_and(|(_, provider)| matches!(provider, PoolProvider::Local | PoolProvider::Fixed));
        let usual = Limits::default();
        let (lag_ms, list_gap_ms) = if is_here { (SECOND_MS, SECOND_MS) } else { (usual.lag_ms, usual.list_gap_ms) };
        let scaling = &fleet.scaling;
        let amount = |key: &str, text: &Option<String>| amount(&format!("[scaling] {key}"), text.as_deref());
        let mut limits = Limits {
            caps: Caps {
                machines: scaling.machines_max,
                per_hour: amount("per_hour", &scaling.per_hour)?,
                per_month: amount("per_month", &scaling.per_month)?,
            },
            lag_ms,
            list_gap_ms,
            ..usual
        };
        if let Some(creations) = scaling.creations {
            if creations == 0 {
                return Err(wrong("[scaling] creations", "0 buys nothing ever: `bulkhead pool freeze` does that"));
            }
            limits.creations = creations;
        }
        Ok(Self { pools, limits, provider: first.map(|(_, provider)| provider) })
    }

    /// One of them.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn named(&self, name: &PoolName) -> Result<&Pool> {
        self.pools.iter().find(|pool| pool.name == *name).ok_or_else(|| {
            let known: Vec<&str> = self.pools.iter().map(|pool| pool.name.as_str()).collect();
            no_pool(name, &known)
        })
    }
}

/// A pool's section.
///
/// # Errors
/// `fleet.toml` has none of this name.
pub fn section<'a>(fleet: &'a Fleet, name: &PoolName) -> Result<&'a PoolSection> {
    fleet.pools.get(name).ok_or_else(|| {
        let known: Vec<&str> = fleet.pools.keys().map(PoolName::as_str).collect();
        no_pool(name, &known)
    })
}

fn no_pool(name: &PoolName, known: &[&str]) -> Error {
    let error = Error::usage(format!("{FLEET} has no pool `{name}`"));
    match nearest(name.as_str(), known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if known.is_empty() => error.hint(format!("`[pools.{name}]` makes one, see docs/elasticity.md")),
        None => error.hint(format!("there are {}", known.join(", "))),
    }
}

fn wrong(key: &str, what: &str) -> Error {
    Error::configuration(format!("{FLEET}: {key}: {what}"))
}

fn amount(key: &str, text: Option<&str>) -> Result<Option<Micros>> {
    text.map(|text| text.parse().map_err(|error| wrong(key, &format!("{error}")))).transpose()
}

fn pool(name: &PoolName, section: &PoolSection) -> Result<Pool> {
    let key = |key: &str| format!("[pools.{name}] {key}");
    let is_paid = matches!(section.provider, PoolProvider::DigitalOcean | PoolProvider::Hetzner);
    let price = amount(&key("price"), section.price.as_deref())?;
    if is_paid && price.is_none_or(|price| price == Micros(0)) {
        return Err(wrong(&key("price"), "write what one machine costs an hour in dollars, such as `\"0.03571\"`"));
    }
    if is_paid && section.machines_max.is_none() {
        return Err(wrong(&key("machines_max"), "write how many machines it may buy at most, such as `10`"));
    }
    if !section.ssh_from.is_empty() && section.provider != PoolProvider::DigitalOcean {
        let what = format!("it is for DigitalOcean's firewall; set one up at {} yourself", section.provider.as_str());
        return Err(wrong(&key("ssh_from"), &what));
    }
    if section.slots == 0 {
        return Err(wrong(&key("slots"), "write how many instances a machine takes, such as `23`"));
    }
    if section.machines_max.is_some_and(|most| most < section.machines_min) {
        return Err(wrong(&key("machines_min"), "it is more than `machines_max`"));
    }
    let memory_mib = match section.memory {
        Some(size) => u32::try_from(size.0 >> 20).map_err(|_| wrong(&key("memory"), "no machine has so much"))?,
        None => 0,
    };
    let cpu_milli = section.cpu_percent.unwrap_or(0).saturating_mul(10);
    let billing = match section.provider {
        PoolProvider::DigitalOcean => Billing::DIGITALOCEAN,
        PoolProvider::Hetzner => Billing::PerHour,
        PoolProvider::Fixed | PoolProvider::Local => Billing::Free,
    };
    let consolidation = match section.consolidation {
        None => None,
        Some(section) if (1..=99).contains(&section.below_percent) => {
            Some(Consolidation { below_percent: section.below_percent, every_ms: section.every.0 })
        }
        Some(_) => return Err(wrong(&key("consolidation.below_percent"), "write 1 to 99")),
    };
    let usual = Pool::new(name.clone(), section.slots, price.unwrap_or_default(), billing);
    let span = |span: Option<Span>, usual: u64| span.map_or(usual, |span| span.0);
    Ok(Pool {
        machine: Room { slots: section.slots, memory_mib, cpu_milli },
        caps: Caps {
            machines: section.machines_max,
            per_hour: amount(&key("per_hour"), section.per_hour.as_deref())?,
            per_month: amount(&key("per_month"), section.per_month.as_deref())?,
        },
        machines_min: section.machines_min,
        headroom: match section.headroom {
            HeadroomSetting::Slots(slots) => Headroom::Slots(slots),
            HeadroomSetting::Percentile(percentile) => Headroom::Arrivals { percentile },
        },
        idle_ms: span(section.idle, usual.idle_ms),
        consolidation,
        boot_max_ms: span(section.boot_max, usual.boot_max_ms),
        drain_max_ms: span(section.drain_max, usual.drain_max_ms),
        ..usual
    })
}

/// The key that acts on a grant and opens secrets of its pool: the person's who is named, or the only one of the role.
///
/// # Errors
/// There is none, or there are several.
pub fn scale_key(policy: &Policy, wanted: Option<&PersonName>) -> Result<String> {
    let holders: Vec<_> = policy.holders(Role::Scale).collect();
    let add = "`bulkhead key add NAME FILE --role scale --role courier --role observe`, with a key made for the loop";
    match (wanted, holders.as_slice()) {
        (Some(wanted), holders) => {
            holders.iter().find(|(name, _)| *name == wanted).map(|(_, key)| key.key.clone()).ok_or_else(|| {
                let error = Error::usage(format!("the policy gives `{wanted}` no role `scale`"));
                if holders.is_empty() {
                    error.hint(add)
                } else {
                    error.hint(format!("it gives it {}", policy.names_of(Role::Scale)))
                }
            })
        }
        (None, [(_, key)]) => Ok(key.key.clone()),
        (None, []) => Err(Error::configuration("the policy gives nobody the role `scale`").hint(add)),
        (None, _) => Err(Error::usage("several keys have the role `scale`: name one with `--key`")
            .hint(format!("there are {}", policy.names_of(Role::Scale)))),
    }
}

/// What an instance of a service takes of a machine: a slot, and what else the pool says that its machines have.
#[must_use]
pub fn needs(pool: &Pool, service: &ServiceSpec) -> Room {
    let mib = |bytes: u64| u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
    let memory_mib = if pool.machine.memory_mib > 0 { service.memory_max_bytes.map_or(0, mib) } else { 0 };
    let cpu = service.cpu_percent.unwrap_or(0).saturating_mul(10);
    Room { slots: 1, memory_mib, cpu_milli: if pool.machine.cpu_milli > 0 { cpu } else { 0 } }
}

/// What a machine of each pool is bought as. Its name is filled in for each, and so is what it is told at first boot.
///
/// # Errors
/// A key is missing.
pub fn wanted(fleet: &Fleet) -> Result<BTreeMap<PoolName, Wanted>> {
    let of = |(name, section)| Ok((PoolName::clone(name), wanted_of(&fleet.fleet, name, section)?));
    fleet.pools.iter().map(of).collect()
}

/// Checks what a loop would find wrong only once it is to buy: what machines are bought as, and that the policy has the
/// environments, without which their nodes would take no order.
///
/// # Errors
/// A key is missing, or the policy lacks an environment.
pub fn check(fleet: &Fleet, policy: &Policy) -> Result<()> {
    wanted(fleet)?;
    for (name, section) in &fleet.pools {
        if !policy.environments.contains_key(&section.environment) {
            let known: Vec<&str> = policy.environments.keys().map(EnvironmentName::as_str).collect();
            let what = format!("the policy has no environment `{}`", section.environment);
            let error = wrong(&format!("[pools.{name}] environment"), &what);
            return Err(match nearest(section.environment.as_str(), known.iter().copied()) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error.hint(format!("it has {}", known.join(", "))),
            });
        }
    }
    Ok(())
}

/// The name of a pool's firewall at the provider, and of the tag by which its machines are behind it.
fn firewall(fleet: &FleetName, pool: &PoolName) -> String {
    format!("bulkhead-{fleet}-{pool}")
}

fn wanted_of(fleet: &FleetName, name: &PoolName, section: &PoolSection) -> Result<Wanted> {
    let examples = match section.provider {
        PoolProvider::DigitalOcean => Some(["fra1", "s-2vcpu-4gb", "debian-13-x64"]),
        PoolProvider::Hetzner => Some(["fsn1", "cx33", "debian-13"]),
        PoolProvider::Fixed | PoolProvider::Local => None,
    };
    let said = |key: &str, value: &Option<String>, place: usize| match (value, examples) {
        (Some(value), _) => Ok(value.clone()),
        (None, None) => Ok(String::new()),
        (None, Some(examples)) => {
            let example = examples.get(place).copied().unwrap_or_default();
            Err(wrong(
                &format!("[pools.{name}] {key}"),
                &format!("write the provider's name for it, such as `\"{example}\"`"),
            ))
        }
    };
    let image = said("image", &section.image, 2)?;
    Ok(Wanted {
        name: "".into(),
        user_data: UserData::default(),
        ssh_keys: section.ssh_keys.clone(),
        region: said("region", &section.region, 0)?,
        size: said("size", &section.size, 1)?,
        image: image.parse().map_or(Image::Slug(image), Image::Id),
        network: section.network.clone(),
        tags: {
            let behind = (!section.ssh_from.is_empty()).then(|| firewall(fleet, name));
            section.tags.iter().cloned().chain(behind).collect()
        },
    })
}

/// Where the machines of a fleet's pools come from. `local` makes the provider of virtual nodes, which is asked for
/// where that is the one.
///
/// # Errors
/// There are no pools, a token is missing, or a machine of a fixed pool has no address.
pub fn provider(
    fleet: &Fleet,
    directory: &Path,
    local: impl FnOnce() -> Result<Arc<dyn Provider>>,
) -> Result<Arc<dyn Provider>> {
    let folded = |error| Error::of(Kind::Configuration, &error);
    match Pools::of(fleet)?.provider {
        None => Err(Error::configuration(format!("{FLEET} has no pools")).hint("see docs/elasticity.md")),
        Some(PoolProvider::Local) => local(),
        Some(PoolProvider::DigitalOcean) => {
            let settings = settings("DIGITALOCEAN", DigitalOcean::BASE_URL, &|name| std::env::var(name).ok())?;
            let digitalocean = DigitalOcean::new(settings, &fleet.fleet).map_err(folded)?;
            for (name, section) in fleet.pools.iter().filter(|(_, section)| !section.ssh_from.is_empty()) {
                let firewall = firewall(&fleet.fleet, name);
                // Before anything is bought that would be open to all until then.
                digitalocean.ensure_firewall(&firewall, &firewall, &section.ssh_from).map_err(|error| {
                    Error::during(Kind::Node, format!("cannot set up the firewall of pool `{name}`"), &error)
                })?;
            }
            Ok(Arc::new(digitalocean))
        }
        Some(PoolProvider::Hetzner) => {
            let settings = settings("HETZNER", Hetzner::BASE_URL, &|name| std::env::var(name).ok())?;
            Ok(Arc::new(Hetzner::new(settings, fleet.fleet.clone()).map_err(folded)?))
        }
        Some(PoolProvider::Fixed) => {
            let machines = fixed_machines(fleet)?;
            let path = directory.join("leases.json");
            Ok(Arc::new(Fixed::open(machines, &fleet.fleet, &path).map_err(folded)?))
        }
    }
}

/// The nodes of `fleet.toml` that are of a pool. A lease has an address, not a host's name.
fn fixed_machines(fleet: &Fleet) -> Result<Vec<FixedMachine>> {
    let of_pools = fleet.nodes.iter().filter_map(|(name, node)| Some((name, node, node.pool.as_ref()?)));
    let of_pools: Vec<_> = of_pools.filter(|(_, _, pool)| fleet.pools.contains_key(*pool)).collect();
    if of_pools.is_empty() {
        return Err(Error::configuration(format!("{FLEET} has no node of a pool of fixed machines"))
            .hint("`bulkhead node adopt --pool NAME` adds a machine that you have"));
    }
    of_pools
        .into_iter()
        .map(|(name, node, pool)| {
            let address = node.address.parse().map_err(|_| {
                let what = format!("`{}` is not an IP address, which a machine of pool `{pool}` has", node.address);
                wrong(&format!("[nodes.{name}] address"), &what)
            })?;
            Ok(FixedMachine { name: name.to_string(), address })
        })
        .collect()
}

/// Token and address of a provider, from the environment.
fn settings(provider: &str, base_url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Settings> {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let (name, file) = (format!("BULKHEAD_{provider}_TOKEN"), format!("BULKHEAD_{provider}_TOKEN_FILE"));
    let text = match (set(&name), set(&file)) {
        (Some(token), _) => token,
        (None, Some(path)) => read_text(Path::new(&path))?,
        (None, None) => {
            return Err(Error::configuration(format!("the provider's token is missing: {name} is not set"))
                .hint(format!("or name a file that has it in {file}")));
        }
    };
    let token = Token::new(&text).map_err(|error| Error::during(Kind::Configuration, name, &error))?;
    let address = set(&format!("BULKHEAD_{provider}_API"));
    Ok(Settings::new(address.as_deref().unwrap_or(base_url).trim_end_matches('/'), token))
}

/// Where the loop keeps what it knows of a fleet.
///
/// # Errors
/// The environment does not say.
pub fn directory(fleet: &FleetName) -> Result<PathBuf> {
    Ok(state_directory()?.join("pools").join(fleet.as_str()))
}

/// The loop's database.
///
/// # Errors
/// The environment does not say.
pub fn database(fleet: &FleetName) -> Result<PathBuf> {
    Ok(directory(fleet)?.join("pool.sqlite"))
}

/// The database's errors.
#[must_use]
pub fn database_error(error: &bulkhead_pool::DatabaseError) -> Error {
    let kind = match error {
        bulkhead_pool::DatabaseError::Taken { .. } => Kind::Locked,
        _ => Kind::Internal,
    };
    Error::of(kind, error)
}

/// The nodes that the loop of this machine bought, as far as they were laid out. What cannot be read is none of them:
/// a command that looks at the others must not end for it.
#[must_use]
pub fn bought(fleet: &FleetName) -> Vec<(NodeName, FleetNode)> {
    let nodes = directory(fleet).ok().and_then(|directory| bulkhead_pool::nodes(&directory).ok());
    nodes.unwrap_or_default().into_iter().collect()
}

/// A grant beside `fleet.toml`.
#[derive(Debug, Clone)]
pub struct GrantFile {
    /// Where it lies.
    pub path: PathBuf,
    /// As it was signed.
    pub signed: SignedText,
    /// What it says.
    pub grant: Grant,
}

impl GrantFile {
    /// Where the values of its secrets lie, sealed. They are kept with the grant: what is sealed later is for the next.
    fn secrets_path(&self) -> PathBuf {
        secrets_path(&self.path, Grant::id(self.signed.text.as_bytes()))
    }

    /// The values of its secrets, sealed. That they are those that it pins is for whoever opens them.
    ///
    /// # Errors
    /// They are not there.
    pub fn secrets(&self) -> Result<Sealed> {
        if self.grant.secrets.is_empty() {
            return Ok(Sealed::new());
        }
        let path = self.secrets_path();
        let text = read_if_present(&path)?.ok_or_else(|| {
            Error::configuration(format!(
                "the secrets of the grant for {} are not in {}",
                self.grant.workload(),
                shown(&path)
            ))
            .hint("`bulkhead pool grant` writes that file beside the grant's: both must be where the loop runs")
        })?;
        serde_json::from_str(&text).map_err(|error| {
            Error::during(Kind::Configuration, format!("{} does not hold sealed values", shown(&path)), &error)
        })
    }

    /// Removes the values of its secrets, where another grant took its place.
    pub fn forget_secrets(&self) {
        // What stays is of use to nobody.
        drop(std::fs::remove_file(self.secrets_path()));
    }
}

/// Where the sealed values lie that a grant of this id pins.
#[must_use]
pub fn secrets_path(grant_file: &Path, id: OrderId) -> PathBuf {
    grant_file.with_file_name(format!("{id}.secrets"))
}

/// The file of a grant.
#[must_use]
pub fn grant_path(fleet_directory: &Path, pool: &PoolName, workload: &str) -> PathBuf {
    fleet_directory.join(GRANTS).join(format!("{pool}.{}.json", workload.replace('/', ".")))
}

/// The grants of a fleet that enough people signed, by the policy of this moment. Whoever may write to the repository
/// may put anything there: what counts for nothing is told `refused` and passed by.
///
/// # Errors
/// There is no policy.
pub fn grants(files: &FleetFiles, refused: &dyn Fn(&Error)) -> Result<Vec<GrantFile>> {
    let policy = files.policy()?.policy;
    let checked = |path: PathBuf| {
        let file = grant_file(path)?;
        let wrong = |why: &str| Error::new(Kind::Refused, format!("{} counts for nothing: {why}", shown(&file.path)));
        read_grant(&file.signed, &policy, &file.grant.environment).map_err(|refusal| wrong(&refusal.message))?;
        if file.grant.issued > now().plus_s(CLOCK_SKEW_S) {
            return Err(wrong("it was made in the future"));
        }
        // People of its own environment signed it, and nodes of another take no order by it.
        let environment = files.fleet.pools.get(&file.grant.pool).map(|section| &section.environment);
        let is_of_pool = environment.is_none_or(|environment| *environment == file.grant.environment);
        if file.grant.fleet != files.fleet.fleet || !is_of_pool {
            return Err(wrong("it is for another fleet, or another environment than its pool's"));
        }
        Ok(file)
    };
    Ok(grant_paths(files).into_iter().filter_map(|path| checked(path).map_err(|error| refused(&error)).ok()).collect())
}

/// On how many machines of each pool grants that hold at this moment let anything run. A pool that is not among them may
/// have none.
pub fn machines_granted<'a>(
    grants: impl IntoIterator<Item = &'a GrantFile>,
    revoked: &Revoked,
) -> BTreeMap<PoolName, u32> {
    let mut machines = BTreeMap::new();
    for GrantFile { grant, signed, .. } in grants {
        if grant.not_after > now() && !revoked.orders.contains(&Grant::id(signed.text.as_bytes())) {
            let most: &mut u32 = machines.entry(grant.pool.clone()).or_default();
            *most = grant.machines.max(*most);
        }
    }
    machines
}

/// The files that may have grants.
fn grant_paths(files: &FleetFiles) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(files.directory.join(GRANTS)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths
}

/// Reads a grant. Whether anybody signed it is not looked at.
///
/// # Errors
/// The file cannot be read, or is none.
pub fn grant_file(path: PathBuf) -> Result<GrantFile> {
    let signed = read_signed(&path)?;
    let grant = Grant::parse(signed.text.as_bytes())
        .map_err(|what| Error::configuration(format!("{}: {what}", shown(&path))))?;
    Ok(GrantFile { path, signed, grant })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::manifest::parse_toml;

    const GOOD: &str = r#"
        fleet = "acme"
        [pools.kernels]
        environment = "production"
        provider = "digitalocean"
        memory = "4G"
        price = "0.03571"
        machines_max = 10
        per_month = "50"
        idle = "2h"
        headroom = "p95"
        region = "fra1"
        size = "s-2vcpu-4gb"
        image = "12345"
        [scaling]
        per_hour = "1.5"
    "#;

    fn fleet(text: &str) -> Fleet {
        parse_toml(text).unwrap()
    }

    #[test]
    fn a_pool() {
        let fleet = fleet(GOOD);
        let Pools { pools, limits, provider } = Pools::of(&fleet).unwrap();
        assert_eq!(provider, Some(PoolProvider::DigitalOcean));
        assert_eq!(limits.caps.per_hour, Some(Micros(1_500_000)));
        let pool = &pools[0];
        assert_eq!((pool.price, pool.billing), (Micros(35_710), Billing::DIGITALOCEAN));
        assert_eq!(pool.machine, Room { slots: 23, memory_mib: 4096, cpu_milli: 0 });
        assert_eq!(pool.caps.per_month, Some(Micros(50_000_000)));
        assert_eq!((pool.idle_ms, pool.headroom), (7_200_000, Headroom::Arrivals { percentile: 95 }));
        let wanted = &wanted(&fleet).unwrap()[&pool.name];
        assert_eq!((wanted.size.as_str(), &wanted.image), ("s-2vcpu-4gb", &Image::Id(12_345)));
        let mut service = ServiceSpec::new("kernel".parse().unwrap(), vec!["kernel".into()]);
        (service.memory_max_bytes, service.cpu_percent) = (Some((64 << 20) + 1), Some(50));
        assert_eq!(needs(pool, &service), Room { slots: 1, memory_mib: 65, cpu_milli: 0 });
    }

    #[test]
    fn a_firewall_is_for_the_machines_of_its_pool() {
        let text = GOOD.replace("per_month =", "tags = [\"ours\"]\nssh_from = [\"203.0.113.7\"]\nper_month =");
        let tags = wanted(&fleet(&text)).unwrap().into_values().next().unwrap().tags;
        assert_eq!(tags, ["ours", "bulkhead-acme-kernels"]);
        let elsewhere = text.replace("digitalocean", "hetzner");
        assert!(Pools::of(&fleet(&elsewhere)).unwrap_err().message.contains("ssh_from: it is for DigitalOcean"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |from: &str, to: &str| {
            let fleet = fleet(&GOOD.replace(from, to));
            let error = Pools::of(&fleet).map(drop).and_then(|()| wanted(&fleet).map(drop)).unwrap_err();
            error.message
        };
        insta::assert_snapshot!(
            [
                wrong("\"0.03571\"", "\"cheap\""),
                wrong("price = \"0.03571\"", ""),
                wrong("machines_max = 10", ""),
                wrong("machines_max = 10", "machines_max = 1\nmachines_min = 2"),
                wrong("size = \"s-2vcpu-4gb\"", ""),
                wrong("per_hour = \"1.5\"", "per_hour = \"1,5\""),
                wrong("per_hour = \"1.5\"", "creations = 0"),
                wrong("[scaling]", "[pools.more]\nenvironment = \"staging\"\nprovider = \"local\"\n[scaling]"),
            ]
            .join("\n"),
            @r#"
            fleet.toml: [pools.kernels] price: `cheap` is not an amount: write dollars, such as `12` or `0.03571`, with six decimals at most
            fleet.toml: [pools.kernels] price: write what one machine costs an hour in dollars, such as `"0.03571"`
            fleet.toml: [pools.kernels] machines_max: write how many machines it may buy at most, such as `10`
            fleet.toml: [pools.kernels] machines_min: it is more than `machines_max`
            fleet.toml: [pools.kernels] size: write the provider's name for it, such as `"s-2vcpu-4gb"`
            fleet.toml: [scaling] per_hour: `1,5` is not an amount: write dollars, such as `12` or `0.03571`, with six decimals at most
            fleet.toml: [scaling] creations: 0 buys nothing ever: `bulkhead pool freeze` does that
            fleet.toml: pool `kernels` is from digitalocean, `more` from local; for now all pools of a fleet come from one provider
            "#
        );
    }

    #[test]
    fn numbers_are_written_in_quotes() {
        for (key, number) in [("price", "0.03571"), ("image", "12345")] {
            let quoted = format!("{key} = \"{number}\"");
            let error = parse_toml::<Fleet>(&GOOD.replace(&quoted, &format!("{key} = {number}"))).unwrap_err();
            assert_eq!(error.hint, Some(format!("write it in quotes: `\"{number}\"`")), "{error:?}");
        }
    }

    #[test]
    fn what_a_loop_would_find_wrong_is_said_before() {
        let json = r#"{ "format": 1, "fleet": "acme", "version": 1, "root": { "threshold": 1, "keys": [] }, "keys": {},
            "environments": { "production": { "accepts": [{ "release": 1 }] } } }"#;
        let policy: Policy = serde_json::from_str(json).unwrap();
        let of = |from: &str, to: &str| check(&fleet(&GOOD.replace(from, to)), &policy);
        assert!(of("", "").is_ok());
        assert!(of("region = \"fra1\"", "").unwrap_err().message.contains("[pools.kernels] region"));
        let error = of("\"production\"", "\"prodction\"").unwrap_err();
        assert_eq!(error.message, "fleet.toml: [pools.kernels] environment: the policy has no environment `prodction`");
        assert_eq!(error.hints, ["did you mean `production`?"]);
    }

    #[test]
    fn fixed_machines_have_addresses() {
        let text = "fleet = \"acme\"\n[pools.iron]\nenvironment = \"production\"\nprovider = \"fixed\"\n";
        let folder = tempfile::tempdir().unwrap();
        let of = |text: &str| provider(&fleet(text), folder.path(), || unreachable!("it is not local"));
        assert!(of(text).unwrap_err().message.contains("no node of a pool"));
        let node = |address: &str| {
            format!(
                "{text}[nodes.a]\nenvironment = \"production\"\naddress = \"{address}\"\npool = \"iron\"\n[nodes.b]\nenvironment = \"production\"\naddress = \"b.example\"\n"
            )
        };
        assert!(of(&node("192.0.2.7")).unwrap().list().unwrap().is_empty());
        assert!(of(&node("a.example")).unwrap_err().message.contains("[nodes.a] address: `a.example`"));
    }

    #[test]
    fn tokens_come_from_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "secret\n").unwrap();
        let of = |known: &[(&str, &str)]| {
            let variable =
                |name: &str| known.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            settings("DIGITALOCEAN", DigitalOcean::BASE_URL, &variable)
        };
        assert_eq!(of(&[("BULKHEAD_DIGITALOCEAN_TOKEN", "x")]).unwrap().base_url, DigitalOcean::BASE_URL);
        let api = ("BULKHEAD_DIGITALOCEAN_API", "http://127.0.0.1:9/");
        let named = of(&[("BULKHEAD_DIGITALOCEAN_TOKEN_FILE", file.to_str().unwrap()), api]).unwrap();
        assert_eq!(named.base_url, "http://127.0.0.1:9");
        assert!(of(&[]).unwrap_err().message.contains("BULKHEAD_DIGITALOCEAN_TOKEN is not set"));
        let error = of(&[("BULKHEAD_DIGITALOCEAN_TOKEN", "se cret")]).unwrap_err();
        assert!(!format!("{error:?}").contains("cret"), "a token is shown nowhere");
    }
}
