//! Load reports. What is read is sane: a rate that is no number, or below zero, counts as none.

use aquifer_model::bundle::ParseBundleError;
use aquifer_model::id::ParseIdError;
use aquifer_model::load::{BundleLoad, Load, LoadReport};
use aquifer_model::topic::NameError;
use thiserror::Error;

use crate::v1;

/// A report that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadReportError {
    /// It does not name the broker that says so.
    #[error("a load report names no broker: {0}")]
    Broker(#[from] ParseIdError),
    /// A name is not that of a namespace.
    #[error("a load report names no namespace: {0}")]
    Namespace(#[from] NameError),
    /// A text is not a bundle.
    #[error("a load report names no bundle: {0}")]
    Bundle(#[from] ParseBundleError),
}

impl From<Load> for v1::Load {
    fn from(load: Load) -> v1::Load {
        v1::Load {
            messages_in_per_second: load.messages_in_per_second,
            bytes_in_per_second: load.bytes_in_per_second,
            messages_out_per_second: load.messages_out_per_second,
            bytes_out_per_second: load.bytes_out_per_second,
            topics: load.topics,
            sessions: load.sessions,
        }
    }
}

impl From<v1::Load> for Load {
    fn from(load: v1::Load) -> Load {
        let rate = |rate: f64| match rate.is_finite() && rate > 0.0 {
            true => rate,
            false => 0.0,
        };
        Load {
            messages_in_per_second: rate(load.messages_in_per_second),
            bytes_in_per_second: rate(load.bytes_in_per_second),
            messages_out_per_second: rate(load.messages_out_per_second),
            bytes_out_per_second: rate(load.bytes_out_per_second),
            topics: load.topics,
            sessions: load.sessions,
        }
    }
}

impl From<LoadReport> for v1::LoadReportResponse {
    fn from(report: LoadReport) -> v1::LoadReportResponse {
        let bundles = report.bundles.into_iter().map(|bundle| v1::BundleLoad {
            namespace: bundle.namespace.to_string(),
            bundle: bundle.range.to_string(),
            load: Some(bundle.load.into()),
            split_at: bundle.split_at,
            handed_over_ms: bundle.handed_over_ms,
        });
        v1::LoadReportResponse {
            broker: report.broker.to_string(),
            window_ms: report.window_ms,
            total: Some(report.total.into()),
            bundles: bundles.collect(),
        }
    }
}

impl TryFrom<v1::LoadReportResponse> for LoadReport {
    type Error = LoadReportError;

    fn try_from(report: v1::LoadReportResponse) -> Result<LoadReport, LoadReportError> {
        let bundle = |bundle: v1::BundleLoad| {
            Ok::<_, LoadReportError>(BundleLoad {
                namespace: bundle.namespace.parse()?,
                range: bundle.bundle.parse()?,
                load: bundle.load.unwrap_or_default().into(),
                split_at: bundle.split_at,
                handed_over_ms: bundle.handed_over_ms,
            })
        };
        Ok(LoadReport {
            broker: report.broker.parse()?,
            window_ms: report.window_ms,
            total: report.total.unwrap_or_default().into(),
            bundles: report
                .bundles
                .into_iter()
                .map(bundle)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use aquifer_model::bundle::BundleRange;
    use aquifer_model::id::BrokerId;

    use super::*;

    #[test]
    fn a_report_survives_the_wire_and_nonsense_counts_nothing() {
        let load = Load {
            messages_in_per_second: 3.5,
            topics: 2,
            ..Load::default()
        };
        let report = LoadReport {
            broker: BrokerId([7; 16]),
            window_ms: 30_000,
            total: load,
            bundles: vec![BundleLoad {
                namespace: "public/default".parse().unwrap(),
                range: BundleRange { first: 1, last: 9 },
                load,
                split_at: Some(4),
                handed_over_ms: None,
            }],
        };
        let wire = v1::LoadReportResponse::from(report.clone());
        assert_eq!(LoadReport::try_from(wire.clone()), Ok(report));
        let mut bad = wire;
        bad.bundles[0].bundle = "nothing".to_owned();
        assert!(LoadReport::try_from(bad).is_err());
        for rate in [f64::NAN, f64::INFINITY, -1.0] {
            let load = v1::Load {
                bytes_out_per_second: rate,
                ..v1::Load::default()
            };
            assert!(Load::from(load).bytes_out_per_second.abs() < f64::EPSILON);
        }
    }
}
