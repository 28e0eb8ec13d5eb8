//! What goes wrong, folded into one shape: a kind that decides the exit code,
//! a sentence, the chain of causes, and hints that say what to do next.
//!
//! Every module's own error converts into [`Error`] here or beside the call
//! that makes it; nothing else prints errors or chooses an exit code.
//!
//! ```text
//! error: deploy/bulkhead.toml:3: unknown field `comand`
//!   cause: …
//!   hint: did you mean `command`?
//! ```

use crate::{
    output::{Paint, printable_lines},
    workspace::shown,
};
use bulkhead_core::manifest::ManifestError;
use bulkhead_wire::{Failure, FailureKind, LogLine};
use schemars::JsonSchema;
use serde::Serialize;
use std::path::Path;

/// A command's result.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of thing went wrong. Decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A fault of this program or of this machine (a file that cannot be written).
    Internal,
    /// The command line makes no sense, or nobody could be asked.
    Usage,
    /// A file of yours is wrong or missing: manifest, fleet, policy, key, image contents.
    Configuration,
    /// A node could not be reached, or its host key is not the known one.
    Unreachable,
    /// A node, or the policy, refused.
    Refused,
    /// The new release did not become healthy; the old one serves on.
    Unhealthy,
    /// Another order of the app is being carried out.
    Locked,
    /// The node could not: disk full, facility missing.
    Node,
    /// Nodes differ from each other, or some did it and some did not.
    Partial,
    /// Interrupted, or the question was answered with no.
    Interrupted,
}

impl Kind {
    /// Every kind, in the order of exit codes.
    pub const ALL: [Self; 10] = [
        Self::Internal,
        Self::Usage,
        Self::Configuration,
        Self::Unreachable,
        Self::Refused,
        Self::Unhealthy,
        Self::Locked,
        Self::Node,
        Self::Partial,
        Self::Interrupted,
    ];

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Configuration => 3,
            Self::Unreachable => 4,
            Self::Refused => 5,
            Self::Unhealthy => 6,
            Self::Locked => 7,
            Self::Node => 8,
            Self::Partial => 9,
            Self::Interrupted => 130,
        }
    }

    /// What the code means, for the help text.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Internal => "internal: a fault of the program or of this machine",
            Self::Usage => {
                "usage: the command line makes no sense, names a node that is not there, or nobody could be asked"
            }
            Self::Configuration => "configuration: a file of yours is wrong or missing",
            Self::Unreachable => "unreachable: no connection to a node, or its host key is not the known one",
            Self::Refused => "refused: by a node or by the policy",
            Self::Unhealthy => "unhealthy: the new release did not become healthy; the old one serves",
            Self::Locked => "locked: another order of the app is being carried out",
            Self::Node => "node: a node could not, such as a full disk",
            Self::Partial => "partly: nodes differ, or some did it (or answered) and others did not",
            Self::Interrupted => "interrupted, or the question was answered with no",
        }
    }
}

/// What went wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// What happened, in a sentence.
    pub message: String,
    /// Why, from the nearest cause to the farthest.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hints: Vec<String>,
    /// The last log lines of a service that did not become healthy.
    pub log: Vec<LogLine>,
    /// A command that has already shown its result, such as a table of nodes,
    /// in JSON: the error is then not printed there a second time.
    pub shown: bool,
    /// The exit code of a tool that ended with another than 0: the program ends with it, and without a word.
    pub tool: Option<u8>,
}

/// An error as `-o json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorReport {
    /// The error.
    pub error: ErrorBody,
}

/// The error itself.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// What kind it is.
    pub kind: Kind,
    /// The process's exit code.
    pub exit_code: u8,
    /// What happened, in a sentence.
    pub message: String,
    /// Why, from the nearest cause to the farthest.
    pub causes: Vec<String>,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl Error {
    /// A new error without causes or hints.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: vec![], hints: vec![], log: vec![], shown: false, tool: None }
    }

    /// A wrong command line.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A wrong file.
    #[must_use]
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(Kind::Configuration, message)
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Folds another error and its chain of sources in: its text becomes the sentence.
    #[must_use]
    pub fn of(kind: Kind, error: &dyn std::error::Error) -> Self {
        let mut folded = Self::new(kind, error.to_string());
        folded.causes = chain(error.source());
        folded
    }

    /// As [`Error::of`] below a sentence that says what was being done.
    #[must_use]
    pub fn during(kind: Kind, what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        let mut folded = Self::new(kind, what);
        folded.causes = chain(Some(error));
        folded
    }

    /// Its sentence and causes, as the causes of another error.
    #[must_use]
    pub fn as_causes(&self) -> Vec<String> {
        std::iter::once(&self.message).chain(&self.causes).cloned().collect()
    }

    /// A manifest's error, with the place it stands on.
    #[must_use]
    pub fn manifest(path: &Path, error: &ManifestError) -> Self {
        let place = match error.line {
            Some(line) => format!("{}:{line}", shown(path)),
            None => shown(path).to_string(),
        };
        // The parser's text is: a title with the position, the line with a mark below it, the sentence.
        let lines: Vec<&str> = error.message.trim_end().lines().collect();
        let is_excerpt = |line: &&str| {
            line.trim_start_matches([' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']).starts_with('|')
        };
        let message = match lines.split_first() {
            Some((title, rest)) if title.starts_with("TOML parse error") => {
                let sentence: Vec<&str> = rest.iter().filter(|line| !is_excerpt(line)).copied().collect();
                let excerpt: Vec<&str> = rest.iter().filter(|line| is_excerpt(line)).copied().collect();
                format!("{place}: {}\n{}", sentence.join("\n"), excerpt.join("\n"))
            }
            _ => format!("{place}: {}", error.message.trim_end()),
        };
        let mut folded = Self::configuration(message);
        folded.hints.extend(error.hint.clone());
        folded
    }

    /// A node's answer that it did not do it.
    #[must_use]
    pub fn failure(node: &str, failure: &Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::Request | FailureKind::Refused => Kind::Refused,
            FailureKind::Locked => Kind::Locked,
            FailureKind::Unhealthy => Kind::Unhealthy,
            FailureKind::Node => Kind::Node,
        };
        // Which rule refused is a stable word, by which SECURITY.md can be looked at.
        let rule = match failure.kind {
            FailureKind::Refused => format!(" (rule: {})", failure.rule),
            _ => String::new(),
        };
        let mut folded = Self::new(kind, format!("{node}: {}{rule}", failure.message));
        folded.hints.extend(failure.hint.clone());
        match failure.rule.as_str() {
            "drop-box" | "pack" => {
                folded.hints.push("put the pack there again, or leave `--dropped` out: all is sent then".into());
            }
            "secret" => folded.hints.push(
                "if the node was made anew: `bulkhead policy nodes` lists its new keys, then `bulkhead secret set` again"
                    .into(),
            ),
            "locked" => folded.hints.push("`--wait 60s` waits for it".into()),
            "no-release" | "no-service" | "not-running" => folded.hints.push("`bulkhead ps` shows what runs".into()),
            _ => {}
        }
        folded.log.clone_from(&failure.log);
        folded
    }

    /// The error as `-o json` prints it.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        ErrorReport {
            error: ErrorBody {
                kind: self.kind,
                exit_code: self.kind.exit_code(),
                message: self.message.clone(),
                causes: self.causes.clone(),
                hints: self.hints.clone(),
            },
        }
    }

    /// The error as a terminal shows it. Everything is escaped, for parts of it may come from a node.
    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let mut out = String::new();
        let mut line = |label: &str, text: &str| {
            putln!(out, "{label} {}", printable_lines(text).replace('\n', "\n  "));
        };
        line(&paint.error("error:"), &self.message);
        for cause in &self.causes {
            line("  cause:", cause);
        }
        for entry in &self.log {
            line(&paint.faint(&format!("  {} |", entry.service)), &entry.text);
        }
        for hint in &self.hints {
            line(&paint.hint("  hint:"), hint);
        }
        out
    }
}

fn chain(mut source: Option<&dyn std::error::Error>) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    while let Some(error) = source {
        let text = error.to_string();
        // Some libraries repeat the source in their own text; saying it once is enough.
        if causes.last().is_none_or(|last| !last.ends_with(&text)) {
            causes.push(text);
        }
        source = error.source();
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_none_is_success() {
        let codes: std::collections::BTreeSet<u8> = Kind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes.len(), Kind::ALL.len());
        assert!(!codes.contains(&0));
    }

    #[test]
    fn escapes_what_a_node_wrote() {
        let error = Error::new(Kind::Refused, "n1: \u{1b}[2Jgone\nsecond").hint("do\u{7}");
        insta::assert_snapshot!(error.render(Paint { colour: false }), @r"
        error: n1: ^[[2Jgone
          second
          hint: do^G
        ");
    }
}
