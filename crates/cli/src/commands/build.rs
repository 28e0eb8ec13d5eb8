//! `bulkhead build`.

use crate::{
    Context,
    deployment::build_image,
    error::{Error, Kind, Result},
    output::{Paint, count, printable, seconds, size},
    packfile::{self, PackReport},
    table::Table,
    workspace::App,
};
use bulkhead_image::{Finding, Report};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Builds the image: what goes in, what was left out and why, what the lint said
///
/// Contacts no node. Files that did not change since the last build are not read
/// again. Packages come from the Debian suite that the manifest names; their
/// versions and digests are pinned in `bulkhead.lock`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Refuses to change `bulkhead.lock`, as a continuous integration should.
    #[arg(long)]
    pub locked: bool,

    /// Writes the image's contents into this file too, for nodes' drop boxes; says how to bring it there.
    #[arg(long, value_name = "FILE")]
    pub pack: Option<PathBuf>,

    /// Leaves out of the pack what this image has: one that the nodes hold. Its id, or the first 8 digits or more.
    #[arg(long, value_name = "IMAGE", requires = "pack")]
    pub base: Option<String>,
}

/// A built image.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BuildReport {
    /// The app.
    pub app: String,
    /// The image's id.
    pub image: String,
    /// Files in the image.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// Files that had to be read because they are new or changed.
    pub files_read: u64,
    /// Debian packages with something in the image.
    pub packages: Vec<BuiltPackage>,
    /// npm packages, as `name@version`.
    pub npm_packages: Vec<String>,
    /// What the lint warned of.
    pub warnings: Vec<LintFinding>,
    /// What the lint would have refused, had the manifest not allowed it.
    pub allowed: Vec<LintFinding>,
    /// What was left out, and why.
    pub omitted: Vec<LeftOut>,
    /// Whether `bulkhead.lock` was written.
    pub lock_changed: bool,
    /// How long it took, in milliseconds.
    pub total_ms: f64,
    /// The pack that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<PackReport>,
}

/// A Debian package with something in the image.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BuiltPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Files of it in the image.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

/// Something that the lint found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LintFinding {
    /// The rule's name.
    pub rule: String,
    /// The path in the image.
    pub path: String,
    /// What is wrong and what to do.
    pub sentence: String,
}

/// What was left out for one reason.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LeftOut {
    /// The reason.
    pub reason: String,
    /// How many files, or folders that were not entered.
    pub count: u64,
    /// Their size, as far as it is known.
    pub bytes: u64,
    /// The biggest of them.
    pub biggest: Vec<String>,
}

/// Builds and reports.
///
/// # Errors
/// Folder, manifest, packages or lint stand against it.
pub async fn run(context: &Context, args: &BuildArgs) -> Result<()> {
    let app = App::load(&context.places)?;
    if let Some(file) = &args.pack {
        app.must_be_outside(file)?;
    }
    let built = build_image(context, &app, args.locked).await?;
    let mut report = report(&app, &built.id.to_string(), &built.report);
    if let Some(file) = args.pack.clone() {
        let (context, base) = (context.clone(), args.base.clone());
        let writing = tokio::task::spawn_blocking(move || packfile::write(&context, built, &file, base.as_deref()));
        let written = writing.await.map_err(|error| Error::during(Kind::Internal, "packing failed", &error))?;
        report.pack = Some(written?);
    }
    context.ui.result(&report, render)
}

fn report(app: &App, image: &str, report: &Report) -> BuildReport {
    BuildReport {
        app: app.manifest.app.to_string(),
        image: image.into(),
        files: report.files,
        bytes: report.bytes,
        files_read: report.files_read,
        packages: report
            .packages
            .iter()
            .map(|package| BuiltPackage {
                name: package.name.clone(),
                version: package.version.clone(),
                files: package.files,
                bytes: package.bytes,
            })
            .collect(),
        npm_packages: report.npm_packages.clone(),
        warnings: report.warnings.iter().map(finding).collect(),
        allowed: report.allowed.iter().map(finding).collect(),
        omitted: report
            .omitted
            .iter()
            .map(|omission| LeftOut {
                reason: omission.reason.clone(),
                count: omission.count,
                bytes: omission.bytes,
                biggest: omission.biggest.iter().map(|large| large.path.clone()).collect(),
            })
            .collect(),
        lock_changed: report.lock_changed,
        total_ms: report.timings.total_ms,
        pack: None,
    }
}

fn finding(finding: &Finding) -> LintFinding {
    // The rule's stable name is the one it is serialised as.
    let rule = serde_json::to_value(finding.rule).ok().and_then(|value| value.as_str().map(str::to_owned));
    LintFinding { rule: rule.unwrap_or_default(), path: finding.path.clone(), sentence: finding.sentence.clone() }
}

fn render(report: &BuildReport, paint: Paint) -> String {
    let mut out = String::new();
    putln!(out, "{}", paint.bold(&format!("{}  image {}", report.app, report.image)));
    putln!(
        out,
        "{} files, {}; {} read anew; {}",
        count(report.files),
        size(report.bytes),
        count(report.files_read),
        seconds(Duration::from_secs_f64(report.total_ms.max(0.0) / 1000.0))
    );
    if report.lock_changed {
        out.push_str("bulkhead.lock was written: check it in\n");
    }
    if !report.packages.is_empty() {
        let mut table = Table::new(&["PACKAGE", "VERSION", ">FILES", ">SIZE"]);
        for package in &report.packages {
            table.row([package.name.clone(), package.version.clone(), count(package.files), size(package.bytes)]);
        }
        put!(out, "\n{}", table.render(paint));
    }
    if !report.npm_packages.is_empty() {
        putln!(out, "\n{} npm packages", count(report.npm_packages.len() as u64));
    }
    if !report.omitted.is_empty() {
        let mut table = Table::new(&["LEFT OUT", ">COUNT", ">SIZE", "SUCH AS"]);
        for omission in &report.omitted {
            let example = omission.biggest.first().cloned().unwrap_or_default();
            table.row([omission.reason.clone(), count(omission.count), size(omission.bytes), example]);
        }
        put!(out, "\n{}", table.render(paint));
    }
    for (title, findings) in
        [("warnings", &report.warnings), ("allowed by the manifest, which the lint would refuse", &report.allowed)]
    {
        if !findings.is_empty() {
            putln!(out, "\n{}", paint.bold(title));
            for finding in findings {
                let path = printable(&finding.path);
                putln!(out, "  {path}: {} [{}]", printable(&finding.sentence), finding.rule);
            }
        }
    }
    if let Some(pack) = &report.pack {
        out.push_str(&render_pack(pack, paint));
    }
    out
}

/// What was written, and what to type next.
fn render_pack(pack: &PackReport, paint: Paint) -> String {
    let mut out = String::new();
    let title = format!("wrote {}: {} objects, {}", pack.file, count(pack.objects), size(pack.bytes));
    putln!(out, "\n{}", paint.bold(&printable(&title)));
    out.push_str("put it into the drop box of each node that shall run it:\n");
    let anywhere = ["bulkhead-drop@NODE".to_owned()];
    for node in if pack.nodes.is_empty() { &anywhere[..] } else { &pack.nodes } {
        putln!(out, "  sftp {}", printable(node));
    }
    putln!(out, "  sftp> put {} {}", printable(&pack.file), pack.name);
    putln!(out, "then, from this folder:\n  bulkhead deploy -e ENV --dropped {}", pack.name);
    out
}
