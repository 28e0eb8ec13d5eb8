//! What a service, a file or a document says is text, and moves no terminal.

use crate::trust::{last, refused};
use anyhow::{Result, ensure};
use bulkhead_testkit::world::{Ran, World};
use bulkhead_wire::{ACCOUNT, Ask, Bring, Event, Paper};
use serde_json::json;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("a_log_moves_no_terminal", logs),
    ("a_failed_service_s_last_words_move_no_terminal", last_words),
    ("names_of_files_move_no_terminal", names),
    ("what_is_on_record_moves_no_terminal", record),
];

/// A title, an empty screen, a colour by a C1 control, a bell, a step back, and text from right to left. The colours
/// of `bulkhead` itself are none of these.
const EVIL: [&str; 6] = ["\u{1b}]0;owned", "\u{1b}[2J", "\u{9b}31m", "\u{7}", "\u{8}", "\u{202e}"];
const WEB: &str = "port = 3000\nstop = \"1s\"\nvolumes = { data = \"/data\" }";

fn evil() -> String {
    format!("before{}after", EVIL.concat())
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn is_harmless(ran: Ran) -> Result<()> {
    for evil in EVIL {
        ensure!(!ran.stdout.contains(evil) && !ran.stderr.contains(evil), "{evil:?} came through: {ran}");
    }
    ensure!(ran.stdout.contains("after") || ran.stderr.contains("after"), "nothing of it is shown: {ran}");
    Ok(())
}

/// On a terminal, and as JSON, which may be shown on one.
fn shown(world: &World, words: &[&str]) -> Result<()> {
    is_harmless(world.on_a_terminal(&world.fleet(), words, "")?)?;
    is_harmless(world.run(&world.fleet(), &[&["-o", "json"], words].concat())?)
}

fn logs(world: &World) -> Result<()> {
    let app = world.app("loud", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let (_, said) = app.get("stage-1", &format!("/say/{}", hex(&evil())))?;
    ensure!(said == "said", "{said}");
    world.on_node("stage-1", &["journalctl", "--sync"])?;
    shown(world, &["logs", "-e", "staging", "loud"])
}

fn last_words(world: &World) -> Result<()> {
    let app = world.app("cursing", &["curse", &hex(&evil())], WEB)?;
    let words = ["deploy", "-e", "staging", "--yes"];
    is_harmless(world.on_a_terminal(&app.folder, &words, "")?)?;
    is_harmless(app.run(&[&words[..], &["-o", "json"]].concat())?)
}

fn names(world: &World) -> Result<()> {
    let app = world.app("named", &["serve", "3000"], WEB)?;
    app.deploy("staging", 0)?;
    let (_, said) = app.get("stage-1", &format!("/append/data/{}/x", evil()))?;
    ensure!(said == "written", "{said}");
    shown(world, &["look", "-e", "staging", "named/web", "--", "files", "/data"])
}

/// A reason is free text, and whoever may sign one is not trusted with the terminals of the others.
fn record(world: &World) -> Result<()> {
    let fleet = world.fleet().file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let revoke = |reason: &str| -> Result<Event> {
        let bytes = serde_json::to_vec(&json!({
            "format": 1, "fleet": fleet, "issued": 1, "reason": reason, "revoked": {"images": ["cd".repeat(32)]},
        }))?;
        let signature = crate::orders::sign(&world.key(), "revocation@bulkhead", &bytes, world.folder())?;
        last(world, ACCOUNT, Ask::Bring(Bring { paper: Paper::Revocation, signatures: vec![signature] }), &[&bytes])
    };
    for evil in EVIL.iter().filter(|evil| evil.contains(char::is_control)) {
        refused(&revoke(&format!("before{evil}after"))?, "malformed")?;
    }
    let event = revoke("before\u{202e}after")?;
    ensure!(!matches!(event, Event::Failed(_)), "{event:?}");
    shown(world, &["audit", "-e", "staging", "-n", "200"])
}
