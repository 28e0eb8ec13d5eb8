//! Builds the image of a folder and prints what it reports: `build FOLDER CACHE [MIRROR]`.

use bulkhead_core::manifest::Manifest;
use bulkhead_image::{BuildRequest, Purpose, Silent, build};
use std::{error::Error, path::PathBuf};

#[expect(clippy::print_stdout, reason = "an example's output")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name a folder")?);
    let cache = PathBuf::from(arguments.next().ok_or("name a cache")?);
    let mirror = arguments.next().map(|mirror| mirror.to_string_lossy().into_owned());
    let manifest = Manifest::parse(&std::fs::read_to_string(folder.join("bulkhead.toml"))?)?;
    let request = BuildRequest {
        purpose: Purpose::App,
        folder: &folder,
        manifest: &manifest,
        cache_dir: &cache,
        mirror: mirror.as_deref(),
        locked: false,
        progress: &Silent,
    };
    match build(&request) {
        Ok(built) => {
            println!("{}", serde_json::to_string_pretty(&built.report)?);
            println!("{} {} bytes of document", built.id, built.document.len());
            Ok(())
        }
        Err(error) => {
            let mut next: Option<&dyn Error> = Some(&error);
            while let Some(error) = next {
                println!("{error}");
                next = error.source();
            }
            Err("no image".into())
        }
    }
}
