//! What it costs to be observed: metrics that are scraped and messages that are traced.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use aquifer_harness::collector::Collector;
use aquifer_harness::http;
use aquifer_harness::server::ServerOptions;
use aquifer_runtime::clock::sleep;

use crate::Suite;
use crate::load::Load;
use crate::row::{Bound, Row};
use crate::server::Measured;

/// Runs of each server; they take turns.
const ROUNDS: usize = 7;
/// How often metrics are asked for.
const SCRAPE: Duration = Duration::from_secs(5);
/// One of this many messages is traced.
const ONE_IN: u64 = 100;

impl Suite {
    /// Publishing to a server that is scraped and traced, and to one that is not, in turns. The
    /// idle one of the two costs both the same.
    pub(crate) async fn observed(&mut self) -> Result<()> {
        let collector = Collector::start().await?;
        let plain = Measured::start(&self.directory.join("plain")).await?;
        let data = self.directory.join("observed");
        let result = self.compare(&plain, &data, &collector).await;
        collector.end().await;
        result
    }

    async fn compare(
        &mut self,
        plain: &Measured,
        data: &Path,
        collector: &Collector,
    ) -> Result<()> {
        let setting =
            |name: &str, value: &str| (format!("AQUIFER_TELEMETRY_{name}"), value.to_owned());
        let options = ServerOptions {
            environment: vec![
                setting("OTLP_ENDPOINT", &collector.endpoint),
                setting("TRACE_ONE_IN", &ONE_IN.to_string()),
            ],
            ..ServerOptions::default()
        };
        let observed = Measured::start_with(data, options).await?;
        let load = |server: &Measured| Load::new(server.url(), self.messages(2_000_000), 10_000);
        let traced = load(&observed).traced(&collector.endpoint, ONE_IN);
        for warm_up in [load(plain), traced.clone()] {
            warm_up.produce().await?.complete()?;
        }
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let published = load(plain).produce().await?.complete()?;
            without.push(published.messages_per_second);
            self.removed().await;
            let published = tokio::select! {
                published = traced.produce() => published?,
                error = scrape(&observed) => return Err(error),
            };
            with.push(published.complete()?.messages_per_second);
            self.removed().await;
        }
        let ratios = with
            .iter()
            .zip(&without)
            .map(|(with, without)| with / without);
        let mut ratios: Vec<f64> = ratios.collect();
        ratios.sort_by(f64::total_cmp);
        let row = Row::new(
            "publish while scraped every 5 s and 1 % traced, median of 7 pairs",
            100.0 * ratios[ROUNDS / 2],
            "% of not observed",
            Bound::AtLeast,
            97.0,
        );
        let note = format!(
            "ratios {ratios:.3?}; {:.0} and {:.0} msg/s at the median; {} spans exported",
            median(&mut without),
            median(&mut with),
            collector.count()
        );
        self.rows.push(row.note(note));
        Ok(())
    }
}

/// Asks for metrics until it is dropped, as Prometheus does; ends only when there is no answer.
async fn scrape(server: &Measured) -> anyhow::Error {
    loop {
        if let Err(error) = http::get(&server.http(), "/metrics").await {
            return error;
        }
        sleep(SCRAPE).await;
    }
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
