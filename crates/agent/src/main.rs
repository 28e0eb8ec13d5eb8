//! `bulkhead-agent`: one binary, several names and subcommands. As
//! `bulkhead-gate` it is the login shell of the account that clients connect as.

use bulkhead_agent::{boot, gate, health, install, keeper, quota, scrub, state::Paths, tool};
use bulkhead_core::ImageId;
use bulkhead_store::{Store, mount};
use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

const USAGE: &str =
    "usage: bulkhead-agent gate | keeper | boot | settle | scrub | drop-quota | mount IMAGE | unmount IMAGE
       bulkhead-agent await-port PORT PROGRAM [ARGUMENT…] | tool ID
       bulkhead-agent install [--root DIR] [--verify | --adopt]
       bulkhead-agent uninstall [--root DIR] [--volumes] | revert | discharge keep | discharge delete
       bulkhead-agent --version";

/// What to say on standard output, or on standard error and fail.
type Outcome = Result<String, String>;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<String> = arguments.collect();
    // A login shell's name may begin with a hyphen.
    let is_gate = name.rsplit('/').next().is_some_and(|name| name.trim_start_matches('-') == "bulkhead-gate");
    let outcome = if is_gate { as_login_shell(&arguments) } else { command(&arguments) };
    let (text, code) = match outcome {
        Ok(text) if text.is_empty() => return ExitCode::SUCCESS,
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    let written =
        if code == ExitCode::SUCCESS { writeln!(io::stdout(), "{text}") } else { writeln!(io::stderr(), "{text}") };
    if written.is_err() { ExitCode::FAILURE } else { code }
}

fn as_login_shell(arguments: &[String]) -> Outcome {
    gate::check_command(arguments)?;
    gate::run(&Paths::new(Path::new("/"))).map(|()| String::new())
}

fn command(arguments: &[String]) -> Outcome {
    let paths = Paths::new(Path::new("/"));
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["gate"] => return gate::run(&paths).map(|()| String::new()),
        ["keeper"] => keeper::run(&paths).map(|()| String::new()).map_err(|error| error.to_string()),
        ["boot"] => all_or_see_above(boot::run(&paths)),
        ["settle"] => all_or_see_above(keeper::settle_after_death(&paths)),
        ["scrub"] => scrub::run(&paths),
        ["drop-quota"] => quota::run(&paths),
        ["mount", image] => mount_image(&paths, image),
        ["unmount", image] => unmount_image(&paths, image),
        ["await-port", port, program, ref arguments @ ..] => await_port(port, program, arguments),
        ["tool", id] => tool::run(&paths, id).map(|()| String::new()),
        ["install", ..] => install::command(&arguments[1..]),
        ["uninstall", ..] => install::uninstall_command(&arguments[1..]),
        ["discharge", volumes @ ("keep" | "delete")] => install::discharge(&paths, volumes == "delete"),
        ["revert"] => install::revert(Path::new("/")),
        ["--version" | "-V"] => Ok(format!("bulkhead-agent {}", env!("CARGO_PKG_VERSION"))),
        _ => return Err(USAGE.into()),
    };
    result.map_err(|error| format!("bulkhead-agent: {error}"))
}

/// What was said of each app is in the journal already.
fn all_or_see_above(all_well: Result<bool, String>) -> Outcome {
    match all_well? {
        true => Ok(String::new()),
        false => Err("not every app could be brought to what it must be; see above".into()),
    }
}

/// Waits until something listens on a port, and becomes a program.
fn await_port(port: &str, program: &str, arguments: &[&str]) -> Outcome {
    let port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    health::await_listener(port).map_err(|error| format!("cannot see who listens: {error}"))?;
    let error = Command::new(program).args(arguments).exec();
    Err(format!("cannot run {program}: {error}"))
}

fn parse_image(text: &str) -> Result<ImageId, String> {
    text.parse().map_err(|error: bulkhead_core::digest::ParseIdError| error.to_string())
}

fn mount_image(paths: &Paths, image: &str) -> Outcome {
    let image = parse_image(image)?;
    let store = Store::open(&paths.store()).map_err(|error| keeper::chain(&error))?;
    mount::mount(&store, image, &paths.image(image)).map_err(|error| keeper::chain(&error))?;
    Ok(String::new())
}

fn unmount_image(paths: &Paths, image: &str) -> Outcome {
    mount::unmount(&paths.image(parse_image(image)?)).map_err(|error| keeper::chain(&error))?;
    Ok(String::new())
}
