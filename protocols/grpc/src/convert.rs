//! Wire → port, for what several requests share. Everything here takes bytes of a stranger:
//! it answers with a typed error and never panics.

use aquifer_model::bundle::{BundleRange, ParseBundleError};
use aquifer_model::id::{BrokerId, Index, TopicIncarnation};
use aquifer_model::limits::{ACK_RANGES_MAX, METADATA_PAGE_KEYS_MAX, PARTITIONS_MAX};
use aquifer_model::place::Place;
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate};
use aquifer_model::subscription::SubscriptionType;
use aquifer_model::topic::{DEFAULT_NAMESPACE, NameError, NamespaceName, TopicName};
use aquifer_proto::{PROTOCOL_VERSION, v1};
use aquifer_protocol_api::admin::PageRequest;
use aquifer_protocol_api::consumer::IndexRange;
use aquifer_protocol_api::error::{ApiError, ApiResult, ErrorKind};
use bytes::Bytes;

/// Items of a page when the client does not say.
const PAGE_ITEMS_DEFAULT: usize = 100;
/// Longest page token.
const PAGE_TOKEN_BYTES_MAX: usize = 1024;

/// A request that is wrong in itself.
pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidArgument, message)
}

/// A name, by its type.
pub(crate) fn name<T: std::str::FromStr<Err = NameError>>(text: &str) -> ApiResult<T> {
    text.parse()
        .map_err(|error: NameError| invalid(error.to_string()))
}

/// A name that may be left out.
pub(crate) fn optional_name<T: std::str::FromStr<Err = NameError>>(
    text: &str,
) -> ApiResult<Option<T>> {
    if text.is_empty() {
        return Ok(None);
    }
    name(text).map(Some)
}

pub(crate) fn topic(text: &str) -> ApiResult<TopicName> {
    name(text)
}

pub(crate) fn namespace(text: &str) -> ApiResult<NamespaceName> {
    name(text)
}

pub(crate) fn bundle(text: &str) -> ApiResult<BundleRange> {
    text.parse()
        .map_err(|error: ParseBundleError| invalid(error.to_string()))
}

/// The id of a broker, which may be left out.
pub(crate) fn optional_broker(text: &str) -> ApiResult<Option<BrokerId>> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = text.parse::<BrokerId>();
    id.map(Some)
        .map_err(|error| invalid(format!("no broker: {error}")))
}

/// The model has no type for a tenant alone; its rules are those of a namespace's tenant.
pub(crate) fn tenant(text: String) -> ApiResult<String> {
    NamespaceName::new(&text, DEFAULT_NAMESPACE).map_err(|error| invalid(error.to_string()))?;
    Ok(text)
}

pub(crate) fn place(text: &str) -> ApiResult<Place> {
    text.parse().map_err(|_| {
        let hint = aquifer_model::place::ParsePlaceError;
        invalid(format!("no place: {hint}"))
    })
}

/// A place; another one where none is given.
pub(crate) fn place_or(text: &str, other: Place) -> ApiResult<Place> {
    match text {
        "" => Ok(other),
        text => place(text),
    }
}

/// Sixteen bytes of an id.
pub(crate) fn id16<'a, T: TryFrom<&'a [u8]>>(what: &str, bytes: &'a [u8]) -> ApiResult<T> {
    T::try_from(bytes)
        .map_err(|_| invalid(format!("{what} must have 16 bytes, got {}", bytes.len())))
}

/// The life of a topic that a client knows, if it knows one.
pub(crate) fn incarnation(bytes: Option<&Bytes>) -> ApiResult<Option<TopicIncarnation>> {
    bytes
        .map(|bytes| id16("the topic incarnation", bytes))
        .transpose()
}

pub(crate) fn body_format(format: u32) -> ApiResult<u16> {
    u16::try_from(format).map_err(|_| invalid(format!("there is no body format {format}")))
}

pub(crate) fn version(version: u32) -> ApiResult<()> {
    if version == PROTOCOL_VERSION {
        return Ok(());
    }
    let message = format!("unsupported protocol version {version}");
    Err(ApiError::new(ErrorKind::UnsupportedVersion, message)
        .advise(format!("use version {PROTOCOL_VERSION}")))
}

pub(crate) fn partitions(count: u32) -> ApiResult<u32> {
    if count > PARTITIONS_MAX {
        let message = format!("{count} partitions: at most {PARTITIONS_MAX} are allowed");
        return Err(invalid(message));
    }
    Ok(count)
}

pub(crate) fn page(after: String, limit: u32) -> ApiResult<PageRequest> {
    if after.len() > PAGE_TOKEN_BYTES_MAX {
        return Err(invalid("`after` is not the `next` of a page"));
    }
    let limit = match usize::try_from(limit) {
        Ok(0) => PAGE_ITEMS_DEFAULT,
        Ok(limit) => limit.min(METADATA_PAGE_KEYS_MAX),
        Err(_) => METADATA_PAGE_KEYS_MAX,
    };
    Ok(PageRequest {
        after: (!after.is_empty()).then_some(after),
        limit,
    })
}

pub(crate) fn policies(policies: v1::Policies) -> ApiResult<Policies> {
    Policies::try_from(policies).map_err(invalid)
}

pub(crate) fn policy_update(request: v1::UpdatePoliciesRequest) -> ApiResult<PolicyUpdate> {
    PolicyUpdate::try_from(request).map_err(invalid)
}

pub(crate) fn policy_scope(scope: Option<v1::PolicyScope>) -> ApiResult<PolicyScope> {
    use v1::policy_scope::Scope;
    let scope = scope.and_then(|scope| scope.scope);
    let scope = scope.ok_or_else(|| invalid("name a tenant, a namespace or a topic"))?;
    Ok(match scope {
        Scope::Tenant(name) => PolicyScope::Tenant(tenant(name)?),
        Scope::Namespace(name) => PolicyScope::Namespace(namespace(&name)?),
        Scope::Topic(name) => PolicyScope::Topic(topic(&name)?),
    })
}

pub(crate) fn subscription_type(code: i32) -> ApiResult<SubscriptionType> {
    let kind = v1::SubscriptionType::try_from(code)
        .map_err(|_| invalid(format!("unknown subscription type {code}")))?;
    SubscriptionType::try_from(kind).map_err(|error| invalid(error.to_string()))
}

pub(crate) fn ranges(ranges: &[v1::IndexRange]) -> ApiResult<Vec<IndexRange>> {
    if ranges.len() > ACK_RANGES_MAX {
        let message = format!("{} ranges: at most {ACK_RANGES_MAX} at once", ranges.len());
        return Err(ApiError::new(ErrorKind::TooLarge, message));
    }
    ranges
        .iter()
        .map(|range| {
            if range.first > range.last {
                let v1::IndexRange { first, last } = range;
                return Err(invalid(format!("the range {first} to {last} is empty")));
            }
            Ok(IndexRange {
                first: Index(range.first),
                last: Index(range.last),
            })
        })
        .collect()
}

pub(crate) fn wire_range(range: IndexRange) -> v1::IndexRange {
    v1::IndexRange {
        first: range.first.0,
        last: range.last.0,
    }
}
