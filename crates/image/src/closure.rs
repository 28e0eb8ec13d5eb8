//! Which files of packages a running service can need.
//!
//! From the roots (each service's program, every ELF file of the app, what the
//! manifest names) along what the dynamic linker follows: the interpreter,
//! `DT_NEEDED` through `DT_RUNPATH` or `DT_RPATH` with `$ORIGIN`, then the linker's
//! built-in directories. An image has no `ld.so.cache` and no `ld.so.conf`, so
//! those are all there are (ld.so(8)). On the way each needed symbol version is
//! looked for in the library that must have it. Beyond ELF: the interpreter line of
//! a script that is run, and [`crate::runtime`].

use crate::{
    content::Kind as Content,
    pattern::Pattern,
    report::{Finding, Rule},
    runtime,
    sources::Source,
    tree::{FileNode, Kind, Node, Origin, Tree, file_name, parent, shown},
};
use bulkhead_core::manifest::{Manifest, Platform};
use object::{
    Endianness, elf,
    read::{
        ReadCache, ReadRef,
        elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

/// The kernel reads 256 bytes of a script's first line.
const SHEBANG_MAX_BYTES: u64 = 256;
/// Version tables beyond this are not of a real library: glibc's own are a few kilobytes.
const TABLE_MAX_BYTES: u64 = 256 << 10;
/// Names of libraries and versions, and lists of folders, are no longer.
const NAME_MAX_BYTES: u64 = 64 << 10;
/// Where the shell's absence leaves a program without a slash to be found.
const PROGRAM_DIRECTORIES: [&str; 3] = ["usr/bin", "usr/local/bin", "bin"];

/// Why the closure cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// A service's program is not in the image.
    #[error("[services.{service}] command: there is no program `{program}` in the image{hint}")]
    NoProgram {
        /// The service.
        service: String,
        /// Its program.
        program: String,
        /// What to do.
        hint: String,
    },
    /// A script's interpreter is not in the image.
    #[error("[services.{service}] command: {script} is a script for {interpreter}, which is not in the image{hint}")]
    NoInterpreter {
        /// The service.
        service: String,
        /// The script.
        script: String,
        /// Its interpreter.
        interpreter: String,
        /// What to do.
        hint: String,
    },
    /// The manifest keeps or loads what no package has.
    #[error("[image] {key}: no package of the image has `{value}`")]
    NoSuchPath {
        /// The manifest's key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A pattern is malformed.
    #[error("[image] {key}: `{value}` is not a pattern: {what}")]
    Pattern {
        /// The manifest's key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        what: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Its path in the image.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What a build asks of the closure.
pub(crate) struct Question<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) manifest: &'a Manifest,
    /// Names of packages by number.
    pub(crate) packages: &'a [String],
    /// Whether every program of the packages that are named is wanted.
    pub(crate) tools: bool,
    /// Where the contents of package files are.
    pub(crate) disk: &'a dyn Fn(&FileNode) -> PathBuf,
}

/// What is kept.
#[derive(Debug, Default)]
pub(crate) struct Closure {
    /// Paths of packages.
    pub(crate) kept: BTreeSet<Vec<u8>>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) warnings: Vec<Finding>,
}

/// What the dynamic linker reads in a file.
#[derive(Debug, Default)]
struct Headers {
    interpreter: Option<String>,
    needed: Vec<String>,
    rpath: Vec<String>,
    runpath: Vec<String>,
    /// Library → versions that must be in it.
    needs_versions: Vec<(String, Vec<String>)>,
    has_versions: Vec<String>,
}

struct Work<'a> {
    question: &'a Question<'a>,
    platform: Platform,
    closure: Closure,
    /// Files to look into, with the `DT_RPATH`s of what loads them.
    queue: Vec<(Vec<u8>, Vec<String>)>,
    headers: HashMap<Vec<u8>, Headers>,
    known: Vec<(Pattern, &'static [&'static str])>,
}

/// Works out what is kept.
pub(crate) fn close(question: &Question<'_>) -> Result<Closure, ClosureError> {
    let known = runtime::known()
        .map(|(file, opens)| Ok((pattern("keep", file)?, opens)))
        .collect::<Result<Vec<_>, ClosureError>>()?;
    let mut work = Work {
        question,
        platform: question.manifest.image.platform,
        closure: Closure::default(),
        queue: Vec::new(),
        headers: HashMap::new(),
        known,
    };
    work.roots()?;
    while let Some((path, inherited)) = work.queue.pop() {
        work.visit(&path, &inherited)?;
    }
    work.missing_libraries()?;
    work.closure.findings.sort_unstable();
    work.closure.findings.dedup();
    Ok(work.closure)
}

fn pattern(key: &'static str, value: &str) -> Result<Pattern, ClosureError> {
    Pattern::new(value).map_err(|error| ClosureError::Pattern { key, value: value.to_owned(), what: error.to_string() })
}

impl<'a> Work<'a> {
    fn is_native(&self, content: Content) -> bool {
        match self.platform {
            Platform::Amd64 => content == Content::ElfAmd64,
            Platform::Arm64 => content == Content::ElfArm64,
        }
    }

    fn triplet(&self) -> &'static str {
        match self.platform {
            Platform::Amd64 => "x86_64-linux-gnu",
            Platform::Arm64 => "aarch64-linux-gnu",
        }
    }

    fn roots(&mut self) -> Result<(), ClosureError> {
        let tree = self.question.tree;
        for (path, node) in tree.iter() {
            if let (Origin::App, Kind::File(file)) = (node.origin, &node.kind)
                && self.is_native(file.facts.kind)
            {
                self.queue.push((path.clone(), vec![]));
            }
        }
        let manifest = self.question.manifest;
        if self.question.tools {
            self.programs_of_named_packages()?;
        }
        for (name, service) in &manifest.services {
            let workdir = service.workdir.as_ref().unwrap_or(&manifest.image.to);
            self.program(name.as_str(), &service.command[0], &workdir.0)?;
        }
        for name in &manifest.image.load {
            let found = if name.contains('/') { self.keep(name.as_bytes()) } else { self.library(name, &[], &[]) };
            if found.is_none() {
                return Err(ClosureError::NoSuchPath { key: "load", value: name.clone() });
            }
        }
        for value in &manifest.image.keep {
            if !self.keep_all(&pattern("keep", value)?) {
                return Err(ClosureError::NoSuchPath { key: "keep", value: value.clone() });
            }
        }
        for package in &manifest.image.packages {
            for path in runtime::data_of(package) {
                self.keep_all(&pattern("keep", path)?);
            }
        }
        Ok(())
    }

    fn programs_of_named_packages(&mut self) -> Result<(), ClosureError> {
        let (tree, question) = (self.question.tree, self.question);
        for (path, node) in tree.iter() {
            let Origin::Package(number) = node.origin else { continue };
            let is_named = question.manifest.image.packages.contains(&question.packages[number]);
            if is_named && matches!(parent(path), Some(b"usr/bin" | b"usr/sbin")) {
                // A link that leads nowhere is of no use.
                self.keep(path);
            }
        }
        for data in runtime::TOOL_DATA {
            self.keep_all(&pattern("keep", data)?);
        }
        Ok(())
    }

    /// Keeps a path with the links that lead to it; gives where they lead.
    fn keep(&mut self, path: &[u8]) -> Option<Vec<u8>> {
        let mut via = Vec::new();
        let tree = self.question.tree;
        let target = tree.resolve(path, &mut via)?;
        for link in via {
            self.closure.kept.insert(link);
        }
        self.keep_exactly(&target);
        Some(target)
    }

    /// Keeps one path that is no link.
    fn keep_exactly(&mut self, path: &[u8]) {
        let Some(node) = self.question.tree.get(path) else { return };
        if node.origin == Origin::App || !self.closure.kept.insert(path.to_vec()) {
            return;
        }
        if let Kind::File(file) = &node.kind
            && self.is_native(file.facts.kind)
        {
            self.queue.push((path.to_vec(), vec![]));
        }
        let opens: Vec<&'static str> =
            self.known.iter().filter(|(file, _)| file.is_match(path)).flat_map(|(_, opens)| *opens).copied().collect();
        let directory = String::from_utf8_lossy(parent(path).unwrap_or_default()).into_owned();
        for path in opens {
            self.keep(path.replace("{dir}", &directory).as_bytes());
        }
    }

    /// Keeps what a pattern names, with all below it; says whether there was anything.
    fn keep_all(&mut self, pattern: &Pattern) -> bool {
        let tree = self.question.tree;
        let matches: Vec<Vec<u8>> = match pattern.plain() {
            Some(path) => tree.resolve(path, &mut Vec::new()).map(|_| path.to_vec()).into_iter().collect(),
            None => tree.iter().map(|(path, _)| path).filter(|path| pattern.is_match(path)).cloned().collect(),
        };
        for path in &matches {
            let Some(target) = self.keep(path) else {
                // A link to what no package has: kept as it is.
                self.closure.kept.insert(path.clone());
                continue;
            };
            let below: Vec<(&Vec<u8>, &Node)> = tree.below(&target).collect();
            for (path, node) in below {
                match node.kind {
                    Kind::Symlink { .. } => {
                        self.closure.kept.insert(path.clone());
                        self.keep(path);
                    }
                    _ => self.keep_exactly(path),
                }
            }
        }
        !matches.is_empty()
    }

    fn find_program(&self, program: &str, workdir: &str) -> Option<String> {
        let tree = self.question.tree;
        if program.starts_with('/') {
            return tree.lookup(program.as_bytes()).map(|_| program.to_owned());
        }
        if program.contains('/') {
            let path = format!("{workdir}/{program}");
            return tree.lookup(path.as_bytes()).map(|_| path);
        }
        let mut places = PROGRAM_DIRECTORIES.iter().map(|directory| format!("{directory}/{program}"));
        places.find(|path| matches!(tree.lookup(path.as_bytes()), Some((_, Node { kind: Kind::File(_), .. }))))
    }

    fn program(&mut self, service: &str, program: &str, workdir: &str) -> Result<(), ClosureError> {
        let Some(path) = self.find_program(program, workdir) else {
            return Err(ClosureError::NoProgram {
                service: service.to_owned(),
                program: program.to_owned(),
                hint: self.program_hint(program),
            });
        };
        let tree = self.question.tree;
        let Some((target, node)) = self.keep(path.as_bytes()).and_then(|target| tree.lookup(&target)) else {
            return Ok(());
        };
        let Kind::File(file) = &node.kind else {
            let hint = ": what is there is not a file".to_owned();
            return Err(ClosureError::NoProgram { service: service.to_owned(), program: program.to_owned(), hint });
        };
        if !file.executable {
            let why = if file.facts.looks_executable() {
                "its package does not make it executable"
            } else {
                "it is neither a Linux program nor a script that begins with `#!`"
            };
            let hint = format!(": {} is there, but {why}", shown(&target));
            return Err(ClosureError::NoProgram { service: service.to_owned(), program: program.to_owned(), hint });
        }
        if file.facts.kind != Content::Script {
            return Ok(());
        }
        let line = self.shebang(&target, file)?;
        if line.ends_with('\r') {
            let what = "ends its lines as Windows does, and Linux would take that for a part of the interpreter's name";
            let hint = format!(": {} {what}: write it with line feeds alone", shown(&target));
            return Err(ClosureError::NoProgram { service: service.to_owned(), program: program.to_owned(), hint });
        }
        let mut words = line.split_ascii_whitespace();
        let Some(interpreter) = words.next() else { return Ok(()) };
        let missing = |interpreter: &str, hint: String| ClosureError::NoInterpreter {
            service: service.to_owned(),
            script: shown(&target),
            interpreter: interpreter.to_owned(),
            hint,
        };
        let argument = words.find(|word| !word.starts_with('-') && !word.contains('='));
        let is_env = interpreter.ends_with("/env");
        if self.keep(interpreter.as_bytes()).is_none() {
            let hint = match argument.filter(|_| is_env) {
                Some(program) => format!(": write `command = [\"{program}\", \"{}\", …]`", shown(&target)),
                None => self.program_hint(interpreter.rsplit('/').next().unwrap_or_default()),
            };
            return Err(missing(interpreter, hint));
        }
        if let Some(program) = argument.filter(|_| is_env) {
            let found = self.find_program(program, workdir).and_then(|path| self.keep(path.as_bytes()));
            if found.is_none() {
                return Err(missing(program, self.program_hint(program)));
            }
        }
        Ok(())
    }

    fn program_hint(&self, program: &str) -> String {
        match runtime::package_of(program) {
            Some(package) if !self.question.manifest.image.packages.iter().any(|name| name == package) => {
                format!(": add \"{package}\" to [image] packages")
            }
            _ if program.contains('/') => String::new(),
            _ => ": looked in /usr/bin, /usr/local/bin and /bin".into(),
        }
    }

    fn open(&self, path: &[u8], file: &FileNode) -> Result<Box<dyn io::Read + Send>, ClosureError> {
        let source = file.source.clone().unwrap_or_else(|| Source::Disk((self.question.disk)(file)));
        source.open().map_err(|source| ClosureError::Read { path: shown(path), source })
    }

    fn shebang(&self, path: &[u8], file: &FileNode) -> Result<String, ClosureError> {
        let mut head = Vec::new();
        let mut reader = self.open(path, file)?.take(SHEBANG_MAX_BYTES);
        reader.read_to_end(&mut head).map_err(|source| ClosureError::Read { path: shown(path), source })?;
        let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(String::from_utf8_lossy(line.strip_prefix(b"#!").unwrap_or(line)).trim_start().to_owned())
    }

    fn headers_of(&mut self, path: &[u8]) -> Result<Option<&Headers>, ClosureError> {
        if !self.headers.contains_key(path) {
            let Some(Node { kind: Kind::File(file), .. }) = self.question.tree.get(path) else { return Ok(None) };
            let disk = match &file.source {
                Some(Source::Disk(disk)) => disk.clone(),
                Some(Source::Memory(_)) => return Ok(None),
                None => (self.question.disk)(file),
            };
            let opened = File::open(disk).map_err(|source| ClosureError::Read { path: shown(path), source })?;
            let headers = match read_headers(&ReadCache::new(opened)) {
                Ok(headers) => headers,
                Err(what) => {
                    self.find(path, format!("begins like an ELF file but is not a whole one ({what})"));
                    Headers::default()
                }
            };
            self.headers.insert(path.to_vec(), headers);
        }
        Ok(self.headers.get(path))
    }

    fn find(&mut self, path: &[u8], sentence: String) {
        self.closure.findings.push(Finding { rule: Rule::UnresolvedLibrary, path: shown(path), sentence });
    }

    /// Where the dynamic linker finds a library; kept with the links that lead there.
    fn library(&mut self, name: &str, before: &[String], after: &[String]) -> Option<Vec<u8>> {
        if name.contains('/') {
            return self.keep(name.as_bytes());
        }
        let built_in = [format!("lib/{}", self.triplet()), format!("usr/lib/{}", self.triplet())];
        let tree = self.question.tree;
        let places = before.iter().chain(after).map(String::as_str);
        for directory in places.chain(built_in.iter().map(String::as_str)).chain(["lib", "usr/lib"]) {
            let path = format!("{directory}/{name}");
            if let Some((_, Node { kind: Kind::File(file), .. })) = tree.lookup(path.as_bytes())
                && self.is_native(file.facts.kind)
            {
                return self.keep(path.as_bytes());
            }
        }
        None
    }

    fn visit(&mut self, path: &[u8], inherited: &[String]) -> Result<(), ClosureError> {
        let origin = format!("/{}", String::from_utf8_lossy(parent(path).unwrap_or_default()));
        let library_directory = format!("lib/{}", self.triplet());
        let expand = |directory: &String| {
            directory
                .replace("${ORIGIN}", &origin)
                .replace("$ORIGIN", &origin)
                .replace("${LIB}", &library_directory)
                .replace("$LIB", &library_directory)
        };
        let Some(headers) = self.headers_of(path)? else { return Ok(()) };
        let runpath: Vec<String> = headers.runpath.iter().map(expand).collect();
        // DT_RPATH counts only without DT_RUNPATH, and then for what is loaded from there on.
        let rpath: Vec<String> = if runpath.is_empty() {
            headers.rpath.iter().map(expand).chain(inherited.iter().cloned()).collect()
        } else {
            vec![]
        };
        let (interpreter, needed) = (headers.interpreter.clone(), headers.needed.clone());
        let wanted = headers.needs_versions.clone();
        if let Some(interpreter) = interpreter
            && self.keep(interpreter.as_bytes()).is_none()
        {
            self.find(
                path,
                format!(
                    "needs the dynamic linker {interpreter}, which is not in the image: add \"libc6\" to [image] \
                     packages, or link it statically"
                ),
            );
        }
        let mut found: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for name in &needed {
            match self.library(name, &rpath, &runpath) {
                Some(target) => {
                    if !rpath.is_empty() && !self.headers.contains_key(&target) {
                        self.queue.push((target.clone(), rpath.clone()));
                    }
                    found.insert(name, target);
                }
                None => {
                    let elsewhere = self.elsewhere(name);
                    self.find(path, format!("needs the library {name}, which {elsewhere}"));
                }
            }
        }
        for (library, versions) in wanted {
            let Some(target) = found.get(library.as_str()) else { continue };
            let Some(provider) = self.headers_of(target)? else { continue };
            let missing: Vec<String> =
                versions.into_iter().filter(|version| !provider.has_versions.contains(version)).collect();
            // A library without versions at all satisfies any: the linker only warns.
            if missing.is_empty() || provider.has_versions.is_empty() {
                continue;
            }
            self.find(
                path,
                format!(
                    "needs {} of {library}, which {} does not have: it was built for a newer system; build it on \
                     Debian {} or choose a newer [image] suite",
                    missing.join(", "),
                    shown(target),
                    self.question.manifest.image.suite
                ),
            );
        }
        Ok(())
    }

    fn elsewhere(&self, name: &str) -> String {
        let other = self.question.tree.iter().find(|(path, node)| {
            file_name(path) == name.as_bytes() && matches!(node.kind, Kind::File(_) | Kind::Symlink { .. })
        });
        match other {
            Some((path, _)) => format!("is at {}, where the dynamic linker does not look", shown(path)),
            None if name.starts_with("libc.musl") => {
                "is of Alpine Linux: exclude this file, or install the module's build for glibc".into()
            }
            None => "is not in the image: add the package that has it to [image] packages".into(),
        }
    }

    /// Interpreters whose library nothing keeps.
    fn missing_libraries(&mut self) -> Result<(), ClosureError> {
        for (program, library) in runtime::libraries() {
            let (program, wanted) = (pattern("keep", program)?, pattern("keep", library)?);
            let Some(interpreter) = self.closure.kept.iter().find(|path| program.is_match(path)) else { continue };
            if self.closure.kept.iter().any(|path| wanted.covers(path)) {
                continue;
            }
            self.closure.warnings.push(Finding {
                rule: Rule::RuntimeData,
                path: shown(interpreter),
                sentence: format!("needs its library to run: name what it uses in [image] keep, such as \"{library}\""),
            });
        }
        let packages = self.question.packages;
        for name in &self.question.manifest.image.packages {
            let number = packages.iter().position(|package| package == name);
            let is_used = self.closure.kept.iter().any(|path| {
                let node = self.question.tree.get(path);
                node.is_some_and(|node| number.is_some_and(|number| node.origin == Origin::Package(number)))
            });
            if number.is_some() && !is_used {
                self.closure.warnings.push(Finding {
                    rule: Rule::RuntimeData,
                    path: format!("[image] packages: {name}"),
                    sentence: "brings nothing into the image, as nothing that runs needs it: name paths of it in \
                               [image] keep, or remove it"
                        .into(),
                });
            }
        }
        Ok(())
    }
}

/// Reads what the dynamic linker reads, by program headers alone: sections may be stripped.
fn read_headers<'a, R: ReadRef<'a>>(data: R) -> Result<Headers, object::read::Error> {
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    // Where in the file an address is, and how much of its segment follows.
    let place = |address: u64| -> Option<(u64, u64)> {
        let segment = segments.iter().find(|segment| {
            segment.p_type(endian) == elf::PT_LOAD
                && address >= segment.p_vaddr(endian)
                && address - segment.p_vaddr(endian) < segment.p_filesz(endian)
        })?;
        let into = address - segment.p_vaddr(endian);
        Some((segment.p_offset(endian).checked_add(into)?, segment.p_filesz(endian) - into))
    };
    // A table that begins at an address: all of its segment from there, or as much as is sensible.
    let table = |address: u64| -> Option<&'a [u8]> {
        let (offset, length) = place(address)?;
        data.read_bytes_at(offset, length.min(TABLE_MAX_BYTES)).ok()
    };
    let mut headers = Headers::default();
    let mut dynamic: &[elf::Dyn64<Endianness>] = &[];
    for segment in segments {
        if let Some(interpreter) = segment.interpreter(endian, data)? {
            headers.interpreter = Some(String::from_utf8_lossy(interpreter).into_owned());
        }
        if let Some(found) = segment.dynamic(endian, data)? {
            dynamic = found;
        }
    }
    let value =
        |tag: elf::DynamicTag| dynamic.iter().find(|entry| entry.tag(endian) == tag).map(|entry| entry.val(endian));
    // Not read whole: a runtime's is megabytes of names that it exports.
    let strings = value(elf::DT_STRTAB).and_then(place).map(|(offset, length)| {
        let length = length.min(value(elf::DT_STRSZ).unwrap_or(0));
        offset..offset.saturating_add(length)
    });
    let text = |at: u64| -> String {
        let found = strings.as_ref().and_then(|strings| {
            let start = strings.start.checked_add(at).filter(|start| *start < strings.end)?;
            data.read_bytes_at_until(start..strings.end.min(start.saturating_add(NAME_MAX_BYTES)), 0).ok()
        });
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    };
    let paths = |at: u64| text(at).split(':').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    for entry in dynamic {
        match entry.tag(endian) {
            elf::DT_NEEDED => headers.needed.push(text(entry.val(endian))),
            elf::DT_RPATH => headers.rpath = paths(entry.val(endian)),
            elf::DT_RUNPATH => headers.runpath = paths(entry.val(endian)),
            elf::DT_NULL => break,
            _ => {}
        }
    }
    if let Some(data) = value(elf::DT_VERNEED).and_then(table) {
        // Elf64_Verneed: version, count, file, aux, next; Elf64_Vernaux: hash, flags, other, name, next.
        for need in chain(data, 0, 12) {
            let names = chain(data, need + u32_at(data, need + 8), 12)
                .filter(|part| u16_at(data, part + 4) & elf::VER_FLG_WEAK.0 == 0)
                .map(|part| text(u32_at(data, part + 8) as u64))
                .collect();
            headers.needs_versions.push((text(u32_at(data, need + 4) as u64), names));
        }
    }
    if let Some(data) = value(elf::DT_VERDEF).and_then(table) {
        // Elf64_Verdef: version, flags, index, count, hash, aux, next; Elf64_Verdaux: name, next. The first names it.
        for definition in chain(data, 0, 16) {
            let name = definition + u32_at(data, definition + 12);
            headers.has_versions.push(text(u32_at(data, name) as u64));
        }
    }
    Ok(headers)
}

/// The most records of a version table that are followed; glibc has some 50.
const VERSIONS_MAX: usize = 10_000;

fn u16_at(data: &[u8], at: usize) -> u16 {
    let bytes = at.checked_add(2).and_then(|end| data.get(at..end)?.try_into().ok());
    bytes.map_or(0, u16::from_le_bytes)
}

fn u32_at(data: &[u8], at: usize) -> usize {
    let bytes = at.checked_add(4).and_then(|end| data.get(at..end)?.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes) as usize
}

/// Offsets of records that each say at `next` how far the following one is, 0 at the last.
fn chain(data: &[u8], first: usize, next: usize) -> impl Iterator<Item = usize> + '_ {
    let following = move |at: &usize| Some(at + u32_at(data, at + next)).filter(|found| found > at);
    std::iter::successors(Some(first), following).take_while(|at| *at < data.len()).take(VERSIONS_MAX)
}
