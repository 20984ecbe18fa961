//! Rates.

use aquifer_model::policy::rate::{AggregateRate, Rate};

use crate::v1;

impl From<Rate> for v1::Rate {
    fn from(rate: Rate) -> v1::Rate {
        v1::Rate {
            messages: rate.messages,
            bytes: rate.bytes,
            burst_ms: rate.burst_ms,
        }
    }
}

impl From<v1::Rate> for Rate {
    fn from(rate: v1::Rate) -> Rate {
        Rate {
            messages: rate.messages,
            bytes: rate.bytes,
            burst_ms: rate.burst_ms,
        }
    }
}

impl From<AggregateRate> for v1::AggregateRate {
    fn from(rate: AggregateRate) -> v1::AggregateRate {
        v1::AggregateRate {
            publish: Some(rate.publish.into()),
            dispatch: Some(rate.dispatch.into()),
        }
    }
}

impl From<v1::AggregateRate> for AggregateRate {
    fn from(rate: v1::AggregateRate) -> AggregateRate {
        AggregateRate {
            publish: rate.publish.map_or(Rate::UNLIMITED, Into::into),
            dispatch: rate.dispatch.map_or(Rate::UNLIMITED, Into::into),
        }
    }
}
