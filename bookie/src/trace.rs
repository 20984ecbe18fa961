//! Spans of adds whose trace is sampled: one from the door to the answer, and below it one for the
//! wait in the journal's queue and its sync. What is not sampled costs a comparison.

use aquifer_model::storage::{
    AddEntry, BookieResult, OrderedOperation, OrderedReply, OrderedRequest, ReplyCallback,
};
use aquifer_runtime::telemetry::trace;
use tracing::{Span, field, info_span};

/// Begins the span of an add, which its answer ends. From here on the add names that span.
pub(crate) fn follow(request: &mut OrderedRequest, reply: ReplyCallback) -> ReplyCallback {
    let ledger = request.ledger;
    let OrderedOperation::Add(add) = &mut request.operation else {
        return reply;
    };
    let Some(parent) = add.trace else {
        return reply;
    };
    let span = info_span!(
        target: trace::TARGET,
        "add_entry",
        otel.kind = "server",
        ledger = ledger.0,
        entry = add.entry.0,
        bytes = add.data.len(),
        error = field::Empty,
    );
    trace::adopt(&span, parent);
    add.trace = trace::context_of(&span);
    ended_by(reply, span)
}

/// Begins the span of the journal's part, which the answer ends.
pub(crate) fn commit(add: &AddEntry, reply: ReplyCallback) -> ReplyCallback {
    let Some(parent) = add.trace else {
        return reply;
    };
    let span = info_span!(target: trace::TARGET, "commit", error = field::Empty);
    trace::adopt(&span, parent);
    ended_by(reply, span)
}

fn ended_by(reply: ReplyCallback, span: Span) -> ReplyCallback {
    Box::new(move |outcome: BookieResult<OrderedReply>| {
        if let Err(error) = &outcome {
            span.record("error", field::display(error));
        }
        drop(span);
        reply(outcome);
    })
}
