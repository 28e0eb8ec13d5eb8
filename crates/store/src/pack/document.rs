//! Image documents on their way: a zstd frame with the base's document as prefix.

use super::PackError;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, compress_bound, get_frame_content_size};

/// A document is mostly digests, which do not compress; a higher level gains nothing.
const LEVEL_ALONE: i32 = 3;
/// Over a base, finding long matches is all that counts, and that is the same at every level.
const LEVEL_OVER_BASE: i32 = 1;
/// From this level on zstd's ordinary search reaches over this much of a prefix, and does better within it than the
/// search for long matches; beyond it, only the latter finds anything.
const LEVEL_REACHING_FAR: i32 = 9;
const REACH_BYTES: usize = 2 << 20;
/// 128 MiB: a document and its base at their largest.
const WINDOW_LOG_MAX: u32 = 27;

/// The smallest window that reaches over this many bytes.
pub(super) fn window_log(bytes: usize) -> u32 {
    bytes.max(1 << 10).next_power_of_two().trailing_zeros().min(WINDOW_LOG_MAX)
}

/// One zstd frame over `raw`, with a prefix.
pub(super) fn compress_with_prefix(raw: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>, &'static str> {
    let mut context = CCtx::try_create().ok_or("out of memory")?;
    let name = zstd::zstd_safe::get_error_name;
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(name)?;
    if !prefix.is_empty() {
        context.set_parameter(CParameter::WindowLog(window_log(raw.len() + prefix.len()))).map_err(name)?;
        let is_far = level < LEVEL_REACHING_FAR || prefix.len() > REACH_BYTES;
        context.set_parameter(CParameter::EnableLongDistanceMatching(is_far)).map_err(name)?;
        context.ref_prefix(prefix).map_err(name)?;
    }
    let mut packed = Vec::with_capacity(compress_bound(raw.len()));
    context.compress2(&mut packed, raw).map_err(name)?;
    Ok(packed)
}

/// Compresses a document. `base` is the document of an image that the receiver has.
///
/// # Errors
/// zstd found no memory.
pub fn compress_document(document: &[u8], base: Option<&[u8]>) -> Result<Vec<u8>, PackError> {
    let base = base.unwrap_or_default();
    let level = if base.is_empty() { LEVEL_ALONE } else { LEVEL_OVER_BASE };
    compress_with_prefix(document, base, level).map_err(|reason| PackError::Compress { reason })
}

/// The other way round, given the same base.
///
/// # Errors
/// The bytes are no such frame, or unpack to more than `max_bytes`.
pub fn decompress_document(bytes: &[u8], base: Option<&[u8]>, max_bytes: usize) -> Result<Vec<u8>, PackError> {
    let refuse = || PackError::Document { max_bytes };
    let claimed = get_frame_content_size(bytes).ok().flatten().ok_or_else(refuse)?;
    let claimed = usize::try_from(claimed).ok().filter(|claimed| *claimed <= max_bytes).ok_or_else(refuse)?;
    let mut context = DCtx::try_create().ok_or_else(refuse)?;
    if let Some(base) = base.filter(|base| !base.is_empty()) {
        context.ref_prefix(base).map_err(|_| refuse())?;
    }
    let mut document = Vec::with_capacity(claimed);
    context.decompress(&mut document, bytes).map_err(|_| refuse())?;
    Ok(document)
}
