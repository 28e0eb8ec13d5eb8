//! A node's half as far as a push needs it, on a real store: what sshd runs in
//! place of the gate. It is this test program itself, called for one test alone;
//! frames go to standard error, which the shell turns into standard output,
//! because the test harness has something to say on the latter.

use bulkhead_core::{OrderId, image::Image, order::Order};
use bulkhead_store::{Store, pack::decompress_document};
use bulkhead_wire::{
    Ask, Done, Event, Failure, FailureKind, Kind, Position, Request, Step, StepKind, Submit, distinct_objects,
    missing_bits, read_frame, write_frame,
};
use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, Read, Write as _},
    path::{Path, PathBuf},
};

/// Where the node of this name keeps its things.
const VARIABLE: &str = "BULKHEAD_TEST_GATE";

/// The command that makes an sshd a node.
pub(crate) fn command(directory: &Path) -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "{VARIABLE}={} exec {} --exact gate::serve --nocapture 2>&1 >/dev/null",
        directory.display(),
        program.display()
    )
}

/// What the node was asked to take, a line for each submission.
pub(crate) fn journal(directory: &Path) -> Vec<String> {
    fs::read_to_string(directory.join("journal")).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Reads one stream's bytes.
struct Stream {
    rest: Vec<u8>,
    ended: bool,
    bytes: u64,
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            let frame = read_frame(&mut io::stdin()).map_err(io::Error::other)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match frame.kind {
                Kind::Data => self.rest = frame.payload,
                Kind::End => self.ended = true,
                Kind::Message => return Err(io::Error::other("a message within a stream")),
            }
            self.bytes += self.rest.len() as u64;
        }
        let count = to.len().min(self.rest.len());
        to[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

fn stream() -> Stream {
    Stream { rest: Vec::new(), ended: false, bytes: 0 }
}

fn whole() -> Vec<u8> {
    let mut bytes = Vec::new();
    stream().read_to_end(&mut bytes).unwrap();
    bytes
}

fn say(event: &Event) {
    let mut out = io::stderr();
    write_frame(&mut out, Kind::Message, &serde_json::to_vec(event).unwrap()).unwrap();
}

fn step(kind: StepKind) {
    say(&Event::Step(Step { step: kind, service: None, at_ms: 1 }));
}

/// Not a test by itself: what [`command`] runs.
#[test]
fn serve() {
    let Some(directory) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    // A panic's text is no frame.
    let place = directory.clone();
    std::panic::set_hook(Box::new(move |panic| note(&place, &panic.to_string())));
    let frame = read_frame(&mut io::stdin()).unwrap().unwrap();
    let mut request: Request = serde_json::from_slice(&frame.payload).unwrap();
    if request.ask == Ask::Await && !directory.join("impatient").exists() {
        note(&directory, "ready");
        let Some(frame) = read_frame(&mut io::stdin()).unwrap() else { return };
        request = serde_json::from_slice(&frame.payload).unwrap();
        if matches!(request.ask, Ask::Releases { .. }) {
            note(&directory, "asked");
            say(&Event::Done(Done::default()));
            let Some(frame) = read_frame(&mut io::stdin()).unwrap() else { return };
            request = serde_json::from_slice(&frame.payload).unwrap();
        }
    }
    match request.ask {
        Ask::Submit(submit) => take(&directory, submit),
        Ask::Ping => say(&Event::Done(Done::default())),
        // A status of another shape than was asked for, and then nothing.
        _ => {
            say(&Event::Missing { count: 1, bits: "01".into() });
            note(&directory, "hung up");
        }
    }
}

fn take(directory: &Path, submit: Submit) {
    let order_bytes = whole();
    let order = Order::parse(&order_bytes).unwrap();
    let path = directory.join("position");
    let position: Position = serde_json::from_slice(&fs::read(&path).unwrap_or_default()).unwrap_or_default();
    let name = fs::read_to_string(directory.join("name")).unwrap();
    let target = &order.targets[&name.parse().unwrap()];
    if target.counter != position.counter + 1 || target.previous != position.previous {
        note(directory, "elsewhere");
        return say(&Event::Failed(Failure {
            kind: FailureKind::Refused,
            rule: "counter".into(),
            message: "not the next".into(),
            hint: None,
            log: vec![],
            position: Some(position),
        }));
    }
    step(StepKind::Accepted);
    let id = OrderId::of(&order_bytes);
    let next = Position { counter: target.counter, previous: Some(id), ..position };
    fs::write(&path, serde_json::to_vec(&next).unwrap()).unwrap();
    if let Some(offer) = submit.image {
        let store = Store::open(&directory.join("store")).unwrap();
        let packed = whole();
        let base = match offer.base.map(|base| store.document(base)) {
            Some(Ok(Some(base))) => Some(base),
            Some(_) => panic!("the base is not here"),
            None => None,
        };
        let document =
            decompress_document(&packed, base.as_deref(), usize::try_from(offer.document_bytes).unwrap()).unwrap();
        let image = Image::decode(&document).unwrap();
        let objects = distinct_objects(&image);
        let push = store.push().unwrap();
        let mut packs = Vec::new();
        for round in 0..2 {
            let flags = store.missing(&objects).unwrap();
            let wanted: HashMap<_, _> =
                objects.iter().zip(&flags).filter(|(_, missing)| **missing).map(|(object, _)| *object).collect();
            if round == 1 {
                if wanted.is_empty() {
                    break;
                }
                say(&Event::Missing { count: wanted.len() as u64, bits: missing_bits(&flags) });
            }
            let mut pack = stream();
            push.ingest(&mut pack, &wanted).unwrap();
            // A reader of a pack stops at its last record; the stream's end is still to come.
            io::copy(&mut pack, &mut io::sink()).unwrap();
            packs.push(pack.bytes);
        }
        step(StepKind::Received);
        push.sync().unwrap();
        push.put_document(offer.id, &document).unwrap();
        step(StepKind::Durable);
        let distinct: HashSet<_> = objects.iter().map(|(digest, _)| digest).collect();
        let packs = packs.iter().map(|bytes| if *bytes < 100 { "empty" } else { "some" }).collect::<Vec<_>>();
        note(
            directory,
            &format!(
                "{} objects, document {}, packs {}",
                distinct.len(),
                if base.is_some() { "delta" } else { "whole" },
                packs.join("+")
            ),
        );
    } else {
        note(directory, "no image");
    }
    step(StepKind::Healthy);
    say(&Event::Done(Done { release: Some(target.counter), order: Some(id), ..Done::default() }));
}

fn note(directory: &Path, text: &str) {
    let mut journal = fs::File::options().create(true).append(true).open(directory.join("journal")).unwrap();
    writeln!(journal, "{text}").unwrap();
}
