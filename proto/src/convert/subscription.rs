//! Type and properties of a subscription, on the wire and in stored records.

use aquifer_model::subscription::{Properties, SubscriptionType};
use thiserror::Error;

use crate::v1;

/// A type that is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the subscription type is missing")]
pub struct NoSubscriptionType;

impl From<SubscriptionType> for v1::SubscriptionType {
    fn from(kind: SubscriptionType) -> v1::SubscriptionType {
        match kind {
            SubscriptionType::Exclusive => v1::SubscriptionType::Exclusive,
            SubscriptionType::Shared => v1::SubscriptionType::Shared,
            SubscriptionType::Failover => v1::SubscriptionType::Failover,
            SubscriptionType::KeyShared => v1::SubscriptionType::KeyShared,
        }
    }
}

impl TryFrom<v1::SubscriptionType> for SubscriptionType {
    type Error = NoSubscriptionType;

    fn try_from(kind: v1::SubscriptionType) -> Result<SubscriptionType, NoSubscriptionType> {
        match kind {
            v1::SubscriptionType::Exclusive => Ok(SubscriptionType::Exclusive),
            v1::SubscriptionType::Shared => Ok(SubscriptionType::Shared),
            v1::SubscriptionType::Failover => Ok(SubscriptionType::Failover),
            v1::SubscriptionType::KeyShared => Ok(SubscriptionType::KeyShared),
            v1::SubscriptionType::Unspecified => Err(NoSubscriptionType),
        }
    }
}

/// Properties as they are stored and sent.
#[must_use]
pub fn wire_properties(properties: &Properties) -> Vec<v1::SubscriptionProperty> {
    let property = |(name, value): (&String, &String)| v1::SubscriptionProperty {
        name: name.clone(),
        value: value.clone(),
    };
    properties.iter().map(property).collect()
}

/// Properties that were stored or sent; of several with one name the last.
#[must_use]
pub fn properties(properties: &[v1::SubscriptionProperty]) -> Properties {
    let pairs = properties.iter();
    pairs
        .map(|property| (property.name.clone(), property.value.clone()))
        .collect()
}
