//! Validated names. They end up in file names, unit names and shell output, so
//! one strict rule serves all: a lower-case letter, then lower-case letters,
//! digits and single inner hyphens; at most 40 characters. Secrets are named as
//! environment variables are, because programs know them by such names.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// The longest name. A unit name joins three of them and must stay below 255.
pub const NAME_MAX: usize = 40;
/// The longest name of a secret.
pub const SECRET_NAME_MAX: usize = 64;

/// What makes a text not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a name of {what}: {rule}")]
pub struct ParseNameError {
    text: String,
    what: &'static str,
    rule: &'static str,
}

/// What names look like.
struct Rule {
    is_name: fn(&str) -> bool,
    words: &'static str,
    #[cfg(feature = "schema")]
    pattern: &'static str,
    #[cfg(feature = "schema")]
    max: usize,
}

/// Of everything but secrets.
const PLAIN: Rule = Rule {
    is_name,
    words: "use lower-case letters, digits and single inner hyphens, start with a letter, 40 characters at most",
    #[cfg(feature = "schema")]
    pattern: "^[a-z](-?[a-z0-9])*$",
    #[cfg(feature = "schema")]
    max: NAME_MAX,
};

/// Of secrets.
const SECRET: Rule = Rule {
    is_name: is_secret_name,
    words: "use letters, digits and underscores, start with a letter, 64 characters at most",
    #[cfg(feature = "schema")]
    pattern: "^[A-Za-z][A-Za-z0-9_]*$",
    #[cfg(feature = "schema")]
    max: SECRET_NAME_MAX,
};

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=NAME_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && !text.ends_with('-')
        && !text.contains("--")
}

fn is_secret_name(text: &str) -> bool {
    (1..=SECRET_NAME_MAX).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        name! { $(#[$doc])* $type, $what, PLAIN }
    };
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = ParseNameError;
            fn from_str(text: &str) -> Result<Self, ParseNameError> {
                if ($rule.is_name)(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ParseNameError { text: text.chars().take(80).collect(), what: $what, rule: $rule.words })
                }
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string",
                    "pattern": $rule.pattern,
                    "maxLength": $rule.max,
                    "description": concat!("The name of ", $what, "."),
                })
            }
        }
    };
}

name! { /// An app: what one `bulkhead.toml` describes.
AppName, "an app" }
name! { /// Machines that are bought and given back by program, all alike.
PoolName, "a pool" }
name! { /// A long-running service of an app.
ServiceName, "a service" }
name! { /// An environment, such as `staging`.
EnvironmentName, "an environment" }
name! { /// A node: one machine.
NodeName, "a node" }
name! { /// A fleet: everything under one policy.
FleetName, "a fleet" }
name! { /// A volume: named data that outlives releases.
VolumeName, "a volume" }
name! { /// A person or machine that holds a key.
PersonName, "a key's holder" }
name! { /// A secret: a value that services read from a file of this name.
SecretName, "a secret", SECRET }

/// The known word nearest to a mistyped one, if any is near enough to suggest.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web", "web-2", "a1-b2-c3"] {
            assert!(good.parse::<AppName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a--b", "1a", "Web", "a.b", "a/b", "é", &"a".repeat(41)] {
            assert!(bad.parse::<AppName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_secrets() {
        for good in ["a", "DATABASE_URL", "Key2", &"A".repeat(64)] {
            assert!(good.parse::<SecretName>().is_ok(), "{good}");
        }
        for bad in ["", "_A", "1A", "A-B", "A.B", "A/B", "A B", "É", "A:B", &"A".repeat(65)] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nearest_word() {
        let known = ["command", "env", "port"];
        assert_eq!(nearest("comand", known), Some("command"));
        assert_eq!(nearest("prot", known), Some("port"));
        assert_eq!(nearest("volumes", known), None);
    }
}
