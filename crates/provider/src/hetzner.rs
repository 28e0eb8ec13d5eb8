//! Hetzner Cloud, API v1: <https://docs.hetzner.cloud/reference/cloud>.
//!
//! A name is given once in a project, so a server that is there already by the
//! wanted name is the one that an earlier request made, and is taken for it.
//! Labels are set together with the server; lists go by them, 50 a page.
//! Prices are in euros there, and hours that have begun are billed whole.

use crate::{
    Answer, Capabilities, Image, Provider, ProviderError, Said, Seen, Settings, Status, Wanted, delete_by_number,
    http::{Http, Page, escaped, named, read_all},
    limiter::Limiter,
    read,
};
use bulkhead_core::FleetName;
use bulkhead_scale::{Billing, CreateAnswer, DeleteAnswer, ServerId};
use serde::Deserialize;
use serde_json::json;
use std::net::{Ipv4Addr, Ipv6Addr};
use ureq::http::Method;

const CAPABILITIES: Capabilities = Capabilities {
    is_name_unique: true,
    billing: Billing::PerHour,
    batch: 1,
    per_minute: None,
    per_hour: Some(3_600),
    user_data_max_bytes: 32 * 1024,
};
/// The most that a page may hold.
const PAGE: u64 = 50;
const SERVERS: &str = "/v1/servers";
/// The label of a fleet's servers.
const LABEL: &str = "bulkhead-fleet";

/// A client of Hetzner Cloud for one fleet; its token is a project's.
#[derive(Debug)]
pub struct Hetzner {
    http: Http,
    fleet: FleetName,
}

impl Hetzner {
    /// Where the real one is.
    pub const BASE_URL: &str = "https://api.hetzner.cloud";

    /// A client for machines of this fleet. Nothing is asked yet.
    ///
    /// # Errors
    /// Where the address may not be used.
    pub fn new(settings: Settings, fleet: FleetName) -> Result<Self, ProviderError> {
        let limiter = Limiter::new(CAPABILITIES.per_minute, CAPABILITIES.per_hour);
        Ok(Self { http: Http::new(settings, limiter, read_error)?, fleet })
    }

    fn order(&self, wanted: &Wanted) -> Result<serde_json::Value, ProviderError> {
        wanted.user_data.check(CAPABILITIES.user_data_max_bytes)?;
        let mut labels = serde_json::Map::new();
        labels.extend(wanted.tags.iter().map(|tag| (tag.clone(), json!(""))));
        labels.insert(LABEL.to_owned(), json!(self.fleet.as_str()));
        let mut body = json!({
            "name": &*wanted.name,
            "server_type": wanted.size,
            "location": wanted.region,
            "image": match &wanted.image {
                Image::Slug(slug) => json!(slug),
                Image::Id(id) => json!(id),
            },
            "ssh_keys": wanted.ssh_keys.iter().map(|key| key.parse::<u64>().map_or_else(|_| json!(key), |id| json!(id))).collect::<Vec<_>>(),
            "labels": labels,
            "user_data": wanted.user_data.as_str(),
        });
        if let Some(network) = &wanted.network {
            let wrong = |_| ProviderError::Wanted { what: "network", value: network.clone() };
            body["networks"] = json!([network.parse::<u64>().map_err(wrong)?]);
        }
        Ok(body)
    }

    fn post(&self, wanted: &Wanted) -> Result<ServerId, ProviderError> {
        #[derive(Deserialize)]
        struct Made {
            id: u64,
            name: String,
        }
        #[derive(Deserialize)]
        struct Body {
            server: Made,
        }
        let Body { server } = self.http.read(&Method::POST, SERVERS, Some(&self.order(wanted)?))?;
        if server.name == *wanted.name {
            Ok(ServerId(server.id))
        } else {
            Err(ProviderError::Astray { request: named(&Method::POST, SERVERS) })
        }
    }

    fn page(&self, filter: &str, nth: u64) -> Result<Page<ServerBody>, ProviderError> {
        #[derive(Deserialize)]
        struct Pagination {
            total_entries: u64,
        }
        #[derive(Deserialize)]
        struct Meta {
            pagination: Pagination,
        }
        #[derive(Deserialize)]
        struct Body {
            servers: Vec<ServerBody>,
            meta: Meta,
        }
        let body: Body = self.http.get(&format!("{SERVERS}?{filter}&page={nth}&per_page={PAGE}"))?;
        Ok(Page { total: body.meta.pagination.total_entries, items: body.servers })
    }

    fn all(&self, filter: &str) -> Result<Vec<ServerBody>, ProviderError> {
        read_all("servers", PAGE, |server: &ServerBody| server.id, |nth| self.page(filter, nth))
    }
}

impl Provider for Hetzner {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn create(&self, wanted: &Wanted) -> Answer<CreateAnswer> {
        let error = match self.post(wanted) {
            Ok(id) => return Answer::plain(CreateAnswer::Made(id)),
            Err(error) => error,
        };
        let answer = match error.said() {
            Some((409, said)) if said.id == "uniqueness_error" => {
                let there = self.all(&format!("name={}", escaped(&wanted.name)));
                let there = there.ok().and_then(|there| there.into_iter().find(|server| server.name == *wanted.name));
                // It is there by that name, and cannot be shown just now: lists will.
                there.map_or(CreateAnswer::Unclear, |server| CreateAnswer::Made(ServerId(server.id)))
            }
            Some((_, said)) if said.id == "resource_limit_exceeded" => CreateAnswer::Quota,
            _ => error.of_create(),
        };
        Answer::because(answer, error)
    }

    fn list(&self) -> Result<Vec<Seen>, ProviderError> {
        let suffix = format!(".{}.bulkhead", self.fleet);
        let all = self.all(&format!("label_selector={}", escaped(&format!("{LABEL}={}", self.fleet))))?;
        all.into_iter().filter(|server| server.name.ends_with(&suffix)).map(|server| server.seen(SERVERS)).collect()
    }

    fn get(&self, id: ServerId) -> Result<Option<Seen>, ProviderError> {
        #[derive(Deserialize)]
        struct Body {
            server: ServerBody,
        }
        let path = format!("{SERVERS}/{id}");
        match self.http.get::<Body>(&path) {
            Ok(body) if body.server.id != id.0 => Err(ProviderError::Astray { request: named(&Method::GET, &path) }),
            Ok(body) => body.server.seen(&path).map(Some),
            Err(ProviderError::Said { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn delete(&self, id: ServerId, name: &str) -> Answer<DeleteAnswer> {
        let path = format!("{SERVERS}/{id}");
        delete_by_number(self, id, name, || self.http.send(&Method::DELETE, &path, None).map(drop))
    }
}

/// `{"error": {"code": …, "message": …}}`.
fn read_error(body: &[u8]) -> Option<Said> {
    #[derive(Deserialize)]
    struct Error {
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Body {
        error: Error,
    }
    let Body { error } = serde_json::from_slice(body).ok()?;
    Some(Said { id: error.code, message: error.message, request_id: None })
}

#[derive(Deserialize)]
struct ServerBody {
    id: u64,
    name: String,
    created: String,
    status: String,
    #[serde(default)]
    public_net: PublicNet,
}

#[derive(Deserialize, Default)]
struct PublicNet {
    ipv4: Option<PublicIp>,
    ipv6: Option<PublicIp>,
}

#[derive(Deserialize)]
struct PublicIp {
    ip: String,
}

impl ServerBody {
    fn seen(self, path: &str) -> Result<Seen, ProviderError> {
        let created =
            read::moment(&self.created).ok_or(ProviderError::Astray { request: named(&Method::GET, path) })?;
        Ok(Seen {
            id: ServerId(self.id),
            name: self.name.into(),
            created,
            status: match self.status.as_str() {
                "initializing" | "starting" => Status::New,
                "running" => Status::Active,
                "off" | "stopping" => Status::Off,
                _ => Status::Other,
            },
            v4: self.public_net.ipv4.and_then(|net| net.ip.parse::<Ipv4Addr>().ok()),
            // A whole network is given; its machine has the first address.
            v6: self.public_net.ipv6.and_then(|net| {
                let first = net.ip.strip_suffix("/64")?.parse::<Ipv6Addr>().ok()?;
                Some(Ipv6Addr::from_bits(first.to_bits() | 1))
            }),
        })
    }
}
