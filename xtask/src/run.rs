//! Running other programs: shown, quiet, or for their output, with errors that name the command.

use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsStr,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// How much of a quiet program's output an error shows.
const TAIL_LINES: usize = 30;

/// A command as one would type it.
pub fn display(command: &Command) -> String {
    let word = |text: &OsStr| {
        let text = text.to_string_lossy().into_owned();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
        if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(word(program)).chain(command.get_args().map(word)).collect::<Vec<_>>().join(" ")
}

/// Runs a command with this process's standard streams.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = display(command);
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// Prints the command, then runs it with this process's standard streams.
pub fn show(command: &mut Command) -> Result<()> {
    say(&display(command));
    run(command)
}

/// Shows a command line that is run in another way.
pub fn say(line: &str) {
    println!("{} {line}", style("2", "$"));
}

/// Text in a style of the terminal, where there is one.
fn style(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Runs a command without input; its output is what is returned, both streams of it are in an error.
pub fn read(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not UTF-8", display(command)))
}

/// As [`read`], for output that is not text.
pub fn output(command: &mut Command) -> Result<Output> {
    let shown = display(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        let streams = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let text = String::from_utf8_lossy(&streams).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
        bail!("`{shown}` ended with {}:\n  {tail}", output.status);
    }
    Ok(output)
}

/// A program on PATH, or in the directories of system programs that a user's PATH may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// The cargo that runs this, as if it were called by hand.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::paths::root());
    // What cargo tells of the package that it runs. Build scripts look at it, so with it everything that has one
    // is built again, and once more by the next cargo that is called by hand.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Says what comes next.
pub fn heading(text: &str) {
    println!("\n{}", style("1", &format!("── {text}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_as_typed() {
        let check = |words: &[&str], shown: &str| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            assert_eq!(display(&command), shown);
        };
        check(&["/usr/bin/bulkhead", "deploy", "-e", "staging"], "bulkhead deploy -e staging");
        check(&["ssh", "a b", "", "it's"], r"ssh 'a b' '' 'it'\''s'");
    }

    #[test]
    fn failures_show_the_output() {
        let error = output(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("out") && error.contains("err"), "{error}");
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err().to_string();
        assert!(error.contains("cannot run `program`"), "{error}");
    }
}
