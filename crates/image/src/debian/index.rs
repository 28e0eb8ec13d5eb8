//! `Release` and `Packages` files, and which packages a list of names needs.
//!
//! Source: Debian Policy 5 (control files), the repository format of wiki.debian.org.

use super::{
    DebianError,
    fetch::Expected,
    version::{self, Relation, parse_relations},
};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// The most packages that one manifest can bring in: a whole desktop has some 3,000.
const PACKAGES_MAX: usize = 5_000;
/// How many similar names an error offers.
const SIMILAR_SHOWN: usize = 3;

/// A field of a paragraph; what is indented below it belongs to it.
pub(crate) fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    let mut at = 0;
    for line in paragraph.split_inclusive('\n') {
        if let Some((key, _)) = line.split_once(':')
            && key.eq_ignore_ascii_case(name)
            && !line.starts_with([' ', '\t'])
        {
            let start = at + key.len() + 1;
            let more: usize = paragraph[at + line.len()..]
                .split_inclusive('\n')
                .take_while(|line| line.starts_with([' ', '\t']))
                .map(str::len)
                .sum();
            return Some(paragraph[start..at + line.len() + more].trim());
        }
        at += line.len();
    }
    None
}

/// What a `Release` file says of one of its files.
pub(crate) fn expected_of(release: &str, path: &str) -> Option<Expected> {
    field(release, "SHA256")?.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (sha256, size, name) = (words.next()?, words.next()?, words.next()?);
        (name == path).then_some(())?;
        Some(Expected { sha256: sha256.to_ascii_lowercase(), size_bytes: size.parse().ok()? })
    })
}

/// One package of an index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    paragraph: &'a str,
}

impl<'a> Package<'a> {
    pub(crate) fn field(&self, name: &str) -> Option<&'a str> {
        field(self.paragraph, name)
    }

    fn relations(&self) -> Vec<Vec<Relation<'a>>> {
        ["Pre-Depends", "Depends"].into_iter().filter_map(|name| self.field(name)).flat_map(parse_relations).collect()
    }

    /// Lower is preferred among packages that provide the same.
    fn rank(&self) -> u8 {
        match self.field("Priority") {
            Some("required") => 0,
            Some("important") => 1,
            Some("standard") => 2,
            Some("optional") => 3,
            _ => 4,
        }
    }
}

/// The packages of a suite, its updates and its security updates: of each name the newest.
#[derive(Debug, Default)]
pub(crate) struct Universe<'a> {
    packages: BTreeMap<&'a str, Package<'a>>,
    /// Virtual name → provider and the version it provides, if any.
    provides: HashMap<&'a str, Vec<(&'a str, Option<&'a str>)>>,
}

impl<'a> Universe<'a> {
    pub(crate) fn new(indices: &[&'a str]) -> Self {
        let mut universe = Self::default();
        for index in indices {
            for paragraph in index.split("\n\n") {
                let (Some(name), Some(version)) = (field(paragraph, "Package"), field(paragraph, "Version")) else {
                    continue;
                };
                let package = Package { name, version, paragraph };
                universe
                    .packages
                    .entry(name)
                    .and_modify(|known| {
                        if version::compare(known.version, version).is_lt() {
                            *known = package;
                        }
                    })
                    .or_insert(package);
            }
        }
        for package in universe.packages.values() {
            // Looking for a substring first spares splitting the paragraphs of most packages.
            let Some(provides) = package.paragraph.contains("\nProvides:").then(|| package.field("Provides")).flatten()
            else {
                continue;
            };
            for relation in parse_relations(provides).into_iter().flatten() {
                let provided = relation.bound.map(|(_, version)| version);
                universe.provides.entry(relation.name).or_default().push((package.name, provided));
            }
        }
        universe
    }

    fn similar(&self, name: &str) -> Vec<String> {
        let mut near: Vec<(usize, &str)> = self
            .packages
            .keys()
            .map(|known| {
                let contains = known.starts_with(name) || (name.len() > 3 && name.starts_with(known));
                (if contains { 1 } else { strsim::damerau_levenshtein(name, known) }, *known)
            })
            .filter(|(distance, _)| *distance <= 2.max(name.len() / 3))
            .collect();
        near.sort_unstable_by_key(|(distance, known)| (*distance, known.len(), *known));
        near.into_iter().take(SIMILAR_SHOWN).map(|(_, known)| known.to_owned()).collect()
    }

    /// Who can stand for a relation, best first.
    fn candidates(&self, relation: &Relation<'a>) -> Vec<&'a str> {
        let real = self.packages.get(relation.name).filter(|package| relation.allows(Some(package.version)));
        let mut virtuals: Vec<&str> = self
            .provides
            .get(relation.name)
            .into_iter()
            .flatten()
            .filter(|(_, version)| relation.allows(*version))
            .map(|(provider, _)| *provider)
            .collect();
        virtuals.sort_unstable_by_key(|name| (self.packages.get(name).map(Package::rank), *name));
        real.map(|package| package.name).into_iter().chain(virtuals).collect()
    }

    /// The named packages and all that they depend on, by name.
    pub(crate) fn resolve(&self, names: &[String], suite: &str) -> Result<Vec<Package<'a>>, DebianError> {
        let mut chosen: BTreeMap<&str, Package<'a>> = BTreeMap::new();
        let mut queue = VecDeque::new();
        for name in names {
            let relation = Relation { name, bound: None };
            let found = match self.packages.get(name.as_str()) {
                Some(package) => Some(package.name),
                // A virtual name with a single provider is as good as its name.
                None => match self.provides.get(relation.name).map(Vec::as_slice) {
                    Some([(provider, _)]) => Some(*provider),
                    _ => None,
                },
            };
            let Some(package) = found.and_then(|found| self.packages.get(found)) else {
                return Err(DebianError::NoSuchPackage {
                    name: name.clone(),
                    suite: suite.to_owned(),
                    similar: self.similar(name),
                });
            };
            if chosen.insert(package.name, *package).is_none() {
                queue.push_back(*package);
            }
        }
        while let Some(package) = queue.pop_front() {
            for group in package.relations() {
                let all: Vec<&str> = group.iter().flat_map(|relation| self.candidates(relation)).collect();
                if all.iter().any(|name| chosen.contains_key(name)) {
                    continue;
                }
                let Some(next) = all.first().and_then(|name| self.packages.get(name)) else {
                    let wanted: Vec<String> = group.iter().map(ToString::to_string).collect();
                    return Err(DebianError::Unsatisfiable {
                        package: package.name.to_owned(),
                        version: package.version.to_owned(),
                        relation: wanted.join(" | "),
                        suite: suite.to_owned(),
                    });
                };
                chosen.insert(next.name, *next);
                queue.push_back(*next);
                if chosen.len() > PACKAGES_MAX {
                    return Err(DebianError::TooManyPackages { limit: PACKAGES_MAX });
                }
            }
        }
        Ok(chosen.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "\
Package: web\nVersion: 1\nDepends: lib (>= 2), mail | postman,\n extra\n\n\
Package: lib\nVersion: 2.1\nPre-Depends: base\n\n\
Package: exim\nVersion: 4\nProvides: mail\nPriority: extra\n\n\
Package: aamail\nVersion: 4\nProvides: mail (= 4)\nPriority: optional\n\n\
Package: extra\nVersion: 1\n\nPackage: base\nVersion: 1\n\n\
Package: broken\nVersion: 1\nDepends: lib (>= 9) | nothing\n\n";
    const UPDATES: &str = "Package: lib\nVersion: 2.1+deb13u1\nDepends: base\n\nPackage: base\nVersion: 0.9\n";

    fn resolve(names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let universe = Universe::new(&[INDEX, UPDATES]);
        let packages = universe.resolve(&names, "trixie").map_err(|error| error.to_string())?;
        Ok(packages.iter().map(|package| format!("{}={}", package.name, package.version)).collect())
    }

    #[test]
    fn dependencies() {
        let all = ["aamail=4", "base=1", "extra=1", "lib=2.1+deb13u1", "web=1"];
        assert_eq!(resolve(&["web"]).unwrap(), all);
        // What was asked for satisfies an alternative.
        let chosen = ["base=1", "exim=4", "extra=1", "lib=2.1+deb13u1", "web=1"];
        assert_eq!(resolve(&["web", "exim"]).unwrap(), chosen);
        let missing = resolve(&["wev"]).unwrap_err();
        assert!(missing.contains("`wev`") && missing.contains("`web`"), "{missing}");
        let broken = resolve(&["broken"]).unwrap_err();
        assert!(broken.contains("lib (>= 9) | nothing"), "{broken}");
    }

    #[test]
    fn fields_and_release_entries() {
        let release = "Suite: x\nCodename: trixie\nSHA256:\n AA 12 main/a\n bb 13 main/b\nDate: y\n";
        assert_eq!(field(release, "codename"), Some("trixie"));
        assert_eq!(field(release, "Date"), Some("y"));
        assert_eq!(field(release, "aa"), None);
        assert_eq!(expected_of(release, "main/a"), Some(Expected { sha256: "aa".into(), size_bytes: 12 }));
        assert_eq!(expected_of(release, "main/c"), None);
    }
}
