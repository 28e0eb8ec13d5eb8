//! Decoders of bytes that somebody else chooses, each as a function that takes
//! bytes and must neither panic nor take what does not stand the way back.
//!
//! `cargo xtask fuzz` runs libFuzzer over each ([`TARGETS`], the runner in
//! `fuzz/`); the smoke test in `tests/` runs their first inputs, and some
//! thousands of changes of these, wherever the tests run.
//!
//! Where a decoder accepts, its answer is encoded again and must come back the
//! same: two readings of the same bytes are what attacks on signatures live on.

use bulkhead_core::{
    FileDigest, ImageId, Timestamp,
    grant::Grant,
    image::{Entry, Image, ImageConfig, Node},
    notice::{Discharge, Heartbeat, Revocation, Revoked},
    order::{Action, Health, HealthCheck, Order, Run, ServiceSpec},
    policy::{Demand, Environment, Key, Policy, Role, Root},
    standing::StandingOrder,
    statement::{Predicate, Statement, TestResult},
    verity,
};
use bulkhead_store::pack::{self, Nothing, Options, Sink};
use bulkhead_trust::{
    PublicKey,
    audit::{self, Chain, What},
    sshsig,
};
use bulkhead_wire::{Event, Kind, Request, frame};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

/// One decoder.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, as `cargo xtask fuzz` takes it.
    pub name: &'static str,
    /// Feeds it; whether it accepted.
    pub run: fn(&[u8]) -> bool,
    /// What it accepts: where changes begin.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "sshsig", run: signature, seeds: signatures },
    Target { name: "key", run: key, seeds: keys },
    Target { name: "order", run: order, seeds: orders },
    Target { name: "policy", run: policy, seeds: policies },
    Target { name: "statement", run: statement, seeds: statements },
    Target { name: "standing", run: standing, seeds: standings },
    Target { name: "grant", run: grant, seeds: grants },
    Target { name: "notice", run: notice, seeds: notices },
    Target { name: "frame", run: frames, seeds: framed },
    Target { name: "message", run: message, seeds: messages },
    Target { name: "image", run: image, seeds: images },
    Target { name: "document", run: document, seeds: documents },
    Target { name: "pack", run: packed, seeds: packs },
    Target { name: "audit", run: chain, seeds: audits },
];

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO92SB71v5YBUOl3Jy/6mjI8LJJau2i2qR6UXkv6GxqN";
const SIGNATURE: &str = "-----BEGIN SSH SIGNATURE-----\nU1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAg73ZIHvW/lgFQ6XcnL/qaMjwskl\nq7aLapHpReS/obGo0AAAAOb3JkZXJAYnVsa2hlYWQAAAAAAAAABnNoYTUxMgAAAFMAAAAL\nc3NoLWVkMjU1MTkAAABAYNfAhDnC7m5u/X7++Ybl3RHDxiQ0Vu7485A3D42FrFXS7BpOfp\nHCepaPFXJOIVDdPhzKyGThXAW72nkGmjI6CA==\n-----END SSH SIGNATURE-----\n";
const MESSAGE: &[u8] = b"hello\n";

fn signature(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(signer) = sshsig::verify(text, "order@bulkhead", MESSAGE) else { return false };
    // Only the one key has ever signed this.
    assert_eq!(Ok(signer.key), PublicKey::parse(KEY));
    true
}

fn signatures() -> Vec<Vec<u8>> {
    vec![SIGNATURE.into()]
}

fn key(bytes: &[u8]) -> bool {
    let from_blob = PublicKey::from_blob(bytes).ok();
    if let Some(key) = &from_blob {
        assert_eq!(PublicKey::parse(&key.to_openssh()).as_ref(), Ok(key));
    }
    let from_text = std::str::from_utf8(bytes).ok().and_then(|text| PublicKey::parse(text).ok());
    if let Some(key) = &from_text {
        assert_eq!(PublicKey::from_blob(key.blob()).as_ref(), Ok(key));
    }
    from_blob.or(from_text).is_some()
}

fn keys() -> Vec<Vec<u8>> {
    let blob = PublicKey::parse(KEY).map(|key| key.blob().to_vec()).unwrap_or_default();
    vec![KEY.into(), blob]
}

fn order(bytes: &[u8]) -> bool {
    let Ok(order) = Order::parse(bytes) else { return false };
    assert_eq!(Order::parse(&order.to_bytes()), Ok(order));
    true
}

fn service() -> Option<ServiceSpec> {
    Some(ServiceSpec {
        workdir: "/app".into(),
        env: BTreeMap::from([("A".into(), "b".into())]),
        port: Some(3000),
        health: Health { check: HealthCheck::Http { path: "/health".into() }, within_ms: 1000 },
        memory_max_bytes: Some(1 << 20),
        jit: true,
        secrets: BTreeSet::from(["token".parse().ok()?]),
        ..ServiceSpec::new("web".parse().ok()?, vec!["node".into(), "server.js".into()])
    })
}

fn orders() -> Vec<Vec<u8>> {
    let make = |action| {
        Some(Order {
            format: 1,
            fleet: "acme".parse().ok()?,
            environment: "staging".parse().ok()?,
            app: "notes".parse().ok()?,
            targets: BTreeMap::from([("n1".parse().ok()?, order_target(matches!(action, Action::Run(_))))]),
            issued: Timestamp(0),
            not_after: Timestamp(600),
            policy: 1,
            action,
            break_glass: None,
            message: Some("why".into()),
        })
    };
    let run = service().map(|service| {
        Action::Run(Run {
            image: ImageId([7; 32]),
            services: vec![service],
            source: None,
            origin: None,
            fallback: BTreeSet::new(),
        })
    });
    let all = run.into_iter().chain([Action::Stop { services: vec![] }, Action::Remove { volumes: true }]);
    all.filter_map(make).map(|order| order.to_bytes()).collect()
}

fn order_target(runs: bool) -> bulkhead_core::order::Target {
    let mut target = bulkhead_core::order::Target::new(1, None, bulkhead_core::BootId([9; 32]));
    target
        .secrets
        .extend("token".parse().ok().filter(|_| runs).map(|name| (name, bulkhead_core::SecretDigest([5; 32]))));
    target
}

fn policy(bytes: &[u8]) -> bool {
    let Ok(policy) = Policy::parse(bytes) else { return false };
    drop(bulkhead_trust::policy::check_keys(&policy));
    assert_eq!(Policy::parse(&policy.to_bytes()), Ok(policy));
    true
}

fn policies() -> Vec<Vec<u8>> {
    let make = || {
        Some(Policy {
            format: 1,
            fleet: "acme".parse().ok()?,
            version: 1,
            root: Root { threshold: 1, keys: vec![KEY.into()], verify_user: false },
            keys: BTreeMap::from([(
                "ada".parse().ok()?,
                Key { key: KEY.into(), roles: Role::ALL.into(), verify_user: true },
            )]),
            environments: BTreeMap::from([(
                "staging".parse().ok()?,
                Environment { heartbeat_s: Some(3600), ..Environment::accepting(Demand::green_and_release(1)) },
            )]),
            nodes: BTreeMap::new(),
            revoked: Revoked { images: [ImageId([1; 32])].into(), ..Revoked::default() },
        })
    };
    make().map(|policy| policy.to_bytes()).into_iter().collect()
}

fn statement(bytes: &[u8]) -> bool {
    let Ok(statement) = Statement::parse(bytes) else { return false };
    assert_eq!(Statement::parse(&statement.to_bytes()), Ok(statement));
    true
}

fn statements() -> Vec<Vec<u8>> {
    let make = || {
        Some(Statement {
            app: "notes".parse().ok()?,
            image: ImageId([7; 32]),
            predicate: Predicate {
                result: TestResult::Passed,
                fleet: "acme".parse().ok()?,
                repository: "r".into(),
                commit: "c".into(),
                builder: "b".into(),
                issued: Timestamp(7),
            },
        })
    };
    make().map(|statement| statement.to_bytes()).into_iter().collect()
}

fn standing(bytes: &[u8]) -> bool {
    let Ok(standing) = StandingOrder::parse(bytes) else { return false };
    assert_eq!(StandingOrder::parse(&standing.to_bytes()), Ok(standing));
    true
}

fn standings() -> Vec<Vec<u8>> {
    let make = || {
        Some(StandingOrder {
            format: 1,
            fleet: "acme".parse().ok()?,
            environment: "staging".parse().ok()?,
            app: "notes".parse().ok()?,
            nodes: BTreeSet::from(["n1".parse().ok()?]),
            services: vec![service()?],
            issued: Timestamp(0),
            not_after: Timestamp(1000),
            uses_max: 3,
        })
    };
    make().map(|standing| standing.to_bytes()).into_iter().collect()
}

fn grant(bytes: &[u8]) -> bool {
    let Ok(grant) = Grant::parse(bytes) else { return false };
    assert!(!grant.workload().is_empty() && grant.instance(grant.instances).is_some());
    assert_eq!(Grant::parse(&grant.to_bytes()), Ok(grant));
    true
}

fn grants() -> Vec<Vec<u8>> {
    let make = || {
        Some(Grant {
            format: 1,
            fleet: "acme".parse().ok()?,
            environment: "staging".parse().ok()?,
            pool: "kernels".parse().ok()?,
            app: "notes".parse().ok()?,
            run: Run::new(ImageId([7; 32]), vec![ServiceSpec { secrets: BTreeSet::new(), ..service()? }]),
            secrets: BTreeMap::new(),
            scratch: false,
            key: "ssh-ed25519 AAAA".into(),
            machines: 3,
            instances: 23,
            issued: Timestamp(0),
            not_after: Timestamp(1000),
        })
    };
    make().map(|grant| grant.to_bytes()).into_iter().collect()
}

fn notice(bytes: &[u8]) -> bool {
    if let Ok(revocation) = Revocation::parse(bytes) {
        assert_eq!(Revocation::parse(&revocation.to_bytes()), Ok(revocation));
        return true;
    }
    if let Ok(discharge) = Discharge::parse(bytes) {
        assert_eq!(Discharge::parse(&discharge.to_bytes()), Ok(discharge));
        return true;
    }
    let Ok(heartbeat) = Heartbeat::parse(bytes) else { return false };
    assert_eq!(Heartbeat::parse(&heartbeat.to_bytes()), Ok(heartbeat));
    true
}

fn notices() -> Vec<Vec<u8>> {
    let (Ok(fleet), Ok(node)) = ("acme".parse::<bulkhead_core::FleetName>(), "n1".parse()) else { return vec![] };
    let revocation = Revocation {
        format: 1,
        fleet: fleet.clone(),
        issued: Timestamp(7),
        reason: "why".into(),
        revoked: Revoked { images: [ImageId([1; 32])].into(), ..Revoked::default() },
    };
    let discharge = Discharge {
        format: 1,
        fleet: fleet.clone(),
        node,
        boot: bulkhead_core::BootId([9; 32]),
        issued: Timestamp(7),
        not_after: Timestamp(8),
        volumes: true,
        reason: "sold".into(),
    };
    let heartbeat = Heartbeat { format: 1, fleet, issued: Timestamp(7), policy: 3 };
    vec![revocation.to_bytes(), heartbeat.to_bytes(), discharge.to_bytes()]
}

fn frames(mut bytes: &[u8]) -> bool {
    // As many as there are; each is at least its header long, so this ends.
    loop {
        match frame::read_frame(&mut bytes) {
            Ok(Some(frame)) => {
                let mut again = Vec::new();
                frame::write_frame(&mut again, frame.kind, &frame.payload).expect("what was read can be written");
                assert_eq!(frame::read_frame(&mut again.as_slice()).ok().flatten(), Some(frame));
            }
            other => return matches!(other, Ok(None)),
        }
    }
}

fn framed() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    for (kind, payload) in
        [(Kind::Message, &b"{\"protocol\":1,\"ask\":\"status\"}"[..]), (Kind::Data, b"x"), (Kind::End, b"")]
    {
        frame::write_frame(&mut bytes, kind, payload).expect("a Vec takes everything");
    }
    vec![bytes]
}

fn message(bytes: &[u8]) -> bool {
    use bulkhead_wire::serde_json;
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let again = serde_json::to_vec(&request).expect("plain data always serialises");
        assert_eq!(serde_json::from_slice::<Request>(&again).ok(), Some(request));
        return true;
    }
    let Ok(event) = serde_json::from_slice::<Event>(bytes) else { return false };
    serde_json::to_vec(&event).expect("plain data always serialises");
    true
}

fn messages() -> Vec<Vec<u8>> {
    [
        r#"{"protocol":1,"ask":"status"}"#,
        r#"{"protocol":1,"ask":"submit","signatures":["x"],"image":null,"wait_ms":5}"#,
        r#"{"protocol":1,"ask":"bring","paper":"policy","signatures":[]}"#,
        r#"{"protocol":1,"ask":"look","app":"a","service":"b","view":{"view":"files","path":"/"}}"#,
        r#"{"event":"missing","count":3,"bits":"07"}"#,
        r#"{"event":"failed","kind":"refused","rule":"counter","message":"m","hint":null}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn image(bytes: &[u8]) -> bool {
    let Ok(image) = Image::decode(bytes) else { return false };
    // One image has exactly one encoding.
    assert_eq!(image.encode(), bytes);
    true
}

fn images() -> Vec<Vec<u8>> {
    let config = ImageConfig { platform: "linux/amd64".into(), allowed: vec![], tools: false };
    let entry = |path: &str, node| Entry { path: path.into(), node };
    let entries = vec![
        entry("app", Node::Directory { mode: 0o755 }),
        entry("app/run", Node::File { mode: 0o755, size_bytes: 3, digest: verity::digest(b"abc") }),
        entry("app/link", Node::Symlink { target: b"run".to_vec() }),
    ];
    Image::new(config, entries).map(|image| image.encode()).into_iter().collect()
}

/// The most that a document may unpack to here: a fuzzer with gigabytes finds nothing but gigabytes.
const UNPACKED_MAX_BYTES: usize = 1 << 20;

fn document(bytes: &[u8]) -> bool {
    let base = images().pop();
    let unpack = |base| match pack::decompress_document(bytes, base, UNPACKED_MAX_BYTES) {
        Ok(document) => {
            assert!(document.len() <= UNPACKED_MAX_BYTES);
            image(&document)
        }
        Err(_) => false,
    };
    let alone = unpack(None);
    unpack(base.as_deref()) || alone
}

fn documents() -> Vec<Vec<u8>> {
    let images = images();
    images.iter().filter_map(|document| pack::compress_document(document, None).ok()).collect()
}

/// Takes everything, and demands that what was passed as right is.
#[derive(Default)]
struct Judge {
    open: Option<(FileDigest, Vec<u8>)>,
    taken: BTreeSet<FileDigest>,
}

impl Sink for Judge {
    fn wants(&mut self, digest: &FileDigest, size_bytes: u64) -> bool {
        size_bytes <= UNPACKED_MAX_BYTES as u64 && !self.taken.contains(digest)
    }
    fn begin(&mut self, digest: &FileDigest, _: u64) -> io::Result<()> {
        assert!(self.open.replace((*digest, Vec::new())).is_none());
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open.as_mut().expect("it was begun").1.extend_from_slice(bytes);
        Ok(())
    }
    fn finish(&mut self) -> io::Result<()> {
        let (digest, bytes) = self.open.take().expect("it was begun");
        assert_eq!(verity::digest(&bytes), digest, "wrong bytes were passed as right");
        self.taken.insert(digest);
        Ok(())
    }
    fn abandon(&mut self) {
        self.open = None;
    }
}

fn packed(mut bytes: &[u8]) -> bool {
    pack::decode(&mut bytes, &Nothing, &mut Judge::default()).is_ok()
}

fn packs() -> Vec<Vec<u8>> {
    let file = b"a file of an image, and then some: ".repeat(40);
    let item = pack::Item { digest: verity::digest(&file), size_bytes: file.len() as u64, base: None };
    let contents = HashMap::from([(item.digest, file)]);
    let mut out = Vec::new();
    let options = Options { threads: 1, ..Options::default() };
    match pack::encode(&[item], &contents, &Nothing, &mut out, None, &options) {
        Ok(_) => vec![out],
        Err(_) => vec![],
    }
}

fn chain(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| Chain::check(text).is_ok())
}

fn audits() -> Vec<Vec<u8>> {
    use bulkhead_wire::serde_json;
    let mut lines = Vec::new();
    let mut before = None;
    for number in 1..=3 {
        let mut entry = audit::Entry::new(What::Accepted, Timestamp(7), bulkhead_core::OrderId([5; 32]));
        entry.number = number;
        entry.previous = before.unwrap_or(entry.previous);
        let line = serde_json::to_vec(&entry).expect("plain data always serialises");
        before = Some(bulkhead_core::EntryId::of(&line));
        lines.extend_from_slice(&line);
        lines.push(b'\n');
    }
    vec![lines]
}
