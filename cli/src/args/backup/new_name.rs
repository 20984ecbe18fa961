//! Names that topics of a backup get when they come back beside what runs.

use std::collections::BTreeSet;
use std::str::FromStr;

use aquifer_model::topic::{DEFAULT_NAMESPACE, NameError, NamespaceName, TopicName};

use crate::exit::CliError;

/// What takes the place of the names in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewName {
    /// Another tenant; namespaces and topics keep their names in it.
    Tenant(String),
    /// Another namespace; topics keep their names in it.
    Namespace(NamespaceName),
    /// Another topic.
    Topic(TopicName),
}

impl FromStr for NewName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<NewName, NameError> {
        let path = text.strip_prefix("persistent://").unwrap_or(text);
        let parts: Vec<&str> = path.split('/').collect();
        match parts.as_slice() {
            [tenant] => {
                let checked = NamespaceName::new(tenant, DEFAULT_NAMESPACE)?;
                Ok(NewName::Tenant(checked.tenant().to_owned()))
            }
            [tenant, namespace] => NamespaceName::new(tenant, namespace).map(NewName::Namespace),
            [tenant, namespace, name] => {
                let topic = TopicName::new(NamespaceName::new(tenant, namespace)?, name)?;
                match topic.partition() {
                    Some(_) => Err(NameError::Partition),
                    None => Ok(NewName::Topic(topic)),
                }
            }
            parts => Err(NameError::Parts { parts: parts.len() }),
        }
    }
}

impl NewName {
    /// The tenant that topics come into.
    pub fn tenant(&self) -> &str {
        match self {
            NewName::Tenant(tenant) => tenant,
            NewName::Namespace(namespace) => namespace.tenant(),
            NewName::Topic(topic) => topic.namespace().tenant(),
        }
    }

    /// The namespace that topics of a namespace come into.
    pub fn namespace(&self, of: &NamespaceName) -> Result<NamespaceName, NameError> {
        match self {
            NewName::Tenant(tenant) => NamespaceName::new(tenant, of.namespace()),
            NewName::Namespace(namespace) => Ok(namespace.clone()),
            NewName::Topic(topic) => Ok(topic.namespace().clone()),
        }
    }

    /// The name that a topic or a partition gets.
    pub fn topic(&self, of: &TopicName) -> Result<TopicName, NameError> {
        let base = match self {
            NewName::Topic(topic) => topic.clone(),
            _ => TopicName::new(self.namespace(of.namespace())?, of.base().name())?,
        };
        match of.partition() {
            Some(number) => base.checked_partition_name(number),
            None => Ok(base),
        }
    }

    /// Whether policies of tenants are those of the name: a tenant into which single namespaces or
    /// topics come keeps what it has.
    pub fn is_of_tenant(&self) -> bool {
        matches!(self, NewName::Tenant(_))
    }

    /// Whether policies of namespaces are those of the name.
    pub fn is_of_namespace(&self) -> bool {
        !matches!(self, NewName::Topic(_))
    }

    /// Checks that one name is enough for these.
    pub fn check<'a>(
        &self,
        topics: impl Iterator<Item = &'a TopicName>,
        namespaces: impl Iterator<Item = &'a NamespaceName>,
    ) -> Result<(), CliError> {
        let mut of: BTreeSet<String> = BTreeSet::new();
        let mut note = |namespace: &NamespaceName, topic: Option<&TopicName>| {
            match (self, topic) {
                (NewName::Tenant(_), _) => of.insert(namespace.tenant().to_owned()),
                (NewName::Namespace(_), _) => of.insert(namespace.to_string()),
                (NewName::Topic(_), Some(topic)) => of.insert(topic.base().to_string()),
                (NewName::Topic(_), None) => false,
            };
        };
        topics.for_each(|topic| note(topic.namespace(), Some(topic)));
        namespaces.for_each(|namespace| note(namespace, None));
        let (what, how) = match self {
            NewName::Tenant(_) => ("tenants", "choose one with --tenant"),
            NewName::Namespace(_) => ("namespaces", "give --as TENANT alone, or --topic"),
            NewName::Topic(_) => ("topics", "choose one with --topic"),
        };
        let mut some = of.iter();
        match (some.next(), some.next()) {
            (Some(one), Some(two)) => {
                let message = format!("one name for several {what}, such as {one} and {two}");
                Err(CliError::usage(message).advise(how))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        name.parse().unwrap()
    }

    fn new_name(text: &str) -> NewName {
        text.parse().unwrap()
    }

    #[test]
    fn topics_get_the_name_and_keep_what_it_does_not_say() {
        for (new, expected) in [
            ("globex", "globex/shop/orders-partition-2"),
            ("globex/copy", "globex/copy/orders-partition-2"),
            ("globex/copy/old", "globex/copy/old-partition-2"),
        ] {
            let found = new_name(new).topic(&topic("acme/shop/orders-partition-2"));
            assert_eq!(found, Ok(topic(expected)), "{new}");
        }
        for wrong in ["", "a/", "a/b/c/d", "a/b/c-partition-0", "a b"] {
            assert!(wrong.parse::<NewName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn one_name_is_for_one_thing() {
        let all = [
            "acme/shop/a",
            "acme/shop/a-partition-0",
            "acme/shop/b",
            "acme/crm/a",
        ];
        let all = all.map(topic);
        let empty = || std::iter::empty::<&NamespaceName>();
        let fits = |new: &str, count: usize| {
            let checked = new_name(new).check(all[..count].iter(), empty());
            checked.is_ok()
        };
        assert!(fits("globex", 4));
        assert!(fits("globex/copy", 3) && !fits("globex/copy", 4));
        assert!(fits("globex/copy/a", 2) && !fits("globex/copy/a", 3));
        let other: NamespaceName = "public/default".parse().unwrap();
        let refused = new_name("globex").check(all.iter(), [other].iter());
        assert!(refused.unwrap_err().to_string().contains("several tenants"));
    }
}
