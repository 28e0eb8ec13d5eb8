//! Debian's versions and the relations between them.
//!
//! Source: Debian Policy 5.6.12 (the order of versions) and 7.1 (the syntax of relations).

use std::cmp::Ordering;

/// Compares two versions `[epoch:]upstream[-revision]`.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (left_epoch, left) = epoch(left);
    let (right_epoch, right) = epoch(right);
    let (left_upstream, left_revision) = left.rsplit_once('-').unwrap_or((left, "0"));
    let (right_upstream, right_revision) = right.rsplit_once('-').unwrap_or((right, "0"));
    left_epoch
        .cmp(&right_epoch)
        .then_with(|| compare_part(left_upstream.as_bytes(), right_upstream.as_bytes()))
        .then_with(|| compare_part(left_revision.as_bytes(), right_revision.as_bytes()))
}

fn epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

/// `~` sorts before the end, the end before letters, letters before all else.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    }
}

fn compare_part(mut left: &[u8], mut right: &[u8]) -> Ordering {
    while !left.is_empty() || !right.is_empty() {
        let is_word = |part: &[u8]| part.first().is_some_and(|byte| !byte.is_ascii_digit());
        while is_word(left) || is_word(right) {
            match weight(left.first()).cmp(&weight(right.first())) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
            left = left.get(1..).unwrap_or_default();
            right = right.get(1..).unwrap_or_default();
        }
        let digits = |part: &mut &[u8]| {
            let end = part.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(part.len());
            let (digits, rest) = part.split_at(end);
            *part = rest;
            let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
            digits[zeros..].to_vec()
        };
        let (left_number, right_number) = (digits(&mut left), digits(&mut right));
        let order = left_number.len().cmp(&right_number.len()).then_with(|| left_number.cmp(&right_number));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// One alternative of a dependency: `name (>= version)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    pub(crate) name: &'a str,
    /// The operator and version, where there is a bound.
    pub(crate) bound: Option<(&'a str, &'a str)>,
}

impl<'a> Relation<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let (name, bound) = match text.split_once('(') {
            Some((name, bound)) => {
                let bound = bound.trim_end().strip_suffix(')')?.trim();
                let end = bound.find(|c: char| !matches!(c, '<' | '>' | '=')).unwrap_or(bound.len());
                (name.trim(), Some((&bound[..end], bound[end..].trim())))
            }
            None => (text, None),
        };
        // `:any` and `:native` choose an architecture; there is only one here.
        let name = name.split(':').next().unwrap_or(name);
        (!name.is_empty()).then_some(Self { name, bound })
    }

    /// Whether a version is within the bound. A version that is not known is within none.
    pub(crate) fn allows(&self, version: Option<&str>) -> bool {
        let Some((operator, wanted)) = self.bound else { return true };
        let Some(version) = version else { return false };
        let order = compare(version, wanted);
        match operator {
            "=" => order == Ordering::Equal,
            ">=" | ">" => order != Ordering::Less,
            "<=" | "<" => order != Ordering::Greater,
            ">>" => order == Ordering::Greater,
            "<<" => order == Ordering::Less,
            _ => false,
        }
    }
}

impl std::fmt::Display for Relation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bound {
            Some((operator, version)) => write!(f, "{} ({operator} {version})", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// A field such as `Depends`: all of its groups, any alternative of each.
pub(crate) fn parse_relations(field: &str) -> Vec<Vec<Relation<'_>>> {
    field
        .split(',')
        .map(|group| group.split('|').filter_map(Relation::parse).collect::<Vec<_>>())
        .filter(|group| !group.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_versions() {
        let check = |left: &str, expected: Ordering, right: &str| {
            assert_eq!(compare(left, right), expected, "{left} {right}");
            assert_eq!(compare(right, left), expected.reverse(), "{right} {left}");
        };
        check("1.0", Ordering::Equal, "1.0-0");
        check("1.0", Ordering::Equal, "0:1.00");
        check("1.0~rc1", Ordering::Less, "1.0");
        check("1.0~~", Ordering::Less, "1.0~");
        check("1.0", Ordering::Less, "1.0+deb13u1");
        check("1.9", Ordering::Less, "1.10");
        check("1:0.1", Ordering::Greater, "9.9");
        check("2.41-12+deb13u5", Ordering::Greater, "2.41-12+deb13u4");
        check("1.0a", Ordering::Less, "1.0+");
        check("1.2.3", Ordering::Greater, "1.2");
        check("20.19.2+dfsg-1", Ordering::Less, "20.19.2+dfsg-1+deb13u3");
    }

    #[test]
    fn relations() {
        let groups = parse_relations("libc6 (>= 2.34), default-mta | mail-transport-agent, perl:any, x (= 1:2-3)");
        let text: Vec<String> =
            groups.iter().map(|g| g.iter().map(ToString::to_string).collect::<Vec<_>>().join("|")).collect();
        assert_eq!(text, ["libc6 (>= 2.34)", "default-mta|mail-transport-agent", "perl", "x (= 1:2-3)"]);
        assert!(groups[0][0].allows(Some("2.41")) && !groups[0][0].allows(Some("2.31")) && !groups[0][0].allows(None));
        assert!(groups[3][0].allows(Some("1:2-3")) && !groups[3][0].allows(Some("2-3")));
        assert!(
            parse_relations("a (<< 2)")[0][0].allows(Some("1")) && !parse_relations("a (<< 2)")[0][0].allows(Some("2"))
        );
        assert!(parse_relations("").is_empty());
    }
}
