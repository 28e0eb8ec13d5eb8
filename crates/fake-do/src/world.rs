//! What there is, and the answer to each request.

use crate::{Name, Options, show};
use bulkhead_scale::{Billing, Micros, SECOND_MS, ServerId, Time};
use bulkhead_sim::cloud::{Cloud, Create, Delete, Faults};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
    sync::Arc,
};

/// The token that may read, and nothing else.
pub const READ_ONLY: &str = "read-only";

const PAGE: u64 = 20;
const PAGE_MAX: u64 = 200;
const BATCH_MAX: usize = 10;
const USER_DATA_MAX_BYTES: usize = 64 * 1024;
const NAME_MAX_BYTES: usize = 255;
/// Requests an hour, as headers have it.
const PER_HOUR: usize = 5_000;
/// So many of the last requests are remembered.
const EXCHANGES_MAX: usize = 10_000;
/// The number of an action is its droplet's times this: each droplet has one, its creation.
const ACTIONS_EACH: u64 = 4;

/// A kind of request, as far as it can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `POST /v2/droplets`.
    Create,
    /// `GET /v2/droplets`, one page.
    List,
    /// `GET /v2/droplets/{id}`.
    Read,
    /// `DELETE /v2/droplets/{id}`.
    Delete,
    /// Anything else.
    Other,
}

/// What comes instead of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The connection is closed.
    Closes,
    /// Nothing, for longer than anybody waits.
    Hangs,
    /// 500, whether it was carried out or not.
    Breaks,
}

/// One request and what it was answered.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: String,
    /// Such as `/v2/droplets/7`.
    pub path: String,
    /// Its query.
    pub query: BTreeMap<String, String>,
    /// What it brought, where that was JSON.
    pub body: Option<Value>,
    /// HTTP's status; 0 where there was no answer.
    pub status: u16,
    /// What the answer brought.
    pub answer: Option<Value>,
}

/// A request, taken apart.
pub(crate) struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    query: BTreeMap<String, String>,
    /// JSON, where there was some.
    body: Option<Value>,
    token: Option<&'a str>,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(
        method: &'a str,
        path: &'a str,
        query: Option<&str>,
        body: &[u8],
        token: Option<&'a str>,
    ) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let query = pairs.map(|(name, value)| (unescaped(name), unescaped(value))).collect();
        Self { method, path, query, body: serde_json::from_slice(body).ok(), token }
    }

    fn kind(&self) -> Kind {
        let segments: Vec<&str> = self.path.trim_matches('/').split('/').collect();
        match (self.method, &segments[..]) {
            ("POST", ["v2", "droplets"]) => Kind::Create,
            ("GET", ["v2", "droplets"]) => Kind::List,
            ("GET", ["v2", "droplets", _]) => Kind::Read,
            ("DELETE", ["v2", "droplets", _]) => Kind::Delete,
            _ => Kind::Other,
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.body.as_ref()?.get(name)?.as_str()
    }
}

/// A query's text: `+` and `%41` are what they stand for; what is neither is left as it is.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (byte, _) => {
                bytes.push(if *byte == b'+' { b' ' } else { *byte });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer, or none.
#[derive(Debug)]
pub(crate) enum Reply {
    Json { status: u16, headers: Vec<(&'static str, String)>, body: Option<Value> },
    Silence(Silence),
}

impl Reply {
    fn json(status: u16, body: Value) -> Self {
        Self::Json { status, headers: Vec::new(), body: Some(body) }
    }

    fn empty() -> Self {
        Self::Json { status: 204, headers: Vec::new(), body: None }
    }

    fn error(status: u16, id: &str, message: &str) -> Self {
        let request_id = "4d9d8375-3c56-4925-a3e7-eb137fed17e9";
        Self::json(status, json!({ "id": id, "message": message, "request_id": request_id }))
    }

    fn not_found() -> Self {
        Self::error(404, "not_found", "The resource you were accessing could not be found.")
    }

    fn unprocessable(message: &str) -> Self {
        Self::error(422, "unprocessable_entity", message)
    }
}

/// What was asked for with a droplet.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) region: String,
    pub(crate) size: String,
    pub(crate) image: Value,
    pub(crate) network: String,
    pub(crate) has_v6: bool,
    pub(crate) tags: Vec<String>,
    /// When it has its tags.
    pub(crate) tagged: Time,
    /// Another public address than its own.
    pub(crate) address: Option<Ipv4Addr>,
}

/// One account.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cloud: Cloud,
    pub(crate) orders: BTreeMap<ServerId, Order>,
    pub(crate) once: VecDeque<(Kind, Faults)>,
    pub(crate) silence: Option<Silence>,
    pub(crate) deletes_by_tag: u64,
    pub(crate) exchanges: VecDeque<Exchange>,
    url: String,
    late_tags_ms: u64,
    speed: u64,
    rng: fastrand::Rng,
    tags: BTreeSet<String>,
    keys: Vec<Value>,
    firewalls: Vec<Value>,
    next_firewall: u64,
}

impl World {
    pub(crate) fn new(options: &Options, url: String) -> Self {
        // Of one price for all: what is asked of it is how many there are.
        let mut cloud = Cloud::new(options.faults, Micros(8_930), Billing::DIGITALOCEAN, options.seed);
        cloud.quota = options.quota as usize;
        Self {
            cloud,
            orders: BTreeMap::new(),
            once: VecDeque::new(),
            silence: options.silence,
            deletes_by_tag: 0,
            exchanges: VecDeque::new(),
            url,
            late_tags_ms: options.late_tags_ms,
            speed: u64::from(options.speed.max(1)),
            rng: fastrand::Rng::with_seed(options.seed),
            tags: BTreeSet::new(),
            keys: Vec::new(),
            firewalls: Vec::new(),
            next_firewall: 1,
        }
    }

    /// The answer to a request, which is remembered.
    pub(crate) fn answer(&mut self, asked: &Asked<'_>, now: Time) -> Reply {
        let kind = asked.kind();
        let usual = self.cloud.faults;
        if let Some(index) = self.once.iter().position(|(once, _)| *once == kind)
            && let Some((_, faults)) = self.once.remove(index)
        {
            self.cloud.faults = faults;
        }
        let mut reply = self.admitted(asked, kind, now);
        self.cloud.faults = usual;
        if let Reply::Json { headers, .. } = &mut reply {
            // By its own clock, as all moments here.
            let reset_s = now.plus(bulkhead_scale::HOUR_MS).0 / SECOND_MS;
            headers.push(("ratelimit-limit", PER_HOUR.to_string()));
            headers.push(("ratelimit-remaining", self.cloud.requests_left().to_string()));
            headers.push(("ratelimit-reset", reset_s.to_string()));
        }
        let (status, answer) = match &reply {
            Reply::Json { status, body, .. } => (*status, body.clone()),
            Reply::Silence(Silence::Breaks) => (500, None),
            Reply::Silence(_) => (0, None),
        };
        if self.exchanges.len() == EXCHANGES_MAX {
            self.exchanges.pop_front();
        }
        self.exchanges.push_back(Exchange {
            method: asked.method.to_owned(),
            path: asked.path.to_owned(),
            query: asked.query.clone(),
            body: asked.body.clone(),
            status,
            answer,
        });
        reply
    }

    fn admitted(&mut self, asked: &Asked<'_>, kind: Kind, now: Time) -> Reply {
        match asked.token {
            None | Some("") => return Reply::error(401, "unauthorized", "Unable to authenticate you"),
            Some(READ_ONLY) if asked.method != "GET" => {
                return Reply::error(403, "forbidden", "You are not authorized to perform this operation");
            }
            Some(_) => {}
        }
        self.cloud.settle(now);
        self.cloud.asked += u64::from(kind == Kind::Create);
        if let Some(retry_after_ms) = self.cloud.limited(now) {
            let mut reply = Reply::error(429, "too_many_requests", "API rate limit exceeded.");
            if let Reply::Json { headers, .. } = &mut reply {
                // Whoever waits does so in real time.
                let seconds = retry_after_ms.div_ceil(self.speed * SECOND_MS).max(1);
                headers.push(("retry-after", seconds.to_string()));
            }
            return reply;
        }
        self.routed(asked, now)
    }

    fn routed(&mut self, asked: &Asked<'_>, now: Time) -> Reply {
        let segments: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
        let Some(("v2", rest)) = segments.split_first().map(|(first, rest)| (*first, rest)) else {
            return Reply::not_found();
        };
        match (asked.method, rest) {
            ("GET", ["account"]) => self.account(),
            ("GET", ["account", "keys"]) => self.paged(asked, "ssh_keys", self.keys.clone()),
            ("POST", ["account", "keys"]) => self.add_key(asked),
            ("GET", ["sizes"]) => {
                let sizes = show::SIZES.iter().filter_map(|size| show::size(size.0)).collect();
                self.paged(asked, "sizes", sizes)
            }
            ("GET", ["regions"]) => {
                let regions = show::REGIONS.iter().filter_map(|region| show::region(region.0)).collect();
                self.paged(asked, "regions", regions)
            }
            ("GET", ["images"]) => {
                let images = show::IMAGES.iter().filter_map(|image| show::image(&json!(image.0))).collect();
                self.paged(asked, "images", images)
            }
            ("GET", ["droplets"]) => self.list(asked, now),
            ("POST", ["droplets"]) => self.create(asked, now),
            ("DELETE", ["droplets"]) => {
                self.deletes_by_tag += 1;
                Reply::error(500, "server_error", "Droplets are not deleted by tag here; it was counted")
            }
            ("GET", ["droplets", id]) => self.read(id, now),
            ("DELETE", ["droplets", id]) => self.delete(id, now),
            ("GET", ["actions", id]) => self.action(id, now),
            ("GET", ["tags"]) => {
                let tags = self.tags.iter().map(|tag| self.tag(tag)).collect();
                self.paged(asked, "tags", tags)
            }
            ("POST", ["tags"]) => match asked.text("name").filter(|name| is_tag(name)) {
                Some(name) => {
                    self.tags.insert(name.to_owned());
                    Reply::json(201, json!({ "tag": self.tag(name) }))
                }
                None => Reply::unprocessable("Name contains invalid characters"),
            },
            ("GET", ["tags", name]) if self.tags.contains(&unescaped(name)) => {
                Reply::json(200, json!({ "tag": self.tag(&unescaped(name)) }))
            }
            ("GET", ["firewalls"]) => self.paged(asked, "firewalls", self.firewalls.clone()),
            ("POST", ["firewalls"]) => self.add_firewall(asked, now),
            (_, ["firewalls", id]) => self.firewall(asked, id),
            _ => Reply::not_found(),
        }
    }

    fn account(&self) -> Reply {
        let account = json!({
            "droplet_limit": self.cloud.quota, "floating_ip_limit": 3, "email": "fake@example.com", "name": "Fake",
            "uuid": uuid(0), "email_verified": true, "status": "active", "status_message": "",
            "team": { "uuid": uuid(1), "name": "Fake" },
        });
        Reply::json(200, json!({ "account": account }))
    }

    fn add_key(&mut self, asked: &Asked<'_>) -> Reply {
        let (Some(name), Some(key)) = (asked.text("name"), asked.text("public_key")) else {
            return Reply::unprocessable("Name and public key are required");
        };
        if self.keys.iter().any(|known| known["public_key"] == key) {
            return Reply::unprocessable("SSH Key is already in use on your account");
        }
        let id = 512_000 + self.keys.len() as u64;
        // Not the key's MD5, which a real fingerprint is: sixteen bytes that tell keys apart.
        let mut hash = fastrand::Rng::with_seed(
            key.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(u64::from(byte))),
        );
        let fingerprint: Vec<String> = (0..16).map(|_| format!("{:02x}", hash.u8(..))).collect();
        let key = json!({ "id": id, "fingerprint": fingerprint.join(":"), "public_key": key, "name": name });
        self.keys.push(key.clone());
        Reply::json(201, json!({ "ssh_key": key }))
    }

    /// One page of `items`, under `key`.
    fn paged(&self, asked: &Asked<'_>, key: &str, items: Vec<Value>) -> Reply {
        match Page::of(asked) {
            Ok(page) => {
                let total = items.len();
                let items = items.into_iter().skip(page.start()).take(page.size()).collect();
                self.page(asked, key, page, items, total)
            }
            Err(reply) => reply,
        }
    }

    fn page(&self, asked: &Asked<'_>, key: &str, page: Page, items: Vec<Value>, total: usize) -> Reply {
        let last = (total as u64).div_ceil(page.per_page).max(1);
        let link = |nth: u64| {
            let mut query = asked.query.clone();
            query.insert("page".to_owned(), nth.to_string());
            query.insert("per_page".to_owned(), page.per_page.to_string());
            let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
            json!(format!("{}{}?{}", self.url, asked.path, pairs.join("&")))
        };
        let mut pages = Map::new();
        if page.nth > 1 {
            pages.insert("first".to_owned(), link(1));
            pages.insert("prev".to_owned(), link(page.nth - 1));
        }
        if page.nth < last {
            pages.insert("next".to_owned(), link(page.nth + 1));
            pages.insert("last".to_owned(), link(last));
        }
        let links = if pages.is_empty() { json!({}) } else { json!({ "pages": pages }) };
        Reply::json(200, json!({ key: items, "links": links, "meta": { "total": total } }))
    }

    fn list(&mut self, asked: &Asked<'_>, now: Time) -> Reply {
        let page = match Page::of(asked) {
            Ok(page) => page,
            Err(reply) => return reply,
        };
        let (name, tag) = (asked.query.get("name"), asked.query.get("tag_name"));
        if name.is_some() && tag.is_some() {
            return Reply::unprocessable("name and tag_name cannot be combined");
        }
        if self.happens(self.cloud.faults.broken_list) {
            return Reply::Silence(self.silence());
        }
        let is_slipping = page.nth > 1 && self.happens(self.cloud.faults.slipped);
        let is_behind = self.rng.bool();
        let orders = &self.orders;
        let shown = self.cloud.listed(now).filter_map(|real| Some((real, orders.get(&real.id)?)));
        let shown = shown.filter(|(real, order)| {
            name.is_none_or(|name| *name == *real.name)
                && tag.is_none_or(|tag| now >= order.tagged && order.tags.contains(tag))
        });
        let all: Vec<Value> = shown.map(|(real, order)| show::droplet(real, order, now)).collect();
        let mut start = page.start();
        if is_slipping {
            // One on an earlier page went, or came, and another did the opposite: the total is what it was.
            start = if is_behind { start.saturating_sub(1) } else { start + 1 };
        }
        let total = all.len();
        let items = all.into_iter().skip(start).take(page.size()).collect();
        self.page(asked, "droplets", page, items, total)
    }

    fn create(&mut self, asked: &Asked<'_>, now: Time) -> Reply {
        let (names, order, is_many) = match self.order(asked, now) {
            Ok(order) => order,
            Err(message) => return Reply::unprocessable(message),
        };
        let before: BTreeSet<u64> = self.orders.keys().map(|id| id.0).collect();
        let made = self.cloud.make(&names, now);
        // What was made and not told of is on order too.
        let begun: Vec<ServerId> = self.cloud.known().filter(|id| !before.contains(&id.0)).collect();
        for id in begun {
            let order = Order { tagged: order.tagged.plus(self.late_tags_ms), ..order.clone() };
            self.tags.extend(order.tags.iter().cloned());
            self.orders.insert(id, order);
        }
        let made = match made {
            Ok(made) => made,
            Err(Create::Quota) => {
                return Reply::unprocessable("creating this/these droplet(s) will exceed your droplet limit");
            }
            Err(Create::Refused) => return Reply::unprocessable("Something is not right just now, try again"),
            Err(_) => return Reply::Silence(self.silence()),
        };
        let real = made.iter().filter_map(|id| Some((self.cloud.real(*id, now)?, self.orders.get(id)?)));
        let droplets: Vec<Value> = real.map(|(real, order)| show::droplet(real, order, now)).collect();
        let actions: Vec<Value> = made
            .iter()
            .map(|id| {
                let action = id.0 * ACTIONS_EACH;
                json!({ "id": action, "rel": "create", "href": format!("{}/v2/actions/{action}", self.url) })
            })
            .collect();
        let links = json!({ "actions": actions });
        let single = droplets.first().cloned().unwrap_or_default();
        let body = if is_many {
            json!({ "droplets": droplets, "links": links })
        } else {
            json!({ "droplet": single, "links": links })
        };
        Reply::json(202, body)
    }

    /// Reads a request for droplets: their names, what is the same of all, and whether `names` was said.
    fn order(&self, asked: &Asked<'_>, now: Time) -> Result<(Vec<Name>, Order, bool), &'static str> {
        let body = asked.body.as_ref().and_then(Value::as_object).ok_or("The request has no JSON object")?;
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let (names, is_many): (Vec<Option<&str>>, bool) = match (body.get("name"), body.get("names")) {
            (Some(name), None) => (vec![name.as_str()], false),
            (None, Some(Value::Array(names))) => (names.iter().map(Value::as_str).collect(), true),
            _ => return Err("Name or names, one of them, is required"),
        };
        if names.is_empty() || names.len() > BATCH_MAX {
            return Err("Between one and ten names are possible");
        }
        let names: Option<Vec<Name>> =
            names.into_iter().map(|name| name.filter(|name| is_host_name(name)).map(Arc::from)).collect();
        let names = names.ok_or("Only valid hostname characters are allowed. (a-z, A-Z, 0-9, . and -)")?;
        let region = text("region").unwrap_or("fra1");
        show::region(region).ok_or("You specified an invalid region for Droplet creation.")?;
        let size = text("size").filter(|size| show::size(size).is_some());
        let size = size.ok_or("You specified an invalid size for Droplet creation.")?;
        let image = body.get("image").filter(|image| show::image(image).is_some());
        let image = image.ok_or("You specified an invalid image for Droplet creation.")?;
        if text("user_data").is_some_and(|text| text.len() > USER_DATA_MAX_BYTES) {
            return Err("User data is too long (maximum is 64 KiB)");
        }
        for key in body.get("ssh_keys").and_then(Value::as_array).into_iter().flatten() {
            let is_it = |known: &Value| {
                known["id"] == *key
                    || known["fingerprint"] == *key
                    || key.as_str().is_some_and(|key| key.parse() == Ok(known["id"].as_u64().unwrap_or(0)))
            };
            if !self.keys.iter().any(is_it) {
                return Err("One of the SSH keys is invalid");
            }
        }
        let tags = body.get("tags").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let tags: Option<Vec<String>> =
            tags.iter().map(|tag| tag.as_str().filter(|tag| is_tag(tag)).map(str::to_owned)).collect();
        let order = Order {
            region: region.to_owned(),
            size: size.to_owned(),
            image: image.clone(),
            network: text("vpc_uuid").map_or_else(|| uuid(2), str::to_owned),
            has_v6: body.get("ipv6").and_then(Value::as_bool).unwrap_or(false),
            tags: tags.ok_or("Tag contains invalid characters")?,
            tagged: now,
            address: None,
        };
        Ok((names, order, is_many))
    }

    fn read(&mut self, id: &str, now: Time) -> Reply {
        let Some(id) = id.parse().ok().map(ServerId) else { return Reply::not_found() };
        let shown = self.cloud.get(id, now).map(|real| real.id).and_then(|id| self.cloud.real(id, now));
        match shown.and_then(|real| Some(show::droplet(real, self.orders.get(&id)?, now))) {
            Some(droplet) => Reply::json(200, json!({ "droplet": droplet })),
            None => Reply::not_found(),
        }
    }

    fn delete(&mut self, id: &str, now: Time) -> Reply {
        let Some(id) = id.parse().ok().map(ServerId) else { return Reply::not_found() };
        match self.cloud.unmake(id, now) {
            Delete::Accepted => Reply::empty(),
            Delete::Pending => Reply::unprocessable("Droplet already has a pending event."),
            Delete::Nothing => Reply::Silence(self.silence()),
            Delete::Absent | Delete::TooMany { .. } => Reply::not_found(),
        }
    }

    fn action(&self, id: &str, now: Time) -> Reply {
        let droplet = id.parse::<u64>().ok().filter(|id| id % ACTIONS_EACH == 0).map(|id| ServerId(id / ACTIONS_EACH));
        let found = droplet.and_then(|id| Some((self.cloud.real(id, now)?, self.orders.get(&id)?)));
        let Some((real, order)) = found else { return Reply::not_found() };
        let is_done = show::is_active(real, now);
        let action = json!({
            "id": real.id.0 * ACTIONS_EACH,
            "status": if is_done { "completed" } else { "in-progress" },
            "type": "create",
            "started_at": real.created.to_string(),
            "completed_at": if is_done { json!(now.to_string()) } else { Value::Null },
            "resource_id": real.id.0,
            "resource_type": "droplet",
            "region": show::region(&order.region).unwrap_or_default(),
            "region_slug": order.region,
        });
        Reply::json(200, json!({ "action": action }))
    }

    fn tag(&self, name: &str) -> Value {
        let count = self.orders.values().filter(|order| order.tags.iter().any(|tag| tag == name)).count();
        let of = json!({ "count": count });
        json!({ "name": name, "resources": { "count": count, "last_tagged_uri": "", "droplets": of } })
    }

    /// A firewall as it is wanted, checked; its number and state are added.
    fn wanted_firewall(&self, asked: &Asked<'_>, id: &str, created: &Value) -> Result<Value, &'static str> {
        let body = asked.body.as_ref().and_then(Value::as_object).ok_or("The request has no JSON object")?;
        let name = body.get("name").and_then(Value::as_str).filter(|name| is_host_name(name));
        let name = name.ok_or("Name is invalid")?;
        if self.firewalls.iter().any(|known| known["name"] == name && known["id"] != id) {
            return Err("duplicate name");
        }
        let list = |key: &str| body.get(key).filter(|value| value.is_array()).cloned().unwrap_or_else(|| json!([]));
        let tags = list("tags");
        let is_known = |tag: &Value| tag.as_str().is_some_and(|tag| self.tags.contains(tag));
        if !tags.as_array().is_some_and(|tags| tags.iter().all(is_known)) {
            return Err("tag does not exist");
        }
        let (inbound, outbound) = (list("inbound_rules"), list("outbound_rules"));
        if [&inbound, &outbound].iter().all(|rules| rules.as_array().is_some_and(Vec::is_empty)) {
            return Err("at least one rule is required");
        }
        Ok(json!({
            "id": id, "status": "succeeded", "created_at": created, "pending_changes": [], "name": name,
            "droplet_ids": list("droplet_ids"), "tags": tags, "inbound_rules": inbound, "outbound_rules": outbound,
        }))
    }

    fn add_firewall(&mut self, asked: &Asked<'_>, now: Time) -> Reply {
        match self.wanted_firewall(asked, &uuid(100 + self.next_firewall), &json!(now.to_string())) {
            Ok(firewall) => {
                self.next_firewall += 1;
                self.firewalls.push(firewall.clone());
                Reply::json(202, json!({ "firewall": firewall }))
            }
            Err(message) => Reply::unprocessable(message),
        }
    }

    fn firewall(&mut self, asked: &Asked<'_>, id: &str) -> Reply {
        let Some(index) = self.firewalls.iter().position(|known| known["id"] == id) else { return Reply::not_found() };
        match asked.method {
            "GET" => Reply::json(200, json!({ "firewall": self.firewalls[index] })),
            "PUT" => match self.wanted_firewall(asked, id, &self.firewalls[index]["created_at"]) {
                Ok(firewall) => {
                    self.firewalls[index] = firewall.clone();
                    Reply::json(200, json!({ "firewall": firewall }))
                }
                Err(message) => Reply::unprocessable(message),
            },
            "DELETE" => {
                self.firewalls.remove(index);
                Reply::empty()
            }
            _ => Reply::not_found(),
        }
    }

    fn silence(&mut self) -> Silence {
        let all = [Silence::Closes, Silence::Hangs, Silence::Breaks];
        self.silence.unwrap_or_else(|| all[self.rng.usize(0..all.len())])
    }

    fn happens(&mut self, thousandths: u16) -> bool {
        thousandths > 0 && self.rng.u16(0..1000) < thousandths
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Copy)]
struct Page {
    nth: u64,
    per_page: u64,
}

impl Page {
    fn of(asked: &Asked<'_>) -> Result<Self, Reply> {
        let number = |name: &str, or: u64| asked.query.get(name).map_or(Ok(or), |text| text.parse::<u64>());
        match (number("page", 1), number("per_page", PAGE)) {
            (Ok(nth @ 1..=1_000_000), Ok(per_page @ 1..=PAGE_MAX)) => Ok(Self { nth, per_page }),
            _ => Err(Reply::unprocessable("page or per_page is out of range")),
        }
    }

    fn start(self) -> usize {
        usize::try_from((self.nth - 1) * self.per_page).unwrap_or(usize::MAX)
    }

    fn size(self) -> usize {
        usize::try_from(self.per_page).unwrap_or(usize::MAX)
    }
}

fn is_host_name(name: &str) -> bool {
    (1..=NAME_MAX_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        && name.ends_with(|last: char| last.is_ascii_alphanumeric())
}

fn is_tag(name: &str) -> bool {
    (1..=NAME_MAX_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':'))
}

fn uuid(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}
