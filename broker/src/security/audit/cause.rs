//! Changes that a request causes besides what it asks for: a topic that is created because it is
//! used, a subscription that a session moves. They are recorded as changes of their own.

use std::net::SocketAddr;
use std::sync::Arc;

use aquifer_model::topic::TopicName;
use aquifer_protocol_api::access::{Access, Action, Resource};
use aquifer_protocol_api::context::{Principal, RequestContext, RequestId};

use crate::security::audit::Record;
use crate::security::{Admitted, Guard};

/// Whose request it is.
#[derive(Clone)]
pub(crate) struct Cause {
    guard: Arc<Guard>,
    principal: Principal,
    protocol: &'static str,
    peer: Option<SocketAddr>,
    request: &'static str,
    request_id: RequestId,
}

/// Whether a topic that does not exist is created where its namespace allows that, and for whom
/// that is recorded; for no caller where it is part of what is recorded already.
#[derive(Clone)]
pub(crate) enum Create {
    Never,
    For(Option<Cause>),
}

impl Create {
    /// A partition is there when its topic has it, whether it was used or not: its creation is
    /// none of its own.
    pub(crate) fn if_partition(topic: &TopicName) -> Create {
        match topic.partition() {
            Some(_) => Create::For(None),
            None => Create::Never,
        }
    }

    /// Whether it is created.
    pub(crate) fn is_allowed(&self) -> bool {
        matches!(self, Create::For(_))
    }

    /// Records that a topic is about to be created.
    pub(crate) fn begins(&self, topic: &TopicName) -> Option<Admitted<'_>> {
        let Create::For(Some(cause)) = self else {
            return None;
        };
        let record = Record::about(&cause.principal, cause.protocol, "create_topic");
        let record = record.came_from(cause.peer).named(&cause.request_id);
        let record = record.on(Action::Use, &Resource::Topic(topic.clone()));
        let record = record.detail(&format!("by {}", cause.request));
        Some(cause.guard.begin(record.allowed(None)))
    }
}

impl Cause {
    /// A caller that was let in.
    pub(crate) fn new(
        guard: &Arc<Guard>,
        ctx: &RequestContext,
        request: &'static str,
        request_id: RequestId,
    ) -> Cause {
        Cause {
            guard: Arc::clone(guard),
            principal: ctx.principal.clone(),
            protocol: ctx.protocol,
            peer: ctx.peer,
            request,
            request_id,
        }
    }

    /// Records that a session is about to change something, unless it does so often.
    pub(crate) fn begins(&self, access: &Access) -> Option<Admitted<'_>> {
        let record = Record::about(&self.principal, self.protocol, access.request);
        let record = record.came_from(self.peer).named(&self.request_id);
        let record = record.on(access.action, access.subject());
        let record = record.detail(&format!("in a session of {}", self.request));
        self.guard.begin_often(record.allowed(None))
    }
}
