//! What a grant applies to: names that may end in a star. A star is in no name, so that nothing
//! needs escaping; there are no other wildcards.

use std::fmt;

use aquifer_model::topic::{NameError, NamespaceName, SubscriptionName, TopicName};

/// Stands for the part of a name that a check of the other part does not look at.
const OTHER: &str = "x";

/// A name, or the beginning of names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: String,
    is_prefix: bool,
}

/// A pattern, borrowed. A name alone is one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatternRef<'a> {
    /// The name, or what names begin with.
    pub text: &'a str,
    /// Whether names that continue are meant too.
    pub is_prefix: bool,
}

impl<'a> PatternRef<'a> {
    /// One name.
    #[must_use]
    pub fn name(text: &'a str) -> PatternRef<'a> {
        PatternRef {
            text,
            is_prefix: false,
        }
    }

    /// Whether it means everything that the other means.
    #[must_use]
    pub fn contains(self, other: PatternRef<'_>) -> bool {
        match self.is_prefix {
            true => other.text.starts_with(self.text),
            false => !other.is_prefix && self.text == other.text,
        }
    }

    /// Whether a name exists that both mean.
    #[must_use]
    pub fn meets(self, other: PatternRef<'_>) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl Pattern {
    /// Every name.
    #[must_use]
    pub fn any() -> Pattern {
        Pattern {
            text: String::new(),
            is_prefix: true,
        }
    }

    /// One name, or one with a star at its end; `check` says whether the name is one.
    fn parse<T>(
        text: &str,
        check: impl Fn(&str) -> Result<T, NameError>,
    ) -> Result<Pattern, NameError> {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(name) => (name, true),
            None => (text, false),
        };
        if !(is_prefix && name.is_empty()) {
            check(name)?;
        }
        Ok(Pattern {
            text: name.to_owned(),
            is_prefix,
        })
    }

    /// A pattern of subscriptions.
    ///
    /// # Errors
    /// When it is neither a name nor the beginning of one with a star.
    pub fn of_subscriptions(text: &str) -> Result<Pattern, NameError> {
        Pattern::parse(text, SubscriptionName::new)
    }

    /// The same, borrowed.
    #[must_use]
    pub fn borrowed(&self) -> PatternRef<'_> {
        PatternRef {
            text: &self.text,
            is_prefix: self.is_prefix,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_prefix { "*" } else { "" };
        write!(f, "{}{star}", self.text)
    }
}

/// To what a grant applies, with everything in it: the cluster, tenants, namespaces or topics.
///
/// Invariant: with a topic there is a namespace, and with that a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct GrantScope {
    tenant: Option<Pattern>,
    namespace: Option<Pattern>,
    topic: Option<Pattern>,
}

/// Why a scope is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// A part is no name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A part is missing that another needs.
    #[error("a {part} needs the {missing} that it is in")]
    Without {
        /// The part that is there.
        part: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// Partitions have the grants of their topic.
    #[error("{0} is a partition: name its topic")]
    Partition(String),
}

impl GrantScope {
    /// The scope of these parts; empty ones are not given.
    ///
    /// # Errors
    /// When a part is neither a name nor the beginning of one with a star, or one is missing.
    pub fn new(tenant: &str, namespace: &str, topic: &str) -> Result<GrantScope, ScopeError> {
        let without = |part, missing| Err(ScopeError::Without { part, missing });
        match (tenant, namespace, topic) {
            (_, "", topic) if !topic.is_empty() => return without("topic", "namespace"),
            ("", namespace, _) if !namespace.is_empty() => return without("namespace", "tenant"),
            _ => {}
        }
        let other = NamespaceName::new(OTHER, OTHER)?;
        let check = |name: &str| TopicName::new(other.clone(), name);
        let topic = part(topic, |text| Pattern::parse(text, check))?;
        if let Some(named) = topic.as_ref().filter(|topic| !topic.is_prefix)
            && check(&named.text)?.partition().is_some()
        {
            return Err(ScopeError::Partition(named.text.clone()));
        }
        let of_tenant = |text: &str| NamespaceName::new(text, OTHER);
        let of_namespace = |text: &str| NamespaceName::new(OTHER, text);
        Ok(GrantScope {
            tenant: part(tenant, |text| Pattern::parse(text, of_tenant))?,
            namespace: part(namespace, |text| Pattern::parse(text, of_namespace))?,
            topic,
        })
    }

    /// Everything.
    #[must_use]
    pub fn cluster() -> GrantScope {
        GrantScope::default()
    }

    /// The one tenant that it is in; `None` where it may reach into several.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        let tenant = self.tenant.as_ref().filter(|tenant| !tenant.is_prefix)?;
        Some(&tenant.text)
    }

    /// Its parts: tenant, namespace, topic.
    #[must_use]
    pub fn parts(&self) -> [Option<PatternRef<'_>>; 3] {
        [&self.tenant, &self.namespace, &self.topic]
            .map(|part| part.as_ref().map(Pattern::borrowed))
    }

    /// Its parts as text, empty where nothing is given.
    #[must_use]
    pub fn texts(&self) -> [String; 3] {
        [&self.tenant, &self.namespace, &self.topic]
            .map(|part| part.as_ref().map(Pattern::to_string).unwrap_or_default())
    }
}

fn part(
    text: &str,
    parse: impl FnOnce(&str) -> Result<Pattern, NameError>,
) -> Result<Option<Pattern>, NameError> {
    match text {
        "" => Ok(None),
        text => parse(text).map(Some),
    }
}

impl fmt::Display for GrantScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.tenant, &self.namespace, &self.topic) {
            (Some(tenant), Some(namespace), Some(topic)) => {
                write!(f, "topic {tenant}/{namespace}/{topic}")
            }
            (Some(tenant), Some(namespace), _) => write!(f, "namespace {tenant}/{namespace}"),
            (Some(tenant), ..) => write!(f, "tenant {tenant}"),
            (None, ..) => f.write_str("cluster"),
        }
    }
}

#[test]
fn scopes_are_names_with_a_star_at_the_end() {
    let scope = |tenant, namespace, topic| GrantScope::new(tenant, namespace, topic);
    let shown = |found: Result<GrantScope, ScopeError>| found.map(|scope| scope.to_string());
    assert_eq!(shown(scope("", "", "")).as_deref(), Ok("cluster"));
    assert_eq!(shown(scope("*", "", "")).as_deref(), Ok("tenant *"));
    assert_eq!(
        shown(scope("acme", "shop", "orders*")).as_deref(),
        Ok("topic acme/shop/orders*")
    );
    for (tenant, namespace, topic) in [
        ("", "shop", ""),
        ("acme", "", "orders"),
        ("ac*me", "", ""),
        ("acme", "sh op", ""),
        ("acme", "shop", "**"),
        ("acme", "shop", "orders-partition-3"),
        ("acme", "..", ""),
    ] {
        assert!(
            scope(tenant, namespace, topic).is_err(),
            "{tenant}/{namespace}/{topic}"
        );
    }
}
