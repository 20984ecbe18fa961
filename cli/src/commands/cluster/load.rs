//! The load of brokers and bundles, as each broker reports its own.

use std::collections::BTreeMap;
use std::time::Duration;

use aquifer_client::admin::BrokerInfo;
use aquifer_model::load::{Load, LoadReport};
use aquifer_runtime::clock;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::connect::Connect;

/// How long a broker is waited for; what is listed besides is of use without it.
const REPORT_MAX: Duration = Duration::from_secs(3);

/// The reports of these brokers by their ids; those that do not answer are left out.
pub async fn reports(connect: &Connect, brokers: &[BrokerInfo]) -> BTreeMap<String, LoadReport> {
    let ask = |broker: &BrokerInfo| {
        // A standalone server says of no address that it is its own.
        let client = match broker.url.is_empty() {
            true => connect.client(),
            false => connect.to(&broker.url),
        };
        let id = broker.broker.clone();
        async move {
            let admin = client.ok()?.admin();
            let report = clock::timeout(REPORT_MAX, admin.load_report()).await;
            let report = report.ok()?.ok()?;
            (report.broker.to_string() == id).then_some((id, report))
        }
    };
    let answers = join_all(brokers.iter().map(ask)).await;
    answers.into_iter().flatten().collect()
}

/// For scripts; nothing when the load is not known.
pub fn object(load: Option<&Load>) -> Value {
    let Some(load) = load else { return Value::Null };
    json!({
        "units": load.units(),
        "messages_in_per_second": load.messages_in_per_second,
        "bytes_in_per_second": load.bytes_in_per_second,
        "messages_out_per_second": load.messages_out_per_second,
        "bytes_out_per_second": load.bytes_out_per_second,
        "topics": load.topics,
        "sessions": load.sessions,
    })
}

/// The columns of a table.
pub const COLUMNS: [&str; 6] = [
    "units/s",
    "messages/s in",
    "messages/s out",
    "bytes/s",
    "topics",
    "sessions",
];

/// The cells below [`COLUMNS`].
pub fn cells(load: Option<&Load>) -> [String; 6] {
    let Some(load) = load else {
        return std::array::from_fn(|_| "-".to_owned());
    };
    let rate = |rate: f64| format!("{rate:.0}");
    [
        rate(load.units()),
        rate(load.messages_in_per_second),
        rate(load.messages_out_per_second),
        rate(load.bytes_per_second()),
        load.topics.to_string(),
        load.sessions.to_string(),
    ]
}
