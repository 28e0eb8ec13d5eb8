//! `bulkhead completions`.

use crate::{
    Context,
    args::Cli,
    error::{Error, Kind, Result},
};
use clap::{Args, CommandFactory as _};
use std::io::Write as _;

/// Prints a shell's completion script
///
/// For bash: `bulkhead completions bash > ~/.local/share/bash-completion/completions/bulkhead`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Prints the script.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(_: &Context, args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bulkhead", &mut script);
    std::io::stdout()
        .write_all(&script)
        .map_err(|error| Error::during(Kind::Internal, "cannot write to standard output", &error))
}
