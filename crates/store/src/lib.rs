//! Content-addressed objects, packs, images; composefs mounts on Linux.
