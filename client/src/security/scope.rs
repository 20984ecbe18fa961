//! To what a grant applies.

use std::fmt;
use std::str::FromStr;

use aquifer_proto::v1;

use crate::error::ClientError;

/// The scope of everything.
const CLUSTER: &str = "cluster";

/// The cluster, a tenant, a namespace or a topic. In grants, names may end with a star. As text:
/// `cluster`, `TENANT`, `TENANT/NAMESPACE`, `TENANT/NAMESPACE/TOPIC`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GrantScope {
    /// Everything.
    Cluster,
    /// A tenant and all that it has.
    Tenant(String),
    /// A namespace of a tenant and all that it has.
    Namespace(String, String),
    /// A topic, its partitions and its subscriptions.
    Topic(String, String, String),
}

impl fmt::Display for GrantScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GrantScope::Cluster => f.write_str(CLUSTER),
            GrantScope::Tenant(tenant) => f.write_str(tenant),
            GrantScope::Namespace(tenant, namespace) => write!(f, "{tenant}/{namespace}"),
            GrantScope::Topic(tenant, namespace, topic) => {
                write!(f, "{tenant}/{namespace}/{topic}")
            }
        }
    }
}

impl FromStr for GrantScope {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<GrantScope, ClientError> {
        let bare = text.strip_prefix("persistent://").unwrap_or(text);
        let parts: Vec<&str> = bare.split('/').collect();
        let owned = |part: &&str| (*part).to_owned();
        match parts[..] {
            _ if parts.iter().any(|part| part.is_empty()) => Err(wrong(text)),
            [CLUSTER] => Ok(GrantScope::Cluster),
            [tenant] => Ok(GrantScope::Tenant(owned(&tenant))),
            [tenant, namespace] => Ok(GrantScope::Namespace(owned(&tenant), owned(&namespace))),
            [tenant, namespace, topic] => Ok(GrantScope::Topic(
                owned(&tenant),
                owned(&namespace),
                owned(&topic),
            )),
            _ => Err(wrong(text)),
        }
    }
}

fn wrong(text: &str) -> ClientError {
    ClientError::Invalid(format!(
        "{text:?} names no resource: give cluster, TENANT, TENANT/NAMESPACE or \
         TENANT/NAMESPACE/TOPIC"
    ))
}

impl From<GrantScope> for v1::GrantScope {
    fn from(scope: GrantScope) -> v1::GrantScope {
        let (tenant, namespace, topic) = match scope {
            GrantScope::Cluster => (String::new(), String::new(), String::new()),
            GrantScope::Tenant(tenant) => (tenant, String::new(), String::new()),
            GrantScope::Namespace(tenant, namespace) => (tenant, namespace, String::new()),
            GrantScope::Topic(tenant, namespace, topic) => (tenant, namespace, topic),
        };
        v1::GrantScope {
            tenant,
            namespace,
            topic,
        }
    }
}

impl From<v1::GrantScope> for GrantScope {
    fn from(scope: v1::GrantScope) -> GrantScope {
        if !scope.topic.is_empty() {
            return GrantScope::Topic(scope.tenant, scope.namespace, scope.topic);
        }
        if !scope.namespace.is_empty() {
            return GrantScope::Namespace(scope.tenant, scope.namespace);
        }
        match scope.tenant.is_empty() {
            true => GrantScope::Cluster,
            false => GrantScope::Tenant(scope.tenant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written_and_sent() {
        for text in ["cluster", "acme", "acme/shop*", "acme/shop/orders*"] {
            let scope: GrantScope = text.parse().unwrap();
            assert_eq!(scope.to_string(), text);
            assert_eq!(GrantScope::from(v1::GrantScope::from(scope.clone())), scope);
        }
        let full: GrantScope = "persistent://acme/shop/orders".parse().unwrap();
        assert_eq!(full.to_string(), "acme/shop/orders");
        for wrong in ["", "acme/", "/acme", "a/b/c/d", "a//c"] {
            let error = wrong.parse::<GrantScope>().unwrap_err();
            assert!(error.to_string().contains("TENANT/NAMESPACE"), "{wrong}");
        }
    }
}
