//! What the audit log says: changes with their intent, also those that come of use, and counts of
//! what happens all the time.

use std::fmt::Debug;
use std::sync::{Arc, Once};

use aquifer_model::policy::PolicyScope;
use aquifer_protocol_api::access::Action;
use aquifer_protocol_api::admin::Admin;
use aquifer_protocol_api::consumer::Held;
use aquifer_protocol_api::context::RequestId;
use aquifer_protocol_api::data_plane::DataPlane;
use aquifer_protocol_api::error::ErrorKind;
use aquifer_protocol_api::producer::OpenProducer;
use aquifer_protocol_api::pull::{Append, Commit};
use aquifer_protocol_api::security::{CreateToken, RoleName, Security};
use parking_lot::Mutex;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Metadata, Subscriber};

use crate::security::{Secured, grant, scope};
use crate::support::{batch, kind, name, open, subscribe};

/// The lines of the audit log, for as long as it lives.
struct Lines {
    lines: Arc<Mutex<Vec<Value>>>,
    _default: DefaultGuard,
}

struct Collector(Arc<Mutex<Vec<Value>>>);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "audit"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0
            .lock()
            .push(serde_json::from_str(&message.0).unwrap());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Lines {
    fn collect() -> Lines {
        // While there is one subscriber alone, a line that another thread is the first to write
        // asks that thread's subscriber whether it is wanted at all, for every thread.
        static WANTED: Once = Once::new();
        WANTED.call_once(|| {
            let others = Collector(Arc::default());
            // A test binary with a subscriber of its own for all threads needs none.
            drop(tracing::subscriber::set_global_default(others));
        });
        let lines = Arc::new(Mutex::new(Vec::new()));
        Lines {
            _default: tracing::subscriber::set_default(Collector(Arc::clone(&lines))),
            lines,
        }
    }

    /// The outcomes of a request about something by a caller, in order, each with its detail. Lines
    /// of one request have one id.
    fn outcomes(&self, request: &str, resource: &str) -> Vec<(String, String)> {
        let lines = self.lines.lock();
        let of = |line: &&Value| line["request"] == request && line["resource"] == resource;
        let found: Vec<&Value> = lines.iter().filter(of).collect();
        for both in found.chunks(2) {
            assert_eq!(both[0]["request_id"], both[both.len() - 1]["request_id"]);
            assert_eq!(both[0]["principal"], "token:app");
            assert_eq!(both[0]["decision"], "allowed");
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = |line: &&Value| (text(&line["outcome"]), text(&line["detail"]));
        found.iter().map(told).collect()
    }
}

fn both(detail: &str) -> Vec<(String, String)> {
    ["intended", "done"]
        .map(|outcome| (outcome.to_owned(), detail.to_owned()))
        .to_vec()
}

/// The caller that creates a topic is recorded, with the request that did it; once, though many
/// callers use it.
#[tokio::test]
async fn topics_that_are_created_by_use_are_recorded() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let actions = [Action::Produce, Action::Consume];
    let app = secured.with("app", &[(&actions, "acme/shop")]).await;
    let broker = secured.broker();
    let lines = Lines::collect();
    let appended = Append {
        topic: name("acme/shop/appended"),
        incarnation: None,
        format: aquifer_model::format::FORMAT_NATIVE,
        body: batch("p", 0, &["x"]),
        held: Held::default(),
    };
    for _ in 0..2 {
        let described = broker.describe_topic(&app, name("acme/shop/described"), true);
        described.await.unwrap();
        let opened = broker.open_producer(&app, open("acme/shop/produced", "p"));
        drop(opened.await);
        let consumed = broker.subscribe(&app, subscribe("acme/shop/consumed", "s"));
        drop(consumed.await);
        broker.append(&app, appended.clone()).await.unwrap();
    }
    for (topic, by) in [
        ("described", "describe_topic"),
        ("produced", "open_producer"),
        ("consumed", "subscribe"),
        ("appended", "append"),
    ] {
        let topic = name(&format!("acme/shop/{topic}"));
        let found = lines.outcomes("create_topic", &format!("topic {topic}"));
        assert_eq!(found, both(&format!("by {by}")), "{topic}");
    }
}

/// Each change has a line before it is made and one with how it came out.
#[tokio::test]
async fn changes_are_recorded_with_their_intent() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let actions = [Action::Produce, Action::Consume, Action::Manage];
    let app = secured.with("app", &[(&actions, "acme/shop")]).await;
    let broker = secured.broker();
    let topic = name("acme/shop/orders");
    let first = broker.open_producer(&app, open("acme/shop/orders", "p"));
    let _first = first.await.unwrap();
    let lines = Lines::collect();
    let request = OpenProducer {
        take_over: true,
        ..open("acme/shop/orders", "p")
    };
    drop(broker.open_producer(&app, request).await.unwrap());
    let resource = lines.lines.lock()[0]["resource"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(lines.outcomes("take_over_producer", &resource), both(""));
    let created = broker.create_topic(&app, topic, 0).await;
    assert_eq!(kind(&created), Some(ErrorKind::AlreadyExists));
    let failed = lines.outcomes("create_topic", &resource);
    let failed: Vec<&str> = failed.iter().map(|(outcome, _)| &**outcome).collect();
    assert_eq!(failed, ["intended", "failed"]);
}

/// What consumers do all the time is written once, and counted.
#[tokio::test]
async fn commits_and_seeks_are_written_once_and_counted() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let actions = [Action::Produce, Action::Consume];
    let app = secured.with("app", &[(&actions, "acme/shop")]).await;
    let broker = secured.broker();
    let lines = Lines::collect();
    let mut session = broker
        .subscribe(&app, subscribe("acme/shop/orders", "s"))
        .await
        .unwrap();
    for request_id in 1..4 {
        let place = aquifer_model::place::Place::Earliest;
        session.port.seek(request_id, place).await.unwrap();
        let commit = Commit {
            topic: name("acme/shop/orders"),
            incarnation: None,
            subscription: "t".parse().unwrap(),
            index: aquifer_model::id::Index(0),
            create: true,
        };
        broker.commit(&app, commit).await.unwrap();
    }
    let of = |request: &str| {
        let lines = lines.lines.lock();
        let found = lines.iter().filter(|line| line["request"] == request);
        let outcome = |line: &Value| line["outcome"].as_str().unwrap().to_owned();
        found.map(outcome).collect::<Vec<_>>()
    };
    assert_eq!(of("seek"), ["intended", "done"]);
    assert_eq!(of("commit"), ["intended", "done"]);
    let read = broker.get_policies(&app, PolicyScope::Topic(name("acme/shop/orders")));
    let _ = read.await;
    assert!(of("get_policies").is_empty() || of("get_policies") == ["failed"]);
}

/// A caller finds its request in the audit log by the id that it gave, refused or not.
#[tokio::test]
async fn lines_have_the_id_of_the_request() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let actions = [Action::Produce, Action::Consume];
    let mut app = secured.with("app", &[(&actions, "acme/shop")]).await;
    app.request_id = RequestId::given("ticket-7");
    let broker = secured.broker();
    let lines = Lines::collect();
    let place = aquifer_model::place::Place::Earliest;
    let created = broker.create_subscription(
        &app,
        name("acme/shop/new"),
        "s".parse().unwrap(),
        place,
        Default::default(),
    );
    created.await.unwrap();
    let refused = broker.create_tenant(&app, "other".to_owned()).await;
    assert!(refused.is_err());
    let lines = lines.lines.lock();
    let found = |request: &str| {
        let of = lines.iter().filter(|line| line["request"] == request);
        of.map(|line| line["request_id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(found("create_subscription"), ["ticket-7", "ticket-7"]);
    assert_eq!(
        found("create_topic"),
        ["ticket-7", "ticket-7"],
        "by its use"
    );
    assert_eq!(found("create_tenant"), ["ticket-7"]);
}

/// What was made, given or taken away stands in a line that is found by the request and the tenant.
#[tokio::test]
async fn lines_that_say_what_was_given_have_their_request_and_tenant() {
    let secured = Secured::start().await;
    secured.tenants().await;
    let (broker, mut admin) = (secured.broker(), secured.admin());
    admin.request_id = RequestId::given("ticket-8");
    let lines = Lines::collect();
    let create = CreateToken {
        name: "app".to_owned(),
        tenant: Some("acme".to_owned()),
        lifetime_ms: None,
    };
    let token = broker.create_token(&admin, create).await.unwrap().token;
    let given = grant(&token.principal, &[Action::Produce], "acme/shop");
    let given = broker.add_grant(&admin, given).await.unwrap();
    let removed = broker.remove_grant(&admin, given.id.clone(), scope("acme/shop"));
    removed.await.unwrap();
    let role = RoleName {
        tenant: Some("acme".to_owned()),
        name: "reader".to_owned(),
    };
    let made = broker.create_role(&admin, role.clone(), vec![Action::Describe]);
    made.await.unwrap();
    broker.delete_role(&admin, role).await.unwrap();
    let revoked = broker.revoke_token(&admin, token.id.clone()).await;
    revoked.unwrap();
    let lines = lines.lines.lock();
    for (request, said) in [
        ("create_token", &*token.id),
        ("add_grant", &*given.id),
        ("remove_grant", &*given.id),
        ("create_role", "role reader of tenant acme"),
        ("delete_role", "role reader of tenant acme"),
        ("revoke_token", &*token.id),
    ] {
        let says = |line: &&Value| {
            let detail = line["detail"].as_str();
            line["request"] == request && detail.is_some_and(|detail| detail.contains(said))
        };
        let found: Vec<_> = lines.iter().filter(says).collect();
        assert_eq!(found.len(), 1, "{request}: {lines:?}");
        assert_eq!(found[0]["request_id"], "ticket-8", "{request}");
        assert_eq!(found[0]["tenant"], "acme", "{request}");
    }
}
