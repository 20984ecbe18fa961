//! What a server says on standard output when it starts: that it is ready, and what to type next.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use crate::args::DEFAULT_URL;
use crate::exit::CliError;
use crate::output::Output;

/// A server that is ready.
pub struct Greeting {
    /// Where clients connect.
    pub url: String,
    /// Where the bookie's storage API is.
    pub bookie: SocketAddr,
    /// Where health checks and metrics are.
    pub http: SocketAddr,
    /// Where everything is stored.
    pub data_dir: PathBuf,
    /// How long it took to get ready.
    pub ready_ms: u64,
}

impl Greeting {
    /// Prints it.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, out: &Output) -> Result<(), CliError> {
        if out.is_json() {
            out.object(&json!({
                "role": "standalone",
                "version": env!("CARGO_PKG_VERSION"),
                "url": self.url,
                "bookie": self.bookie.to_string(),
                "http": format!("http://{}", self.http),
                "data_dir": self.data_dir.display().to_string(),
                "pid": std::process::id(),
                "ready_ms": self.ready_ms,
            }))?;
        } else {
            for line in self.lines() {
                out.line(line)?;
            }
        }
        out.flush()
    }

    fn lines(&self) -> Vec<String> {
        let option = if self.url == DEFAULT_URL {
            String::new()
        } else {
            format!(" --url {}", self.url)
        };
        vec![
            format!(
                "aquifer standalone {} serves {}, data in {}, metrics on http://{}/metrics, \
                 ready in {} ms",
                env!("CARGO_PKG_VERSION"),
                self.url,
                self.data_dir.display(),
                self.http,
                self.ready_ms
            ),
            "Next, in another terminal:".to_owned(),
            format!("  aquifer produce{option} hello \"first message\""),
            format!("  aquifer consume{option} hello --subscription me"),
            format!("  aquifer topic{option} stats hello"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_ends_with_the_time_and_commands_name_an_unusual_address() {
        let mut greeting = Greeting {
            url: DEFAULT_URL.to_owned(),
            bookie: ([127, 0, 0, 1], 7651).into(),
            http: ([127, 0, 0, 1], 7680).into(),
            data_dir: "d".into(),
            ready_ms: 23,
        };
        let lines = greeting.lines();
        assert!(lines[0].starts_with("aquifer standalone "));
        assert!(lines[0].ends_with("ready in 23 ms"));
        assert!(lines.iter().all(|line| !line.contains("--url")));
        greeting.url = "http://127.0.0.1:1".to_owned();
        let with_url = greeting.lines();
        let with_url = with_url
            .iter()
            .filter(|line| line.contains("--url http://127.0.0.1:1"));
        assert_eq!(with_url.count(), 3);
    }
}
