//! Garbage collection and scrubbing.

use super::{Store, StoreError, object_name};
use bulkhead_core::{FileDigest, ImageId};
use rustix::fs::{AtFlags, FlockOperation};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
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

impl Store {
    /// Removes what nothing names.
    ///
    /// Images of `keep` stay, whatever the budget. Of the others as many go as it takes to come down to
    /// `budget_bytes` of objects: first those that `preference` does not name, then from its end. Without a
    /// budget all others go. Objects that no image names go always.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while a push is under way; [`StoreError::DocumentDamaged`] where a document of
    /// `keep` cannot be read, because then nobody knows what it needs; [`StoreError::Io`].
    pub fn collect_garbage(
        &self,
        keep: &BTreeSet<ImageId>,
        budget_bytes: Option<u64>,
        preference: &[ImageId],
    ) -> Result<Collected, StoreError> {
        let _exclusive = self.lock("lock", FlockOperation::NonBlockingLockExclusive)?;
        let mut collected = Collected::default();
        let mut needs: HashMap<ImageId, HashMap<FileDigest, u64>> = HashMap::new();
        let mut candidates = Vec::new();
        for id in self.images()? {
            match self.image(id) {
                Ok(Some(image)) => {
                    let objects = image.files().map(|(_, size_bytes, digest)| (digest, size_bytes)).collect();
                    needs.insert(id, objects);
                    if !keep.contains(&id) {
                        candidates.push(id);
                    }
                }
                Ok(None) => {}
                // Nobody can run it: not worth a place.
                Err(StoreError::DocumentDamaged { .. }) if !keep.contains(&id) => collected.images.push(id),
                Err(error) => return Err(error),
            }
        }
        // How many images need an object.
        let mut users: HashMap<FileDigest, (u32, u64)> = HashMap::new();
        for (digest, size_bytes) in needs.values().flatten() {
            users.entry(*digest).or_insert((0, *size_bytes)).0 += 1;
        }
        let mut total_bytes: u64 = users.values().map(|(_, size_bytes)| size_bytes).sum();
        // Least worth keeping first; a rank of its own for those that are not named.
        let rank = |id: &ImageId| preference.iter().position(|preferred| preferred == id).unwrap_or(usize::MAX);
        candidates.sort_by_key(|id| std::cmp::Reverse(rank(id)));
        for id in candidates {
            if budget_bytes.is_some_and(|budget_bytes| total_bytes <= budget_bytes) {
                break;
            }
            for digest in needs.remove(&id).unwrap_or_default().keys() {
                if let Some((count, size_bytes)) = users.get_mut(digest) {
                    *count -= 1;
                    if *count == 0 {
                        total_bytes -= *size_bytes;
                        users.remove(digest);
                    }
                }
            }
            collected.images.push(id);
        }
        // Documents first, durably: an image whose document is there always has its objects.
        for id in &collected.images {
            self.steps.next("remove a document")?;
            self.remove("documents", &id.to_string())?;
        }
        if !collected.images.is_empty() {
            self.steps.next("sync the documents")?;
            self.sync_directory(&self.directory("documents"))?;
        }
        for directory in ["metadata", "trees"] {
            for name in self.names(directory)? {
                // Named by image and, after a dot, by format.
                let id = name.split('.').next().and_then(|id| id.parse().ok());
                if id.is_some_and(|id: ImageId| !needs.contains_key(&id)) {
                    self.remove(directory, &name)?;
                }
            }
        }
        self.remove_unlinked_copies()?;
        for directory in ["tmp", "quarantine"] {
            for name in self.names(directory)? {
                self.remove(directory, &name)?;
            }
        }
        let named: HashSet<FileDigest> = users.into_keys().collect();
        self.each_object(|digest| {
            if named.contains(&digest) {
                return Ok(true);
            }
            self.steps.next("remove an object")?;
            let size_bytes = self.stat(&digest)?.unwrap_or(0);
            match rustix::fs::unlinkat(&self.objects, object_name(&digest), AtFlags::empty()) {
                Ok(()) => {}
                Err(errno) => return Err(self.error("remove", &self.object_path(&digest), errno.into())),
            }
            collected.objects += 1;
            collected.content_bytes += size_bytes;
            Ok(true)
        })?;
        Ok(collected)
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

    /// Reads every object again and moves damaged ones aside.
    ///
    /// `pace` is told each object's bytes after it was read; it may sleep, and ends the scrub with `false`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn scrub(&self, pace: &mut dyn FnMut(u64) -> bool) -> Result<Scrubbed, StoreError> {
        let mut scrubbed = Scrubbed::default();
        self.each_object(|digest| {
            // A collection may have removed it meanwhile.
            let Some((is_right, size_bytes)) = self.verify(&digest)? else { return Ok(true) };
            scrubbed.objects += 1;
            scrubbed.content_bytes += size_bytes;
            if !is_right {
                self.quarantine(&digest)?;
                scrubbed.damaged.push(digest);
            }
            Ok(pace(size_bytes))
        })?;
        Ok(scrubbed)
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
