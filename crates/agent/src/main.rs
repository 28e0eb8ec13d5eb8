//! `bulkhead-agent`: one binary, several names and subcommands.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((command, rest)) if command == "install" => bulkhead_agent::install::command(rest),
        _ => Err("usage: bulkhead-agent install [--root DIR] [--verify]".to_owned()),
    };
    let (text, code) = match result {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (format!("bulkhead-agent: {text}"), ExitCode::FAILURE),
    };
    let written =
        if code == ExitCode::SUCCESS { writeln!(io::stdout(), "{text}") } else { writeln!(io::stderr(), "{text}") };
    if written.is_err() { ExitCode::FAILURE } else { code }
}
