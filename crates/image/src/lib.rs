//! Builds sealed images: scan, Debian packages, ELF closure, lint. Pure Rust, any host.
