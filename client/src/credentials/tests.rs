//! When credentials are fetched, and what a refusal changes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use aquifer_runtime::clock::{ManualClock, SystemClock};
use aquifer_runtime::rng::SeededRng;

use super::*;

/// The milliseconds since 1970 at which these tests begin.
const BEGAN_MS: u64 = 1_000_000;

fn of(source: TokenSource) -> (Credentials, Arc<ManualClock>) {
    let clock = ManualClock::new(BEGAN_MS);
    let shared: SharedClock = Arc::clone(&clock) as SharedClock;
    let credentials = Credentials::new(Some(source), false, shared, SeededRng::shared(1));
    (credentials, clock)
}

fn header(shown: &Shown) -> String {
    let header = shown.header.as_ref().unwrap();
    assert!(!format!("{header:?}").contains("Bearer"), "{header:?}");
    header.to_str().unwrap().to_owned()
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A command that prints the number of its runs, each as a token of its own.
fn counting(folder: &Path) -> TokenSource {
    let runs = folder.join("runs");
    let script = format!(
        "echo run >> {0}; printf 'token-%s' $(grep -c run {0})",
        runs.display()
    );
    TokenSource::Command {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script],
    }
}

#[tokio::test]
async fn a_given_token_is_shown_and_has_no_successor() {
    let (credentials, _) = of(TokenSource::Value(Token::new(" aqf_1 \n")));
    let shown = credentials.shown().await.unwrap();
    assert_eq!(header(&shown), "Bearer aqf_1");
    assert!(!credentials.renew(shown.number()).await.unwrap());
    assert_eq!(format!("{:?}", Token::new("aqf_1")), "(redacted)");
}

#[tokio::test]
async fn a_file_that_is_replaced_is_used_and_one_that_vanishes_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write(&path, "first\n", 0o600);
    let (credentials, clock) = of(TokenSource::File(path.clone()));
    let first = credentials.shown().await.unwrap();
    assert_eq!(header(&first), "Bearer first");
    write(&path, "second", 0o600);
    assert_eq!(credentials.shown().await.unwrap().number(), first.number());
    clock.advance(INTERVAL_MIN);
    let second = credentials.shown().await.unwrap();
    assert_eq!(header(&second), "Bearer second");
    assert_ne!(second.number(), first.number());
    // The refusal of an old one discards nothing.
    assert!(credentials.renew(first.number()).await.unwrap());
    assert!(!credentials.renew(second.number()).await.unwrap());
    // A refusal looks at once.
    write(&path, "third", 0o600);
    assert!(credentials.renew(second.number()).await.unwrap());
    let third = credentials.shown().await.unwrap();
    assert_eq!(header(&third), "Bearer third");
    fs::remove_file(&path).unwrap();
    clock.advance(INTERVAL_MIN);
    assert_eq!(credentials.shown().await.unwrap().number(), third.number());
}

#[tokio::test]
async fn files_that_others_can_read_and_texts_that_are_no_tokens_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let why = async |text: &str, mode| {
        write(&path, text, mode);
        let (credentials, _) = of(TokenSource::File(path.clone()));
        let error = credentials.shown().await.map(|_| ()).unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        error.to_string()
    };
    assert!(why("secret", 0o644).await.contains("chmod 600"));
    assert!(why(" \n", 0o600).await.contains("is empty"));
    let two = why("secret-1 secret-2", 0o600).await;
    assert!(two.contains("spaces") && !two.contains("secret-"), "{two}");
    let long = why(&"secret".repeat(2_000), 0o600).await;
    assert!(
        long.contains("longer") && !long.contains("secret"),
        "{long}"
    );
}

#[tokio::test]
async fn a_command_runs_when_its_token_is_refused_and_not_more_often_than_useful() {
    let folder = tempfile::tempdir().unwrap();
    let (credentials, clock) = of(counting(folder.path()));
    let all = futures::future::join_all((0..20).map(|_| credentials.shown())).await;
    for shown in all {
        assert_eq!(header(&shown.unwrap()), "Bearer token-1", "one run for all");
    }
    assert!(!credentials.renew(1).await.unwrap(), "it is new");
    clock.advance(INTERVAL_MIN);
    let renewed = futures::future::join_all((0..20).map(|_| credentials.renew(1))).await;
    assert!(renewed.into_iter().all(|renewed| renewed.unwrap()));
    let shown = credentials.shown().await.unwrap();
    assert_eq!(header(&shown), "Bearer token-2", "one run for all");
}

#[tokio::test]
async fn commands_that_fail_say_how() {
    let why = async |program: &str, script: &str| {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let program = program.into();
        let (credentials, _) = of(TokenSource::Command { program, arguments });
        credentials
            .shown()
            .await
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(why("/bin/sh", "exit 3").await.contains("exit status: 3"));
    assert!(why("/bin/sh", "true").await.contains("printed no token"));
    assert!(why("/no/such/program", "").await.contains("cannot be run"));
}

#[test]
fn tokens_are_fetched_again_at_four_fifths_of_their_life_and_not_in_step() {
    let (credentials, _) = of(TokenSource::Value(Token::new("x")));
    let hour = Duration::from_secs(3_600);
    let dues: Vec<Duration> = (0..50).map(|_| credentials.due_after(hour)).collect();
    assert!(
        dues.iter()
            .all(|due| *due >= hour * 7 / 10 && *due <= hour * 8 / 10)
    );
    assert!(dues.iter().any(|due| *due != dues[0]));
    assert_eq!(credentials.due_after(Duration::ZERO), INTERVAL_MIN);
    // Whatever an issuer says.
    credentials.due_after(Duration::MAX);
    let endless = Fetched {
        token: Token::new("y"),
        lifetime: Some(Duration::MAX),
    };
    let source = TokenSource::Command {
        program: "/bin/true".into(),
        arguments: Vec::new(),
    };
    credentials.keep(&source, endless).unwrap();
}

#[test]
fn tokens_leave_this_machine_only_over_tls_unless_that_is_allowed() {
    let check = |allow, source: Option<TokenSource>, url: &str| {
        let rng = SeededRng::shared(1);
        let credentials = Credentials::new(source, allow, SystemClock::shared(), rng);
        credentials.check_address(url)
    };
    let token = || Some(TokenSource::Value(Token::new("secret")));
    for fine in [
        "https://example.org:7650",
        "http://localhost:7650",
        "http://127.0.0.1:7650",
        "http://127.8.8.8",
        "http://[::1]:7650",
    ] {
        check(false, token(), fine).unwrap();
    }
    for open in [
        "http://example.org:7650",
        "http://10.0.0.1:7650",
        "http://localhost.example.org",
        "http://[2001:db8::1]:7650",
        "http://127.0.0.1.example.org:1",
    ] {
        let error = check(false, token(), open).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
        assert!(text.contains("https://") && text.contains(open), "{text}");
        check(true, token(), open).unwrap();
        check(false, None, open).unwrap();
    }
}
