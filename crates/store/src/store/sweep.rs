//! Garbage collection and scrubbing.

use super::{Store, StoreError, object_name};
use bulkhead_core::{FileDigest, ImageId, image::Image};
use rustix::fs::{AtFlags, FlockOperation};
use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
};

/// What garbage collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images.
    pub images: Vec<ImageId>,
    /// Objects.
    pub objects: u64,
    /// The objects' bytes.
    pub content_bytes: u64,
}

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Objects read.
    pub objects: u64,
    /// Bytes read.
    pub content_bytes: u64,
    /// Objects that were damaged and moved aside; the next push of an image that needs them brings them.
    pub damaged: Vec<FileDigest>,
}

/// The right to collect garbage: while this lives no push is under way, and none begins.
///
/// What must be kept is found out with it in hand. An order that names an image is recorded before
/// its push ends, so whoever looks now sees all that there are.
#[derive(Debug)]
pub struct Collection<'a> {
    store: &'a Store,
    _exclusive: File,
}

/// An image needs its document twice: as itself, and as the metadata that is made from it to mount it.
const COPIES_OF_DOCUMENT: u64 = 2;

/// What the images that stay need.
///
/// Of a digest eight bytes are enough: two objects that share them only make one stay that need not,
/// and a hundred large images cost no more than a few tens of megabytes.
#[derive(Debug, Default)]
struct Needed {
    objects: HashSet<u64>,
    bytes: u64,
}

impl Needed {
    fn key(digest: &FileDigest) -> u64 {
        digest.0.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
    }

    fn has(&self, digest: &FileDigest) -> bool {
        self.objects.contains(&Self::key(digest))
    }

    /// What an image would add, in bytes.
    fn added_by(&self, image: &Image, document_bytes: u64) -> u64 {
        let mut seen = HashSet::new();
        let is_new = |(_, _, digest): &(_, _, FileDigest)| !self.has(digest) && seen.insert(Self::key(digest));
        let contents: u64 = image.files().filter(is_new).map(|(_, size_bytes, _)| size_bytes).sum();
        contents + document_bytes * COPIES_OF_DOCUMENT
    }

    fn add(&mut self, image: &Image, added_bytes: u64) {
        self.objects.extend(image.files().map(|(_, _, digest)| Self::key(&digest)));
        self.bytes += added_bytes;
    }
}

impl Store {
    /// Begins a collection.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while a push is under way; [`StoreError::Io`].
    pub fn collection(&self) -> Result<Collection<'_>, StoreError> {
        Ok(Collection { store: self, _exclusive: self.lock("lock", FlockOperation::NonBlockingLockExclusive)? })
    }
}

impl Collection<'_> {
    /// Removes what nothing names.
    ///
    /// Images of `keep` stay, whatever the budget. Of the others those stay that fit into `budget_bytes` of
    /// objects and documents beside them, in the order of `preference`, and after it those that it does not
    /// name; from the first that does not fit on all go. Without a budget all others go. Objects that no
    /// image names go always. Documents are read one at a time.
    ///
    /// # Errors
    /// [`StoreError::DocumentDamaged`] where a document of `keep` cannot be read, because then nobody knows
    /// what it needs; [`StoreError::Io`].
    pub fn collect(
        &self,
        keep: &BTreeSet<ImageId>,
        budget_bytes: Option<u64>,
        preference: &[ImageId],
    ) -> Result<Collected, StoreError> {
        let store = self.store;
        let here = store.images()?;
        let mut collected = Collected::default();
        let mut needed = Needed::default();
        for id in keep.intersection(&here) {
            if let Some((image, document_bytes)) = store.sized_image(*id)? {
                let added_bytes = needed.added_by(&image, document_bytes);
                needed.add(&image, added_bytes);
            }
        }
        // Most worth keeping first.
        let mut others: Vec<ImageId> = Vec::new();
        for id in preference.iter().chain(&here) {
            if here.contains(id) && !keep.contains(id) && !others.contains(id) {
                others.push(*id);
            }
        }
        let mut has_room = budget_bytes.is_some();
        for id in others {
            // Of one that goes nothing need be read.
            let sized = if has_room { store.sized_image(id) } else { Ok(None) };
            match sized {
                Ok(Some((image, document_bytes))) => {
                    let added_bytes = needed.added_by(&image, document_bytes);
                    has_room = budget_bytes.is_some_and(|budget| needed.bytes.saturating_add(added_bytes) <= budget);
                    if has_room {
                        needed.add(&image, added_bytes);
                    } else {
                        collected.images.push(id);
                    }
                }
                // A damaged one nobody can run: not worth a place.
                Ok(None) | Err(StoreError::DocumentDamaged { .. }) => collected.images.push(id),
                Err(error) => return Err(error),
            }
        }
        // Documents first, durably: an image whose document is there always has its objects.
        for id in &collected.images {
            store.steps.next("remove a document")?;
            store.remove("documents", &id.to_string())?;
        }
        if !collected.images.is_empty() {
            store.steps.next("sync the documents")?;
            store.sync_directory(&store.directory("documents"))?;
        }
        let gone: HashSet<&ImageId> = collected.images.iter().collect();
        store.remove_old_metadata()?;
        for directory in ["metadata", "trees"] {
            for name in store.names(directory)? {
                // Named by image and, after dots, by format and boot.
                let id = name.split('.').next().and_then(|id| id.parse().ok());
                if id.is_some_and(|id: ImageId| gone.contains(&id) || !here.contains(&id)) {
                    store.remove(directory, &name)?;
                }
            }
        }
        store.remove_unlinked_copies()?;
        for directory in ["tmp", "quarantine"] {
            for name in store.names(directory)? {
                // A mount that a killed process left there cannot be removed before a boot, and must not keep the rest.
                drop(store.remove(directory, &name));
            }
        }
        store.each_object(|digest| {
            if needed.has(&digest) {
                return Ok(true);
            }
            store.steps.next("remove an object")?;
            let size_bytes = store.stat(&digest)?.unwrap_or(0);
            match rustix::fs::unlinkat(&store.objects, object_name(&digest), AtFlags::empty()) {
                Ok(()) => {}
                Err(errno) => return Err(store.error("remove", &store.object_path(&digest), errno.into())),
            }
            collected.objects += 1;
            collected.content_bytes += size_bytes;
            Ok(true)
        })?;
        Ok(collected)
    }
}

impl Store {
    /// An image and its document's length; `None` where it is not here.
    fn sized_image(&self, id: ImageId) -> Result<Option<(Image, u64)>, StoreError> {
        let Some(document) = self.document(id)? else { return Ok(None) };
        let image = Image::decode(&document).map_err(|_| StoreError::DocumentDamaged { id })?;
        Ok(Some((image, document.len() as u64)))
    }

    /// Removes metadata images that were written in another boot: nobody looks at them any more.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_old_metadata(&self) -> Result<(), StoreError> {
        let of_this_boot = format!(".{}", self.boot);
        for name in self.names("metadata")?.iter().filter(|name| !name.ends_with(&of_this_boot)) {
            self.remove("metadata", name)?;
        }
        Ok(())
    }

    /// Removes the copies for hard-link trees that no tree uses any more.
    fn remove_unlinked_copies(&self) -> Result<(), StoreError> {
        for high in self.names("trees/modes")? {
            let directory = format!("trees/modes/{high}");
            for name in self.names(&directory)? {
                let path = self.directory(&directory).join(&name);
                let links = fs::symlink_metadata(&path).map(|metadata| metadata.nlink());
                if links.map_err(|source| self.error("look at", &path, source))? == 1 {
                    self.remove(&directory, &name)?;
                }
            }
        }
        Ok(())
    }

    /// Removes a file or a tree of ours, if it is there.
    fn remove(&self, directory: &str, name: &str) -> Result<(), StoreError> {
        let path = self.directory(directory).join(name);
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.error("remove", &path, source)),
            _ => Ok(()),
        }
    }

    /// Reads every object again and moves damaged ones aside. One that was not right is read once more from the
    /// disk when all others have been: a cable or a controller may have been what failed.
    ///
    /// `pace` is told each object's bytes after it was read; it may sleep, and ends the scrub with `false`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn scrub(&self, pace: &mut dyn FnMut(u64) -> bool) -> Result<Scrubbed, StoreError> {
        let mut scrubbed = Scrubbed::default();
        let mut doubtful = Vec::new();
        self.each_object(|digest| {
            // A collection may have removed it meanwhile.
            let Some((is_right, size_bytes)) = self.verify(&digest)? else { return Ok(true) };
            scrubbed.objects += 1;
            scrubbed.content_bytes += size_bytes;
            if !is_right {
                doubtful.push(digest);
            }
            Ok(pace(size_bytes))
        })?;
        for digest in doubtful {
            self.forget_cached(&digest);
            let Some((is_right, size_bytes)) = self.verify(&digest)? else { continue };
            if !is_right {
                self.quarantine(&digest)?;
                scrubbed.damaged.push(digest);
            }
            // So few are left that ending early saves nothing; the pace holds.
            pace(size_bytes);
        }
        Ok(scrubbed)
    }

    /// Has an object's bytes come from the disk the next time. Where they cannot be let go, as of one that a
    /// running service has mapped, what is in memory is read again.
    fn forget_cached(&self, digest: &FileDigest) {
        if let Ok(file) = File::open(self.object_path(digest)) {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok();
        }
    }

    /// Verifies the objects that no document names: after a power cut these may be visible without being whole.
    pub(super) fn verify_unnamed(&self) -> Result<(), StoreError> {
        let mut named = HashSet::new();
        for id in self.images()? {
            match self.image(id) {
                Ok(Some(image)) => named.extend(image.files().map(|(_, _, digest)| digest)),
                // What it named is then verified.
                Ok(None) | Err(StoreError::DocumentDamaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.each_object(|digest| {
            if !named.contains(&digest)
                && let Some((false, _)) = self.verify(&digest)?
            {
                self.quarantine(&digest)?;
            }
            Ok(true)
        })
    }
}
