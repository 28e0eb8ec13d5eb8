//! `bulkhead pool log`.

use super::Looked;
use crate::{
    Context,
    error::Result,
    output::{Paint, printable},
    pools::database_error,
};
use bulkhead_pool::{Told, decisions};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::time::Duration;

/// How often new lines are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many lines are read at once.
const LINES_MAX: u32 = 100_000;

/// Shows what the loop decided, when, and why
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// How many past lines, at most.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    lines: u32,

    /// Goes on with new lines until interrupted.
    #[arg(short, long)]
    follow: bool,
}

/// A decision; with `-o json` each is a document of its own.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ToldLine {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What was decided, and why.
    pub text: String,
}

/// Shows them.
pub(super) async fn run(context: &Context, args: &LogArgs) -> Result<()> {
    let looked = Looked::unchecked(context)?;
    let read = |after, most| decisions(&looked.path, after, most).map_err(|error| database_error(&error));
    let mut last = read(0, 1)?.last().map_or(0, |told| told.id);
    for told in read(0, args.lines)? {
        last = told.id;
        show(context, told)?;
    }
    if !args.follow {
        return Ok(());
    }
    context.ui.until_interrupted();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for told in read(last, LINES_MAX)? {
            last = told.id;
            show(context, told)?;
        }
    }
}

fn show(context: &Context, told: Told) -> Result<()> {
    context.ui.result(&ToldLine { at_ms: told.at.0, text: told.text }, render)
}

fn render(line: &ToldLine, paint: Paint) -> String {
    format!("{} {}\n", paint.faint(&bulkhead_scale::Time(line.at_ms).to_string()), printable(&line.text))
}
