//! Load reports of other brokers, as any client may ask for them.

use std::collections::HashMap;
use std::time::Duration;

use aquifer_broker::{LoadReports, NoReport};
use aquifer_client::Client;
use aquifer_model::load::LoadReport;
use aquifer_runtime::task::TaskGroup;
use async_trait::async_trait;
use parking_lot::Mutex;

/// How long a broker may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Brokers to which a connection is kept; those that are gone are not told apart.
const CLIENTS_MAX: usize = 1_000;

/// The way to the brokers of a cluster.
pub struct GrpcReports {
    tasks: TaskGroup,
    clients: Mutex<HashMap<String, Client>>,
}

impl GrpcReports {
    /// Connects to nobody yet.
    pub fn new(tasks: &TaskGroup) -> GrpcReports {
        GrpcReports {
            tasks: tasks.clone(),
            clients: Mutex::default(),
        }
    }

    fn client(&self, url: &str) -> Result<Client, NoReport> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(url) {
            return Ok(client.clone());
        }
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        let client = Client::builder().url(url).operation_timeout(ANSWER_MAX);
        let client = client.tasks(self.tasks.clone()).build();
        let client = client.map_err(|error| NoReport(error.to_string()))?;
        clients.insert(url.to_owned(), client.clone());
        Ok(client)
    }
}

#[async_trait]
impl LoadReports for GrpcReports {
    async fn report(&self, url: &str) -> Result<LoadReport, NoReport> {
        let admin = self.client(url)?.admin();
        let report = admin.load_report().await;
        report.map_err(|error| NoReport(error.to_string()))
    }
}
