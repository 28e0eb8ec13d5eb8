//! Droplets, sizes, regions and images, as the API shows them.

use crate::world::Order;
use bulkhead_scale::{SECOND_MS, Time};
use bulkhead_sim::cloud::Real;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Regions there are.
pub(crate) const REGIONS: [(&str, &str); 3] =
    [("ams3", "Amsterdam 3"), ("fra1", "Frankfurt 1"), ("nyc3", "New York 3")];
/// Sizes there are: slug, MiB, processors, GiB, dollars a month and an hour.
pub(crate) const SIZES: [(&str, u32, u32, u32, f64, f64); 4] = [
    ("s-1vcpu-512mb-10gb", 512, 1, 10, 4.0, 0.00595),
    ("s-1vcpu-1gb", 1024, 1, 25, 6.0, 0.00893),
    ("s-2vcpu-4gb", 4096, 2, 80, 24.0, 0.03571),
    ("c-4", 8192, 4, 50, 84.0, 0.125),
];
/// Images there are.
pub(crate) const IMAGES: [(u64, &str, &str); 3] = [
    (194_111_001, "debian-12-x64", "12 x64"),
    (194_111_002, "debian-13-x64", "13 x64"),
    (194_111_003, "ubuntu-24-04-x64", "24.04 (LTS) x64"),
];
/// A droplet is said to be active then; it need not answer yet.
const ACTIVE_MS: u64 = 20 * SECOND_MS;

pub(crate) fn region(slug: &str) -> Option<Value> {
    let (slug, name) = REGIONS.iter().find(|region| region.0 == slug)?;
    let sizes: Vec<&str> = SIZES.iter().map(|size| size.0).collect();
    Some(json!({
        "name": name, "slug": slug, "features": ["backups", "ipv6", "metadata"], "available": true, "sizes": sizes,
    }))
}

pub(crate) fn size(slug: &str) -> Option<Value> {
    let (slug, memory, vcpus, disk, monthly, hourly) = SIZES.iter().find(|size| size.0 == slug)?;
    let regions: Vec<&str> = REGIONS.iter().map(|region| region.0).collect();
    Some(json!({
        "slug": slug, "memory": memory, "vcpus": vcpus, "disk": disk, "transfer": 1.0, "price_monthly": monthly,
        "price_hourly": hourly, "regions": regions, "available": true, "description": "Basic",
    }))
}

/// One by slug or by number.
pub(crate) fn image(wanted: &Value) -> Option<Value> {
    let is_it = |(id, slug, _): &&(u64, &str, &str)| {
        wanted.as_str().is_some_and(|text| text == *slug || text == id.to_string()) || wanted.as_u64() == Some(*id)
    };
    let (id, slug, name) = IMAGES.iter().find(is_it)?;
    let distribution = if slug.starts_with("debian") { "Debian" } else { "Ubuntu" };
    let regions: Vec<&str> = REGIONS.iter().map(|region| region.0).collect();
    Some(json!({
        "id": id, "name": name, "type": "base", "distribution": distribution, "slug": slug, "public": true,
        "regions": regions, "created_at": "2026-01-01T00:00:00Z", "min_disk_size": 7, "size_gigabytes": 0.5,
        "description": "", "tags": [], "status": "available", "error_message": "",
    }))
}

/// Whether it is said to be on.
pub(crate) fn is_active(real: &Real, now: Time) -> bool {
    real.usable.is_some_and(|usable| usable <= now) || now.since(real.created) >= ACTIVE_MS
}

/// Its public address, unless it was given another: from the block for benchmarks (RFC 2544).
pub(crate) fn address(real: &Real) -> Ipv4Addr {
    let [.., b, c, d] = real.id.0.to_be_bytes();
    Ipv4Addr::new(198, 18 | (b & 1), c, d)
}

pub(crate) fn droplet(real: &Real, order: &Order, now: Time) -> Value {
    let is_active = is_active(real, now);
    let id = real.id.0;
    let [.., b, c, d] = id.to_be_bytes();
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    if is_active {
        let public = order.address.unwrap_or_else(|| address(real));
        let private = Ipv4Addr::new(10, b, c, d);
        v4.push(json!({ "ip_address": private, "netmask": "255.0.0.0", "gateway": "10.0.0.1", "type": "private" }));
        v4.push(json!({ "ip_address": public, "netmask": "255.254.0.0", "gateway": "198.18.0.1", "type": "public" }));
        if order.has_v6 {
            let own = Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | u128::from(id));
            v6.push(json!({ "ip_address": own, "netmask": 64, "gateway": "2001:db8::1", "type": "public" }));
        }
    }
    let size = size(&order.size).unwrap_or_default();
    let tags: &[String] = if now >= order.tagged { &order.tags } else { &[] };
    json!({
        "id": id,
        "name": &*real.name,
        "memory": size["memory"],
        "vcpus": size["vcpus"],
        "disk": size["disk"],
        "locked": !is_active,
        "status": if is_active { "active" } else { "new" },
        "kernel": null,
        "created_at": real.created.to_string(),
        "features": ["ipv6"],
        "backup_ids": [],
        "next_backup_window": null,
        "snapshot_ids": [],
        "image": image(&order.image).unwrap_or_default(),
        "volume_ids": [],
        "size": size,
        "size_slug": order.size,
        "networks": { "v4": v4, "v6": v6 },
        "region": region(&order.region).unwrap_or_default(),
        "tags": tags,
        "vpc_uuid": order.network,
    })
}
