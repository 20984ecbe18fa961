//! Administration: every method parses, calls once and converts.

use aquifer_model::content::TopicContent;
use aquifer_model::place::Place;
use aquifer_model::topic::SubscriptionName;
use aquifer_proto::convert::ranges::{wire_key_hash, wire_ranges};
use aquifer_proto::convert::stats::{wire_end, wire_stats};
use aquifer_proto::convert::subscription::properties;
use aquifer_proto::v1;
use aquifer_protocol_api::admin::{Clear, Deletion, Reimport, Removal, SubscriptionReset};
use aquifer_protocol_api::consumer::IndexRange;
use tonic::{Request, async_trait};

use crate::convert::{
    invalid, name, namespace, page, partitions, place, place_or, policies, policy_scope,
    policy_update, ranges, tenant, topic,
};
use crate::pull;
use crate::service::{Answer, Service};
use crate::stats::{fitting, without_lists};

/// Messages that are shown where the client does not say how many.
const PEEK_MESSAGES_DEFAULT: usize = 10;

#[async_trait]
impl v1::admin_server::Admin for Service {
    async fn create_tenant(
        &self,
        request: Request<v1::CreateTenantRequest>,
    ) -> Answer<v1::CreateTenantResponse> {
        self.unary("create_tenant", request, |broker, ctx, r| async move {
            broker.create_tenant(&ctx, tenant(r.tenant)?).await?;
            Ok(v1::CreateTenantResponse {})
        })
        .await
    }

    async fn delete_tenant(
        &self,
        request: Request<v1::DeleteTenantRequest>,
    ) -> Answer<v1::DeleteTenantResponse> {
        self.unary("delete_tenant", request, |broker, ctx, r| async move {
            let (force, dry_run) = (r.force, r.dry_run);
            let removed = broker
                .delete_tenant(&ctx, tenant(r.tenant)?, Removal { force, dry_run })
                .await?;
            Ok(v1::DeleteTenantResponse {
                namespaces: removed.namespaces,
                topics: removed.topics,
            })
        })
        .await
    }

    async fn delete_namespace(
        &self,
        request: Request<v1::DeleteNamespaceRequest>,
    ) -> Answer<v1::DeleteNamespaceResponse> {
        self.unary("delete_namespace", request, |broker, ctx, r| async move {
            let (force, dry_run) = (r.force, r.dry_run);
            let name = namespace(&r.namespace)?;
            let removed = broker
                .delete_namespace(&ctx, name, Removal { force, dry_run })
                .await?;
            Ok(v1::DeleteNamespaceResponse {
                topics: removed.topics,
            })
        })
        .await
    }

    async fn list_tenants(
        &self,
        request: Request<v1::ListTenantsRequest>,
    ) -> Answer<v1::ListTenantsResponse> {
        self.unary("list_tenants", request, |broker, ctx, r| async move {
            let found = broker.list_tenants(&ctx, page(r.after, r.limit)?).await?;
            Ok(v1::ListTenantsResponse {
                tenants: found.items,
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn create_namespace(
        &self,
        request: Request<v1::CreateNamespaceRequest>,
    ) -> Answer<v1::CreateNamespaceResponse> {
        self.unary("create_namespace", request, |broker, ctx, r| async move {
            let name = namespace(&r.namespace)?;
            let given = policies(r.policies.unwrap_or_default())?;
            let view = broker.create_namespace(&ctx, name, given).await?;
            Ok(v1::CreateNamespaceResponse {
                policies: Some(view.into()),
            })
        })
        .await
    }

    async fn get_policies(
        &self,
        request: Request<v1::GetPoliciesRequest>,
    ) -> Answer<v1::GetPoliciesResponse> {
        self.unary("get_policies", request, |broker, ctx, r| async move {
            let view = broker.get_policies(&ctx, policy_scope(r.scope)?).await?;
            Ok(v1::GetPoliciesResponse {
                policies: Some(view.into()),
            })
        })
        .await
    }

    async fn update_policies(
        &self,
        request: Request<v1::UpdatePoliciesRequest>,
    ) -> Answer<v1::UpdatePoliciesResponse> {
        self.unary(
            "update_policies",
            request,
            |broker, ctx, mut r| async move {
                let scope = policy_scope(r.scope.take())?;
                let update = policy_update(r)?;
                let view = broker.update_policies(&ctx, scope, update).await?;
                Ok(v1::UpdatePoliciesResponse {
                    policies: Some(view.into()),
                })
            },
        )
        .await
    }

    async fn list_namespaces(
        &self,
        request: Request<v1::ListNamespacesRequest>,
    ) -> Answer<v1::ListNamespacesResponse> {
        self.unary("list_namespaces", request, |broker, ctx, r| async move {
            let page = page(r.after, r.limit)?;
            let found = broker
                .list_namespaces(&ctx, tenant(r.tenant)?, page)
                .await?;
            Ok(v1::ListNamespacesResponse {
                namespaces: found.items.iter().map(ToString::to_string).collect(),
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Answer<v1::CreateTopicResponse> {
        self.unary("create_topic", request, |broker, ctx, r| async move {
            let topic = topic(&r.topic)?;
            broker
                .create_topic(&ctx, topic, partitions(r.partitions)?)
                .await?;
            Ok(v1::CreateTopicResponse {})
        })
        .await
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Answer<v1::DescribeTopicResponse> {
        self.unary("describe_topic", request, |broker, ctx, r| async move {
            let found = broker
                .describe_topic(&ctx, topic(&r.topic)?, r.create)
                .await?;
            Ok(v1::DescribeTopicResponse {
                topic: found.topic.to_string(),
                incarnation: found.incarnation.0.to_vec().into(),
                key_hash: wire_key_hash(found.key_hash).into(),
                generation: found.ranges.generation(),
                ranges: wire_ranges(&found.ranges),
            })
        })
        .await
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Answer<v1::DeleteTopicResponse> {
        self.unary("delete_topic", request, |broker, ctx, r| async move {
            let topic = topic(&r.topic)?;
            if r.dry_run {
                let found = broker.delete_topic_dry_run(&ctx, topic).await?;
                let content = Some(wire_content(found));
                return Ok(v1::DeleteTopicResponse { content });
            }
            let how = match (r.check, r.force) {
                (true, _) => Deletion::Check,
                (false, true) => Deletion::Force,
                (false, false) => Deletion::IfUnused,
            };
            broker.delete_topic(&ctx, topic, how).await?;
            Ok(v1::DeleteTopicResponse { content: None })
        })
        .await
    }

    async fn list_topics(
        &self,
        request: Request<v1::ListTopicsRequest>,
    ) -> Answer<v1::ListTopicsResponse> {
        self.unary("list_topics", request, |broker, ctx, r| async move {
            let page = page(r.after, r.limit)?;
            let found = broker
                .list_topics(&ctx, namespace(&r.namespace)?, page)
                .await?;
            let topics = found.items.into_iter().map(|item| v1::TopicSummary {
                topic: item.topic.to_string(),
                partitions: item.partitions,
            });
            Ok(v1::ListTopicsResponse {
                topics: topics.collect(),
                next: found.next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn offload_topic(
        &self,
        request: Request<v1::OffloadTopicRequest>,
    ) -> Answer<v1::OffloadTopicResponse> {
        self.unary("offload_topic", request, |broker, ctx, r| async move {
            let before = place_or(&r.before, Place::Latest)?;
            let left = broker.offload_topic(&ctx, topic(&r.topic)?, before).await?;
            Ok(v1::OffloadTopicResponse {
                ledgers: left.ledgers,
                bytes: left.bytes,
            })
        })
        .await
    }

    async fn reimport_topic(
        &self,
        request: Request<v1::ReimportTopicRequest>,
    ) -> Answer<v1::ReimportTopicResponse> {
        self.unary("reimport_topic", request, |broker, ctx, r| async move {
            let what = match r.cancel {
                true => Reimport::Cancel,
                false => Reimport::Range {
                    from: place_or(&r.from, Place::Earliest)?,
                    to: place_or(&r.to, Place::Latest)?,
                },
            };
            let left = broker.reimport_topic(&ctx, topic(&r.topic)?, what).await?;
            Ok(v1::ReimportTopicResponse {
                ledgers: left.ledgers,
                bytes: left.bytes,
            })
        })
        .await
    }

    async fn grow_topic(
        &self,
        request: Request<v1::GrowTopicRequest>,
    ) -> Answer<v1::GrowTopicResponse> {
        self.unary("grow_topic", request, |broker, ctx, r| async move {
            let (topic, partitions) = (topic(&r.topic)?, partitions(r.partitions)?);
            broker.grow_topic(&ctx, topic, partitions).await?;
            Ok(v1::GrowTopicResponse {})
        })
        .await
    }

    async fn unload_topic(
        &self,
        request: Request<v1::UnloadTopicRequest>,
    ) -> Answer<v1::UnloadTopicResponse> {
        self.unary("unload_topic", request, |broker, ctx, r| async move {
            let unloaded = broker.unload_topic(&ctx, topic(&r.topic)?).await?;
            Ok(v1::UnloadTopicResponse { unloaded })
        })
        .await
    }

    async fn terminate_topic(
        &self,
        request: Request<v1::TerminateTopicRequest>,
    ) -> Answer<v1::TerminateTopicResponse> {
        self.unary("terminate_topic", request, |broker, ctx, r| async move {
            let ends = broker.terminate_topic(&ctx, topic(&r.topic)?).await?;
            Ok(v1::TerminateTopicResponse {
                ends: ends.into_iter().map(wire_end).collect(),
            })
        })
        .await
    }

    async fn topic_stats(
        &self,
        request: Request<v1::TopicStatsRequest>,
    ) -> Answer<v1::TopicStatsResponse> {
        self.unary("topic_stats", request, |broker, ctx, r| async move {
            let name = topic(&r.topic)?;
            let stats = broker.topic_stats(&ctx, name.clone()).await?;
            let stats = wire_stats(name.to_string(), stats);
            Ok(match r.brief {
                true => without_lists(stats),
                false => fitting(stats),
            })
        })
        .await
    }

    async fn delete_subscription(
        &self,
        request: Request<v1::DeleteSubscriptionRequest>,
    ) -> Answer<v1::DeleteSubscriptionResponse> {
        self.unary(
            "delete_subscription",
            request,
            |broker, ctx, r| async move {
                let subscription: SubscriptionName = name(&r.subscription)?;
                let topic = topic(&r.topic)?;
                broker
                    .delete_subscription(&ctx, topic, subscription, r.force)
                    .await?;
                Ok(v1::DeleteSubscriptionResponse {})
            },
        )
        .await
    }

    async fn create_subscription(
        &self,
        request: Request<v1::CreateSubscriptionRequest>,
    ) -> Answer<v1::CreateSubscriptionResponse> {
        self.unary(
            "create_subscription",
            request,
            |broker, ctx, r| async move {
                let subscription: SubscriptionName = name(&r.subscription)?;
                let (topic, place) = (topic(&r.topic)?, place(&r.place)?);
                let properties = properties(&r.properties);
                let index = broker
                    .create_subscription(&ctx, topic, subscription, place, properties)
                    .await?;
                Ok(v1::CreateSubscriptionResponse { index: index.0 })
            },
        )
        .await
    }

    async fn seek_subscription(
        &self,
        request: Request<v1::SeekSubscriptionRequest>,
    ) -> Answer<v1::SeekSubscriptionResponse> {
        self.unary("seek_subscription", request, |broker, ctx, r| async move {
            let subscription: SubscriptionName = name(&r.subscription)?;
            let (topic, place) = (topic(&r.topic)?, place(&r.place)?);
            let index = broker
                .seek_subscription(&ctx, topic, subscription, place)
                .await?;
            Ok(v1::SeekSubscriptionResponse { index: index.0 })
        })
        .await
    }

    async fn skip_messages(
        &self,
        request: Request<v1::SkipMessagesRequest>,
    ) -> Answer<v1::SkipMessagesResponse> {
        self.unary("skip_messages", request, |broker, ctx, r| async move {
            let subscription: SubscriptionName = name(&r.subscription)?;
            let topic = topic(&r.topic)?;
            let range = match (r.first_index, r.last_index) {
                (None, None) => None,
                (Some(first), Some(last)) => {
                    ranges(&[v1::IndexRange { first, last }])?.first().copied()
                }
                _ => return Err(invalid("give both ends of the range, or neither")),
            };
            let skipped = broker
                .skip_messages(&ctx, topic, subscription, range)
                .await?;
            let wire = |range: IndexRange| v1::SkippedRange {
                first_index: range.first.0,
                last_index: range.last.0,
            };
            Ok(v1::SkipMessagesResponse {
                skipped: skipped.into_iter().map(wire).collect(),
            })
        })
        .await
    }

    async fn clear_subscription(
        &self,
        request: Request<v1::ClearSubscriptionRequest>,
    ) -> Answer<v1::ClearSubscriptionResponse> {
        self.unary("clear_subscription", request, |broker, ctx, r| async move {
            let subscription: SubscriptionName = name(&r.subscription)?;
            let clear = Clear {
                older_than_ms: r.older_than_ms,
                dry_run: r.dry_run,
            };
            let messages = broker
                .clear_subscription(&ctx, topic(&r.topic)?, subscription, clear)
                .await?;
            Ok(v1::ClearSubscriptionResponse { messages })
        })
        .await
    }

    async fn peek_messages(
        &self,
        request: Request<v1::PeekMessagesRequest>,
    ) -> Answer<v1::PeekMessagesResponse> {
        let peeked = self.unary("peek_messages", request, |broker, ctx, r| async move {
            let subscription: SubscriptionName = name(&r.subscription)?;
            let limit = match r.limit {
                0 => PEEK_MESSAGES_DEFAULT,
                limit => usize::try_from(limit).unwrap_or(usize::MAX),
            };
            let found = broker
                .peek_messages(&ctx, topic(&r.topic)?, subscription, limit)
                .await?;
            Ok(pull::peek_answer(found))
        });
        pull::holding(peeked.await?)
    }

    async fn reset_subscriptions(
        &self,
        request: Request<v1::ResetSubscriptionsRequest>,
    ) -> Answer<v1::ResetSubscriptionsResponse> {
        self.unary(
            "reset_subscriptions",
            request,
            |broker, ctx, r| async move {
                let reset = broker.reset_subscriptions(&ctx, topic(&r.topic)?).await?;
                let wire = |reset: SubscriptionReset| v1::SubscriptionReset {
                    subscription: reset.name,
                    mark_delete_index: reset.mark_delete.0,
                    repeated_messages: reset.repeated_messages,
                    name_only: reset.name_only,
                    topic: reset.topic.to_string(),
                };
                Ok(v1::ResetSubscriptionsResponse {
                    subscriptions: reset.into_iter().map(wire).collect(),
                })
            },
        )
        .await
    }
}

fn wire_content(content: TopicContent) -> v1::TopicContent {
    v1::TopicContent {
        partitions: content.partitions,
        messages: content.messages,
        stored_bytes: content.stored_bytes,
        subscriptions: content.subscriptions,
        in_use: content.in_use,
    }
}
