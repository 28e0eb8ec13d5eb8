//! Measures the store: many files in, metadata, mount, and a one-file change.
//!
//! ```text
//! store_bench make DIR [FILES] [BYTES]   a pack of generated files and one of a one-file change, into DIR
//! store_bench node DIR [MOUNT]           what a node does with them, a process of its own so that its memory counts
//! ```
//!
//! `node` prints milliseconds for each step and the peak of its resident memory. Contents are drawn
//! from a fixed seed: half of each file is text, half does not compress.
#![allow(clippy::print_stdout, reason = "an example that reports to a terminal")]

#[cfg(all(target_os = "linux", feature = "mount"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    bench::main()
}

#[cfg(not(all(target_os = "linux", feature = "mount")))]
fn main() {
    println!("this needs Linux and the feature `mount`");
}

#[cfg(all(target_os = "linux", feature = "mount"))]
mod bench {
    use bulkhead_core::{
        FileDigest,
        image::{Entry, Image, ImageConfig, Node},
        verity,
    };
    use bulkhead_store::{
        Store,
        cache::Cache,
        mount,
        pack::{self, Contents, Item, Nothing, Options},
    };
    use std::{
        collections::HashMap,
        error::Error,
        fs::{self, File},
        io::{self, BufReader, BufWriter, Read},
        path::Path,
        time::Instant,
    };

    type Outcome<T> = Result<T, Box<dyn Error>>;

    const MODIFIED: u64 = 7;

    pub(super) fn main() -> Outcome<()> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments[..] {
            ["make", directory] => make(Path::new(directory), 24_000, 500_000_000),
            ["make", directory, files, bytes] => make(Path::new(directory), files.parse()?, bytes.parse()?),
            ["node", directory] => node(Path::new(directory), None),
            ["node", directory, target] => node(Path::new(directory), Some(Path::new(target))),
            _ => Err("usage: store_bench make DIR [FILES] [BYTES] | node DIR [MOUNT]".into()),
        }
    }

    /// Contents that are made when they are asked for.
    struct Generated {
        files: HashMap<FileDigest, (u64, usize)>,
    }

    fn contents(seed: u64, length: usize) -> Vec<u8> {
        let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut bytes = Vec::with_capacity(length + 64);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
            bytes.extend_from_slice(if state & 64 == 0 { b"function" } else { b"return {" });
        }
        bytes.truncate(length);
        bytes
    }

    /// One file is different in the second image.
    fn contents_of(number: u64, length: usize, is_changed: bool) -> Vec<u8> {
        let mut bytes = contents(number, length);
        if is_changed {
            bytes[length / 2] ^= 1;
        }
        bytes
    }

    impl Contents for Generated {
        fn open(&self, digest: &FileDigest) -> io::Result<Option<Box<dyn Read + Send>>> {
            Ok(self.files.get(digest).map(|(number, length)| {
                let bytes = contents_of(number & !CHANGED, *length, number & CHANGED != 0);
                Box::new(io::Cursor::new(bytes)) as Box<dyn Read + Send>
            }))
        }
    }

    const CHANGED: u64 = 1 << 63;

    fn make(directory: &Path, files: u64, bytes: u64) -> Outcome<()> {
        fs::create_dir_all(directory)?;
        // One large file as a runtime has, the rest alike.
        let large = bytes / 5;
        let mut generated = Generated { files: HashMap::new() };
        let mut entries = Vec::new();
        let mut change = None;
        let started = Instant::now();
        for number in 0..files {
            if number % 100 == 0 {
                let path = format!("d{:05}", number / 100).into_bytes();
                entries.push(Entry { path, node: Node::Directory { mode: 0o755 } });
            }
            let small = (bytes - large) / (files - 1).max(1);
            let length = if number == 0 { large } else { small / 2 + number * 7919 % small.max(1) };
            let length = usize::try_from(length.max(1))?;
            let mut file = |is_changed| {
                let digest = verity::digest(&contents_of(number, length, is_changed));
                generated.files.insert(digest, (number | if is_changed { CHANGED } else { 0 }, length));
                Node::File { mode: 0o644, size_bytes: length as u64, digest }
            };
            let path = format!("d{:05}/file-{number:06}.js", number / 100).into_bytes();
            if number == MODIFIED {
                change = Some((entries.len(), Entry { path: path.clone(), node: file(true) }));
            }
            entries.push(Entry { path, node: file(false) });
        }
        println!("generate and hash   {:>8} ms", started.elapsed().as_millis());
        let config = ImageConfig { platform: "linux/amd64".into(), allowed: Vec::new(), tools: false };
        let before = Image::new(config.clone(), entries.clone())?;
        let (at, entry) = change.ok_or("fewer than eight files")?;
        entries[at] = entry;
        let after = Image::new(config, entries)?;
        fs::write(directory.join("1.document"), before.encode())?;
        fs::write(directory.join("2.document"), after.encode())?;

        let options = Options { level: 1, ..Options::default() };
        let cache_directory = directory.join("cache");
        if cache_directory.exists() {
            fs::remove_dir_all(&cache_directory)?;
        }
        let items: Vec<Item> =
            before.files().map(|(_, size_bytes, digest)| Item { digest, size_bytes, base: None }).collect();
        for is_kept in [false, true] {
            let started = Instant::now();
            let mut writer = Cache::open(&cache_directory)?.writer()?;
            let mut out = BufWriter::new(File::create(directory.join("1.pack"))?);
            let keep = is_kept.then_some(&mut writer as &mut dyn io::Write);
            let summary = pack::encode(&items, &generated, &Nothing, &mut out, keep, &options)?;
            if is_kept {
                writer.commit()?;
            }
            println!(
                "encode{}  {:>8} ms, {} objects, {} bytes to {}",
                if is_kept { " and cache" } else { "          " },
                started.elapsed().as_millis(),
                summary.objects,
                summary.content_bytes,
                summary.pack_bytes
            );
        }
        let started = Instant::now();
        let cache = Cache::open(&cache_directory)?;
        let held: HashMap<_, _> = before.files().map(|(path, _, digest)| (path, digest)).collect();
        let items: Vec<Item> = after
            .files()
            .filter(|(path, _, digest)| held.get(path) != Some(digest))
            .map(|(path, size_bytes, digest)| Item { digest, size_bytes, base: held.get(path).copied() })
            .collect();
        let mut out = BufWriter::new(File::create(directory.join("2.pack"))?);
        let summary = pack::encode(&items, &generated, &cache, &mut out, None, &options)?;
        let document = pack::compress_document(&after.encode(), Some(&before.encode()))?;
        println!(
            "encode one change   {:>8} ms, pack {} bytes, document {} bytes",
            started.elapsed().as_millis(),
            summary.pack_bytes,
            document.len()
        );
        Ok(())
    }

    fn node(directory: &Path, target: Option<&Path>) -> Outcome<()> {
        let root = directory.join("store");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        let started = Instant::now();
        let store = Store::open(&root)?;
        report("open", started);
        for number in [1, 2] {
            println!("image {number}");
            let document = fs::read(directory.join(format!("{number}.document")))?;
            let all = Instant::now();
            let image = Image::decode(&document)?;
            let id = image.id();
            let push = store.push()?;
            let started = Instant::now();
            let objects: Vec<_> = image.files().map(|(_, size_bytes, digest)| (digest, size_bytes)).collect();
            let missing = store.missing(&objects)?;
            report("missing", started);
            let wanted: HashMap<_, _> =
                objects.into_iter().zip(missing).filter(|(_, missing)| *missing).map(|(object, _)| object).collect();
            let started = Instant::now();
            let mut packed = BufReader::with_capacity(64 << 10, File::open(directory.join(format!("{number}.pack")))?);
            let ingested = push.ingest(&mut packed, &wanted)?;
            report(&format!("ingest {} objects, {} bytes", ingested.objects, ingested.content_bytes), started);
            let started = Instant::now();
            push.sync()?;
            report("sync", started);
            let started = Instant::now();
            push.put_document(id, &document)?;
            report("put document", started);
            if let Some(target) = target {
                let target = target.join(number.to_string());
                let started = Instant::now();
                mount::mount(&store, id, &target)?;
                report("metadata and mount", started);
                mount::unmount(&target)?;
                let started = Instant::now();
                mount::mount(&store, id, &target)?;
                report("mount again", started);
                mount::unmount(&target)?;
            }
            report("in all", all);
        }
        let started = Instant::now();
        let used = store.usage_bytes()?;
        report(&format!("usage, {used} bytes"), started);
        println!("peak resident memory  {:>10} kB", peak_kb()?);
        Ok(())
    }

    fn report(what: &str, started: Instant) {
        let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
        println!("  {what:<40} {milliseconds:>9.1} ms, peak {} kB", peak_kb().unwrap_or(0));
    }

    fn peak_kb() -> Outcome<u64> {
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}
