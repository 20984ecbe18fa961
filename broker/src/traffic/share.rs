//! What this broker has of the load of its cluster, for the metrics: an alert on how evenly load is
//! spread says little without the load itself.

use aquifer_model::load::Load;
use opentelemetry::metrics::{Gauge, Meter};

/// The gauges, which show 0 until load was measured.
pub(crate) struct ShareFigures {
    bundles: Gauge<u64>,
    units: Gauge<f64>,
    leads: Gauge<u64>,
}

impl ShareFigures {
    pub(crate) fn new(meter: &Meter) -> ShareFigures {
        let gauge = |name: &'static str| meter.u64_gauge(name).build();
        let figures = ShareFigures {
            bundles: gauge("aquifer_broker_bundles_owned"),
            units: meter.f64_gauge("aquifer_broker_load_units").build(),
            leads: gauge("aquifer_broker_is_balancer"),
        };
        figures.show(0, &Load::default());
        figures.set_leads(false);
        figures
    }

    /// How many bundles this broker owns, and what happens in them.
    pub(crate) fn show(&self, bundles: usize, load: &Load) {
        let bundles = u64::try_from(bundles).unwrap_or(u64::MAX);
        self.bundles.record(bundles, &[]);
        self.units.record(load.units(), &[]);
    }

    /// Whether this broker is the one that balances load.
    pub(crate) fn set_leads(&self, leads: bool) {
        self.leads.record(u64::from(leads), &[]);
    }
}

#[cfg(test)]
mod tests {
    use aquifer_runtime::telemetry::Telemetry;

    use super::*;

    #[test]
    fn what_a_broker_has_is_there_from_the_start() {
        let telemetry = Telemetry::for_tests();
        let figures = ShareFigures::new(&telemetry.meter("broker"));
        let shows = |line: &str| {
            let text = telemetry.render_metrics();
            assert!(text.contains(&format!("aquifer_broker_{line}\n")), "{text}");
        };
        shows("bundles_owned 0");
        shows("load_units 0");
        shows("is_balancer 0");
        let load = Load {
            messages_in_per_second: 2.5,
            ..Load::default()
        };
        figures.show(4, &load);
        figures.set_leads(true);
        shows("bundles_owned 4");
        shows("load_units 2.5");
        shows("is_balancer 1");
    }
}
