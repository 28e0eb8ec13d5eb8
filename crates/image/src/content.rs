//! What a file is, told by its first bytes.
//!
//! Computed once, while a file is hashed, and kept in the index and in package
//! listings, so that neither the lint nor the closure reads unchanged files.

use serde::{Deserialize, Serialize};

/// How much of a file's beginning is looked at. Keys and tokens stand in small
/// files; program headers stand at the beginning.
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// What a file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    #[default]
    Other,
    /// Starts with `#!`.
    Script,
    /// A Linux program or shared library for 64-bit x86.
    ElfAmd64,
    /// A Linux program or shared library for 64-bit ARM.
    ElfArm64,
    /// A program or library for another processor.
    ElfForeign,
    /// An object file, an eBPF program or a core: not loaded by the dynamic linker.
    ElfObject,
    /// A Windows program or library.
    Pe,
    /// A macOS program or library.
    MachO,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Other,
        Self::Script,
        Self::ElfAmd64,
        Self::ElfArm64,
        Self::ElfForeign,
        Self::ElfObject,
        Self::Pe,
        Self::MachO,
    ];
}

/// What is known of a file's contents besides their digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    /// Holds a private key in PEM or OpenSSH form.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) private_key: bool,
    /// Holds an npm access token (looked for in `.npmrc` alone).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) npm_token: bool,
}

impl Facts {
    /// Looks at a file's first bytes (at most [`HEAD_BYTES`] of them count).
    pub(crate) fn of(name: &[u8], head: &[u8]) -> Self {
        let head = &head[..head.len().min(HEAD_BYTES)];
        Self {
            kind: kind(head),
            private_key: has_private_key(head),
            npm_token: name == b".npmrc" && has_npm_token(head),
        }
    }

    /// Whether Linux can run it. A file of the app gets its mode by this and not by the bits it has on the host, which
    /// Windows lacks and archives lose: so a folder gives the same image everywhere. A library is in the same format.
    pub(crate) fn looks_executable(self) -> bool {
        matches!(self.kind, Kind::Script | Kind::ElfAmd64 | Kind::ElfArm64 | Kind::ElfForeign)
    }

    pub(crate) fn to_byte(self) -> u8 {
        let kind = Kind::ALL.iter().position(|kind| *kind == self.kind).unwrap_or_default();
        u8::try_from(kind).unwrap_or_default() | u8::from(self.private_key) << 6 | u8::from(self.npm_token) << 7
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        let kind = *Kind::ALL.get(usize::from(byte & 0x3f))?;
        Some(Self { kind, private_key: byte & 0x40 != 0, npm_token: byte & 0x80 != 0 })
    }
}

fn kind(head: &[u8]) -> Kind {
    match head {
        [b'#', b'!', ..] => Kind::Script,
        [0x7f, b'E', b'L', b'F', class, order, ..] if head.len() >= 20 => {
            let half = |at: usize| match order {
                2 => u16::from_be_bytes([head[at], head[at + 1]]),
                _ => u16::from_le_bytes([head[at], head[at + 1]]),
            };
            // e_type 2 and 3 are programs and shared libraries; e_machine 247 is eBPF.
            match (half(16), half(18), class, order) {
                (2 | 3, 62, 2, 1) => Kind::ElfAmd64,
                (2 | 3, 183, 2, 1) => Kind::ElfArm64,
                (_, 247, ..) => Kind::ElfObject,
                (2 | 3, ..) => Kind::ElfForeign,
                _ => Kind::ElfObject,
            }
        }
        [b'M', b'Z', ..] if is_pe(head) => Kind::Pe,
        // Thin Mach-O, either byte order and width. A fat one shares its magic with
        // Java classes; it has a small count of architectures where a class has a version.
        [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] | [0xfe, 0xed, 0xfa, 0xcf | 0xce, ..] => Kind::MachO,
        [0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 1..=20, ..] => Kind::MachO,
        _ => Kind::Other,
    }
}

fn is_pe(head: &[u8]) -> bool {
    let Some(&[a, b, c, d]) = head.get(0x3c..0x40) else { return false };
    let at = u32::from_le_bytes([a, b, c, d]) as usize;
    at.checked_add(4).and_then(|end| head.get(at..end)) == Some(b"PE\0\0")
}

/// A PEM header at the start of a line with a line of base64 below it: a key, and
/// not a program that can read one. Headers such as `Proc-Type` may come between.
fn has_private_key(head: &[u8]) -> bool {
    const MARK: &[u8] = b"PRIVATE KEY-----";
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    while let Some(line) = lines.next() {
        if line.len() <= 64 && line.ends_with(MARK) && line.starts_with(b"-----BEGIN ") {
            let body = lines.clone().take(8).find(|line| !line.is_empty() && !line.contains(&b':'));
            let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
            if body.is_some_and(|line| line.len() >= 40 && line.iter().all(is_base64)) {
                return true;
            }
        }
    }
    false
}

fn has_npm_token(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').any(|line| {
        let line = line.trim_ascii_start();
        let is_comment = line.starts_with(b"#") || line.starts_with(b";");
        let key = line.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii_end();
        let value = line.splitn(2, |byte| *byte == b'=').nth(1).unwrap_or_default().trim_ascii();
        // `${NPM_TOKEN}` names a variable and is no secret.
        !is_comment
            && [b"_authToken".as_slice(), b"_auth", b"_password"].iter().any(|suffix| key.ends_with(suffix))
            && !value.is_empty()
            && !value.starts_with(b"${")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(class: u8, order: u8, kind: u8, machine: u8) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', class, order, 1];
        bytes.resize(16, 0);
        bytes.extend([kind, 0, machine, 0]);
        bytes.resize(64, 0);
        bytes
    }

    #[test]
    fn kinds() {
        let mut pe = b"MZ".to_vec();
        pe.resize(0x3c, 0);
        pe.extend(0x80u32.to_le_bytes());
        pe.resize(0x80, 0);
        pe.extend(b"PE\0\0");
        let check = |bytes: &[u8], expected: Kind| {
            let facts = Facts::of(b"x", bytes);
            assert_eq!(facts.kind, expected, "{:?}", &bytes[..bytes.len().min(8)]);
            assert_eq!(Facts::from_byte(facts.to_byte()), Some(facts));
        };
        check(b"", Kind::Other);
        check(b"#!/usr/bin/env node\n", Kind::Script);
        check(&elf(2, 1, 3, 62), Kind::ElfAmd64);
        check(&elf(2, 1, 2, 183), Kind::ElfArm64);
        check(&elf(1, 1, 2, 3), Kind::ElfForeign);
        check(&elf(2, 1, 1, 62), Kind::ElfObject);
        check(&elf(2, 1, 1, 247), Kind::ElfObject);
        check(b"\x7fELF", Kind::Other);
        check(&pe, Kind::Pe);
        check(b"MZ is how this text begins", Kind::Other);
        check(&[0xcf, 0xfa, 0xed, 0xfe, 7], Kind::MachO);
        check(&[0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 2], Kind::MachO);
        check(&[0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 52], Kind::Other);
    }

    #[test]
    fn secrets() {
        let body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
        let key = |text: String| Facts::of(b"key", text.as_bytes()).private_key;
        assert!(key(format!("-----BEGIN PRIVATE KEY-----\n{body}\n")));
        assert!(key(format!("# mine\r\n-----BEGIN OPENSSH PRIVATE KEY-----\r\n{body}\r\n")));
        assert!(key(format!("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{body}\n")));
        assert!(!key(format!("-----BEGIN PUBLIC KEY-----\n{body}\n")));
        assert!(!key(format!("const header = '-----BEGIN PRIVATE KEY-----'\n{body}")));
        assert!(!key("-----BEGIN PRIVATE KEY-----\n...\n".into()));
        let token = |name: &str, text: &str| Facts::of(name.as_bytes(), text.as_bytes()).npm_token;
        assert!(token(".npmrc", "a=b\n//registry.npmjs.org/:_authToken=npm_abc\n"));
        assert!(token(".npmrc", "_auth = abc"));
        assert!(!token(".npmrc", "//registry.npmjs.org/:_authToken=${NPM_TOKEN}\n"));
        assert!(!token(".npmrc", "# _authToken=abc\n"));
        assert!(!token("npmrc.md", "_authToken=abc\n"));
    }
}
