//! The program as a person runs it: in a folder of its own, without a terminal,
//! an agent or a home that matters. Real nodes are tested elsewhere.

#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod errors;
mod init;
mod packages;
mod policy;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// A folder to run the program in.
struct Folder(tempfile::TempDir);

/// What a run gave.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with these files.
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self::new();
        for (name, contents) in files {
            folder.write(name, contents);
        }
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    /// Runs the program with words separated by spaces.
    fn run(&self, words: &str) -> Ran {
        self.run_words(&words.split_whitespace().collect::<Vec<_>>())
    }

    fn run_words(&self, words: &[&str]) -> Ran {
        let output = self.command().args(words).output().unwrap();
        self.ran(&output)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command
            .current_dir(self.path())
            .env_clear()
            .env("HOME", self.path().join("home"))
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("USER", "ada")
            .stdin(Stdio::null());
        command
    }

    /// What it printed, with this folder's path and times replaced by what is the same every time.
    fn ran(&self, output: &Output) -> Ran {
        let canonical = std::fs::canonicalize(self.path()).unwrap();
        let plain = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let text = text.replace(&*canonical.to_string_lossy(), "FOLDER");
            text.replace(&*self.path().to_string_lossy(), "FOLDER")
                .lines()
                .filter(|line| !line.starts_with("took "))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        Ran { code: output.status.code().unwrap(), stdout: plain(&output.stdout), stderr: plain(&output.stderr) }
    }

    /// A folder that `bulkhead init` was run in, with a key of its own.
    fn initialised() -> Self {
        let folder = Self::new();
        let ran = folder.run("init --new-key key");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        folder
    }
}

impl Ran {
    /// Everything, as a snapshot holds it.
    fn all(&self) -> String {
        format!("exit code {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}
