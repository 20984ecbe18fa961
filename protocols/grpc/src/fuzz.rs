//! Whatever bytes a stranger sends, decoding and converting them gives a request or a typed error,
//! never a panic, and what is accepted obeys the bounds.

use aquifer_model::limits::{ACK_RANGES_MAX, METADATA_PAGE_KEYS_MAX, PARTITIONS_MAX};
use aquifer_proto::v1;
use proptest::prelude::*;
use prost::Message;

use crate::consume::{ConsumerRequest, consumer_request, subscribe};
use crate::convert::{self, page, partitions, place, policies, subscription_type};
use crate::produce::{open_producer, publish_frames};
use crate::pull::read_request;

fn push_through(bytes: &[u8]) {
    if let Ok(request) = v1::ProduceRequest::decode(bytes) {
        if let Some(v1::produce_request::Request::Open(open)) = request.request.clone()
            && let Ok(open) = open_producer(open)
        {
            assert!(!open.topic.name().is_empty());
        }
        let _ = publish_frames(request);
    }
    if let Ok(request) = v1::ConsumeRequest::decode(bytes) {
        if let Some(v1::consume_request::Request::Subscribe(request)) = request.request.clone() {
            let _ = subscribe(request);
        }
        if let Ok(ConsumerRequest::Acknowledge(acknowledge)) = consumer_request(request) {
            assert!(acknowledge.individual.len() <= ACK_RANGES_MAX);
            assert!(acknowledge.individual.iter().all(|r| r.first <= r.last));
        }
    }
    admin(bytes);
    pull(bytes);
}

fn pull(bytes: &[u8]) {
    if let Ok(request) = v1::ReadTopicRequest::decode(bytes)
        && let Ok(read) = read_request(request)
    {
        assert!(read.limits.bytes_max > 0 && read.limits.batches_max > 0);
    }
    if let Ok(request) = v1::LocateRequest::decode(bytes) {
        let _ = place(&request.place);
    }
    let _ = v1::AppendRequest::decode(bytes);
    let _ = v1::CommitRequest::decode(bytes);
}

fn admin(bytes: &[u8]) {
    if let Ok(request) = v1::CreateTenantRequest::decode(bytes) {
        let _ = convert::tenant(request.tenant);
    }
    if let Ok(request) = v1::ListTenantsRequest::decode(bytes)
        && let Ok(page) = page(request.after, request.limit)
    {
        assert!((1..=METADATA_PAGE_KEYS_MAX).contains(&page.limit));
    }
    if let Ok(request) = v1::CreateNamespaceRequest::decode(bytes) {
        let _ = convert::namespace(&request.namespace);
        let _ = policies(request.policies.unwrap_or_default());
    }
    if let Ok(mut request) = v1::UpdatePoliciesRequest::decode(bytes) {
        let _ = convert::policy_scope(request.scope.take());
        let _ = convert::policy_update(request);
    }
    if let Ok(request) = v1::CreateTopicRequest::decode(bytes) {
        let _ = convert::topic(&request.topic);
        assert!(
            partitions(request.partitions).is_ok_and(|n| n <= PARTITIONS_MAX)
                || request.partitions > PARTITIONS_MAX
        );
    }
    if let Ok(request) = v1::CreateSubscriptionRequest::decode(bytes) {
        let _ = place(&request.place);
    }
    if let Ok(request) = v1::SeekSubscriptionRequest::decode(bytes) {
        let _ = place(&request.place);
    }
    let _ = v1::HandshakeRequest::decode(bytes);
}

/// Requests that decode, so that the conversions see more than random bytes would show them.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        "[a-z0-9:/@.-]{0,40}",
        "\\PC{0,20}",
        Just("persistent://a/b/c-partition-00".to_owned()),
        Just("9223372036854775807:18446744073709551616".to_owned()),
        Just("@99999999999999999999".to_owned()),
    ];
    let ranges = prop::collection::vec((any::<u64>(), any::<u64>()), 0..20);
    let parts = (
        text.clone(),
        text,
        any::<i32>(),
        any::<u32>(),
        any::<Vec<u8>>(),
        ranges,
    );
    (parts, any::<u8>()).prop_map(|((one, two, code, number, bytes, ranges), which)| {
        let individual = ranges.into_iter();
        let individual = individual.map(|(first, last)| v1::IndexRange { first, last });
        let individual: Vec<_> = individual.collect();
        let open = v1::OpenProducer {
            version: number % 3,
            topic: one.clone(),
            producer_name: two.clone(),
            instance: bytes.clone().into(),
            topic_incarnation: Some(bytes.clone().into()),
            ..v1::OpenProducer::default()
        };
        let subscribe = v1::Subscribe {
            version: number % 3,
            topic: one.clone(),
            subscription: two.clone(),
            r#type: code,
            start: two.clone(),
            instance: bytes.into(),
            ..v1::Subscribe::default()
        };
        let acknowledge = v1::Acknowledge {
            individual,
            ..v1::Acknowledge::default()
        };
        use v1::{consume_request, produce_request};
        let consume = |request| {
            v1::ConsumeRequest {
                request: Some(request),
            }
            .encode_to_vec()
        };
        match which % 5 {
            0 => {
                let request = Some(produce_request::Request::Open(open));
                v1::ProduceRequest { request }.encode_to_vec()
            }
            1 => consume(consume_request::Request::Subscribe(subscribe)),
            2 => consume(consume_request::Request::Acknowledge(acknowledge)),
            3 => consume(consume_request::Request::Seek(v1::Seek {
                request_id: 1,
                place: two,
            })),
            _ => v1::CreateTopicRequest {
                topic: one,
                partitions: number,
            }
            .encode_to_vec(),
        }
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        push_through(&bytes);
    }

    #[test]
    fn plausible_requests_never_panic(
        bytes in plausible(), at in any::<prop::sample::Index>(), flip in any::<u8>(),
    ) {
        push_through(&bytes);
        let mut damaged = bytes;
        if !damaged.is_empty() {
            let at = at.index(damaged.len());
            damaged[at] ^= flip;
            push_through(&damaged);
        }
    }

    #[test]
    fn enum_codes_are_known_or_refused(code in any::<i32>()) {
        prop_assert_eq!(subscription_type(code).is_ok(), (1..=4).contains(&code));
    }
}
