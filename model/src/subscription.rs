//! How consumers of a subscription share its messages, and what is recorded of one.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::limits::SUBSCRIPTION_PROPERTIES_BYTES_MAX;

/// How consumers of a subscription share its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SubscriptionType {
    /// One consumer, in order.
    #[default]
    Exclusive,
    /// Each message to one of many.
    Shared,
    /// One consumer, in order; others stand by.
    Failover,
    /// Each key to one of many, in order per key.
    KeyShared,
}

/// What its creator has recorded of a subscription by name, for those that use it.
pub type Properties = BTreeMap<String, String>;

/// Why properties are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PropertiesError {
    /// More than is kept of one subscription.
    #[error("all properties have {0} bytes, at most {SUBSCRIPTION_PROPERTIES_BYTES_MAX} are kept")]
    TooLarge(usize),
    /// One without a name.
    #[error("a property has no name")]
    Nameless,
}

/// Checks the properties of a subscription that is to be created.
///
/// # Errors
/// When one has no name, or they are too large.
pub fn check_properties(properties: &Properties) -> Result<(), PropertiesError> {
    if properties.contains_key("") {
        return Err(PropertiesError::Nameless);
    }
    let each = properties.iter();
    let bytes = each.map(|(name, value)| name.len() + value.len()).sum();
    match bytes <= SUBSCRIPTION_PROPERTIES_BYTES_MAX {
        true => Ok(()),
        false => Err(PropertiesError::TooLarge(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_named_and_bounded() {
        let of =
            |name: &str, bytes: usize| Properties::from([(name.to_owned(), "x".repeat(bytes))]);
        let most = SUBSCRIPTION_PROPERTIES_BYTES_MAX - 4;
        assert_eq!(check_properties(&Properties::new()), Ok(()));
        assert_eq!(check_properties(&of("team", most)), Ok(()));
        let large = check_properties(&of("team", most + 1));
        assert_eq!(large, Err(PropertiesError::TooLarge(most + 5)));
        assert_eq!(check_properties(&of("", 1)), Err(PropertiesError::Nameless));
    }
}
