//! What `aquifer dev` says when the cluster serves.

use serde_json::json;

use crate::args::DEFAULT_URL;
use crate::exit::CliError;
use crate::output::{Output, Table};
use crate::roles::dev::cluster::Cluster;
use crate::roles::dev::plan::Plan;

/// A cluster that is ready.
pub struct Greeting<'a> {
    /// What it should be.
    pub plan: &'a Plan,
    /// What it is.
    pub cluster: &'a Cluster,
    /// How long it took to get ready.
    pub ready_ms: u64,
}

impl Greeting<'_> {
    /// Prints it.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self, out: &Output) -> Result<(), CliError> {
        let url = self.cluster.url();
        let data_dir = self.plan.data_dir.display();
        if out.is_json() {
            let processes = self.cluster.children().map(|child| {
                json!({
                    "role": child.spec.role.name(),
                    "name": child.spec.name,
                    "pid": child.pid(),
                    "address": child.spec.address,
                    "http": child.spec.http,
                    "command": child.spec.command(),
                })
            });
            out.object(&json!({
                "url": url,
                "ready_ms": self.ready_ms,
                "data_dir": data_dir.to_string(),
                "ca_file": self.plan.ca_file(),
                "token_file": self.plan.token_file(),
                "processes": processes.collect::<Vec<_>>(),
            }))?;
            return out.flush();
        }
        out.line(format!(
            "aquifer dev {} serves {url}, data and logs in {data_dir}, ready in {} ms",
            env!("CARGO_PKG_VERSION"),
            self.ready_ms
        ))?;
        let mut table = Table::new(["process", "pid", "address"]);
        for child in self.cluster.children() {
            let pid = child.pid().map(|pid| pid.to_string()).unwrap_or_default();
            table.row([child.spec.name.clone(), pid, child.spec.address.clone()]);
        }
        out.table(&table)?;
        // Any of the brokers will do, and the first may be where clients look anyway.
        let mut option = if url.split(',').next() == Some(DEFAULT_URL) {
            String::new()
        } else {
            format!(" --url {url}")
        };
        if let Some(ca) = self.plan.ca_file() {
            option.push_str(&format!(" --tls-ca-file {}", ca.display()));
        }
        if let Some(token) = self.plan.token_file() {
            option.push_str(&format!(" --token-file {}", token.display()));
        }
        out.line("Next, in another terminal; Ctrl-C here ends everything:")?;
        out.line(format!("  aquifer produce{option} hello \"first message\""))?;
        out.line(format!("  aquifer consume{option} hello --subscription me"))?;
        out.flush()
    }
}
