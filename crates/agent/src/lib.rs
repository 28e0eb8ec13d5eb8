//! `bulkhead-agent`: what runs on a node. Gate and keeper; nothing of it stays resident.
pub mod install;
