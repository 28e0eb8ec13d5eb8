//! Everything that is printed, and the one question that is asked.
//!
//! - Standard output carries the result alone: text for people, or with
//!   `-o json` one JSON document (for a stream, one per line) and nothing else.
//! - Standard error carries progress, questions and the time it took. A moving
//!   display appears only where standard error is a terminal.
//! - Colours appear only on a terminal and where `NO_COLOR` is not set.
//! - Text that came from a node is passed through [`printable`] first.

use crate::error::{Error, Kind, Result};
use bulkhead_core::Timestamp;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    /// Whether to colour.
    pub colour: bool,
}

impl Paint {
    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// A label of an error.
    #[must_use]
    pub fn error(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    /// A label of a hint.
    #[must_use]
    pub fn hint(self, text: &str) -> String {
        self.wrap("36", text)
    }

    /// Titles.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What matters less.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.wrap("2", text)
    }
}

/// Where a command's words go.
#[derive(Debug)]
pub struct Ui {
    json: bool,
    stdout: Paint,
    stderr: Paint,
    /// Standard error is a terminal.
    live: bool,
    /// A person can be asked.
    interactive: bool,
    started: Instant,
    /// What an interruption means at this moment.
    stage: Mutex<&'static str>,
    /// An interruption is the ordinary end of this command.
    ends_by_interruption: AtomicBool,
    /// Who the next interruption is for, where it is not the command's.
    next_interruption: Mutex<Option<Arc<Notify>>>,
    bar: Mutex<Option<ProgressBar>>,
    /// One question at a time: the terminal has one line to answer on.
    questions: Arc<Questions>,
    /// How the terminal was before a secret was asked for, to be put back where that is interrupted.
    terminal: Terminal,
}

impl Ui {
    /// Looks at the three standard streams once.
    #[must_use]
    pub fn new(format: Format) -> Self {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && terminal_has_colours();
        let live = std::io::stderr().is_terminal();
        Self {
            json: format == Format::Json,
            stdout: Paint { colour: colour && std::io::stdout().is_terminal() },
            stderr: Paint { colour: colour && live },
            live,
            interactive: live && std::io::stdin().is_terminal(),
            started: Instant::now(),
            stage: Mutex::new("nothing was changed"),
            ends_by_interruption: AtomicBool::new(false),
            next_interruption: Mutex::default(),
            bar: Mutex::new(None),
            questions: Arc::default(),
            terminal: Terminal::default(),
        }
    }

    /// Whether results are JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person can be asked.
    #[must_use]
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Colours for standard output.
    #[must_use]
    pub fn paint(&self) -> Paint {
        self.stdout
    }

    /// Prints a command's result: the value as JSON, or the text made from it.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T, Paint) -> String) -> Result<()> {
        if self.json {
            let line = serde_json::to_string(value)
                .map_err(|error| Error::during(Kind::Internal, "the result cannot be written as JSON", &error))?;
            self.out(&(escaped(&line) + "\n"))
        } else {
            self.out(&text(value, self.stdout))
        }
    }

    /// Prints text for people before a result; with `-o json` it goes to standard error, if a person looks there.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub fn preview(&self, text: impl FnOnce(Paint) -> String) -> Result<()> {
        if !self.json {
            self.out(&text(self.stdout))
        } else {
            if self.live {
                self.err(&text(self.stderr));
            }
            Ok(())
        }
    }

    fn out(&self, text: &str) -> Result<()> {
        self.clear();
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                // The reader has what it wanted (`bulkhead releases | head`).
                self.ends_by_interruption.store(true, Ordering::Relaxed);
                Err(Error::new(Kind::Interrupted, "standard output was closed"))
            }
            other => other.map_err(|error| Error::during(Kind::Internal, "cannot write to standard output", &error)),
        }
    }

    fn err(&self, text: &str) {
        // Nobody is left to be told when standard error itself fails.
        std::io::stderr().lock().write_all(text.as_bytes()).ok();
    }

    /// One line about what is being done, on standard error.
    pub fn note(&self, text: &str) {
        let line = format!("{}\n", printable(text));
        match &*self.bar() {
            Some(bar) => bar.suspend(|| self.err(&line)),
            None => self.err(&line),
        }
    }

    /// One line about a step that is done; only where no moving line shows it and people read.
    pub fn step(&self, text: &str) {
        if !self.live && !self.json {
            self.note(text);
        }
    }

    /// A moving line about what is being done; only where standard error is a terminal.
    pub fn progress(&self, text: &str) {
        if !self.live || self.questions.open.load(Ordering::Relaxed) {
            return;
        }
        let mut bar = self.bar();
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        bar.set_message(printable(text));
    }

    /// Takes the moving line away.
    pub fn clear(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }

    fn bar(&self) -> std::sync::MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whether to go on.
    ///
    /// # Errors
    /// Nobody can be asked (usage), or the answer is no (interrupted).
    pub async fn confirm(&self, question: &str, yes: bool) -> Result<()> {
        if yes {
            return Ok(());
        }
        self.must_be_able_to_ask(yes)?;
        let answer = self.ask(&format!("{question} [y/N] ")).await?;
        if matches!(answer.trim(), "y" | "Y" | "yes" | "Yes") { Ok(()) } else { Err(declined()) }
    }

    /// Asks for a word to be typed, for what cannot be undone.
    ///
    /// # Errors
    /// Nobody can be asked (usage), or another word was typed (interrupted).
    pub async fn confirm_word(&self, question: &str, word: &str, yes: bool) -> Result<()> {
        if yes {
            return Ok(());
        }
        self.must_be_able_to_ask(yes)?;
        let answer = self.ask(&format!("{question} Type `{word}` to go on: ")).await?;
        if answer.trim() == word { Ok(()) } else { Err(declined()) }
    }

    /// Refuses early where a question will come and nobody can answer it.
    ///
    /// # Errors
    /// Nobody can be asked.
    pub fn must_be_able_to_ask(&self, yes: bool) -> Result<()> {
        if yes || self.interactive {
            return Ok(());
        }
        Err(Error::usage("this would change something, and there is no terminal to ask at")
            .hint("say `--yes` to go on without a question"))
    }

    async fn ask(&self, prompt: &str) -> Result<String> {
        let (questions, prompt) = (Arc::clone(&self.questions), self.stderr.bold(prompt));
        self.clear();
        let read = tokio::task::spawn_blocking(move || {
            questions.one(|| {
                // Where standard error fails the answer does so too, or is no.
                std::io::stderr().lock().write_all(prompt.as_bytes()).ok();
                let mut line = String::new();
                std::io::stdin().read_line(&mut line).map(|_| line)
            })
        });
        match read.await {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) => Err(Error::during(Kind::Usage, "the answer cannot be read", &error)),
            Err(error) => Err(Error::during(Kind::Internal, "the answer cannot be read", &error)),
        }
    }

    /// Asks for a secret at the terminal, where there is one; what is typed is not shown. For threads that may wait.
    #[must_use]
    pub fn secret(&self, prompt: &str) -> Option<String> {
        if !self.live {
            return None;
        }
        self.questions.one(|| {
            if self.questions.has_ended() {
                return None;
            }
            self.clear();
            self.terminal.remember();
            // It asks at the terminal itself, so that standard input may be something else.
            let answer = rpassword::prompt_password(prompt);
            self.terminal.forget();
            if answer.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::Interrupted) {
                // The interruption ends the command. Until it does, no answer: it would look like a key given up.
                self.questions.wait_for_end();
            }
            answer.ok()
        })
    }

    /// Leaves the terminal as it was, where the command ends while a secret is asked for.
    pub fn close(&self) {
        self.questions.end();
        if self.terminal.put_back() {
            self.err("\n");
        }
    }

    /// Says what an interruption means from here on.
    pub fn stage(&self, meaning: &'static str) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = meaning;
    }

    /// From here on an interruption is the ordinary end of the command.
    pub fn until_interrupted(&self) {
        self.ends_by_interruption.store(true, Ordering::Relaxed);
    }

    /// The next interruption, and no other, is for whoever hears this.
    pub fn pass_next_interruption_to(&self, hearer: &Arc<Notify>) {
        *self.next_interruption.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(hearer));
    }

    /// Whether an interruption was for another, who now knows.
    #[must_use]
    pub fn passes_interruption_on(&self) -> bool {
        let hearer = self.next_interruption.lock().unwrap_or_else(PoisonError::into_inner).take();
        hearer.inspect(|hearer| hearer.notify_one()).is_some()
    }

    /// What a tool on a node wrote, as it comes. On a terminal it is made printable, line breaks and tabs apart;
    /// elsewhere it is passed on byte for byte.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub fn tool_output(&self, is_error: bool, bytes: &[u8]) -> Result<()> {
        self.clear();
        let is_terminal = if is_error { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        // A character cut in two by a piece's end shows as two that are unknown: rare, and harmless.
        let text = is_terminal.then(|| printable_lines(&String::from_utf8_lossy(bytes)));
        let bytes = text.as_ref().map_or(bytes, |text| text.as_bytes());
        let written = if is_error {
            std::io::stderr().lock().write_all(bytes)
        } else {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        };
        written.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => {
                self.ends_by_interruption.store(true, Ordering::Relaxed);
                Error::new(Kind::Interrupted, "standard output was closed")
            }
            _ => Error::during(Kind::Internal, "cannot write what the tool says", &error),
        })
    }

    /// What becomes of the command now that it was interrupted.
    ///
    /// # Errors
    /// An interruption, unless it is this command's ordinary end.
    pub fn interrupted(&self) -> Result<()> {
        self.clear();
        if self.ends_by_interruption.load(Ordering::Relaxed) {
            return Ok(());
        }
        let stage = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        Err(Error::new(Kind::Interrupted, format!("interrupted: {stage}")))
    }

    /// Prints an error: on standard error for people, and with `-o json` also on standard output.
    pub fn error(&self, error: &Error) {
        self.clear();
        if error.kind == Kind::Interrupted && self.ends_by_interruption.load(Ordering::Relaxed) {
            return;
        }
        if self.json && !error.shown {
            // Where standard output is broken too, the exit code still says it.
            self.result(&error.report(), |_, _| String::new()).ok();
        }
        self.err(&error.render(self.stderr));
    }

    /// Prints an error that does not end the command: one node of several did not answer.
    pub fn warn(&self, error: &Error) {
        let text = error.render(self.stderr);
        match &*self.bar() {
            Some(bar) => bar.suspend(|| self.err(&text)),
            None => self.err(&text),
        }
    }

    /// The total time, at the end, for people.
    pub fn total(&self) {
        self.clear();
        if !self.json || self.live {
            self.err(&self.stderr.faint(&format!("took {}\n", seconds(self.started.elapsed()))));
        }
    }

    /// Time since the command began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Questions to the person at the terminal.
#[derive(Debug, Default)]
struct Questions {
    turn: Mutex<()>,
    /// One is being asked: no moving line then.
    open: AtomicBool,
    /// The command has ended: no question any more.
    ended: Mutex<bool>,
    end: Condvar,
}

/// An interruption is heard much sooner.
const INTERRUPTION_MAX: Duration = Duration::from_secs(2);

impl Questions {
    fn has_ended(&self) -> bool {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.notify_all();
    }

    /// Waits for the command's end, within bounds.
    fn wait_for_end(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // Either way there is nothing more to wait for.
        drop(self.end.wait_timeout_while(ended, INTERRUPTION_MAX, |ended| !*ended));
    }

    /// Asks one when no other is open.
    fn one<T>(&self, ask: impl FnOnce() -> T) -> T {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.store(true, Ordering::Relaxed);
        let answer = ask();
        self.open.store(false, Ordering::Relaxed);
        answer
    }
}

/// Whether escape sequences do what they say. A console of Windows has to be told to; those before Windows 10 cannot.
#[cfg(windows)]
fn terminal_has_colours() -> bool {
    // Git's terminal is no console, understands them by itself, and sets TERM.
    anstyle_query::windows::enable_ansi_colors() == Some(true) || std::env::var_os("TERM").is_some()
}

#[cfg(not(windows))]
fn terminal_has_colours() -> bool {
    true
}

/// The terminal's settings while a secret is asked for without showing it.
#[cfg(unix)]
#[derive(Debug, Default)]
struct Terminal(Mutex<Option<(std::fs::File, rustix::termios::Termios)>>);

#[cfg(unix)]
impl Terminal {
    fn saved(&self) -> std::sync::MutexGuard<'_, Option<(std::fs::File, rustix::termios::Termios)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self) {
        let terminal = std::fs::File::open("/dev/tty").ok();
        *self.saved() =
            terminal.and_then(|file| rustix::termios::tcgetattr(&file).ok().map(|settings| (file, settings)));
    }

    fn forget(&self) {
        *self.saved() = None;
    }

    /// Whether there was something to put back.
    fn put_back(&self) -> bool {
        let Some((file, settings)) = self.saved().take() else { return false };
        // A terminal that is gone needs no settings.
        rustix::termios::tcsetattr(&file, rustix::termios::OptionalActions::Now, &settings).ok();
        true
    }
}

/// Windows puts a console's settings back itself when the program ends.
#[cfg(not(unix))]
#[derive(Debug, Default)]
struct Terminal;

#[cfg(not(unix))]
impl Terminal {
    fn remember(&self) {}
    fn forget(&self) {}
    fn put_back(&self) -> bool {
        false
    }
}

fn declined() -> Error {
    Error::new(Kind::Interrupted, "nothing was changed: the answer was no")
}

/// A text from elsewhere, fit for one line of a terminal and for columns: see
/// [`bulkhead_fleet::printable`]; tabs become spaces, for they have no width.
#[must_use]
pub fn printable(text: &str) -> String {
    bulkhead_fleet::printable(text).replace('\t', "    ")
}

/// JSON of which nothing moves a terminal, should one be at the other end: JSON itself leaves C1 controls and
/// characters that turn the direction of text as they are.
fn escaped(json: &str) -> String {
    let is_unsafe = |character: char| matches!(character, '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if is_unsafe(character) {
            out.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            out.push(character);
        }
    }
    out
}

/// As [`printable`], keeping line breaks within the text.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.trim_end().lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// A duration for people: `340 ms`, `1.24 s`, `2 min 5 s`.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..=999 => format!("{ms} ms"),
        ms @ 1000..=59_999 => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
        ms => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// A size for people, in powers of 1000: `812 B`, `12 kB`, `5.6 MB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut scale = 1000_u64;
    let mut unit = 0;
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    let (whole, tenth) = (bytes / scale, bytes % scale * 10 / scale);
    if whole < 10 { format!("{whole}.{tenth} {}", UNITS[unit]) } else { format!("{whole} {}", UNITS[unit]) }
}

/// A count with separators: `24,012`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// How long ago, for people: `now`, `5 min`, `3 h`, `12 d`.
#[must_use]
pub fn age(then: Timestamp, now: Timestamp) -> String {
    match now.0.saturating_sub(then.0) {
        i64::MIN..=1 => "now".into(),
        s @ 2..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        for (bytes, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345, "12 kB"), (u64::MAX, "18446 PB")] {
            assert_eq!(size(bytes), text);
        }
        for (ms, text) in [(0, "0 ms"), (999, "999 ms"), (1240, "1.24 s"), (125_000, "2 min 5 s")] {
            assert_eq!(seconds(Duration::from_millis(ms)), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        for (ago, text) in [(0, "now"), (-5, "now"), (60, "60 s"), (600, "10 min"), (7200, "2 h"), (864_000, "10 d")] {
            assert_eq!(age(Timestamp(1000), Timestamp(1000 + ago)), text);
        }
    }

    #[test]
    fn json_moves_no_terminal() {
        let text = "a\u{9b}31m\u{202e}\u{7f}é☃\\";
        let json = escaped(&serde_json::to_string(text).unwrap());
        assert!(json.is_ascii() || !json.contains(['\u{9b}', '\u{202e}', '\u{7f}']), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn what_reaches_a_terminal() {
        for (text, shown) in [
            ("plain é 日本", "plain é 日本"),
            ("\u{1b}]0;title\u{7}", "^[]0;title^G"),
            ("a\tb\rc", "a    b\\rc"),
            ("safe\u{202e}txt", "safe\\u{202e}txt"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }
}
