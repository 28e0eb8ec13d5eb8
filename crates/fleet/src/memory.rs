//! What this machine remembers of nodes, so that a push need not ask first.
//!
//! ```text
//! ROOT/nodes/FLEET/NODE/APP.json   where the app stood, which images the node held
//! ROOT/nodes/FLEET/NODE/tools      which tool images the node held
//! ROOT/nodes/FLEET/NODE/boot       its boot, which orders name
//! ROOT/documents/IMAGE             documents of known images
//! ```
//!
//! Memory may be wrong, old, gone or damaged: that costs one more round with the
//! node and never a wrong result, so reading never fails. Documents are checked
//! against their id when read.

use bulkhead_core::{AppName, BootId, FleetName, ImageId, NodeName, image::Image};
use bulkhead_wire::Position;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

/// How many images per node and app are remembered: what a node keeps, and some more.
const IMAGES_MAX: usize = 8;
/// How many documents are kept; each is a few megabytes at most in practice.
const DOCUMENTS_MAX: usize = 64;
/// How many decoded images a process keeps: a plan and a push look at the same ones, those that run now.
const DECODED_MAX: usize = 4;

/// A directory of memories. Several processes may use it at once.
#[derive(Debug, Clone)]
pub struct Memory {
    root: PathBuf,
    decoded: Arc<Mutex<Vec<Arc<KnownImage>>>>,
}

/// An image whose document this machine has.
#[derive(Debug)]
pub struct KnownImage {
    /// Which.
    pub id: ImageId,
    /// Its document.
    pub document: Arc<Vec<u8>>,
    /// What the document says.
    pub image: Image,
}

/// What is remembered of an app on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    /// Where it stood.
    pub position: Position,
    /// Images that the node holds, newest first.
    pub images: Vec<ImageId>,
    /// How long it took the node's SSH server to answer when that was last measured.
    pub round_trip_us: Option<u64>,
}

/// Something could not be remembered.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}", path = path.display())]
pub struct MemoryError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Remembered {
    /// Notes that the node holds this image, now the newest.
    pub fn add_image(&mut self, image: ImageId) {
        self.images.retain(|known| *known != image);
        self.images.insert(0, image);
        self.images.truncate(IMAGES_MAX);
    }
}

impl Memory {
    /// In this directory, made when first written to.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), decoded: Arc::default() }
    }

    fn app_path(&self, fleet: &FleetName, node: &NodeName, app: &AppName) -> PathBuf {
        self.root.join("nodes").join(fleet.as_str()).join(node.as_str()).join(format!("{app}.json"))
    }

    fn document_path(&self, image: ImageId) -> PathBuf {
        self.root.join("documents").join(image.to_string())
    }

    /// What is remembered; nothing where there is nothing or it is unreadable.
    #[must_use]
    pub fn recall(&self, fleet: &FleetName, node: &NodeName, app: &AppName) -> Remembered {
        let bytes = fs::read(self.app_path(fleet, node, app)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Remembers.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn remember(
        &self,
        fleet: &FleetName,
        node: &NodeName,
        app: &AppName,
        what: &Remembered,
    ) -> Result<(), MemoryError> {
        let bytes = serde_json::to_vec_pretty(what).expect("plain data always serialises");
        write_whole(&self.app_path(fleet, node, app), &bytes)
    }

    fn tools_path(&self, fleet: &FleetName, node: &NodeName) -> PathBuf {
        // No app's: those end with `.json`.
        self.root.join("nodes").join(fleet.as_str()).join(node.as_str()).join("tools")
    }

    /// The tool images that a node holds, newest first; none where nothing is remembered.
    #[must_use]
    pub fn recall_tools(&self, fleet: &FleetName, node: &NodeName) -> Vec<ImageId> {
        serde_json::from_slice(&fs::read(self.tools_path(fleet, node)).unwrap_or_default()).unwrap_or_default()
    }

    /// Remembers them.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn remember_tools(&self, fleet: &FleetName, node: &NodeName, images: &[ImageId]) -> Result<(), MemoryError> {
        write_whole(&self.tools_path(fleet, node), &serde_json::to_vec(images).expect("plain data always serialises"))
    }

    fn boot_path(&self, fleet: &FleetName, node: &NodeName) -> PathBuf {
        self.root.join("nodes").join(fleet.as_str()).join(node.as_str()).join("boot")
    }

    /// The boot that a node was in; `None` where nothing is remembered.
    #[must_use]
    pub fn recall_boot(&self, fleet: &FleetName, node: &NodeName) -> Option<BootId> {
        fs::read_to_string(self.boot_path(fleet, node)).ok()?.parse().ok()
    }

    /// Remembers it.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn remember_boot(&self, fleet: &FleetName, node: &NodeName, boot: BootId) -> Result<(), MemoryError> {
        if self.recall_boot(fleet, node) == Some(boot) {
            return Ok(());
        }
        write_whole(&self.boot_path(fleet, node), boot.to_string().as_bytes())
    }

    /// A known image's document.
    #[must_use]
    pub fn document(&self, image: ImageId) -> Option<Vec<u8>> {
        let path = self.document_path(image);
        let document = fs::read(&path).ok()?;
        if ImageId::of(&document) != image {
            // Damaged; the next one to come replaces it.
            return None;
        }
        // Used just now: the oldest go first. Where the time cannot be set, it merely goes earlier.
        if let Ok(file) = fs::File::options().write(true).open(&path) {
            file.set_modified(SystemTime::now()).ok();
        }
        Some(document)
    }

    /// The images whose documents are kept.
    #[must_use]
    pub fn documents(&self) -> Vec<ImageId> {
        let entries = fs::read_dir(self.root.join("documents")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// A known image, decoded: the newest few once in a process.
    #[must_use]
    pub fn image(&self, id: ImageId) -> Option<Arc<KnownImage>> {
        // Whoever comes for it while it is being decoded waits rather than do the same.
        let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = decoded.iter().find(|known| known.id == id) {
            return Some(Arc::clone(known));
        }
        let document = self.document(id)?;
        let image = Image::decode(&document).ok()?;
        let known = Arc::new(KnownImage { id, document: Arc::new(document), image });
        decoded.truncate(DECODED_MAX - 1);
        decoded.insert(0, Arc::clone(&known));
        Some(known)
    }

    /// Keeps an image's document, and drops those that were not used for longest.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn keep_document(&self, image: ImageId, document: &[u8]) -> Result<(), MemoryError> {
        let path = self.document_path(image);
        if self.document(image).is_none() {
            write_whole(&path, document)?;
        }
        let Some(directory) = path.parent() else { return Ok(()) };
        let mut kept: Vec<(SystemTime, PathBuf)> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, other)| *other != path)
            .collect();
        kept.sort();
        let surplus = (kept.len() + 1).saturating_sub(DOCUMENTS_MAX);
        for (_, old) in &kept[..surplus] {
            // One that another process removed first is gone all the same.
            fs::remove_file(old).ok();
        }
        Ok(())
    }
}

/// Temporary file, fsync, rename: a reader sees the old or the new file whole.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), MemoryError> {
    let failed = |source| MemoryError { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_core::image::ImageConfig;

    fn names() -> (FleetName, NodeName, AppName) {
        ("f".parse().unwrap(), "n".parse().unwrap(), "a".parse().unwrap())
    }

    #[test]
    fn there_and_back_and_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::at(directory.path().join("new"));
        let (fleet, node, app) = names();
        assert_eq!(memory.recall(&fleet, &node, &app), Remembered::default());
        let position = Position { counter: 7, ..Position::default() };
        let mut what = Remembered { position, round_trip_us: Some(9), ..Remembered::default() };
        for n in 0..20 {
            what.add_image(ImageId::of(&[n]));
        }
        what.add_image(ImageId::of(&[18]));
        assert_eq!(what.images.len(), IMAGES_MAX);
        assert_eq!(what.images[..3], [18, 19, 17].map(|n| ImageId::of(&[n])));
        memory.remember(&fleet, &node, &app, &what).unwrap();
        assert_eq!(memory.recall(&fleet, &node, &app), what);
        assert_eq!(memory.recall_tools(&fleet, &node), []);
        memory.remember_tools(&fleet, &node, &what.images[..2]).unwrap();
        assert_eq!(memory.recall_tools(&fleet, &node), what.images[..2]);
        fs::write(memory.app_path(&fleet, &node, &app), "{").unwrap();
        assert_eq!(memory.recall(&fleet, &node, &app), Remembered::default());
    }

    #[test]
    fn documents_are_checked_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::at(directory.path());
        for n in 0..u8::try_from(DOCUMENTS_MAX + 5).unwrap() {
            memory.keep_document(ImageId::of(&[n]), &[n]).unwrap();
        }
        assert_eq!(fs::read_dir(directory.path().join("documents")).unwrap().count(), DOCUMENTS_MAX);
        let last = ImageId::of(&[u8::try_from(DOCUMENTS_MAX + 4).unwrap()]);
        assert!(memory.document(last).is_some());
        fs::write(memory.document_path(last), b"damaged").unwrap();
        assert_eq!(memory.document(last), None);
    }

    #[test]
    fn images_are_decoded_once() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::at(directory.path());
        let image = |n: usize| {
            let config = ImageConfig { platform: format!("test/{n}"), allowed: vec![], tools: false };
            Image::new(config, vec![]).unwrap()
        };
        for n in 0..DECODED_MAX + 2 {
            memory.keep_document(image(n).id(), &image(n).encode()).unwrap();
            let known = memory.image(image(n).id()).unwrap();
            assert_eq!((known.id, &known.image), (image(n).id(), &image(n)));
            assert_eq!(*known.document, image(n).encode());
        }
        // The newest few are there also where their documents are not any more.
        fs::remove_dir_all(directory.path().join("documents")).unwrap();
        for n in 0..DECODED_MAX + 2 {
            assert_eq!(memory.clone().image(image(n).id()).is_some(), n >= 2, "{n}");
        }
        memory.keep_document(ImageId::of(b"no document"), b"no document").unwrap();
        assert!(memory.image(ImageId::of(b"no document")).is_none());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (fleet, node, app) = names();
        let error = Memory::at(file.path()).remember(&fleet, &node, &app, &Remembered::default()).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()));
    }
}
