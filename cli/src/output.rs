//! What commands print: results on standard output, as text or as JSON, and progress and errors on
//! standard error. Nothing else in this crate writes to either (a role's logs apart).
//!
//! Standard output is buffered; a command that promises "written before acknowledged" calls
//! [`Output::flush`] in between.

mod progress;
mod table;

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;

use crate::args::Format;
use crate::exit::CliError;

pub use progress::Progress;
pub use table::Table;

const BUFFER_BYTES: usize = 256 * 1024;

/// Where results go.
pub struct Output {
    format: Format,
    stdout: Mutex<BufWriter<Stdout>>,
}

impl Output {
    /// Output in a format.
    pub fn new(format: Format) -> Output {
        let stdout = BufWriter::with_capacity(BUFFER_BYTES, io::stdout());
        Output {
            format,
            stdout: Mutex::new(stdout),
        }
    }

    /// Whether programs read the output.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a line of text.
    ///
    /// # Errors
    /// When standard output is closed or full.
    pub fn line(&self, text: impl AsRef<[u8]>) -> Result<(), CliError> {
        let mut stdout = self.stdout.lock();
        stdout
            .write_all(text.as_ref())
            .and_then(|()| stdout.write_all(b"\n"))
            .map_err(|error| CliError::stdout(&error))
    }

    /// Prints a JSON object on a line of its own.
    ///
    /// # Errors
    /// When standard output is closed or full.
    pub fn object(&self, object: &impl Serialize) -> Result<(), CliError> {
        let mut stdout = self.stdout.lock();
        serde_json::to_writer(&mut *stdout, object)
            .map_err(io::Error::from)
            .and_then(|()| stdout.write_all(b"\n"))
            .map_err(|error| CliError::stdout(&error))
    }

    /// Prints a table.
    ///
    /// # Errors
    /// When standard output is closed or full.
    pub fn table(&self, table: &Table) -> Result<(), CliError> {
        table.lines().iter().try_for_each(|line| self.line(line))
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When standard output is closed or full.
    pub fn flush(&self) -> Result<(), CliError> {
        let flushed = self.stdout.lock().flush();
        flushed.map_err(|error| CliError::stdout(&error))
    }

    /// Says something beside the results, on standard error.
    pub fn note(&self, text: &str) {
        // When standard error is closed there is no other place to report it.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Prints why a command failed, on standard error.
    pub fn error(&self, error: &CliError) {
        if error.is_silent() {
            return;
        }
        if self.is_json() {
            let object = json!({"error": {
                "exit_code": error.exit() as u8,
                "message": error.to_string(),
                "advice": error.advice(),
            }});
            self.note(&object.to_string());
            return;
        }
        self.note(&format!("error: {error}"));
        if !error.advice().is_empty() {
            self.note(&format!("  {}", error.advice()));
        }
    }

    /// Reports on something that may take longer than a second, until it is dropped. `total` is
    /// how many `unit`s there will be, where that is known. Needs a tokio runtime.
    pub fn progress(&self, unit: &'static str, total: Option<u64>) -> Progress {
        Progress::start(unit, total, io::stderr().is_terminal())
    }
}
