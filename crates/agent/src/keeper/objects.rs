//! Objects of an image that this node holds, packed for a client that sends
//! them on to another node: one that did not build the image, or has forgotten it.
//!
//! Nothing is kept from being removed meanwhile: whoever may connect could
//! otherwise hold garbage collection off for as long as they like. An object that
//! goes while it is wanted ends the answer with a failure, and the client asks
//! another node.

use super::{OrFail, chain, failure};
use crate::peer::Peer;
use bulkhead_core::ImageId;
use bulkhead_store::{
    Store,
    pack::{Item, Nothing, Options, PackError, encode},
};
use bulkhead_wire::{Event, Failure, FailureKind, distinct_objects, parse_missing_bits};

/// One thread and little effort: what runs on the node goes first. With one
/// thread the encoder holds at most four blocks of 4 MiB.
const EFFORT: Options = Options { level: 1, delta_level: 1, threads: 1 };

/// Sends a pack of the wanted objects.
///
/// # Errors
/// The image is not here, or not wholly; the request does not fit it; the client is gone.
pub fn send(store: &Store, peer: &mut Peer, image: ImageId, wanted: &str) -> Result<(), Box<Failure>> {
    let absent = |how: &str| {
        let message = format!("image {} is not{how} on this node", image.short());
        failure(FailureKind::Request, "no-image", message)
    };
    let objects = distinct_objects(&store.image(image).or_fail()?.ok_or_else(|| absent(""))?);
    let wanted = parse_missing_bits(wanted, objects.len())
        .map_err(|what| failure(FailureKind::Request, "malformed", format!("the objects wanted: {what}")))?;
    let wanted: Vec<_> = objects.into_iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(one, _)| one).collect();
    if store.missing(&wanted).or_fail()?.contains(&true) {
        return Err(absent(" wholly"));
    }
    let items: Vec<Item> =
        wanted.into_iter().map(|(digest, size_bytes)| Item { digest, size_bytes, base: None }).collect();

    peer.send(&Event::Stream { bytes: None }).or_fail()?;
    let mut out = peer.outflow();
    encode(&items, store, &Nothing, &mut out, None, &EFFORT).map_err(|error| match &error {
        PackError::Absent { .. } => absent(" any more"),
        PackError::Write(_) => failure(FailureKind::Request, "protocol", chain(&error)),
        _ => failure(FailureKind::Node, "store", chain(&error)),
    })?;
    out.end().or_fail()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::{
        FileDigest,
        image::{Entry, Image, ImageConfig, Node},
        verity,
    };
    use bulkhead_store::pack::{Sink, decode};
    use bulkhead_wire::missing_bits;
    use std::{
        collections::{BTreeMap, HashMap},
        io,
        os::unix::net::UnixStream,
        thread,
    };

    #[derive(Default)]
    struct Taken {
        now: Option<(FileDigest, Vec<u8>)>,
        all: BTreeMap<FileDigest, Vec<u8>>,
    }

    impl Sink for Taken {
        fn wants(&mut self, _: &FileDigest, _: u64) -> bool {
            true
        }
        fn begin(&mut self, digest: &FileDigest, _: u64) -> io::Result<()> {
            self.now = Some((*digest, vec![]));
            Ok(())
        }
        fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.now.as_mut().unwrap().1.extend_from_slice(bytes);
            Ok(())
        }
        fn finish(&mut self) -> io::Result<()> {
            self.all.extend(self.now.take());
            Ok(())
        }
        fn abandon(&mut self) {
            self.now = None;
        }
    }

    /// Files of several kinds: empty, small, larger than a record of a pack.
    fn files() -> Vec<Vec<u8>> {
        [0, 10, 300_000, (4 << 20) + 7].map(|length: u32| (0..length).map(|n| (n / 5 % 251) as u8).collect()).into()
    }

    fn filled(directory: &std::path::Path) -> (Store, Image) {
        let files = files();
        let digests: Vec<FileDigest> = files.iter().map(|bytes| verity::digest(bytes)).collect();
        let entries = files.iter().zip(&digests).enumerate().map(|(number, (bytes, digest))| Entry {
            path: format!("f{number}").into_bytes(),
            node: Node::File { mode: 0o644, size_bytes: bytes.len() as u64, digest: *digest },
        });
        let config = ImageConfig { platform: "linux/amd64".into(), allowed: vec![], tools: false };
        let image = Image::new(config, entries.collect()).unwrap();
        let contents: HashMap<FileDigest, Vec<u8>> = digests.into_iter().zip(files).collect();
        let items: Vec<Item> = distinct_objects(&image)
            .into_iter()
            .map(|(digest, size_bytes)| Item { digest, size_bytes, base: None })
            .collect();
        let mut packed = Vec::new();
        encode(&items, &contents, &Nothing, &mut packed, None, &EFFORT).unwrap();
        let store = Store::open(&directory.join("store")).unwrap();
        let push = store.push().unwrap();
        push.ingest(&mut packed.as_slice(), &distinct_objects(&image).into_iter().collect()).unwrap();
        push.sync().unwrap();
        push.put_document(image.id(), &image.encode()).unwrap();
        drop(push);
        (store, image)
    }

    /// What a client gets: the stream's bytes, or nothing but the failure.
    fn ask(store: &Store, image: ImageId, wanted: &str) -> (Vec<u8>, Result<(), Box<Failure>>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut peer = Peer::new(ours).unwrap();
        thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let mut bytes = Vec::new();
                while let Ok(Some(frame)) = bulkhead_wire::read_frame(&mut theirs) {
                    if frame.kind == bulkhead_wire::Kind::Data {
                        bytes.extend(frame.payload);
                    }
                }
                bytes
            });
            let result = send(store, &mut peer, image, wanted);
            drop(peer);
            (reading.join().unwrap(), result)
        })
    }

    #[test]
    fn what_is_wanted_comes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (store, image) = filled(directory.path());
        for wanted in [[true; 4], [false, true, false, true], [false; 4]] {
            let (packed, result) = ask(&store, image.id(), &missing_bits(&wanted));
            result.unwrap();
            let mut taken = Taken::default();
            decode(&mut packed.as_slice(), &Nothing, &mut taken).unwrap();
            let expected: BTreeMap<FileDigest, Vec<u8>> = files()
                .into_iter()
                .zip(wanted)
                .filter(|(_, wanted)| *wanted)
                .map(|(bytes, _)| (verity::digest(&bytes), bytes))
                .collect();
            assert!(taken.all == expected, "{wanted:?}");
        }
    }

    #[test]
    fn what_is_not_here_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (store, image) = filled(directory.path());
        let all = missing_bits(&[true; 4]);
        let refused = |id, wanted: &str, rule: &str| {
            let (packed, result) = ask(&store, id, wanted);
            assert!(packed.is_empty());
            assert_eq!(result.unwrap_err().rule, rule, "{wanted}");
        };
        refused(ImageId::of(b"another"), &all, "no-image");
        for bits in ["", "0", "ffff", "zz"] {
            refused(image.id(), bits, "malformed");
        }
        // One object is lost: those that are there still come.
        let lost = verity::digest(&files()[2]).to_string();
        let object = directory.path().join("store/objects").join(&lost[..2]).join(&lost[2..]);
        std::fs::remove_file(object).unwrap();
        refused(image.id(), &all, "no-image");
        ask(&store, image.id(), &missing_bits(&[true, true, false, true])).1.unwrap();
    }
}
