//! Paths of an image as a manifest names them: a file, a folder with all below it,
//! or a pattern (`*` within a component, `**` across them).

use crate::tree::spell;
use globset::{GlobBuilder, GlobMatcher};

/// One such name.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    /// As the tree spells it.
    plain: Vec<u8>,
    glob: Option<GlobMatcher>,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Result<Self, globset::Error> {
        let plain = spell(text.trim_end_matches('/').as_bytes());
        let glob = if text.contains(['*', '?', '[', '{']) {
            let spelled = String::from_utf8_lossy(&plain).into_owned();
            Some(GlobBuilder::new(&spelled).literal_separator(true).backslash_escape(true).build()?.compile_matcher())
        } else {
            None
        };
        Ok(Self { plain, glob })
    }

    /// The path, where it is no pattern.
    pub(crate) fn plain(&self) -> Option<&[u8]> {
        self.glob.is_none().then_some(self.plain.as_slice())
    }

    /// Whether the pattern names exactly this path.
    pub(crate) fn is_match(&self, path: &[u8]) -> bool {
        match &self.glob {
            None => path == self.plain,
            Some(glob) => glob.is_match(String::from_utf8_lossy(path).as_ref()),
        }
    }

    /// Whether it names the path or a folder above it.
    pub(crate) fn covers(&self, path: &[u8]) -> bool {
        let path = spell(path);
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
        ends.into_iter().any(|end| self.is_match(&path[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_covered() {
        let check = |pattern: &str, path: &str, expected: bool| {
            assert_eq!(Pattern::new(pattern).unwrap().covers(path.as_bytes()), expected, "{pattern} {path}");
        };
        check("/usr/share/zoneinfo", "/usr/share/zoneinfo/Europe/Berlin", true);
        check("/usr/share/zoneinfo/", "usr/share/zoneinfo", true);
        check("/usr/share/zone", "/usr/share/zoneinfo", false);
        check("/lib/python3.13/**", "/usr/lib/python3.13/os.py", true);
        check("/app/*.pem", "/app/a.pem", true);
        check("/app/*.pem", "/app/b/a.pem", false);
        check("/app/**/*.pem", "/app/b/c/a.pem", true);
        check("/app/t*", "/app/test/deep/a", true);
        assert!(Pattern::new("/a[").is_err());
    }
}
