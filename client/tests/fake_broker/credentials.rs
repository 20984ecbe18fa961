//! Credentials: on every call, never in plain text beyond this machine, replaced without the
//! application noticing, and the end of a session when there is nothing to replace them with.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use aquifer_client::{
    Client, ClientBuilder, ClientError, Consumer, ErrorCode, ErrorKind, Message, Producer,
    TokenSource,
};

use crate::fake::{Consume, Fake, Produce, delivery, subscribed};
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};

fn write(path: &Path, token: &str) {
    let new = path.with_extension("new");
    fs::write(&new, token).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, path).unwrap();
}

async fn producer(fake: &Fake, client: &Client) -> (Producer, Produce) {
    let accept = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(None).await;
        stream
    };
    let (producer, stream) = futures::join!(client.producer("t").open(), accept);
    (producer.unwrap(), stream)
}

async fn consumer(fake: &Fake, client: &Client) -> (Consumer, Consume) {
    let accept = async {
        let mut stream = fake.consume().await;
        stream.subscribed(subscribed(1, 0, 9)).await;
        stream
    };
    let (consumer, stream) = futures::join!(client.consumer("t", "s").open(), accept);
    (consumer.unwrap(), stream)
}

fn build(builder: ClientBuilder) -> Client {
    builder.build().unwrap()
}

#[tokio::test]
async fn every_call_and_stream_shows_the_token_and_nothing_does_without_one() {
    let fake = Fake::start().await;
    fake.settings.accept("aqf_1");
    let client = build(fake.builder().token("aqf_1"));
    client.connect().await.unwrap();
    let (_producer, _produce) = producer(&fake, &client).await;
    let (_consumer, _consume) = consumer(&fake, &client).await;
    client.admin().topic_stats("t").await.unwrap();
    let shown = std::mem::take(&mut *fake.settings.shown.lock().unwrap());
    // Handshakes, lookups, two streams and a call.
    assert!(shown.len() >= 6, "{shown:?}");
    let is_token = |shown: &Option<String>| shown.as_deref() == Some("Bearer aqf_1");
    assert!(shown.iter().all(is_token), "{shown:?}");

    let error = fake.client().connect().await.unwrap_err();
    assert!(
        matches!(error, ClientError::Unauthenticated(_)),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(error.code(), Some(ErrorCode::Unauthenticated));
    assert!(error.to_string().contains("token"), "{error}");
    let shown = fake.settings.shown.lock().unwrap();
    assert_eq!(shown[..], [None]);
}

#[tokio::test]
async fn a_token_is_not_sent_in_plain_text_beyond_this_machine() {
    let builder = || Client::builder().url("http://broker.invalid:7650");
    let error = builder().token("aqf_1").build().map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        error.to_string().contains("https://broker.invalid:7650"),
        "{error}"
    );
    assert!(!error.to_string().contains("aqf_1"), "{error}");
    build(builder().token("aqf_1").allow_plaintext_credentials(true));
    build(builder());
}

/// A broker that points to an address in plain text does not get the token sent there.
#[tokio::test]
async fn a_redirect_does_not_carry_the_token_into_plain_text() {
    let fake = Fake::start().await;
    let client = build(fake.builder().token("aqf_1"));
    let away = async {
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.redirect("http://broker.invalid:7650").await;
    };
    let (opened, ()) = futures::join!(client.producer("t").open(), away);
    let error = opened.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

/// What was sent is sent again, in order, under the same sequence ids, and stored once (I7, I8).
#[tokio::test]
async fn a_producer_whose_token_ends_goes_on_with_the_one_that_replaced_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write(&path, "aqf_1");
    let fake = Fake::start().await;
    fake.settings.accept("aqf_1");
    let client = build(fake.builder().token_file(&path));
    let (producer, mut stream) = producer(&fake, &client).await;
    let first = producer.enqueue(Message::new("0")).await.unwrap();
    stream.frames(1).await;
    write(&path, "aqf_2");
    fake.settings.accept("aqf_2");
    let again = async {
        stream.fail(ErrorCode::Unauthenticated, false).await;
        let mut stream = fake.produce().await;
        stream.open().await;
        stream.opened(None).await;
        let frames = stream.frames(1).await;
        let fields = frames[0].1.fields();
        assert_eq!((frames[0].0, fields.lowest_sequence_id), (1, 0));
        stream.receipt(1, 7, true).await;
        stream
    };
    let (receipt, mut stream) = futures::join!(first, again);
    assert!(receipt.unwrap().duplicate);
    let second = producer.enqueue(Message::new("1")).await.unwrap();
    stream.frames(1).await;
    stream.receipt(2, 8, false).await;
    second.await.unwrap();
}

#[tokio::test]
async fn a_consumer_whose_token_ends_goes_on_with_the_one_that_replaced_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write(&path, "aqf_1");
    let fake = Fake::start().await;
    fake.settings.accept("aqf_1");
    let client = build(fake.builder().token_file(&path));
    let (consumer, stream) = consumer(&fake, &client).await;
    stream.deliver(1, 0, vec![delivery(0, 1)]).await;
    let message = consumer.receive().await.unwrap();
    write(&path, "aqf_2");
    fake.settings.accept("aqf_2");
    let again = async {
        // As a broker says it that knows that another token would do.
        stream.fail(ErrorCode::Unauthenticated, true).await;
        let mut stream = fake.consume().await;
        stream.subscribed(subscribed(1, 0, 9)).await;
        stream.deliver(1, 0, vec![delivery(0, 2)]).await;
        stream
    };
    let (next, _stream) = futures::join!(consumer.receive(), again);
    assert_eq!(next.unwrap().payload, message.payload, "delivered again");
    let shown = fake.settings.shown.lock().unwrap();
    assert_eq!(shown.last().unwrap().as_deref(), Some("Bearer aqf_2"));
}

/// One more attempt, since a stream was open with it, and then the end that says what to do.
#[tokio::test]
async fn a_token_that_is_refused_and_not_replaced_ends_what_uses_it() {
    let fake = Fake::start().await;
    fake.settings.accept("aqf_1");
    let client = build(fake.builder().token("aqf_1"));
    let (producer, stream) = producer(&fake, &client).await;
    let (consumer, consume) = consumer(&fake, &client).await;
    fake.settings.accept("aqf_2");
    let before = fake.settings.shown.lock().unwrap().len();
    stream.fail(ErrorCode::Unauthenticated, true).await;
    consume.fail(ErrorCode::Unauthenticated, true).await;
    let received = consumer.receive().await.map(|_| ()).unwrap_err();
    assert!(
        matches!(received, ClientError::Unauthenticated(_)),
        "{received:?}"
    );
    assert!(!received.is_retryable());
    // Accepted before the refusal was there, or refused at once: it ends the same way.
    let sent = producer
        .send(Message::new("0"))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(sent, ClientError::Unauthenticated(_)), "{sent:?}");
    let attempts = fake.settings.shown.lock().unwrap().len() - before;
    assert_eq!(attempts, 2, "one more for each");
}

#[tokio::test]
async fn what_is_not_allowed_ends_a_session_at_once() {
    let fake = Fake::start().await;
    let client = build(fake.builder().token("aqf_1"));
    let (producer, stream) = producer(&fake, &client).await;
    let (consumer, consume) = consumer(&fake, &client).await;
    let before = fake.settings.shown.lock().unwrap().len();
    // Whatever a broker says of trying again.
    stream.fail(ErrorCode::PermissionDenied, true).await;
    consume.fail(ErrorCode::PermissionDenied, true).await;
    let received = consumer.receive().await.map(|_| ()).unwrap_err();
    assert!(
        matches!(received, ClientError::PermissionDenied(_)),
        "{received:?}"
    );
    let sent = producer
        .send(Message::new("0"))
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(sent, ClientError::PermissionDenied(_)), "{sent:?}");
    assert_eq!(fake.settings.shown.lock().unwrap().len(), before);
}

/// A call is made again with the token that replaced the refused one; without any it says why.
#[tokio::test]
async fn a_call_that_is_refused_is_made_again_with_a_fresh_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write(&path, "aqf_1");
    let fake = Fake::start().await;
    fake.settings.accept("aqf_1");
    let client = build(fake.builder().token_source(TokenSource::File(path.clone())));
    client.connect().await.unwrap();
    write(&path, "aqf_2");
    fake.settings.accept("aqf_2");
    client.admin().topic_stats("t").await.unwrap();
    fs::remove_file(&path).unwrap();
    fake.settings.accept("aqf_3");
    let error = client
        .admin()
        .topic_stats("t")
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, ClientError::Credential { .. }), "{error:?}");
    assert!(error.to_string().contains("token file"), "{error}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The most talkative level, of this SDK and of what is below it.
#[tokio::test]
async fn no_log_shows_a_token() {
    let log = Log::default();
    let writer = log.clone();
    // For the whole process: a place in the code that a thread without a subscriber comes by first
    // would stay silent on all. What is kept is that of this thread, on which this test runs.
    let thread = std::thread::current().id();
    let is_ours = dynamic_filter_fn(move |_, _| std::thread::current().id() == thread);
    let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(is_ours));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write(&path, "aqf_canary1");
    let fake = Fake::start().await;
    fake.settings.accept("aqf_canary1");
    let client = build(fake.builder().token_file(&path));
    let (consumer, stream) = consumer(&fake, &client).await;
    stream.deliver(1, 0, vec![delivery(0, 1)]).await;
    consumer.receive().await.unwrap();
    fake.settings.accept("aqf_canary2");
    stream.fail(ErrorCode::Unauthenticated, false).await;
    let error = consumer.receive().await.map(|_| ()).unwrap_err();
    fs::remove_file(&path).unwrap();
    let gone = client
        .admin()
        .topic_stats("t")
        .await
        .map(|_| ())
        .unwrap_err();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("consume session ended"), "{text}");
    for text in [text, format!("{error:?} {error} {gone:?} {gone}")] {
        assert!(!text.contains("canary"), "{text}");
    }
}
