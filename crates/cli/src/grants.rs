//! Signed documents that come with an order: statements that its image is
//! green, and a standing order.
//!
//! ```text
//! .bulkhead/green/IMAGE.json   beside fleet.toml: a JSON list of signed statements about an image
//! ```
//!
//! Statements are looked for there, in the files that the command line names,
//! and in what the nodes have from which an image is promoted. Whether they
//! count is for the node to say; what is plainly missing is said here before
//! anything is sent.

use crate::{
    args::GrantArgs,
    error::{Error, Kind, Result},
    session::Session,
    workspace::{read_if_present, read_text, shown, write_json},
};
use bulkhead_core::{ImageId, SignedText};
use bulkhead_fleet::push::Papers;
use std::path::{Path, PathBuf};

/// The folder of statements, beside `fleet.toml`.
pub const GREEN: &str = ".bulkhead/green";

/// The file of statements about an image.
#[must_use]
pub fn statements_path(fleet_directory: &Path, image: ImageId) -> PathBuf {
    fleet_directory.join(GREEN).join(format!("{image}.json"))
}

/// Statements in a file: one, or a list of them.
fn parse(path: &Path, text: &str) -> Result<Vec<SignedText>> {
    let list = serde_json::from_str::<Vec<SignedText>>(text);
    list.or_else(|_| serde_json::from_str::<SignedText>(text).map(|one| vec![one])).map_err(|error| {
        let what = format!("{} is not a signed document, nor a list of them", shown(path));
        Error::during(Kind::Configuration, what, &error)
    })
}

/// Reads one signed document.
///
/// # Errors
/// It cannot be read, or is none.
pub fn read_signed(path: &Path) -> Result<SignedText> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|error| {
        Error::during(Kind::Configuration, format!("{} is not a signed document", shown(path)), &error)
    })
}

/// Writes one signed document.
///
/// # Errors
/// It cannot be written.
pub fn write_signed(path: &Path, document: &SignedText) -> Result<()> {
    write_json(path, document)
}

/// Statements about an image that lie beside `fleet.toml`.
///
/// # Errors
/// The file cannot be read.
pub fn statements_about(fleet_directory: &Path, image: ImageId) -> Result<Vec<SignedText>> {
    let path = statements_path(fleet_directory, image);
    read_if_present(&path)?.map_or(Ok(vec![]), |text| parse(&path, &text))
}

/// Adds a statement to those about its image.
///
/// # Errors
/// The file cannot be read or written.
pub fn keep_statement(fleet_directory: &Path, image: ImageId, statement: SignedText) -> Result<PathBuf> {
    let path = statements_path(fleet_directory, image);
    let mut all = statements_about(fleet_directory, image)?;
    if !all.contains(&statement) {
        all.push(statement);
    }
    write_json(&path, &all)?;
    Ok(path)
}

/// What comes with an order that runs an image. `known` are statements that nodes have.
///
/// # Errors
/// A file cannot be read.
pub fn papers(session: &Session, args: &GrantArgs, image: ImageId, known: Vec<SignedText>) -> Result<Papers> {
    let mut statements = known;
    statements.extend(statements_about(&session.files.directory, image)?);
    for path in &args.green {
        statements.extend(parse(path, &read_text(path)?)?);
    }
    let mut distinct: Vec<SignedText> = Vec::new();
    for statement in statements {
        if !distinct.contains(&statement) {
            distinct.push(statement);
        }
    }
    let standing = args.standing.as_deref().map(read_signed).transpose()?;
    Ok(Papers { statements: distinct, standing, ..Papers::default() })
}
