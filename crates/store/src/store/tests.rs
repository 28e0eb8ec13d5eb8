#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

use super::*;
use crate::pack::{self, Item, Options};
use bulkhead_core::{
    image::{Entry, ImageConfig, Node},
    verity,
};
use std::{collections::HashMap, os::unix::fs::PermissionsExt};

type Memory = HashMap<FileDigest, Vec<u8>>;

/// An image of files `f0`, `f1`, … and what they hold.
fn image(files: &[Vec<u8>]) -> (Image, Memory) {
    let entries = files.iter().enumerate().map(|(number, bytes)| Entry {
        path: format!("f{number}").into_bytes(),
        node: Node::File { mode: 0o644, size_bytes: bytes.len() as u64, digest: verity::digest(bytes) },
    });
    let config = ImageConfig { platform: "linux/amd64".into(), allowed: Vec::new(), tools: false };
    let image = Image::new(config, entries.collect()).unwrap();
    (image, files.iter().map(|bytes| (verity::digest(bytes), bytes.clone())).collect())
}

fn files(seed: u8, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| format!("{number} of {seed}, {}", "x".repeat(number % 50)).into_bytes()).collect()
}

fn pack_of(memory: &Memory, bases: &Memory, base: impl Fn(&FileDigest) -> Option<FileDigest>) -> Vec<u8> {
    let mut items: Vec<_> = memory
        .iter()
        .map(|(digest, bytes)| Item { digest: *digest, size_bytes: bytes.len() as u64, base: base(digest) })
        .collect();
    items.sort_by_key(|item| item.digest);
    let mut packed = Vec::new();
    pack::encode(&items, memory, bases, &mut packed, None, &Options { threads: 1, ..Options::default() }).unwrap();
    packed
}

fn whole_pack(memory: &Memory) -> Vec<u8> {
    pack_of(memory, &Memory::new(), |_| None)
}

fn wanted(memory: &Memory) -> HashMap<FileDigest, u64> {
    memory.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64)).collect()
}

fn missing(store: &Store, memory: &Memory) -> HashMap<FileDigest, u64> {
    let objects: Vec<_> = wanted(memory).into_iter().collect();
    let missing = store.missing(&objects).unwrap();
    objects.into_iter().zip(missing).filter(|(_, missing)| *missing).map(|(object, _)| object).collect()
}

/// Where syncing costs nothing, if there is such a place: the tests of crashes sync thousands of times.
fn quick_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What a node does to take an image in.
fn take(store: &Store, image: &Image, packed: &[u8]) -> Result<(), StoreError> {
    let push = store.push()?;
    let objects: Vec<_> = image.files().map(|(_, size_bytes, digest)| (digest, size_bytes)).collect();
    let missing = store.missing(&objects)?;
    let wanted = objects.into_iter().zip(missing).filter(|(_, missing)| *missing).map(|(object, _)| object).collect();
    push.ingest(&mut &packed[..], &wanted)?;
    push.sync()?;
    push.put_document(image.id(), &image.encode())
}

fn opened() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    (directory, store)
}

/// Every visible object is right, every document's objects are there, nothing is left over.
fn check_consistent(store: &Store) {
    let damaged = store.scrub(&mut |_| true).unwrap().damaged;
    assert!(damaged.is_empty(), "{damaged:?}");
    for id in store.images().unwrap() {
        let image = store.image(id).unwrap().unwrap();
        let objects: Vec<_> = image.files().map(|(_, size_bytes, digest)| (digest, size_bytes)).collect();
        assert!(store.missing(&objects).unwrap().iter().all(|missing| !missing));
    }
    assert_eq!(store.names("unsynced").unwrap(), [] as [&str; 0]);
}

#[test]
fn an_image_goes_in_and_stays() {
    for count in [0, 1, 64, 65, 300] {
        let (directory, store) = opened();
        let (image, memory) = image(&files(1, count));
        let push = store.push().unwrap();
        let packed = whole_pack(&memory);
        let ingested = push.ingest(&mut packed.as_slice(), &wanted(&memory)).unwrap();
        assert_eq!(ingested.objects, memory.len() as u64);
        assert_eq!(ingested.content_bytes, memory.values().map(|bytes| bytes.len() as u64).sum::<u64>());
        push.put_document(image.id(), &image.encode()).unwrap();
        drop(push);
        let store = Store::open(&directory.path().join("store")).unwrap();
        check_consistent(&store);
        assert_eq!(store.image(image.id()).unwrap(), Some(image.clone()));
        assert_eq!(store.images().unwrap(), BTreeSet::from([image.id()]));
        assert!(store.usage_bytes().unwrap() > 0);
        for (digest, bytes) in &memory {
            let path = store.object_path(digest);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
            assert_eq!(fs::read(&path).unwrap(), *bytes);
        }
        assert_eq!(store.names("tmp").unwrap(), [] as [&str; 0]);
        // Once more is no harm.
        take(&store, &image, &packed).unwrap();
        let push = store.push().unwrap();
        push.ingest(&mut packed.as_slice(), &wanted(&memory)).unwrap();
        push.sync().unwrap();
        check_consistent(&store);
    }
}

#[test]
fn only_what_is_wanted_is_taken() {
    let (_directory, store) = opened();
    let (_, memory) = image(&files(1, 20));
    let mut some = wanted(&memory);
    let (refused, _) = some.iter().next().map(|(digest, size_bytes)| (*digest, *size_bytes)).unwrap();
    some.remove(&refused);
    let (resized, size_bytes) = some.iter_mut().next().unwrap();
    let resized = *resized;
    *size_bytes += 1;
    let ingested = store.push().unwrap().ingest(&mut whole_pack(&memory).as_slice(), &some).unwrap();
    assert_eq!(ingested.objects, 18);
    let missing = store.missing(&[(refused, 0), (resized, memory[&resized].len() as u64)]).unwrap();
    assert_eq!(missing, [true, true]);
}

#[test]
fn a_broken_connection_keeps_what_was_whole() {
    let (_directory, store) = opened();
    // Two records of which the second is cut.
    let files: Vec<_> = (0..6u8).map(|n| vec![n; 1 << 20]).collect();
    let (_, memory) = image(&files);
    let packed = whole_pack(&memory);
    let error = store.push().unwrap().ingest(&mut &packed[..packed.len() - 20], &wanted(&memory)).unwrap_err();
    assert!(matches!(error, StoreError::Pack(PackError::Truncated { objects: 4 })), "{error:?}");
    let objects: Vec<_> = wanted(&memory).into_iter().collect();
    assert_eq!(store.missing(&objects).unwrap().iter().filter(|missing| !**missing).count(), 4);
    check_consistent(&store);
}

#[test]
fn a_damaged_pack_brings_nothing_wrong() {
    let (_directory, store) = opened();
    let (_, memory) = image(&files(3, 100));
    let mut packed = whole_pack(&memory);
    let middle = packed.len() - 40;
    packed[middle] ^= 4;
    let error = store.push().unwrap().ingest(&mut packed.as_slice(), &wanted(&memory)).unwrap_err();
    assert!(matches!(error, StoreError::Pack(PackError::Corrupt { .. })), "{error:?}");
    check_consistent(&store);
}

#[test]
fn a_document_needs_its_objects() {
    let (_directory, store) = opened();
    let (image, _) = image(&files(1, 5));
    let push = store.push().unwrap();
    let error = push.put_document(image.id(), &image.encode()).unwrap_err();
    assert!(matches!(error, StoreError::ObjectsMissing { count: 5, .. }), "{error:?}");
    let error = push.put_document(ImageId([0; 32]), &image.encode()).unwrap_err();
    assert!(matches!(error, StoreError::DocumentDamaged { .. }), "{error:?}");
    let error = push.put_document(ImageId::of(b"x"), b"x").unwrap_err();
    assert!(matches!(error, StoreError::DocumentDamaged { .. }), "{error:?}");
    assert!(store.images().unwrap().is_empty());
    assert_eq!(store.document(image.id()).unwrap(), None);
}

#[test]
fn a_damaged_base_is_found_and_moved_aside() {
    let (_directory, store) = opened();
    let base: Vec<u8> = (0..40_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut file = base.clone();
    file[70_000] ^= 1;
    let (before, held) = image(std::slice::from_ref(&base));
    take(&store, &before, &whole_pack(&held)).unwrap();
    let (_, memory) = image(&[file]);
    let packed = pack_of(&memory, &held, |_| Some(verity::digest(&base)));
    let path = store.object_path(&verity::digest(&base));
    let mut damaged = base.clone();
    damaged[9000] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, damaged).unwrap();
    let ingested = store.push().unwrap().ingest(&mut packed.as_slice(), &wanted(&memory)).unwrap();
    assert_eq!((ingested.objects, ingested.unresolved.len()), (0, 1));
    assert_eq!(store.missing(&[(verity::digest(&base), base.len() as u64)]).unwrap(), [true]);
    // The image before is whole again once its object was sent again, and the delta then applies.
    take(&store, &before, &whole_pack(&held)).unwrap();
    let ingested = store.push().unwrap().ingest(&mut packed.as_slice(), &wanted(&memory)).unwrap();
    assert_eq!((ingested.objects, ingested.unresolved.len()), (1, 0));
    check_consistent(&store);
}

#[test]
fn a_full_disk_is_said_before_it_is_filled() {
    let (_directory, store) = opened();
    let wanted = HashMap::from([(FileDigest([1; 32]), u64::MAX / 2)]);
    let error = store.push().unwrap().ingest(&mut io::empty(), &wanted).unwrap_err();
    let StoreError::DiskFull { needed_bytes, free_bytes, .. } = error else { panic!("{error:?}") };
    assert_eq!(needed_bytes, u64::MAX / 2);
    assert!(free_bytes > 0);
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        let error = store.error_of("write", Path::new("x"), errno.into(), 5);
        assert!(matches!(error, StoreError::DiskFull { needed_bytes: 5, .. }), "{error:?}");
    }
}

/// On a real file system that is too small, where the test may mount one.
#[test]
fn a_disk_that_fills_up_while_a_pack_comes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a small file system needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let options = c"size=6m";
    rustix::mount::mount("tmpfs", &small, "tmpfs", rustix::mount::MountFlags::empty(), options).unwrap();
    let result = std::panic::catch_unwind(|| {
        let store = Store::open(&small.join("store")).unwrap();
        let files: Vec<_> = (0..5u8).map(|n| vec![n; 1 << 20]).collect();
        let (_, memory) = image(&files);
        let push = store.push().unwrap();
        // Somebody else fills the disk after it was looked at.
        let packed = whole_pack(&memory);
        let filler = FillOnRead { path: small.join("filler"), rest: &packed };
        let error = push.ingest(&mut { filler }, &wanted(&memory)).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { needed_bytes: 1.., .. }), "{error:?}");
        drop(push);
        fs::remove_file(small.join("filler")).unwrap();
        check_consistent(&store);
        // What was whole before the disk was full stayed.
        let rest = missing(&store, &memory);
        assert!(rest.len() < 5, "{}", rest.len());
        store.push().unwrap().ingest(&mut packed.as_slice(), &rest).unwrap();
        assert!(missing(&store, &memory).is_empty());
    });
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    result.unwrap();
}

struct FillOnRead<'a> {
    path: PathBuf,
    rest: &'a [u8],
}

impl Read for FillOnRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.path.exists() {
            fs::write(&self.path, vec![1; 4 << 20])?;
        }
        self.rest.read(buffer)
    }
}

/// A process that ends between any two steps.
#[test]
fn a_crash_between_any_two_steps() {
    for count in [3, 90] {
        let (image, memory) = self::image(&files(7, count));
        let (other, other_memory) = self::image(&files(8, 4));
        let (packed, other_packed) = (whole_pack(&memory), whole_pack(&other_memory));
        let mut was_through = false;
        for steps in 1..5000 {
            let directory = quick_directory();
            let root = directory.path().join("store");
            let run = |boot: &str, left: i64| {
                let store = Store::open_at_boot(&root, boot.into())?;
                store.steps.left.store(left, Ordering::Relaxed);
                take(&store, &other, &other_packed)?;
                take(&store, &image, &packed)?;
                store.collection()?.collect(&BTreeSet::from([image.id()]), None, &[])
            };
            let result = run("boot 1", steps);
            let store = Store::open_at_boot(&root, "boot 1".into());
            check_consistent(&store.unwrap());
            match result {
                Ok(_) => was_through = true,
                Err(error) => assert!(matches!(error, StoreError::Io { .. }), "{error:?}"),
            }
            run("boot 1", 0).unwrap();
            let store = Store::open(&root).unwrap();
            check_consistent(&store);
            assert_eq!(store.images().unwrap(), BTreeSet::from([image.id()]));
            if was_through {
                break;
            }
        }
        assert!(was_through);
    }
}

#[test]
fn a_power_cut_between_any_two_steps() {
    let (image, memory) = image(&files(7, 90));
    let packed = whole_pack(&memory);
    let mut cut_while_marked = 0;
    for steps in 1..5000 {
        let directory = quick_directory();
        let root = directory.path().join("store");
        let store = Store::open_at_boot(&root, "boot 1".into()).unwrap();
        store.steps.left.store(steps, Ordering::Relaxed);
        let is_through = take(&store, &image, &packed).is_ok();
        drop(store);
        if fs::read_dir(root.join("unsynced")).unwrap().next().is_some() {
            // Nothing was synced, so the cut may have emptied any of them.
            cut_while_marked += 1;
            for (number, digest) in memory.keys().enumerate().filter(|(number, _)| number % 2 == 0) {
                let path = root.join("objects").join(object_name(digest));
                if path.exists() {
                    let bytes = if number % 4 == 0 { Vec::new() } else { vec![0; memory[digest].len()] };
                    fs::write(path, bytes).unwrap();
                }
            }
        }
        let store = Store::open_at_boot(&root, "boot 2".into()).unwrap();
        check_consistent(&store);
        // The last step syncs a directory in which the document is already visible.
        assert!(!is_through || store.images().unwrap().len() == 1, "{steps}");
        take(&store, &image, &packed).unwrap();
        check_consistent(&store);
        if is_through {
            break;
        }
    }
    assert!(cut_while_marked > 20, "{cut_while_marked}");
}

#[test]
fn another_push_still_alive_is_left_alone() {
    let (directory, store) = opened();
    let (_, memory) = image(&files(1, 100));
    let push = store.push().unwrap();
    push.ingest(&mut whole_pack(&memory).as_slice(), &wanted(&memory)).unwrap();
    assert_eq!(store.names("unsynced").unwrap().len(), 1);
    let again = Store::open_at_boot(&directory.path().join("store"), "another".into()).unwrap();
    assert_eq!(again.names("unsynced").unwrap().len(), 1);
    // Whose image needs these objects relies on them, and so makes them durable itself.
    again.push().unwrap().sync().unwrap();
    push.sync().unwrap();
    check_consistent(&store);
}

#[test]
fn garbage() {
    let (_directory, store) = opened();
    let shared = vec![b"shared by all".to_vec()];
    let images: Vec<_> = (1..=4u8)
        .map(|seed| {
            let (image, memory) = image(&[shared.clone(), files(seed, 10)].concat());
            take(&store, &image, &whole_pack(&memory)).unwrap();
            image
        })
        .collect();
    let ids: Vec<_> = images.iter().map(Image::id).collect();
    let [a, b, c, d] = ids[..] else { unreachable!() };
    let left = || store.images().unwrap();
    let collect = |keep: &BTreeSet<ImageId>, budget_bytes, preference: &[ImageId]| {
        store.collection()?.collect(keep, budget_bytes, preference)
    };
    // An object that nothing names.
    let (_, orphan) = image(&[b"orphan".to_vec()]);
    store.push().unwrap().ingest(&mut whole_pack(&orphan).as_slice(), &wanted(&orphan)).unwrap();

    let push = store.push().unwrap();
    assert!(matches!(store.collection(), Err(StoreError::Busy)));
    drop(push);
    let plenty = collect(&BTreeSet::new(), Some(1 << 30), &[]).unwrap();
    assert_eq!((plenty.images, plenty.objects), (vec![], 1));
    // One image has to go: the one that is not preferred at all; then the least preferred.
    let documents: u64 = images.iter().map(|image| 2 * image.encode().len() as u64).sum();
    let total: u64 = images.iter().map(Image::size_bytes).sum::<u64>() - 3 * shared[0].len() as u64 + documents;
    let one_less = collect(&BTreeSet::from([a]), Some(total - 1), &[c, b]).unwrap();
    assert_eq!((one_less.images, one_less.objects), (vec![d], 10));
    let next = collect(&BTreeSet::from([a]), Some(total * 3 / 5), &[c, b]).unwrap();
    assert_eq!(next.images, [b]);
    check_consistent(&store);
    // What is kept stays, whatever the budget.
    let rest = collect(&BTreeSet::from([a]), Some(0), &[c]).unwrap();
    assert_eq!((rest.images, left()), (vec![c], BTreeSet::from([a])));
    check_consistent(&store);
    // A kept document that cannot be read keeps everything.
    let path = store.document_path(a);
    let document = fs::read(&path).unwrap();
    fs::write(&path, b"rot").unwrap();
    let error = collect(&BTreeSet::from([a]), None, &[]).unwrap_err();
    assert!(matches!(error, StoreError::DocumentDamaged { id } if id == a));
    fs::write(&path, document).unwrap();
    check_consistent(&store);
    let all = collect(&BTreeSet::new(), None, &[]).unwrap();
    assert_eq!((all.images, all.objects, left().len()), (vec![a], 11, 0));
    assert_eq!(store.scrub(&mut |_| true).unwrap().objects, 0);
}

#[test]
fn a_scrub_finds_rot_and_the_next_push_mends_it() {
    let (_directory, store) = opened();
    let (image, memory) = image(&files(1, 30));
    let packed = whole_pack(&memory);
    take(&store, &image, &packed).unwrap();
    let rotten: Vec<_> = memory.keys().copied().take(2).collect();
    fs::write(store.object_path(&rotten[0]), b"rot").unwrap();
    let mut same_length = memory[&rotten[1]].clone();
    same_length[0] ^= 1;
    fs::write(store.object_path(&rotten[1]), same_length).unwrap();
    let mut paced = Vec::new();
    let scrubbed = store
        .scrub(&mut |size_bytes| {
            paced.push(size_bytes);
            true
        })
        .unwrap();
    assert_eq!(BTreeSet::from_iter(scrubbed.damaged), BTreeSet::from_iter(rotten));
    // Those two are read twice.
    assert_eq!((scrubbed.objects, paced.len()), (30, 32));
    assert_eq!(scrubbed.content_bytes, paced[..30].iter().sum::<u64>());
    take(&store, &image, &packed).unwrap();
    check_consistent(&store);
    let stopped = store.scrub(&mut |_| false).unwrap();
    assert_eq!(stopped.objects, 1);
}

/// As of a cable that was loose for a moment: what is right the second time stays where it is.
#[test]
fn a_scrub_believes_no_single_reading() {
    let (_directory, store) = opened();
    let (image, memory) = image(&files(1, 30));
    take(&store, &image, &whole_pack(&memory)).unwrap();
    let [passing, lasting]: [_; 2] = memory.keys().copied().take(2).collect::<Vec<_>>().try_into().unwrap();
    for digest in [passing, lasting] {
        fs::write(store.object_path(&digest), b"rot").unwrap();
    }
    let mut read = 0;
    let scrubbed = store.scrub(&mut |_| {
        read += 1;
        if read == memory.len() {
            fs::write(store.object_path(&passing), &memory[&passing]).unwrap();
        }
        true
    });
    assert_eq!(scrubbed.unwrap().damaged, [lasting]);
    assert_eq!(store.names("quarantine").unwrap(), [lasting.to_string()]);
    assert!(store.verify(&passing).unwrap().is_some_and(|(is_right, _)| is_right));
}

#[test]
fn an_object_of_wrong_length_in_the_way_is_replaced() {
    let (_directory, store) = opened();
    let (image, memory) = image(&files(1, 3));
    take(&store, &image, &whole_pack(&memory)).unwrap();
    for digest in memory.keys() {
        fs::write(store.object_path(digest), b"").unwrap();
    }
    take(&store, &image, &whole_pack(&memory)).unwrap();
    check_consistent(&store);
}

#[test]
fn metadata_of_another_boot_goes() {
    let (directory, store) = opened();
    drop(store);
    let root = directory.path().join("store");
    let id = ImageId([7; 32]);
    for boot in ["one", "two"] {
        fs::write(root.join("metadata").join(format!("{id}.v2.{boot}")), "x").unwrap();
    }
    let store = Store::open_at_boot(&root, "two".into()).unwrap();
    store.remove_old_metadata().unwrap();
    assert_eq!(store.names("metadata").unwrap(), [format!("{id}.v2.two")]);
}
