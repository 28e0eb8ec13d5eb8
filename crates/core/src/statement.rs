//! Statements: that an image was built from a commit, and what its tests came
//! to. An in-toto Statement (v1) as JSON, signed as SSHSIG in the namespace
//! [`NAMESPACE`] by a green key, which is kept apart from whatever runs the
//! project's code.
//!
//! ```text
//! {
//!   "_type": "https://in-toto.io/Statement/v1",
//!   "subject": [{ "name": APP, "digest": { "sha256": IMAGE } }],
//!   "predicateType": "https://github.com/bulkhead-dev/bulkhead/test-result/v1",
//!   "predicate": { "result": "PASSED", "fleet": …, "repository": …, "commit": …, "builder": …, "issued": … }
//! }
//! ```
//!
//! An image's id is the sha256 of its document, so it is a digest as in-toto means it.

use crate::{
    digest::ImageId,
    name::{AppName, FleetName},
    notice::is_line,
    signed::document_bytes,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

/// SSHSIG namespace of statements.
pub const NAMESPACE: &str = "green@bulkhead";
/// The largest statement that anyone reads.
pub const STATEMENT_MAX_BYTES: usize = 16 << 10;
/// The most statements that come with one order.
pub const STATEMENTS_MAX: usize = 16;

const TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://github.com/bulkhead-dev/bulkhead/test-result/v1";

/// What is stated of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The app that the image is of.
    pub app: AppName,
    /// The image.
    pub image: ImageId,
    /// What is said of it.
    pub predicate: Predicate,
}

/// What is said of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicate {
    /// What its tests came to.
    pub result: TestResult,
    /// The fleet it is for.
    pub fleet: FleetName,
    /// Where the sources are kept, such as a repository's address.
    pub repository: String,
    /// The version-control commit that it was built from.
    pub commit: String,
    /// Who built and tested it, such as the address of a CI run.
    pub builder: String,
    /// When this was stated, by the signer's clock.
    pub issued: Timestamp,
}

/// What tests came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TestResult {
    /// Green.
    #[serde(rename = "PASSED")]
    Passed,
    /// Red: the image must not be started where its green is demanded.
    #[serde(rename = "FAILED")]
    Failed,
}

impl TestResult {
    /// Every result.
    pub const ALL: [Self; 2] = [Self::Passed, Self::Failed];

    /// In a word.
    #[must_use]
    pub fn colour(self) -> &'static str {
        match self {
            Self::Passed => "green",
            Self::Failed => "red",
        }
    }
}

/// The document as in-toto shapes it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: AppName,
    digest: SubjectDigest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubjectDigest {
    sha256: ImageId,
}

impl Statement {
    /// Reads a statement from its exact bytes. Verify signatures before calling this.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(bytes).map_err(|error| format!("not a statement: {error}"))?;
        if document.kind != TYPE || document.predicate_type != PREDICATE_TYPE {
            return Err(format!("not a statement of type {PREDICATE_TYPE}"));
        }
        let [subject] = <[Subject; 1]>::try_from(document.subject).map_err(|_| "a statement is about one image")?;
        let statement = Self { app: subject.name, image: subject.digest.sha256, predicate: document.predicate };
        statement.check()?;
        Ok(statement)
    }

    /// What it says, in a word.
    #[must_use]
    pub fn colour(&self) -> &'static str {
        self.predicate.result.colour()
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let Predicate { repository, commit, builder, .. } = &self.predicate;
        for (what, text) in [("repository", repository), ("commit", commit), ("builder", builder)] {
            if text.is_empty() || !is_line(text) {
                return Err(format!("the statement's {what} is one line of 1 to 1000 bytes"));
            }
        }
        Ok(())
    }

    /// The bytes to sign.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let document = Document {
            kind: TYPE.into(),
            subject: vec![Subject { name: self.app.clone(), digest: SubjectDigest { sha256: self.image } }],
            predicate_type: PREDICATE_TYPE.into(),
            predicate: self.predicate.clone(),
        };
        document_bytes(&document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Statement {
        Statement {
            app: "notes".parse().unwrap(),
            image: ImageId([7; 32]),
            predicate: Predicate {
                result: TestResult::Passed,
                fleet: "acme".parse().unwrap(),
                repository: "https://example.org/notes".into(),
                commit: "4f2a".into(),
                builder: "https://ci.example.org/runs/7".into(),
                issued: Timestamp(7),
            },
        }
    }

    #[test]
    fn bytes_and_back() {
        let text = String::from_utf8(statement().to_bytes()).unwrap();
        assert_eq!(Statement::parse(text.as_bytes()), Ok(statement()));
        for words in ["\"_type\": \"https://in-toto.io/Statement/v1\"", "\"sha256\": \"0707", "\"result\": \"PASSED\""]
        {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let good = String::from_utf8(statement().to_bytes()).unwrap();
        for (from, to, words) in [
            ("Statement/v1", "Statement/v2", "not a statement of type"),
            ("test-result/v1", "test-result/v9", "not a statement of type"),
            ("\"PASSED\"", "\"SKIPPED\"", "unknown variant"),
            ("\"commit\": \"4f2a\"", "\"commit\": \"\"", "commit is one line"),
            ("\"commit\": \"4f2a\"", "\"commit\": \"a\\nb\"", "commit is one line"),
            ("\"commit\":", "\"extra\": 1, \"commit\":", "unknown field"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good);
            let error = Statement::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let mut two: serde_json::Value = serde_json::from_str(&good).unwrap();
        let subject = two["subject"][0].clone();
        two["subject"].as_array_mut().unwrap().push(subject);
        assert!(Statement::parse(two.to_string().as_bytes()).unwrap_err().contains("one image"));
        two["subject"] = serde_json::json!([]);
        assert!(Statement::parse(two.to_string().as_bytes()).unwrap_err().contains("one image"));
    }
}
