//! A pack in a file: an image's contents for a node's drop box, brought there by any SFTP client.
//!
//! ```text
//! bulkhead build --pack notes.pack        writes it
//! sftp bulkhead-drop@NODE                 put notes.pack
//! bulkhead deploy -e ENV --dropped notes.pack
//! ```
//!
//! A pack decides nothing. The order that names it is signed; the node takes
//! from it only objects that the order's image names and whose digests are right,
//! and is sent whatever it still misses.

use crate::{
    Context,
    deployment::payload_of,
    error::{Error, Kind, Result},
    session::cache_directory,
    workspace::FleetFiles,
};
use bulkhead_core::{FileDigest, ImageId, image::Image};
use bulkhead_fleet::memory::Memory;
use bulkhead_image::Built;
use bulkhead_store::pack::{self, Item, Nothing, Options};
use bulkhead_wire::distinct_objects;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    collections::HashSet,
    io::{BufWriter, Write as _},
    path::Path,
};

/// Digits of an image's id that must be given at least.
const PREFIX_MIN: usize = 8;

/// A pack that was written.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PackReport {
    /// The file.
    pub file: String,
    /// What to call it in a drop box.
    pub name: String,
    /// Objects in it: distinct files' contents.
    pub objects: u64,
    /// Its bytes.
    pub bytes: u64,
    /// The image whose objects were left out.
    pub base: Option<String>,
    /// SFTP addresses of the fleet's nodes, where there is a fleet.
    pub nodes: Vec<String>,
}

/// Whether a name is one that a drop box takes.
#[must_use]
pub fn is_plain(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The name of a pack in drop boxes, from the command line.
///
/// # Errors
/// No drop box takes it.
pub fn parse_name(text: &str) -> std::result::Result<String, String> {
    if is_plain(text) {
        return Ok(text.to_owned());
    }
    Err("the name of a file in the drop box: letters, digits and `.`, `_`, `-`, not beginning with `.`".into())
}

/// Writes a pack of a built image's objects, without those of `base`.
///
/// # Errors
/// The base is not known here, a file changed since it was scanned, or the pack cannot be written.
pub fn write(context: &Context, built: Built, file: &Path, base: Option<&str>) -> Result<PackReport> {
    let base = base.map(known_image).transpose()?;
    let held: HashSet<FileDigest> =
        base.iter().flat_map(|(_, image)| image.files()).map(|(_, _, digest)| digest).collect();
    let image = built.id;
    let items: Vec<Item> = distinct_objects(&built.image)
        .into_iter()
        .filter(|(digest, _)| !held.contains(digest))
        .map(|(digest, size_bytes)| Item { digest, size_bytes, base: None })
        .collect();
    let payload = payload_of(context, built);
    let failed = |error: &dyn std::error::Error| {
        Error::during(Kind::Internal, format!("cannot write {}", file.display()), error)
    };
    // Whole or not at all: half a pack would be put and then refused by every node.
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(directory).map_err(|error| failed(&error))?;
    let mut out = BufWriter::new(temporary.as_file_mut());
    let written = pack::encode(&items, &*payload.contents, &Nothing, &mut out, None, &Options::default());
    let summary = written.map_err(|error| Error::during(Kind::Configuration, "cannot pack the image", &error))?;
    out.flush().map_err(|error| failed(&error))?;
    drop(out);
    temporary.as_file().sync_all().map_err(|error| failed(&error))?;
    temporary.persist(file).map_err(|error| failed(&error.error))?;
    let name = file.file_name().and_then(|name| name.to_str()).filter(|name| is_plain(name));
    Ok(PackReport {
        file: file.display().to_string(),
        name: name.map_or_else(|| format!("{}.pack", image.short()), str::to_owned),
        objects: summary.objects,
        bytes: summary.pack_bytes,
        base: base.map(|(id, _)| id.to_string()),
        nodes: addresses(context),
    })
}

/// Where the fleet's drop boxes are; none where there is no fleet, for a pack needs none.
fn addresses(context: &Context) -> Vec<String> {
    let Ok(files) = FleetFiles::load(&context.places) else { return vec![] };
    let address = |node: &bulkhead_core::fleet::FleetNode| match node.port {
        Some(port) => format!("-P {port} bulkhead-drop@{}", node.address),
        None => format!("bulkhead-drop@{}", node.address),
    };
    files.fleet.nodes.values().map(address).collect()
}

/// The image of an id, or of its first digits, whose document this machine keeps.
fn known_image(wanted: &str) -> Result<(ImageId, Image)> {
    let is_id = wanted.len() >= PREFIX_MIN && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        return Err(Error::usage(format!(
            "`{wanted}` is not an image's id, nor its first {PREFIX_MIN} digits or more"
        )));
    }
    let memory = Memory::at(cache_directory()?.join("nodes"));
    let mut found = memory.documents().into_iter().filter(|id| id.to_string().starts_with(&wanted.to_lowercase()));
    let (first, second) = (found.next(), found.next());
    if second.is_some() {
        return Err(Error::usage(format!("several images begin with `{wanted}`: give more digits")));
    }
    let known = first.and_then(|id| Some((id, Image::decode(&memory.document(id)?).ok()?)));
    known.ok_or_else(|| {
        Error::configuration(format!("image {wanted} is not known on this machine"))
            .hint("`bulkhead ps -o json` and `bulkhead releases -o json` have the ids of images")
            .hint("`bulkhead plan -e ENV` makes what runs there known")
            .hint("without `--base` the pack holds everything")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_drop_box() {
        for good in ["notes.pack", "a", "A-1_b"] {
            assert_eq!(parse_name(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", ".x", "a/b", "../x", "a b", "a\n", "ä", &"x".repeat(256)] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }
}
