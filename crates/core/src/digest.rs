//! Typed 32-byte ids, written as 64 lower-case hexadecimal digits.
//!
//! Each id is a sha256 over something else, so each has a type of its own and
//! cannot be passed where another is meant.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// What makes a text not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id: an id is 64 hexadecimal digits (0-9, a-f)")]
pub struct ParseIdError {
    text: String,
}

/// Reads 32 bytes from 64 lower-case hexadecimal digits.
///
/// # Errors
/// It is not that.
pub fn parse(text: &str) -> Result<[u8; 32], ParseIdError> {
    let bad = || ParseIdError { text: text.chars().take(80).collect() };
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(bad());
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(bad()),
    };
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(out)
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

/// sha256 of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The id of exactly these bytes: their sha256.
            #[must_use]
            pub fn of(bytes: &[u8]) -> Self {
                Self(sha256(bytes))
            }

            /// The first 12 digits: enough to recognise an id in a table.
            #[must_use]
            pub fn short(&self) -> String {
                hex(&self.0[..6])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// A file's contents: its fs-verity digest (sha256, 4 KiB blocks, no salt).
    FileDigest
}
id! {
    /// An image: sha256 of its canonical document, see [`crate::image`].
    ImageId
}
id! {
    /// A signed order: sha256 of its exact bytes.
    OrderId
}
id! {
    /// A policy document: sha256 of its exact bytes.
    PolicyId
}
id! {
    /// A signed statement about an image: sha256 of its exact bytes.
    StatementId
}
id! {
    /// A line of an audit log: sha256 of its exact bytes, without its line feed.
    EntryId
}
id! {
    /// A sealed secret: sha256 of what is sealed, which says nothing of the value.
    SecretDigest
}
id! {
    /// What a release runs, whoever ordered it: see [`crate::order::Run::id`].
    RunId
}
id! {
    /// A node's present boot: drawn at random when it is first needed, and gone with the boot.
    BootId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let id = ImageId::of(b"abc");
        assert_eq!(id.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "ba7816bf8f01");
    }

    #[test]
    fn what_is_not_an_id() {
        for text in ["", "ba78", &"g".repeat(64), &"A".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<ImageId>().is_err(), "{text}");
        }
    }
}
