//! An image on its way in.
//!
//! Its document is hashed and decoded once and its objects are looked for once: with tens of thousands of
//! files each of these costs as much as all the rest of taking in one changed file.

use super::{Push, StoreError};
use bulkhead_core::{
    FileDigest, ImageId,
    image::{Image, ImageError},
};

/// Why bytes are not the document of an image.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// They are another's, or none.
    #[error("the document is not that of image {id}")]
    Other {
        /// The image that was expected.
        id: ImageId,
    },
    /// They are not a document.
    #[error("the document of image {id} breaks a rule")]
    Malformed {
        /// The image that was expected.
        id: ImageId,
        /// Which rule.
        #[source]
        source: ImageError,
    },
}

/// An image whose document was checked, and what is known of which of its objects are here.
///
/// The push that it belongs to keeps garbage collection off, so what was seen here stays.
#[derive(Debug)]
pub struct Incoming<'a> {
    push: &'a Push<'a>,
    id: ImageId,
    document: Vec<u8>,
    objects: Vec<(FileDigest, u64)>,
    /// For each object whether it was not seen yet.
    missing: Vec<bool>,
}

impl<'a> Push<'a> {
    /// Checks a document. Gives the image too, for whoever wants to look at it before it is dropped.
    ///
    /// # Errors
    /// The bytes are not the document of the image of that id.
    pub fn incoming(&'a self, id: ImageId, document: Vec<u8>) -> Result<(Incoming<'a>, Image), DocumentError> {
        if ImageId::of(&document) != id {
            return Err(DocumentError::Other { id });
        }
        let image = Image::decode(&document).map_err(|source| DocumentError::Malformed { id, source })?;
        let objects = image.distinct_objects();
        let missing = vec![true; objects.len()];
        Ok((Incoming { push: self, id, document, objects, missing }, image))
    }

    /// Puts an image's document, durably, after making its objects durable ([`Push::sync`]).
    ///
    /// # Errors
    /// [`StoreError::DocumentDamaged`] where the bytes are not that image; [`StoreError::ObjectsMissing`];
    /// [`StoreError::DiskFull`]; [`StoreError::Io`].
    pub fn put_document(&self, id: ImageId, document: &[u8]) -> Result<(), StoreError> {
        let checked = self.incoming(id, document.to_vec());
        let (mut incoming, image) = checked.map_err(|_| StoreError::DocumentDamaged { id })?;
        drop(image);
        incoming.look()?;
        incoming.put()
    }
}

impl Incoming<'_> {
    /// Looks for the objects that were not seen yet.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn look(&mut self) -> Result<(), StoreError> {
        let asked: Vec<(FileDigest, u64)> = self.absent().collect();
        let still = self.push.store.missing(&asked)?;
        for (flag, still) in self.missing.iter_mut().filter(|flag| **flag).zip(still) {
            *flag = still;
        }
        Ok(())
    }

    /// For each of [`Image::distinct_objects`] whether it was not seen yet.
    #[must_use]
    pub fn missing(&self) -> &[bool] {
        &self.missing
    }

    /// The objects that were not seen yet.
    pub fn absent(&self) -> impl Iterator<Item = (FileDigest, u64)> {
        self.objects.iter().zip(&self.missing).filter(|(_, missing)| **missing).map(|(object, _)| *object)
    }

    /// Whether any object was seen.
    #[must_use]
    pub fn has_any(&self) -> bool {
        self.missing.contains(&false)
    }

    /// Makes the image's objects durable and then its document.
    ///
    /// # Errors
    /// [`StoreError::ObjectsMissing`] where not every object was seen; [`StoreError::DiskFull`]; [`StoreError::Io`].
    pub fn put(self) -> Result<(), StoreError> {
        let count = self.absent().count() as u64;
        if count > 0 {
            return Err(StoreError::ObjectsMissing { id: self.id, count });
        }
        self.push.sync()?;
        self.push.store.write_durably("documents", &self.id.to_string(), &self.document)
    }
}
