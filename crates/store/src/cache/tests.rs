use super::*;
use crate::pack::{Item, Nothing, Options, encode};
use std::collections::HashMap;

type Memory = HashMap<FileDigest, Vec<u8>>;

fn memory(seed: u8) -> Memory {
    let lengths = [0, 10, 5000, 70_000, BLOCK_MAX_BYTES, BLOCK_MAX_BYTES + 5, 3 * BLOCK_MAX_BYTES - 1];
    let bytes = |length: usize| (0..length).map(|n| (n / 7 % 253) as u8 ^ seed).collect::<Vec<u8>>();
    lengths.map(|length| (verity::digest(&bytes(length)), bytes(length))).into()
}

fn items(memory: &Memory) -> Vec<Item> {
    memory.iter().map(|(digest, bytes)| Item { digest: *digest, size_bytes: bytes.len() as u64, base: None }).collect()
}

fn write(cache: &Cache, memory: &Memory) -> Writer {
    let mut writer = cache.writer().unwrap();
    encode(&items(memory), memory, &Nothing, &mut io::sink(), Some(&mut writer), &Options::default()).unwrap();
    writer
}

/// Everything of `memory` is in the cache and right.
fn check(cache: &Cache, memory: &Memory) {
    for (digest, bytes) in memory {
        assert!(cache.has(digest));
        let mut read = Vec::new();
        cache.open(digest).unwrap().unwrap().read_to_end(&mut read).unwrap();
        assert!(read == *bytes);
        for (start, end) in [(0, bytes.len()), (bytes.len() / 3, bytes.len() / 2), (bytes.len(), bytes.len())] {
            let part = cache.read_at(digest, start as u64, end - start).unwrap().unwrap();
            assert!(part == bytes[start..end]);
        }
        assert!(cache.read_at(digest, bytes.len() as u64, 1).is_err());
    }
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

#[test]
fn what_was_sent_is_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let (first, second) = (memory(1), memory(2));
    // Two writers at once, and one that is given up.
    let (a, b) = (write(&cache, &first), write(&cache, &second));
    drop(write(&cache, &memory(3)));
    a.commit().unwrap();
    b.commit().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    check(&cache, &first);
    check(&cache, &second);
    assert!(!cache.has(&FileDigest([0; 32])));
    assert!(cache.open(&FileDigest([0; 32])).unwrap().is_none());
    assert_eq!(files(directory.path(), "part"), [] as [PathBuf; 0]);
}

#[test]
fn nothing_sent_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    write(&cache, &Memory::new()).commit().unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn an_index_in_doubt_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let memory = memory(1);
    write(&cache, &memory).commit().unwrap();
    let index = files(directory.path(), "index").remove(0);
    let whole = fs::read(&index).unwrap();
    let mut other_length = whole.clone();
    other_length[16] ^= 1;
    for bytes in [None, Some(Vec::new()), Some(whole[..whole.len() - 1].to_vec()), Some(other_length)] {
        match bytes {
            None => fs::remove_file(&index).unwrap(),
            Some(bytes) => fs::write(&index, bytes).unwrap(),
        }
        check(&Cache::open(directory.path()).unwrap(), &memory);
        assert!(fs::read(&index).unwrap() == whole);
    }
}

#[test]
fn damage_makes_objects_absent_and_never_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let memory = memory(1);
    write(&cache, &memory).commit().unwrap();
    let pack = files(directory.path(), "pack").remove(0);
    let whole = fs::read(&pack).unwrap();
    let read = |cache: &Cache, digest| -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        cache.open(digest).ok()??.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let mut lost = 0;
    for at in (16..whole.len()).step_by(whole.len() / 97 + 1) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        for bytes in [&flipped, &whole[..at]] {
            fs::write(&pack, bytes).unwrap();
            let cache = Cache::open(directory.path()).unwrap();
            for (digest, bytes) in &memory {
                match read(&cache, digest) {
                    Some(found) => assert!(found == *bytes, "{at}"),
                    None => lost += 1,
                }
            }
        }
    }
    assert!(lost > 97);
}

#[test]
fn the_oldest_go_first() {
    let directory = tempfile::tempdir().unwrap();
    for (name, seed) in [("1", 1), ("2", 2), ("3", 3)] {
        let cache = Cache::open(directory.path()).unwrap();
        write(&cache, &memory(seed)).commit().unwrap();
        for extension in ["pack", "index"] {
            let newest = files(directory.path(), extension).pop().unwrap();
            fs::rename(newest, directory.path().join(format!("000000000000000{name}-1.{extension}"))).unwrap();
        }
    }
    let mut cache = Cache::open(directory.path()).unwrap();
    let size_bytes = cache.size_bytes();
    cache.shrink(size_bytes).unwrap();
    check(&cache, &memory(1));
    cache.shrink(size_bytes - 1).unwrap();
    let held = |cache: &Cache| [1, 2, 3].map(|seed| memory(seed).keys().all(|digest| cache.has(digest)));
    assert_eq!(held(&cache), [false, true, true]);
    assert_eq!(held(&Cache::open(directory.path()).unwrap()), [false, true, true]);
    cache.shrink(0).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_pack_from_elsewhere_is_taken_in_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let opened = || Cache::open(directory.path()).unwrap();
    let (memory, other) = (memory(1), memory(2));
    let wanted: HashMap<FileDigest, u64> = memory.iter().map(|(digest, bytes)| (*digest, bytes.len() as u64)).collect();
    let packed = |items: &[Item], from: &Memory, bases: &Memory| {
        let mut bytes = Vec::new();
        encode(items, from, bases, &mut bytes, None, &Options::default()).unwrap();
        bytes
    };
    let whole = packed(&items(&memory), &memory, &Memory::new());
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let both: Memory = memory.clone().into_iter().chain(other.clone()).collect();
    let twice = [items(&memory), items(&memory)[..1].to_vec()].concat();
    let mut deltas = items(&memory);
    let bases: Vec<FileDigest> =
        deltas.iter().map(|item| verity::digest(&[&memory[&item.digest][..], b"x"].concat())).collect();
    let alike: Memory =
        memory.values().map(|bytes| [&bytes[..], b"x"].concat()).map(|b| (verity::digest(&b), b)).collect();
    deltas.iter_mut().zip(bases).for_each(|(item, base)| item.base = Some(base));
    let cases = [
        ("cut", whole[..whole.len() - 1].to_vec()),
        ("nothing", Vec::new()),
        ("damaged in a digest", flipped(30)),
        ("damaged in a body", flipped(whole.len() - 40)),
        ("some", packed(&items(&memory)[1..], &memory, &Memory::new())),
        ("others", packed(&items(&other), &other, &Memory::new())),
        ("more", packed(&items(&both), &both, &Memory::new())),
        ("deltas", packed(&deltas, &memory, &alike)),
    ];
    for (name, bytes) in cases {
        assert!(opened().take_in(&mut bytes.as_slice(), &wanted).is_err(), "{name}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{name}");
    }
    // An item that is named twice goes once.
    let once = packed(&twice, &memory, &Memory::new());
    let followed = [&once[..], b"more of something else"].concat();
    assert_eq!(opened().take_in(&mut followed.as_slice(), &wanted).unwrap(), once.len() as u64);
    check(&opened(), &memory);
}
