use super::*;
use bulkhead_core::verity;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Collects what comes; checks that the decoder keeps to the sink's contract.
#[derive(Default)]
struct Collect {
    wanted: BTreeMap<FileDigest, u64>,
    open: Option<(FileDigest, Vec<u8>)>,
    objects: BTreeMap<FileDigest, Vec<u8>>,
}

impl Sink for Collect {
    fn wants(&mut self, digest: &FileDigest, size_bytes: u64) -> bool {
        self.wanted.get(digest) == Some(&size_bytes) && !self.objects.contains_key(digest)
    }
    fn begin(&mut self, digest: &FileDigest, _: u64) -> io::Result<()> {
        assert!(self.open.replace((*digest, Vec::new())).is_none());
        Ok(())
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open.as_mut().unwrap().1.extend_from_slice(bytes);
        Ok(())
    }
    fn finish(&mut self) -> io::Result<()> {
        let (digest, bytes) = self.open.take().unwrap();
        assert_eq!(verity::digest(&bytes), digest, "wrong bytes were passed as right");
        self.objects.insert(digest, bytes);
        Ok(())
    }
    fn abandon(&mut self) {
        assert!(self.open.take().is_some());
    }
}

type Memory = HashMap<FileDigest, Vec<u8>>;

/// Bytes that do not compress, and the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[3]
        })
        .collect()
}

fn text(seed: u64, length: usize) -> Vec<u8> {
    (seed..).flat_map(|n| format!("line {} of a file\n", n % 977).into_bytes()).take(length).collect()
}

fn memory(files: &[Vec<u8>]) -> Memory {
    files.iter().map(|bytes| (verity::digest(bytes), bytes.clone())).collect()
}

fn items(files: &[Vec<u8>], bases: &[Option<&Vec<u8>>]) -> Vec<Item> {
    let base = |index: usize| bases.get(index).copied().flatten().map(|bytes| verity::digest(bytes));
    let item = |(index, bytes): (usize, &Vec<u8>)| Item {
        digest: verity::digest(bytes),
        size_bytes: bytes.len() as u64,
        base: base(index),
    };
    files.iter().enumerate().map(item).collect()
}

fn options(threads: usize) -> Options {
    Options { threads, ..Options::default() }
}

fn sink(items: &[Item]) -> Collect {
    Collect { wanted: items.iter().map(|item| (item.digest, item.size_bytes)).collect(), ..Collect::default() }
}

/// Packs, unpacks, compares, and gives the pack and what it says of itself.
fn check(files: &[Vec<u8>], bases: &[Option<&Vec<u8>>], threads: usize) -> (Vec<u8>, Summary) {
    let held = memory(&bases.iter().copied().flatten().cloned().collect::<Vec<_>>());
    let items = items(files, bases);
    let (mut pack, mut kept) = (Vec::new(), Vec::new());
    let summary = encode(&items, &memory(files), &held, &mut pack, Some(&mut kept), &options(threads)).unwrap();
    assert_eq!(summary.pack_bytes, pack.len() as u64);
    for (bytes, bases) in [(&pack, &held as &dyn Contents), (&kept, &Nothing)] {
        let mut sink = sink(&items);
        let mut input = bytes.as_slice();
        let decoded = decode(&mut input, bases, &mut sink).unwrap();
        assert!(input.is_empty() && decoded.unresolved.is_empty());
        assert_eq!((decoded.objects, decoded.content_bytes), (summary.objects, summary.content_bytes));
        assert_eq!(sink.objects, memory(files).into_iter().collect());
    }
    (pack, summary)
}

#[test]
fn what_goes_in_comes_out() {
    let segment = BLOCK_MAX_BYTES;
    let lengths = [0, 1, 4096, 5000, segment - 1, segment, segment + 1, 3 * segment + 17];
    for threads in [1, 3] {
        check(&[], &[], threads);
        check(&lengths.map(|length| text(7, length)), &[], threads);
        check(&lengths.map(|length| noise(7, length)), &[], threads);
        let many: Vec<_> = (0..9000).map(|n| format!("file {n}").into_bytes()).collect();
        let (pack, _) = check(&many, &[], threads);
        assert!(pack.len() > 9000 * 36);
    }
}

#[test]
fn a_pack_is_the_same_however_many_threads_make_it() {
    let files: Vec<_> = (0..40).map(|n| text(n, 400_000)).collect();
    assert_eq!(check(&files, &[], 1).0, check(&files, &[], 4).0);
}

#[test]
fn deltas() {
    // Lengths of base and file, and how much of the file a delta may be.
    for (base_bytes, file_bytes) in [(10_000, 10_040), (4 << 20, 4 << 20), (11 << 20, 9 << 20), (30 << 20, 31 << 20)] {
        let base = noise(1, base_bytes);
        let mut file = base.clone();
        file.resize(file_bytes, 9);
        file[file_bytes / 2..file_bytes / 2 + 20].copy_from_slice(b"twenty other letters");
        let (pack, summary) = check(&[file], &[Some(&base)], 2);
        assert_eq!(summary.deltas, 1, "{base_bytes}");
        assert!(pack.len() < 2000 + file_bytes / 200, "{base_bytes}: {}", pack.len());
    }
}

#[test]
fn a_small_change_to_a_small_file_costs_little() {
    let base = noise(3, 20_000);
    let mut file = base.clone();
    file[9000] ^= 1;
    let (pack, _) = check(&[file], &[Some(&base)], 1);
    assert!(pack.len() < 220, "{}", pack.len());
}

#[test]
fn a_base_that_is_of_no_use_is_not_used() {
    let (file, other) = (text(1, 50_000), noise(2, 50_000));
    assert_eq!(check(std::slice::from_ref(&file), &[Some(&other)], 1).1.deltas, 0);
    let empty = Vec::new();
    assert_eq!(check(std::slice::from_ref(&file), &[Some(&empty)], 1).1.deltas, 0);
    assert_eq!(check(std::slice::from_ref(&file), &[Some(&file)], 1).1.deltas, 0);
    // The sender has not got the base, or has it damaged.
    let base = [file.as_slice(), b"x"].concat();
    for held in [Memory::new(), Memory::from([(verity::digest(&base), file.clone())])] {
        let (items, mut pack) = (items(std::slice::from_ref(&file), &[Some(&base)]), Vec::new());
        let contents = memory(std::slice::from_ref(&file));
        let summary = encode(&items, &contents, &held, &mut pack, None, &options(1)).unwrap();
        assert_eq!((summary.objects, summary.deltas), (1, 0));
    }
}

#[test]
fn a_receiver_without_the_base_asks_again() {
    let cases = [(20_000, BTreeMap::from([(100, 1)])), (9 << 20, BTreeMap::from([(5 << 20, 7), (100, 9)]))];
    for (length, changes) in cases {
        let base = noise(4, length);
        let mut file = base.clone();
        changes.iter().for_each(|(at, value)| file[*at] ^= value);
        let small = b"beside it".to_vec();
        let items = items(&[file.clone(), small.clone()], &[Some(&base)]);
        let (contents, held) = (memory(&[file, small]), memory(std::slice::from_ref(&base)));
        let mut pack = Vec::new();
        encode(&items, &contents, &held, &mut pack, None, &options(2)).unwrap();
        let mut damaged = base.clone();
        damaged[8000] ^= 1;
        let damaged = Memory::from([(verity::digest(&base), damaged)]);
        let short = Memory::from([(verity::digest(&base), base[..1000].to_vec())]);
        for bases in [&Memory::new(), &damaged, &short] {
            let mut sink = sink(&items);
            let decoded = decode(&mut pack.as_slice(), bases, &mut sink).unwrap();
            assert_eq!(decoded.unresolved, [items[0].digest]);
            assert_eq!(decoded.suspects, [verity::digest(&base)]);
            assert_eq!((decoded.objects, sink.objects.len()), (1, 1));
        }
    }
}

#[test]
fn a_file_that_changed_after_the_scan_is_named() {
    for length in [100, 5 << 20] {
        let file = text(1, length);
        let mut changed = file.clone();
        changed[length / 2] ^= 1;
        let longer = [file.as_slice(), b"x"].concat();
        for now in [changed, longer, file[..length - 1].to_vec()] {
            let items = items(std::slice::from_ref(&file), &[]);
            let contents = Memory::from([(items[0].digest, now)]);
            let error = encode(&items, &contents, &Nothing, &mut io::sink(), None, &options(2)).unwrap_err();
            assert!(matches!(error, PackError::Changed { digest } if digest == items[0].digest), "{error}");
        }
        let items = items(std::slice::from_ref(&file), &[]);
        let error = encode(&items, &Nothing, &Nothing, &mut io::sink(), None, &options(2)).unwrap_err();
        assert!(matches!(error, PackError::Absent { .. }), "{error}");
    }
}

#[test]
fn a_writer_that_fails_ends_the_encoding() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let files: Vec<_> = (0..30).map(|n| noise(n, 3 << 20)).collect();
    for room in [0, 1000, 20 << 20] {
        let error =
            encode(&items(&files, &[]), &memory(&files), &Nothing, &mut Full(room), None, &options(2)).unwrap_err();
        assert!(matches!(error, PackError::Write(_)), "{error}");
    }
}

#[test]
fn lengths_are_refused_before_they_are_believed() {
    let with = |tail: &[u8]| [MAGIC.as_slice(), tail].concat();
    let file = |size: u32| [[0u8; 32].as_slice(), &size.to_le_bytes()].concat();
    let segment = |size: u64, offset: u64| {
        [b"s".as_slice(), &[0; 32], &size.to_le_bytes(), &offset.to_le_bytes(), &[0, 0]].concat()
    };
    let cases: &[(Vec<u8>, &str)] = &[
        (b"bulkhead-pack-2\n".to_vec(), "begin"),
        (with(b"x"), "unknown kind"),
        (with(&[b'g', 0, 0, 0, 0]), "no or too many"),
        (with(&[b'g', 255, 255, 0, 0]), "no or too many"),
        (with(&[&[b'g', 1, 0, 0, 0], file(u32::MAX).as_slice()].concat()), "4 MiB"),
        (with(&[&[b'g', 1, 0, 255, 255], file(9).as_slice()].concat()), "too many bases"),
        (with(&[&[b'g', 1, 0, 0, 0], file(9).as_slice(), b"z\x0a\0\0\0"].concat()), "longer"),
        (with(&[&[b'g', 1, 0, 0, 0], file(9).as_slice(), b"s\x08\0\0\0"].concat()), "longer"),
        (with(&[&[b'g', 1, 0, 0, 0], file(9).as_slice(), b"q\x08\0\0\0"].concat()), "codec"),
        (with(&segment(10, 0)), "fit its file"),
        (with(&segment(u64::MAX, 1)), "fit its file"),
        (with(&segment(5 << 20, 8 << 20)), "fit its file"),
        (with(&[segment(9 << 20, 4 << 20).as_slice(), b"z\0\0\0\0"].concat()), "out of order"),
        (with(&[b'e', 1, 0, 0, 0, 0, 0, 0, 0]), "agree"),
    ];
    for (pack, what) in cases {
        let error = decode(&mut pack.as_slice(), &Nothing, &mut Collect::default()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}, not {what}");
    }
}

/// A pack with every kind of record, what it needs and what it holds.
fn sample() -> (Vec<u8>, Memory, Vec<Item>) {
    let base = noise(5, 30_000);
    let mut changed = base.clone();
    changed[15_000] ^= 1;
    let files = [text(1, 3000), noise(6, 500), changed, Vec::new(), text(2, (4 << 20) + 900)];
    let items = items(&files, &[None, None, Some(&base)]);
    let held = memory(&[base]);
    let mut pack = Vec::new();
    encode(&items, &memory(&files), &held, &mut pack, None, &options(1)).unwrap();
    (pack, held, items)
}

#[test]
fn every_truncation_is_an_error() {
    let (pack, held, items) = sample();
    for end in 0..pack.len() {
        let error = decode(&mut &pack[..end], &held, &mut sink(&items)).unwrap_err();
        assert!(matches!(error, PackError::Truncated { .. }), "{end}: {error}");
    }
}

#[test]
fn documents() {
    let base: Vec<u8> = (0..30_000u64).flat_map(|n| noise(n, 90)).collect();
    let mut next = base.clone();
    next[1_000_000] ^= 1;
    let packed = compress_document(&next, Some(&base)).unwrap();
    assert!(packed.len() < 600, "{}", packed.len());
    assert_eq!(decompress_document(&packed, Some(&base), next.len()).unwrap(), next);
    assert!(decompress_document(&packed, Some(&base), next.len() - 1).is_err());
    assert!(decompress_document(&packed, None, next.len()).is_err());
    let alone = compress_document(&next, None).unwrap();
    assert_eq!(decompress_document(&alone, None, next.len()).unwrap(), next);
    for end in [0, 1, 10, alone.len() - 1] {
        assert!(decompress_document(&alone[..end], None, next.len()).is_err(), "{end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// `Collect` asserts that nothing wrong is passed as right; here, that no flip makes the decoder panic, and
    /// that a pack that decodes to its end brought everything or says what it could not bring.
    #[test]
    fn any_flip_is_an_error_or_right_bytes(at: prop::sample::Index, bit in 0u8..8, many: bool) {
        let (pack, held, items) = SAMPLE.with(Clone::clone);
        let mut flipped = pack;
        // Headers are a small part of a pack: half of the cases aim at the beginning, where they are dense.
        let range = if many { flipped.len() } else { flipped.len().min(400) };
        flipped[at.index(range)] ^= 1 << bit;
        let mut sink = sink(&items);
        if let Ok(decoded) = decode(&mut flipped.as_slice(), &held, &mut sink) {
            prop_assert_eq!(decoded.objects, sink.objects.len() as u64);
        }
        prop_assert!(sink.open.is_none());
    }

    #[test]
    fn any_bytes_are_an_error(bytes: Vec<u8>) {
        let pack = [MAGIC.as_slice(), &bytes].concat();
        prop_assert!(decode(&mut pack.as_slice(), &Nothing, &mut Collect::default()).is_err());
        prop_assert!(decode(&mut bytes.as_slice(), &Nothing, &mut Collect::default()).is_err());
    }
}

thread_local! {
    static SAMPLE: (Vec<u8>, Memory, Vec<Item>) = sample();
}
