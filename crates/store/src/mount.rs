//! Image trees, mounted read-only from the store.
//!
//! An image's metadata (names, modes, links) becomes an erofs image of a few megabytes, which the
//! kernel mounts; overlayfs puts the contents below it from `objects`, by digest. No file is copied,
//! and one object serves every image that has it, also in the page cache. Where the objects' file
//! system has fs-verity, the kernel re-checks what is read against the digest in the metadata.
//!
//! The metadata image is derived here from a document whose id was checked, never received: a
//! hostile one would reach the kernel's parser. It is kept in the store's `metadata`, named
//! `IMAGE.v2.BOOT` by image, [`METADATA_FORMAT`] and the boot that it was written in, and is no
//! identity: whoever doubts it removes it. It is never synced, because writing it anew takes no longer:
//! one of another boot may be torn by a power cut, so it is not looked at, and the next boot or collection takes it.
//!
//! # Tiers
//!
//! | tier | from Linux | how |
//! |---|---|---|
//! | [`Tier::File`] | 6.12 | erofs mounted from the file |
//! | [`Tier::Loop`] | 6.6 | erofs through a loop device |
//! | [`Tier::Tree`] | any | a tree of hard links to objects in the store's `trees`, bound read-only |
//!
//! Which one works is found by trying, best first: distributions differ in what they build. A hard
//! link shares its object's mode, so a tree takes files of other modes than the objects' from copies
//! in `trees/modes`, one for each (digest, mode).
//!
//! Every mount is read-only, `nodev` and `nosuid`.

mod metadata;

use crate::store::{OBJECT_PERMISSIONS, Store, StoreError, object_name};
use bulkhead_core::{
    FileDigest, ImageId,
    image::{Image, ImageConfig, Node},
};
use composefs::fsverity::{Sha256HashValue, measure_verity_opt};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_remount, move_mount,
    },
};
use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{PermissionsExt, symlink},
        },
    },
    path::{Path, PathBuf},
};

/// Changes when the same document would give another metadata image or tree.
pub const METADATA_FORMAT: u32 = 2;
/// Few system calls, little memory.
const WRITE_BYTES: usize = 256 << 10;
/// Mounts over each other at one place that [`unmount`] takes away; there is one unless somebody else mounts too.
const STACKED_MOUNTS_MAX: usize = 16;

/// How images are mounted on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// composefs, with its metadata from a file.
    File,
    /// composefs, with its metadata through a loop device.
    Loop,
    /// A tree of hard links, bound read-only.
    Tree,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "composefs",
            Self::Loop => "composefs through a loop device",
            Self::Tree => "a tree of hard links",
        })
    }
}

/// What a node offers for images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facilities {
    /// The best tier that works.
    pub tier: Tier,
    /// Whether the kernel re-checks contents when they are read.
    pub has_verity: bool,
}

/// Why an image could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The image could not be had from the store.
    #[error("cannot use image {id} of the store")]
    Store {
        /// Which image.
        id: ImageId,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The operating system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> MountError {
    move |source| MountError::Io { operation, path: path.into(), source }
}

/// Finds out what works here by mounting an image of one file.
///
/// # Errors
/// The probe could not be prepared. (Mounting that fails shows as [`Tier::Tree`].)
pub fn detect(store: &Store) -> Result<Facilities, MountError> {
    let id = ImageId([0; 32]);
    let _held = store.hold().map_err(|source| MountError::Store { id, source })?;
    let directory = store.temporary_path();
    fs::create_dir(&directory).map_err(failed("create", &directory))?;
    let result = probe(store, &directory);
    // A leftover is removed by the next collection.
    fs::remove_dir_all(&directory).ok();
    result
}

fn probe(store: &Store, directory: &Path) -> Result<Facilities, MountError> {
    let target = directory.join("target");
    fs::create_dir(&target).map_err(failed("create", &target))?;
    let file = directory.join("file");
    fs::write(&file, b"probe").map_err(failed("write", &file))?;
    let probed = fs::File::open(&file).map_err(failed("open", &file))?;
    let has_verity = composefs::fsverity::enable_verity_with_retry::<Sha256HashValue>(&probed).is_ok();
    let metadata = directory.join("metadata");
    let nothing = Image::new(ImageConfig { platform: String::new(), allowed: vec![], tools: false }, vec![])
        .expect("an image without entries breaks no rule");
    let mut erofs = Vec::new();
    metadata::write(&nothing, &mut erofs)
        .and_then(|()| fs::write(&metadata, erofs))
        .map_err(failed("write", &metadata))?;
    for tier in [Tier::File, Tier::Loop] {
        if mount_composefs(store, tier, &metadata, "probe", false, &target).is_ok() {
            unmount(&target)?;
            return Ok(Facilities { tier, has_verity });
        }
    }
    Ok(Facilities { tier: Tier::Tree, has_verity: false })
}

/// Mounts an image at `target`, which is made where it is absent, by the best tier that works. Does nothing
/// where something is mounted there already.
///
/// # Errors
/// [`MountError::Store`], with [`StoreError::NoImage`] where the store has not got it; [`MountError::Io`].
pub fn mount(store: &Store, id: ImageId, target: &Path) -> Result<(), MountError> {
    fs::create_dir_all(target).map_err(failed("create", target))?;
    if is_mounted(target)? {
        return Ok(());
    }
    let in_store = |source| MountError::Store { id, source };
    let _held = store.hold().map_err(in_store)?;
    let metadata = metadata_path(store, id);
    // The image is decoded only where something has to be derived from it.
    let image = || store.image(id).and_then(|image| image.ok_or(StoreError::NoImage { id })).map_err(in_store);
    if !has_metadata(store, &metadata)? {
        write_metadata(store, &image()?, &metadata)?;
    }
    let has_verity = has_verity(store);
    for tier in [Tier::File, Tier::Loop] {
        if mount_composefs(store, tier, &metadata, &id.to_string(), has_verity, target).is_ok() {
            return Ok(());
        }
    }
    mount_tree(store, &image()?, id, target)
}

/// Writes an image's metadata for a later [`mount`], which then asks for nothing else of the image: neither its
/// document nor its objects need be in the store yet. `image` must be the one of this id. The caller keeps
/// garbage collection off ([`Store::push`]).
///
/// # Errors
/// [`MountError::Io`].
pub fn prepare(store: &Store, id: ImageId, image: &Image) -> Result<(), MountError> {
    let metadata = metadata_path(store, id);
    if has_metadata(store, &metadata)? { Ok(()) } else { write_metadata(store, image, &metadata) }
}

fn name(id: ImageId) -> String {
    format!("{id}.v{METADATA_FORMAT}")
}

fn metadata_path(store: &Store, id: ImageId) -> PathBuf {
    store.root().join("metadata").join(format!("{}.{}", name(id), store.boot()))
}

fn has_metadata(store: &Store, path: &Path) -> Result<bool, MountError> {
    // Where the boot has no name, what is there may be another's.
    Ok(!store.boot().is_empty() && path.try_exists().map_err(failed("look at", path))?)
}

fn write_metadata(store: &Store, image: &Image, path: &Path) -> Result<(), MountError> {
    let temporary = store.temporary_path();
    let write = || {
        let mut out = io::BufWriter::with_capacity(WRITE_BYTES, fs::File::create_new(&temporary)?);
        metadata::write(image, &mut out)?;
        out.flush()?;
        fs::rename(&temporary, path)
    };
    write().map_err(failed("write", path)).inspect_err(|_| {
        // The error at hand says more than one about its remains, which the next collection removes.
        fs::remove_file(&temporary).ok();
    })
}

/// Whether objects have fs-verity enabled: it is so for all or for none, because the file system decides.
fn has_verity(store: &Store) -> bool {
    let Ok(Some(digest)) = store.any_object() else { return false };
    let measured = fs::File::open(store.object_path(&digest)).map(measure_verity_opt::<Sha256HashValue>);
    matches!(measured, Ok(Ok(Some(_))))
}

fn attributes() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID
}

fn by_descriptor(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

/// A mount that is nowhere yet, of a file system set up by these options.
fn new_mount(kind: &'static str, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let result = fsconfig_set_flag(context.as_fd(), "ro")
        .and_then(|()| options.iter().try_for_each(|(key, value)| fsconfig_set_string(context.as_fd(), *key, *value)))
        .and_then(|()| fsconfig_create(context.as_fd()))
        .and_then(|()| fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes()));
    result.map_err(|errno| {
        // The kernel explains itself on the context, one message a read.
        let mut said = format!("{kind}: {errno}");
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = rustix::io::read(&context, &mut buffer) {
            said.push_str("; ");
            said.push_str(String::from_utf8_lossy(&buffer[..count]).trim());
        }
        io::Error::new(io::Error::from(errno).kind(), said)
    })
}

fn attach(mount: impl AsFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// The erofs below, at a place of its own for the moment that overlayfs needs to take it: before Linux 6.15 a
/// layer cannot be a mount that is nowhere.
struct Below {
    place: PathBuf,
    is_attached: bool,
}

impl Drop for Below {
    fn drop(&mut self) {
        // overlayfs holds the layer itself; what is left here is removed by the next collection.
        if self.is_attached {
            rustix::mount::unmount(&self.place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).ok();
        }
        fs::remove_dir(&self.place).ok();
    }
}

fn mount_composefs(
    store: &Store,
    tier: Tier,
    metadata: &Path,
    name: &str,
    has_verity: bool,
    target: &Path,
) -> Result<(), MountError> {
    let erofs = match tier {
        Tier::Loop => {
            use composefs_ioctls::loop_device::{flags, loopify_with_flags};
            let file = fs::File::open(metadata).map_err(failed("open", metadata))?;
            let device = loopify_with_flags(&file, flags::LO_FLAGS_READ_ONLY | flags::LO_FLAGS_AUTOCLEAR)
                .map_err(failed("make a loop device of", metadata))?;
            new_mount("erofs", &[("source", &by_descriptor(&device))])
        }
        _ => {
            let file = fs::File::open(metadata).map_err(failed("open", metadata))?;
            new_mount("erofs", &[("source", &by_descriptor(&file))])
        }
    }
    .map_err(failed("mount the metadata", metadata))?;
    let mut below = Below { place: store.temporary_path(), is_attached: false };
    fs::create_dir(&below.place).map_err(failed("create", &below.place))?;
    attach(&erofs, &below.place).map_err(failed("mount the metadata at", &below.place))?;
    below.is_attached = true;
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed("open", path)(errno.into()))
    };
    let upper = open(&below.place)?;
    let objects = open(&store.root().join("objects"))?;
    let source = format!("bulkhead:{name}");
    // Two colons: the last layer holds data alone and none of its names are visible.
    let layers = format!("{}::{}", by_descriptor(&upper), by_descriptor(&objects));
    let mut options = vec![("source", source.as_str()), ("metacopy", "on"), ("redirect_dir", "on")];
    if has_verity {
        options.push(("verity", "require"));
    }
    options.push(("lowerdir", &layers));
    let overlay = new_mount("overlay", &options).map_err(failed("mount the contents of", metadata))?;
    attach(&overlay, target).map_err(failed("mount an image at", target))
}

/// The last tier.
fn mount_tree(store: &Store, image: &Image, id: ImageId, target: &Path) -> Result<(), MountError> {
    let tree = store.root().join("trees").join(name(id));
    if !tree.try_exists().map_err(failed("look at", &tree))? {
        let temporary = store.temporary_path();
        build_tree(store, image, &temporary)?;
        match fs::rename(&temporary, &tree) {
            Ok(()) => {}
            // Somebody else was faster; ours is removed by the next collection.
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOTEMPTY | Errno::EXIST)) => {}
            Err(source) => return Err(failed("rename into place", &tree)(source)),
        }
    }
    mount_bind(&tree, target).map_err(|errno| failed("bind an image at", target)(errno.into()))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
    mount_remount(target, flags, "").map_err(|errno| {
        // Better no mount than one that can be written to.
        unmount(target).err().unwrap_or_else(|| failed("make read-only", target)(errno.into()))
    })
}

fn build_tree(store: &Store, image: &Image, root: &Path) -> Result<(), MountError> {
    let set_mode = |path: &Path, mode: u16| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode.into())).map_err(failed("set the mode of", path))
    };
    fs::create_dir(root).map_err(failed("create", root))?;
    set_mode(root, 0o755)?;
    for entry in image.entries() {
        let path = root.join(OsStr::from_bytes(&entry.path));
        match &entry.node {
            Node::Directory { .. } => fs::create_dir(&path).map_err(failed("create", &path))?,
            Node::File { mode, digest, .. } => {
                let source = with_mode(store, digest, *mode)?;
                fs::hard_link(source, &path).map_err(failed("link", &path))?;
            }
            Node::Symlink { target } => {
                symlink(OsStr::from_bytes(target), &path).map_err(failed("make the link", &path))?;
            }
        }
    }
    // Last, because what is in a directory needs it writable; deepest first.
    for entry in image.entries().iter().rev() {
        if let Node::Directory { mode } = entry.node {
            set_mode(&root.join(OsStr::from_bytes(&entry.path)), mode)?;
        }
    }
    Ok(())
}

/// A file of these contents and this mode: the object, or a copy that is shared by all trees.
fn with_mode(store: &Store, digest: &FileDigest, mode: u16) -> Result<PathBuf, MountError> {
    let object = store.object_path(digest);
    if u32::from(mode) == OBJECT_PERMISSIONS {
        return Ok(object);
    }
    let copy = store.root().join("trees/modes").join(format!("{}-{mode:o}", object_name(digest)));
    if copy.try_exists().map_err(failed("look at", &copy))? {
        return Ok(copy);
    }
    if let Some(directory) = copy.parent() {
        fs::create_dir_all(directory).map_err(failed("create", directory))?;
    }
    let temporary = store.temporary_path();
    fs::copy(&object, &temporary).map_err(failed("copy", &object))?;
    let permissions = fs::Permissions::from_mode(mode.into());
    fs::set_permissions(&temporary, permissions).map_err(failed("set the mode of", &temporary))?;
    let written = fs::File::open(&temporary).and_then(|file| file.sync_all());
    written.map_err(failed("sync", &temporary))?;
    fs::rename(&temporary, &copy).map_err(failed("rename into place", &copy))?;
    Ok(copy)
}

/// Unmounts, lazily where it is in use, and removes the directory. Does nothing where nothing is mounted.
///
/// # Errors
/// [`MountError::Io`].
pub fn unmount(target: &Path) -> Result<(), MountError> {
    for _ in 0..STACKED_MOUNTS_MAX {
        let unmounted = match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH),
            other => other,
        };
        match unmounted {
            Ok(()) => {}
            // Nothing (more) is mounted there.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(failed("unmount", target)(errno.into())),
        }
    }
    match fs::remove_dir(target) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound) => Err(failed("remove", target)(error)),
        _ => Ok(()),
    }
}

/// Whether something is mounted exactly there.
///
/// # Errors
/// [`MountError::Io`].
pub fn is_mounted(target: &Path) -> Result<bool, MountError> {
    match rustix::fs::statx(CWD, target, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed("look at", target)(errno.into())),
    }
}

#[cfg(test)]
mod tests;
