//! DigitalOcean, API v2: <https://docs.digitalocean.com/reference/api/>.
//!
//! What its document does not say, and what is done about it:
//! - A name may be given twice, so a request whose answer is unclear may have
//!   bought; only lists say whether it did.
//! - Tags are put on a droplet after it is made. Lists are therefore read
//!   whole and sorted out by name, and a firewall that goes by tag protects a
//!   machine only after a moment: a machine must be safe without it.
//! - 422 is the answer to what is wrong, to what works a moment later, to
//!   quotas and to deleting while something is under way. The message tells.
//! - A new droplet may be absent by its number.
//! - Lists leave out droplets with GPUs, so a pool of those cannot be had.
//! - `DELETE /v2/droplets?tag_name=` deletes everything with a tag. There is
//!   no code here that could send it.

use crate::{
    Answer, Capabilities, Image, Provider, ProviderError, Said, Seen, Settings, Status, UserData, Wanted,
    delete_by_number,
    http::{Http, Page, PlainError, escaped, named, read_all},
    limiter::Limiter,
    read,
};
use bulkhead_core::FleetName;
use bulkhead_scale::{Billing, CreateAnswer, DeleteAnswer, Micros, ServerId};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use ureq::http::Method;

const CAPABILITIES: Capabilities = Capabilities {
    is_name_unique: false,
    billing: Billing::DIGITALOCEAN,
    batch: 10,
    per_minute: Some(250),
    per_hour: Some(5_000),
    user_data_max_bytes: UserData::MAX_BYTES,
};
/// The most that a page may hold.
const PAGE: u64 = 200;
const DROPLETS: &str = "/v2/droplets";
const FIREWALLS: &str = "/v2/firewalls";
const TAGS: &str = "/v2/tags";

/// A client of DigitalOcean's for one fleet.
#[derive(Debug)]
pub struct DigitalOcean {
    http: Http,
    suffix: String,
}

/// What an account may do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// How many droplets it may have, all of them counted.
    pub droplet_limit: u32,
    /// `active`, `warning` or `locked`.
    pub status: String,
    /// Why, for a person.
    #[serde(default)]
    pub status_message: String,
}

/// A size of droplet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Its name, such as `s-1vcpu-1gb`.
    pub slug: String,
    /// What it costs an hour, to the nearest millionth of a dollar.
    pub per_hour: Micros,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub processors: u32,
    /// Disk, in GiB.
    pub disk_gib: u32,
    /// Whether there are any at all.
    pub is_available: bool,
    /// In which regions there are.
    pub regions: Vec<String>,
}

impl DigitalOcean {
    /// Where the real one is.
    pub const BASE_URL: &str = "https://api.digitalocean.com";

    /// A client for machines of this fleet. Nothing is asked yet.
    ///
    /// # Errors
    /// Where the address may not be used.
    pub fn new(settings: Settings, fleet: &FleetName) -> Result<Self, ProviderError> {
        let limiter = Limiter::new(CAPABILITIES.per_minute, CAPABILITIES.per_hour);
        Ok(Self { http: Http::new(settings, limiter, PlainError::read)?, suffix: format!(".{fleet}.bulkhead") })
    }

    /// What the account may do.
    ///
    /// # Errors
    /// Where it is not said.
    pub fn account(&self) -> Result<Account, ProviderError> {
        #[derive(Deserialize)]
        struct Body {
            account: Account,
        }
        self.http.get::<Body>("/v2/account").map(|body| body.account)
    }

    /// All sizes, and what they cost.
    ///
    /// # Errors
    /// Where the list cannot be had whole, or a price cannot be read.
    pub fn sizes(&self) -> Result<Vec<Size>, ProviderError> {
        #[derive(Deserialize)]
        struct Body {
            slug: String,
            price_hourly: Box<RawValue>,
            memory: u32,
            vcpus: u32,
            disk: u32,
            available: bool,
            #[serde(default)]
            regions: Vec<String>,
        }
        let sizes: Vec<Body> = self.all("/v2/sizes", "sizes", |size: &Body| size.slug.clone())?;
        let read = |body: Body| {
            let value = body.price_hourly.get();
            let wrong = || ProviderError::Price { size: body.slug.clone(), value: value.to_owned() };
            let per_hour = read::amount(value).ok_or_else(wrong)?;
            Ok(Size {
                per_hour,
                slug: body.slug,
                memory_mib: body.memory,
                processors: body.vcpus,
                disk_gib: body.disk,
                is_available: body.available,
                regions: body.regions,
            })
        };
        sizes.into_iter().map(read).collect()
    }

    /// Makes a tag, where there is none yet.
    ///
    /// # Errors
    /// Where that is not certain.
    pub fn ensure_tag(&self, tag: &str) -> Result<(), ProviderError> {
        let path = format!("{TAGS}/{}", escaped(tag));
        match self.http.send(&Method::GET, &path, None) {
            Err(ProviderError::Said { status: 404, .. }) => {
                self.http.send(&Method::POST, TAGS, Some(&json!({ "name": tag }))).map(drop)
            }
            answer => answer.map(drop),
        }
    }

    /// Sees to it that there is a firewall by this name for all droplets with this tag, which lets in nothing but
    /// port 22, from these addresses (`203.0.113.7`, `2001:db8::/32`) alone, and lets out everything.
    ///
    /// # Errors
    /// Where that is not certain.
    pub fn ensure_firewall(&self, name: &str, tag: &str, ssh_from: &[String]) -> Result<(), ProviderError> {
        let wanted = Firewall::new(name, tag, ssh_from);
        self.ensure_tag(tag)?;
        let all: Vec<Firewall> = self.all(FIREWALLS, "firewalls", |firewall: &Firewall| firewall.id.clone())?;
        match all.into_iter().find(|firewall| firewall.name == name) {
            Some(there) if there.is_like(&wanted) => Ok(()),
            Some(there) => {
                let path = format!("{FIREWALLS}/{}", escaped(&there.id));
                self.http.send(&Method::PUT, &path, Some(&wanted.to_body())).map(drop)
            }
            None => self.http.send(&Method::POST, FIREWALLS, Some(&wanted.to_body())).map(drop),
        }
    }

    /// A list, whole. What it holds is under `what` in each page.
    fn all<T: DeserializeOwned, K: Ord>(
        &self,
        path: &str,
        what: &'static str,
        key: impl Fn(&T) -> K,
    ) -> Result<Vec<T>, ProviderError> {
        #[derive(Deserialize)]
        struct Meta {
            total: u64,
        }
        read_all(what, PAGE, key, |nth| {
            let wrong = |source| ProviderError::Malformed { request: named(&Method::GET, path), source };
            let body = self.http.send(&Method::GET, &format!("{path}?page={nth}&per_page={PAGE}"), None)?;
            let parts: BTreeMap<String, &RawValue> = serde_json::from_slice(&body).map_err(wrong)?;
            let part = |name: &str| parts.get(name).map_or("null", |part| part.get());
            let meta: Meta = serde_json::from_str(part("meta")).map_err(wrong)?;
            Ok(Page { total: meta.total, items: serde_json::from_str(part(what)).map_err(wrong)? })
        })
    }

    /// The body of a request for droplets; `names` says how they are called.
    fn order(wanted: &Wanted, names: (&str, serde_json::Value)) -> Result<serde_json::Value, ProviderError> {
        wanted.user_data.check(CAPABILITIES.user_data_max_bytes)?;
        // A key of digits alone is its number, anything else its fingerprint.
        let key = |key: &String| key.parse::<u64>().map_or_else(|_| json!(key), |id| json!(id));
        let image = match &wanted.image {
            Image::Slug(slug) => json!(slug),
            Image::Id(id) => json!(id),
        };
        let mut body = json!({
            "region": wanted.region,
            "size": wanted.size,
            "image": image,
            "ssh_keys": wanted.ssh_keys.iter().map(key).collect::<Vec<_>>(),
            "backups": false,
            "ipv6": true,
            "monitoring": false,
            "with_droplet_agent": false,
            "tags": wanted.tags,
            "user_data": wanted.user_data.as_str(),
        });
        body[names.0] = names.1;
        if let Some(network) = &wanted.network {
            body["vpc_uuid"] = json!(network);
        }
        Ok(body)
    }

    fn post(&self, body: &serde_json::Value) -> Result<Vec<Made>, ProviderError> {
        #[derive(Deserialize)]
        struct Body {
            droplet: Option<Made>,
            #[serde(default)]
            droplets: Vec<Made>,
        }
        let body: Body = self.http.read(&Method::POST, DROPLETS, Some(body))?;
        Ok(body.droplet.into_iter().chain(body.droplets).collect())
    }
}

impl Provider for DigitalOcean {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn create(&self, wanted: &Wanted) -> Answer<CreateAnswer> {
        let made = Self::order(wanted, ("name", json!(&*wanted.name))).and_then(|body| self.post(&body));
        match made {
            Ok(made) => answer_for(&wanted.name, &made),
            Err(error) => Answer::because(of_create(&error), error),
        }
    }

    fn create_many(&self, names: &[Arc<str>], like: &Wanted) -> Vec<Answer<CreateAnswer>> {
        let batch = |names: &[Arc<str>]| -> Vec<Answer<CreateAnswer>> {
            let all: Vec<&str> = names.iter().map(|name| &**name).collect();
            match Self::order(like, ("names", json!(all))).and_then(|body| self.post(&body)) {
                Ok(made) => names.iter().map(|name| answer_for(name, &made)).collect(),
                Err(error) => {
                    let answer = of_create(&error);
                    let mut answers = vec![Answer::because(answer, error)];
                    answers.resize_with(names.len(), || Answer::plain(answer));
                    answers
                }
            }
        };
        names.chunks(CAPABILITIES.batch).flat_map(batch).collect()
    }

    fn list(&self) -> Result<Vec<Seen>, ProviderError> {
        let all: Vec<Droplet> = self.all(DROPLETS, "droplets", |droplet: &Droplet| droplet.id)?;
        let ours = all.into_iter().filter(|droplet| droplet.name.ends_with(&self.suffix));
        ours.map(|droplet| droplet.seen(DROPLETS)).collect()
    }

    fn get(&self, id: ServerId) -> Result<Option<Seen>, ProviderError> {
        #[derive(Deserialize)]
        struct Body {
            droplet: Droplet,
        }
        let path = format!("{DROPLETS}/{id}");
        match self.http.get::<Body>(&path) {
            Ok(body) if body.droplet.id != id.0 => Err(ProviderError::Astray { request: named(&Method::GET, &path) }),
            Ok(body) => body.droplet.seen(&path).map(Some),
            Err(ProviderError::Said { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn delete(&self, id: ServerId, name: &str) -> Answer<DeleteAnswer> {
        let path = format!("{DROPLETS}/{id}");
        delete_by_number(self, id, name, || self.http.send(&Method::DELETE, &path, None).map(drop))
    }
}

/// The answer about one name: made exactly where there is one droplet with that name.
fn answer_for(name: &str, made: &[Made]) -> Answer<CreateAnswer> {
    match made.iter().find(|made| made.name == name) {
        Some(made) => Answer::plain(CreateAnswer::Made(ServerId(made.id))),
        None => {
            let request = named(&Method::POST, DROPLETS);
            Answer::because(CreateAnswer::Unclear, ProviderError::Astray { request })
        }
    }
}

fn of_create(error: &ProviderError) -> CreateAnswer {
    match error.said() {
        Some((422 | 403, said)) if is_quota(said) => CreateAnswer::Quota,
        _ => error.of_create(),
    }
}

/// `creating this/these droplet(s) will exceed your droplet limit`, in the words of the day.
fn is_quota(said: &Said) -> bool {
    let message = said.message.to_lowercase();
    message.contains("droplet limit") || message.contains("limit") && message.contains("account")
}

#[derive(Deserialize)]
struct Made {
    id: u64,
    name: String,
}

#[derive(Deserialize)]
struct Droplet {
    id: u64,
    name: String,
    created_at: String,
    status: String,
    #[serde(default)]
    networks: Networks,
}

#[derive(Deserialize, Default)]
struct Networks {
    #[serde(default)]
    v4: Vec<Network>,
    #[serde(default)]
    v6: Vec<Network>,
}

#[derive(Deserialize)]
struct Network {
    ip_address: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Networks {
    fn public<T: std::str::FromStr>(networks: &[Network]) -> Option<T> {
        networks.iter().filter(|network| network.kind == "public").find_map(|network| network.ip_address.parse().ok())
    }
}

impl Droplet {
    fn seen(self, path: &str) -> Result<Seen, ProviderError> {
        let created =
            read::moment(&self.created_at).ok_or(ProviderError::Astray { request: named(&Method::GET, path) })?;
        Ok(Seen {
            id: ServerId(self.id),
            name: self.name.into(),
            created,
            status: match self.status.as_str() {
                "new" => Status::New,
                "active" => Status::Active,
                "off" => Status::Off,
                _ => Status::Other,
            },
            v4: Networks::public::<Ipv4Addr>(&self.networks.v4),
            v6: Networks::public::<Ipv6Addr>(&self.networks.v6),
        })
    }
}

#[derive(Deserialize)]
struct Firewall {
    #[serde(default)]
    id: String,
    name: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    inbound_rules: Option<Vec<Rule>>,
    #[serde(default)]
    outbound_rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
struct Rule {
    protocol: String,
    /// A port, a range, or all: `0`, and for pings nothing.
    #[serde(default)]
    ports: String,
    #[serde(default, alias = "destinations")]
    sources: Option<Peers>,
}

/// Whom a rule is about. What is not by address is kept to tell rules apart.
#[derive(Deserialize, Default)]
struct Peers {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// What a rule comes to, to compare: protocol, ports and addresses.
type Meaning = (String, String, BTreeSet<String>);

impl Rule {
    fn new(protocol: &str, ports: &str, addresses: &[String]) -> Self {
        let sources = Some(Peers { addresses: addresses.to_vec(), others: BTreeMap::new() });
        Self { protocol: protocol.to_owned(), ports: ports.to_owned(), sources }
    }

    fn meaning(&self) -> Meaning {
        // All ports are written in three ways.
        let ports = if matches!(&*self.ports, "" | "0" | "all") { "all" } else { &self.ports };
        let mut peers = BTreeSet::new();
        if let Some(sources) = &self.sources {
            peers.extend(sources.addresses.iter().cloned());
            let others =
                sources.others.iter().filter(|(_, value)| value.as_array().is_none_or(|list| !list.is_empty()));
            peers.extend(others.map(|(name, value)| format!("{name}={value}")));
        }
        (self.protocol.clone(), ports.to_owned(), peers)
    }

    fn to_body(&self, peers: &str) -> serde_json::Value {
        let addresses = self.sources.as_ref().map(|sources| sources.addresses.as_slice()).unwrap_or_default();
        json!({ "protocol": self.protocol, "ports": self.ports, peers: { "addresses": addresses } })
    }
}

impl Firewall {
    fn new(name: &str, tag: &str, ssh_from: &[String]) -> Self {
        let anywhere = ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
        let out = [("tcp", "all"), ("udp", "all"), ("icmp", "0")];
        Self {
            id: String::new(),
            name: name.to_owned(),
            tags: Some(vec![tag.to_owned()]),
            inbound_rules: Some(vec![Rule::new("tcp", "22", ssh_from)]),
            outbound_rules: Some(out.iter().map(|(protocol, ports)| Rule::new(protocol, ports, &anywhere)).collect()),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        let rules =
            |rules: &Option<Vec<Rule>>| -> BTreeSet<Meaning> { rules.iter().flatten().map(Rule::meaning).collect() };
        self.tags == other.tags
            && rules(&self.inbound_rules) == rules(&other.inbound_rules)
            && rules(&self.outbound_rules) == rules(&other.outbound_rules)
    }

    fn to_body(&self) -> serde_json::Value {
        let rules = |rules: &Option<Vec<Rule>>, peers: &str| -> Vec<serde_json::Value> {
            rules.iter().flatten().map(|rule| rule.to_body(peers)).collect()
        };
        json!({
            "name": self.name,
            "tags": self.tags,
            "inbound_rules": rules(&self.inbound_rules, "sources"),
            "outbound_rules": rules(&self.outbound_rules, "destinations"),
        })
    }
}
