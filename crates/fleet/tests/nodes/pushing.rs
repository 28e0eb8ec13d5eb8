//! Pushes to nodes behind real sshds, with real stores.

use crate::{Sshd, gate, timeouts};
use bulkhead_core::{
    FileDigest, NodeName, Timestamp,
    image::{Entry, Image, ImageConfig, Node},
    order::{Action, Order, Run, ServiceSpec, Target},
    verity,
};
use bulkhead_fleet::{
    NodeClient, NodeError,
    memory::Memory,
    push::{Early, NodeOutcome, Papers, Payload, Push, PushError, SignedOrder, push_over},
};
use bulkhead_store::{cache::Cache, pack::Contents};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Read},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Files in memory.
#[derive(Debug, Clone, Default)]
struct Files(HashMap<FileDigest, Vec<u8>>);

impl Contents for Files {
    fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
        Ok(self.0.get(digest).map(|bytes| Box::new(io::Cursor::new(bytes.clone())) as Box<dyn Read + Send>))
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed * 0x9e37_79b9 + 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

struct Bed {
    _home: tempfile::TempDir,
    nodes: Vec<(Sshd, PathBuf)>,
    memory: Memory,
    cache: PathBuf,
}

impl Bed {
    fn new(count: usize) -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        for index in 0..count {
            let directory = home.path().join(format!("node-{index}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("name"), format!("node-{index}")).unwrap();
            nodes.push((Sshd::start(&gate::command(&directory))?, directory));
        }
        let memory = Memory::at(home.path().join("memory"));
        let cache = home.path().join("cache");
        Some(Self { _home: home, nodes, memory, cache })
    }

    fn journals(&self) -> Vec<Vec<String>> {
        self.nodes.iter().map(|(_, directory)| gate::journal(directory)).collect()
    }

    /// Pushes these files as an image; gives outcomes and for whom orders were made.
    async fn push(&self, files: &[(&str, Vec<u8>)]) -> (Vec<NodeOutcome>, Vec<Vec<String>>) {
        self.push_over(files, false).await
    }

    /// As [`Bed::push`]; on request over connections at which the nodes wait for an order already.
    async fn push_over(&self, files: &[(&str, Vec<u8>)], ready: bool) -> (Vec<NodeOutcome>, Vec<Vec<String>>) {
        let mut contents = Files::default();
        let entry = |(path, bytes): &(&str, Vec<u8>)| {
            let digest = verity::digest(bytes);
            contents.0.insert(digest, bytes.clone());
            let node = Node::File { mode: 0o644, size_bytes: bytes.len() as u64, digest };
            Entry { path: path.as_bytes().to_vec(), node }
        };
        let entries = files.iter().map(entry).collect();
        let config = ImageConfig { platform: "linux/amd64".into(), allowed: vec![], tools: false };
        let image = Image::new(config, entries).unwrap();
        let id = image.id();
        let payload = Payload {
            document: Arc::new(image.encode()),
            image: Arc::new(image),
            contents: Arc::new(contents),
            cache: Some(Arc::new(Cache::open(&self.cache).unwrap())),
            holders: None,
            options: bulkhead_store::pack::Options::default(),
            dropped: None,
        };
        let made: Mutex<Vec<Vec<String>>> = Mutex::default();
        let make = |targets: BTreeMap<NodeName, Target>| {
            made.lock().unwrap().push(targets.keys().map(ToString::to_string).collect());
            let order = order(targets, id);
            let signed = SignedOrder { bytes: order.to_bytes(), signatures: vec![] };
            Box::pin(async move { Ok(signed) }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
        };
        let request = Push {
            fleet: "fleet".parse().unwrap(),
            app: "app".parse().unwrap(),
            nodes: self
                .nodes
                .iter()
                .enumerate()
                .map(|(index, (sshd, _))| sshd.target_with(&format!("node-{index}"), &sshd.fleet_node(), ""))
                .collect(),
            payload: Some(payload),
            wait: Duration::ZERO,
            interruptions: None,
            papers: Papers::default(),
            accept_restored: false,
        };
        let identities =
            self.nodes.iter().fold(self.nodes[0].0.no_identities(), |all, (sshd, _)| all.with_file(sshd.path("user")));
        let mut early = Early::new();
        for target in request.nodes.iter().filter(|_| ready) {
            let client = NodeClient::connect(target, &identities, timeouts()).await.unwrap();
            let index = usize::from(target.node.as_str() == "node-1");
            let refusals = || self.journals()[index].iter().filter(|line| *line == "hung up").count();
            let before = refusals();
            client.make_ready();
            if self.nodes[index].1.join("impatient").exists() {
                let until = Instant::now() + Duration::from_secs(20);
                while refusals() == before {
                    assert!(Instant::now() < until, "it does not hang up");
                    tokio::task::yield_now().await;
                }
            }
            // What it said comes before what it says now.
            client.ping().await.unwrap();
            // Only one of them can be asked on the way.
            if target.node.as_str() == "node-0" {
                assert!(client.releases(None).await.unwrap().is_empty());
            }
            early.insert(target.node.clone(), tokio::spawn(std::future::ready(Ok(client))));
        }
        let outcomes = push_over(&request, early, &identities, timeouts(), &self.memory, &make, &|_, _| ()).await;
        let made = made.lock().unwrap().clone();
        assert!(!self.journals().concat().concat().contains("panicked"), "{:?}", self.journals());
        (outcomes, made)
    }
}

fn order(targets: BTreeMap<NodeName, Target>, image: bulkhead_core::ImageId) -> Order {
    let service = ServiceSpec::new("web".parse().unwrap(), vec!["web".into()]);
    Order {
        format: 1,
        fleet: "fleet".parse().unwrap(),
        environment: "staging".parse().unwrap(),
        app: "app".parse().unwrap(),
        targets,
        issued: Timestamp(0),
        not_after: Timestamp(1),
        policy: 1,
        action: Action::Run(Run::new(image, vec![service])),
        break_glass: None,
        message: None,
    }
}

fn release(outcome: &NodeOutcome) -> u64 {
    outcome.result.as_ref().unwrap().release.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_an_app() {
    let Some(bed) = Bed::new(2) else { return };
    let large = noise(1, 6 << 20);
    let files = |version: u64| vec![("bin", large.clone()), ("small", noise(version, 2000))];

    // Nothing is known of the nodes: they are asked what they miss.
    let (outcomes, made) = bed.push(&files(1)).await;
    assert_eq!(outcomes.iter().map(release).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(made, [["node-0", "node-1"]]);
    assert_eq!(
        bed.journals(),
        [["2 objects, document whole, packs empty+some"], ["2 objects, document whole, packs empty+some"]]
    );

    // One small file changed: all that goes is that, and no node has to ask.
    let (outcomes, made) = bed.push(&files(2)).await;
    assert_eq!(outcomes.iter().map(release).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(made.len(), 1);
    for (journal, outcome) in bed.journals().iter().zip(&outcomes) {
        assert_eq!(journal[1], "2 objects, document delta, packs some");
        let timings = &outcome.timings;
        assert!(timings.sent_bytes < 20_000, "{timings:?}");
        assert_eq!((timings.packs, timings.orders), (1, 1));
        assert!(timings.transfer_ms.is_some() && timings.durable_ms.is_some() && timings.healthy_ms.is_some());
    }

    // A large file changed in its middle: a delta over what was at its path.
    let mut changed = large.clone();
    changed[3 << 20] ^= 1;
    let (outcomes, _) = bed.push(&[("bin", changed), ("small", noise(2, 2000))]).await;
    assert_eq!(outcomes.iter().map(release).collect::<Vec<_>>(), [3, 3]);
    assert!(outcomes[0].timings.sent_bytes < 200_000, "{:?}", outcomes[0].timings);

    // One node has gone on without us: a new order, for it alone.
    let position = bulkhead_wire::Position { counter: 8, ..bulkhead_wire::Position::default() };
    fs::write(bed.nodes[1].1.join("position"), serde_json::to_vec(&position).unwrap()).unwrap();
    let (outcomes, made) = bed.push(&files(4)).await;
    assert_eq!(outcomes.iter().map(release).collect::<Vec<_>>(), [4, 9]);
    assert_eq!(made, [vec!["node-0", "node-1"], vec!["node-1"]]);

    // A node lost an object it was thought to have: it asks, and gets it whole.
    let objects = bed.nodes[0].1.join("store/objects");
    fs::remove_dir_all(&objects).unwrap();
    let (outcomes, _) = bed.push(&files(5)).await;
    assert_eq!(outcomes.iter().map(release).collect::<Vec<_>>(), [5, 10]);
    assert_eq!(bed.journals()[0].last().unwrap(), "2 objects, document delta, packs some+some");
    assert_eq!(bed.journals()[1].last().unwrap(), "2 objects, document delta, packs some");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_wait_for_the_order() {
    let Some(bed) = Bed::new(2) else { return };
    // One does not know of waiting and hangs up.
    fs::write(bed.nodes[1].1.join("impatient"), "").unwrap();
    for version in 1..=3 {
        let (outcomes, made) = bed.push_over(&[("small", noise(version, 2000))], true).await;
        assert_eq!(outcomes.iter().map(release).collect::<Vec<_>>(), [version, version]);
        assert_eq!(made.len(), 1);
    }
    let counted = |word: &str| -> Vec<usize> {
        let count = |journal: &Vec<String>| journal.iter().filter(|line| line.contains(word)).count();
        bed.journals().iter().map(count).collect()
    };
    assert_eq!((counted("ready"), counted("asked"), counted("objects")), (vec![3, 0], vec![3, 0], vec![3, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_reached_takes_no_other_with_it() {
    let Some(mut bed) = Bed::new(2) else { return };
    bed.nodes[0].0.child.kill().unwrap();
    bed.nodes[0].0.child.wait().unwrap();
    let (outcomes, _) = bed.push(&[("small", noise(1, 2000))]).await;
    assert!(matches!(&outcomes[0].result, Err(PushError::Node(NodeError::Connect { .. }))), "{outcomes:?}");
    assert_eq!(release(&outcomes[1]), 1);
    // Small enough to go without asking.
    assert_eq!(bed.journals()[1], ["1 objects, document whole, packs some"]);
    bed.nodes.remove(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests() {
    let Some(bed) = Bed::new(1) else { return };
    let sshd = &bed.nodes[0].0;
    let client = NodeClient::connect(&sshd.target(), &sshd.identities(), timeouts()).await.unwrap();
    client.ping().await.unwrap();
    assert!(matches!(client.status().await, Err(NodeError::Unexpected { .. })));
    client.close().await;

    let Some(stranger) = Sshd::start("echo no such account >&2; exit 3") else { return };
    let client = NodeClient::connect(&stranger.target(), &stranger.identities(), timeouts()).await.unwrap();
    let error = client.status().await.unwrap_err();
    assert!(error.to_string().contains("exit status 3") && error.to_string().contains("no such account"), "{error}");
}
