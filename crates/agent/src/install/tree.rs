//! A system's tree, running or not: compare, write durably, run its programs.

use super::{
    InstallError,
    layout::{Account, HOME, Item, Owner},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Below this user ids belong to the system, not to people (Debian's `FIRST_UID`).
const FIRST_PERSON_UID: u32 = 1000;

/// A system's tree, and what was changed in it.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    changes: Vec<String>,
    changed_paths: Vec<String>,
}

/// What a path was before something else was put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Was {
    Absent,
    Link(PathBuf),
    File {
        mode: u32,
        contents: Vec<u8>,
    },
    /// A directory, a device: of no use as what it would be replaced with, so it never is.
    Other,
}

/// A unit file or a list of name servers is far below this.
const KEPT_MAX_BYTES: u64 = 1 << 20;

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { operation, path, source }
}

/// Turns "it is not there" into `None`.
fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, InstallError> {
        let root = fs::canonicalize(root).map_err(failed("open", root))?;
        Ok(Self { root, changes: Vec::new(), changed_paths: Vec::new() })
    }

    /// Whether this is the system that runs.
    pub(super) fn is_live(&self) -> bool {
        self.root == Path::new("/") && Path::new("/run/systemd/system").is_dir()
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    pub(super) fn exists(&self, relative: &str) -> bool {
        self.path(relative).symlink_metadata().is_ok()
    }

    pub(super) fn require(&self, relative: &str, package: &'static str) -> Result<(), InstallError> {
        if self.exists(relative) {
            return Ok(());
        }
        Err(InstallError::Missing { path: Path::new("/").join(relative), package })
    }

    pub(super) fn read(&self, relative: &str) -> Result<Option<Vec<u8>>, InstallError> {
        let path = self.path(relative);
        absent(fs::read(&path)).map_err(failed("read", &path))
    }

    pub(super) fn link_target(&self, relative: &str) -> Result<Option<PathBuf>, InstallError> {
        let path = self.path(relative);
        match fs::read_link(&path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            other => absent(other).map_err(failed("read the link", &path)),
        }
    }

    /// What is at a path now.
    pub(super) fn what_is(&self, relative: &str) -> Result<Was, InstallError> {
        let path = self.path(relative);
        let Some(found) = absent(path.symlink_metadata()).map_err(failed("examine", &path))? else {
            return Ok(Was::Absent);
        };
        if let Some(target) = self.link_target(relative)? {
            return Ok(Was::Link(target));
        }
        if !found.is_file() || found.len() > KEPT_MAX_BYTES {
            return Ok(Was::Other);
        }
        Ok(Was::File { mode: found.mode() & 0o7777, contents: self.read(relative)?.unwrap_or_default() })
    }

    /// Makes a path again what it was.
    pub(super) fn give_back(&mut self, relative: &str, was: &Was) -> Result<(), InstallError> {
        if *was == Was::Other || self.what_is(relative)? == *was {
            return Ok(());
        }
        let path = self.path(relative);
        match was {
            Was::Absent => return self.take_away(relative),
            Was::Link(target) => replace(&path, |temporary| symlink(target, temporary))?,
            Was::File { mode, contents } => replace(&path, |temporary| {
                let mut file = File::create_new(temporary)?;
                file.set_permissions(Permissions::from_mode(*mode))?;
                file.write_all(contents)?;
                file.sync_all()
            })?,
            Was::Other => {}
        }
        self.changed(format!("put /{relative} back"));
        self.changed_paths.push(relative.to_owned());
        Ok(())
    }

    /// Removes a file, or a directory with all it holds, and reports it. Nothing happens where there is none.
    pub(super) fn take_away(&mut self, relative: &str) -> Result<(), InstallError> {
        let path = self.path(relative);
        let Some(found) = absent(path.symlink_metadata()).map_err(failed("examine", &path))? else { return Ok(()) };
        let removed = if found.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        absent(removed).map_err(failed("remove", &path))?;
        sync_directory_of(&path)?;
        self.changed(format!("removed /{relative}"));
        self.changed_paths.push(relative.to_owned());
        Ok(())
    }

    /// Removes a directory that holds nothing.
    pub(super) fn take_away_if_empty(&mut self, relative: &str) -> Result<(), InstallError> {
        if self.exists(relative) && self.names(relative)?.is_empty() {
            self.take_away(relative)?;
        }
        Ok(())
    }

    /// The names in a directory, sorted; none where there is none.
    pub(super) fn names(&self, relative: &str) -> Result<Vec<String>, InstallError> {
        let path = self.path(relative);
        let Some(entries) = absent(fs::read_dir(&path)).map_err(failed("list", &path))? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.map_err(failed("list", &path))?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn into_changes(self) -> Vec<String> {
        self.changes
    }

    pub(super) fn changed(&mut self, what: String) {
        self.changes.push(what);
    }

    /// Whether [`Tree::apply`] wrote something below this path.
    pub(super) fn wrote(&self, prefix: &str) -> bool {
        self.changed_paths.iter().any(|path| path.starts_with(prefix))
    }

    // ---- programs of the tree ----

    /// Runs a program of the tree and returns its standard output.
    pub(super) fn run(&self, program: &str, arguments: &[&str]) -> Result<String, InstallError> {
        let output = self.output(program, arguments)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let text = text.trim();
            let message = if text.is_empty() { output.status.to_string() } else { text.to_owned() };
            return Err(InstallError::Program { program: format!("{program} {}", arguments.join(" ")), message });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a program of the tree; returns whether it succeeded and all that it said.
    pub(super) fn run_any(&self, program: &str, arguments: &[&str]) -> Result<(bool, String), InstallError> {
        let output = self.output(program, arguments)?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ok((output.status.success(), text.into_owned()))
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Result<Output, InstallError> {
        let mut command = if self.root == Path::new("/") {
            Command::new(program)
        } else {
            let mut command = Command::new("chroot");
            command.arg(&self.root).arg(program);
            command
        };
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| InstallError::Run { program: program.to_owned(), source })
    }

    // ---- accounts ----

    /// Makes the accounts, or brings them in order. `*` as password: none fits,
    /// yet the account is not locked, which sshd without PAM would refuse.
    pub(super) fn accounts(&mut self, accounts: &[Account]) -> Result<(), InstallError> {
        for account in accounts {
            let name = account.name;
            if self.account_difference(account)?.is_none() {
                continue;
            }
            let groups = account.groups.join(",");
            let settings =
                ["--home-dir", HOME, "--shell", account.shell, "--comment", account.comment, "--password", "*"];
            match self.database("etc/passwd", name)? {
                None => {
                    let mut arguments = vec!["--system", "--user-group", "--no-create-home"];
                    arguments.extend(settings);
                    if !groups.is_empty() {
                        arguments.extend(["--groups", &groups]);
                    }
                    arguments.push(name);
                    self.run("/usr/sbin/useradd", &arguments)?;
                    self.changed(format!("made the account `{name}`"));
                }
                Some(line) => {
                    let uid = line.get(2).and_then(|uid| uid.parse().ok()).unwrap_or(0);
                    if uid >= FIRST_PERSON_UID {
                        return Err(InstallError::AccountTaken { name, uid });
                    }
                    let mut arguments = settings.to_vec();
                    // usermod has another name for it.
                    arguments[0] = "--home";
                    // All of them, so that it is taken out of others: it is no person's.
                    arguments.extend(["--groups", &groups]);
                    arguments.push(name);
                    self.run("/usr/sbin/usermod", &arguments)?;
                    self.changed(format!("set home, shell, password and groups of the account `{name}`"));
                }
            }
        }
        Ok(())
    }

    /// Removes an account of the node. One that belongs to a person is left alone.
    pub(super) fn remove_account(&mut self, name: &str) -> Result<(), InstallError> {
        if let Some(line) = self.database("etc/passwd", name)? {
            let uid: u32 = line.get(2).and_then(|uid| uid.parse().ok()).unwrap_or(FIRST_PERSON_UID);
            if uid >= FIRST_PERSON_UID {
                return Ok(());
            }
            // By force: the request that leads to this may itself be a session of the account.
            self.run("/usr/sbin/userdel", &["--force", name])?;
            self.changed(format!("removed the account `{name}`"));
        }
        if self.database("etc/group", name)?.is_some() {
            self.run("/usr/sbin/groupdel", &[name])?;
        }
        Ok(())
    }

    /// What is not as the account should be, as a phrase.
    pub(super) fn account_difference(&self, account: &Account) -> Result<Option<String>, InstallError> {
        let name = account.name;
        let Some(line) = self.database("etc/passwd", name)? else {
            return Ok(Some(format!("the account `{name}` is missing")));
        };
        let password = self.database("etc/shadow", name)?.and_then(|line| line.get(1).cloned());
        let field = |at: usize| line.get(at).map(String::as_str);
        let found = (field(5), field(6), password.as_deref());
        let wanted = (Some(HOME), Some(account.shell), Some("*"));
        let mut groups = account.groups.iter();
        let is_member = groups.all(|group| self.members(group).is_ok_and(|members| members.iter().any(|m| m == name)));
        let differs = found != wanted || !is_member;
        Ok(differs.then(|| format!("the account `{name}` has another home, shell, password or other groups")))
    }

    fn members(&self, group: &str) -> Result<Vec<String>, InstallError> {
        let members = self.database("etc/group", group)?.and_then(|line| line.get(3).cloned()).unwrap_or_default();
        Ok(members.split(',').map(str::to_owned).collect())
    }

    /// The fields of a name's line in a database such as `/etc/passwd`.
    fn database(&self, file: &str, name: &str) -> Result<Option<Vec<String>>, InstallError> {
        let bytes = self.read(file)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        Ok(text
            .lines()
            .map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
            .find(|fields| fields.first().is_some_and(|first| first == name)))
    }

    fn ids(&self, owner: Owner) -> Result<(u32, u32), InstallError> {
        let Owner::Drop = owner else { return Ok((0, 0)) };
        let fields = self.database("etc/passwd", "bulkhead-drop")?.unwrap_or_default();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse().ok());
        number(2).zip(number(3)).ok_or_else(|| InstallError::Unreadable {
            path: self.path("etc/passwd"),
            what: "it has no account `bulkhead-drop`".to_owned(),
        })
    }

    // ---- items ----

    /// What is not as the item says, as a phrase; `None` where all is.
    pub(super) fn difference(&self, item: &Item) -> Result<Option<String>, InstallError> {
        let path = self.path(item.path());
        let shown = format!("/{}", item.path());
        let Some(found) = absent(path.symlink_metadata()).map_err(failed("examine", &path))? else {
            return Ok(Some(format!("{shown} is missing")));
        };
        let mode = found.mode() & 0o7777;
        Ok(match item {
            Item::Directory { mode: wanted, owner, .. } => {
                let (uid, gid) = self.ids(*owner)?;
                if !found.is_dir() {
                    Some(format!("{shown} is not a directory"))
                } else if mode & 0o777 != *wanted {
                    Some(format!("{shown} has mode {mode:o}, not {wanted:o}"))
                } else if (found.uid(), found.gid()) != (uid, gid) && !(*owner == Owner::Root && found.uid() == 0) {
                    Some(format!("{shown} is owned by {}:{}, not {uid}:{gid}", found.uid(), found.gid()))
                } else {
                    None
                }
            }
            Item::File { mode: wanted, contents, .. } => {
                if !found.is_file() {
                    Some(format!("{shown} is not a file"))
                } else if mode != *wanted {
                    Some(format!("{shown} has mode {mode:o}, not {wanted:o}"))
                } else if (found.uid(), found.gid()) != (0, 0) {
                    Some(format!("{shown} is owned by {}:{}, not root", found.uid(), found.gid()))
                } else if found.len() != contents.len() as u64
                    || fs::read(&path).map_err(failed("read", &path))? != *contents
                {
                    Some(format!("{shown} has other contents"))
                } else {
                    None
                }
            }
            Item::Symlink { path: link, target } => match self.link_target(link)? {
                Some(found) if found == Path::new(target) => None,
                _ => Some(format!("{shown} is not a link to {target}")),
            },
            Item::HardLink { to, .. } => {
                let other = self.path(to);
                let other = absent(other.symlink_metadata()).map_err(failed("examine", &other))?;
                let same = other.is_some_and(|other| (other.dev(), other.ino()) == (found.dev(), found.ino()));
                (!same).then(|| format!("{shown} is not the same file as /{to}"))
            }
        })
    }

    /// Makes the item true, if it is not.
    pub(super) fn apply(&mut self, item: &Item) -> Result<(), InstallError> {
        if self.difference(item)?.is_none() {
            return Ok(());
        }
        let path = self.path(item.path());
        match item {
            Item::Directory { path: relative, mode, owner } => {
                self.make_directory(relative, *mode)?;
                let (uid, gid) = self.ids(*owner)?;
                chown(&path, Some(uid), Some(gid)).map_err(failed("change the owner of", &path))?;
                fs::set_permissions(&path, Permissions::from_mode(*mode))
                    .map_err(failed("change the mode of", &path))?;
                sync_directory_of(&path)?;
            }
            Item::File { mode, contents, .. } => replace(&path, |temporary| {
                let mut file = File::create_new(temporary)?;
                file.set_permissions(Permissions::from_mode(*mode))?;
                file.write_all(contents)?;
                file.sync_all()
            })?,
            Item::Symlink { target, .. } => replace(&path, |temporary| symlink(target, temporary))?,
            Item::HardLink { to, .. } => {
                let to = self.path(to);
                replace(&path, |temporary| fs::hard_link(to, temporary))?;
            }
        }
        self.changed(match item {
            Item::Directory { .. } => format!("made the directory /{}", item.path()),
            Item::File { .. } => format!("wrote /{}", item.path()),
            Item::Symlink { target, .. } => format!("linked /{} to {target}", item.path()),
            Item::HardLink { to, .. } => format!("linked /{} to /{to}", item.path()),
        });
        self.changed_paths.push(item.path().to_owned());
        Ok(())
    }

    /// Makes a directory and what is missing above it.
    pub(super) fn make_directory(&self, relative: &str, mode: u32) -> Result<(), InstallError> {
        let path = self.path(relative);
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&path).map_err(failed("make the directory", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed("change the mode of", &path))
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, relative: &str) -> Result<(), InstallError> {
        let path = self.path(relative);
        absent(fs::remove_file(&path)).map_err(failed("remove", &path)).map(drop)
    }
}

/// The one way a name comes to stand for something new: made beside it, then renamed over it, then durable.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), InstallError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bulkhead-new");
    let temporary = path.with_file_name(name);
    absent(fs::remove_file(&temporary)).map_err(failed("remove", &temporary))?;
    make(&temporary).map_err(failed("write", &temporary))?;
    // Renaming one hard link over another to the same file does nothing and leaves both.
    fs::rename(&temporary, path).map_err(failed("replace", path))?;
    absent(fs::remove_file(&temporary)).map_err(failed("remove", &temporary))?;
    sync_directory_of(path)
}

fn sync_directory_of(path: &Path) -> Result<(), InstallError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|file| file.sync_all()).map_err(failed("make durable", directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_compared_and_made() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let mut tree = Tree::open(directory.path()).expect("it is there");
        let root_owned = rustix::process::geteuid().is_root();
        let file = |contents: &str, mode| Item::File { path: "etc/a".into(), mode, contents: contents.into() };
        let link = |target: &str| Item::Symlink { path: "etc/b".into(), target: target.into() };
        let hard = || Item::HardLink { path: "etc/c".into(), to: "etc/a".into() };
        if !root_owned {
            // Only root can give files to root.
            return;
        }
        fs::create_dir(directory.path().join("etc")).expect("it is writable");
        for item in [file("one", 0o600), hard(), link("/x"), file("two", 0o644), hard(), link("/y")] {
            assert!(tree.difference(&item).expect("it can be compared").is_some(), "{item:?}");
            tree.apply(&item).expect("it can be made");
            assert_eq!(tree.difference(&item).expect("it can be compared"), None);
        }
        assert_eq!(tree.read("etc/c").expect("it is readable"), Some(b"two".to_vec()));
        let names: Vec<_> = fs::read_dir(directory.path().join("etc")).expect("it can be listed").flatten().collect();
        assert_eq!(names.len(), 3, "no temporary file is left: {names:?}");
        let changes = tree.into_changes().len();
        assert_eq!(changes, 6);
    }
}
