//! `bulkhead generate-docs`: the checked-in documentation, from the code.

use crate::{Context, error::Result, reference, workspace::write_durably};
use clap::Args;
use std::path::PathBuf;

/// Writes the generated documentation into a folder
#[derive(Debug, Args)]
pub struct GenerateDocsArgs {
    /// Usually `docs`.
    #[arg(value_name = "DIR")]
    pub into: PathBuf,
}

/// Writes every file.
///
/// # Errors
/// One cannot be written.
pub fn run(context: &Context, args: &GenerateDocsArgs) -> Result<()> {
    for (name, contents) in reference::files() {
        let path = args.into.join(name);
        write_durably(&path, contents.as_bytes())?;
        context.ui.note(&format!("wrote {}", path.display()));
    }
    Ok(())
}
