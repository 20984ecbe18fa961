//! What every caller is promised, over REST and the command line of a real server: what belongs to
//! others is refused like what is absent, changes at once lose nothing, a page goes on in its own
//! list alone, and a secret shows nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aquifer_harness::http::{Answer, rest};
use aquifer_proto::v1;
use aquifer_proto::v1::security_client::SecurityClient;
use serde_json::{Value, json};

use crate::security::support::{Secured, metrics};

const TOPICS: &str = "/api/v1/tenants/acme/namespaces/shop/topics";
const POLICIES: &str = "/api/v1/tenants/acme/namespaces/shop/policies";
/// The same id for all requests, so that answers can be compared whole.
const SAME_ID: &str = "x-request-id: same";

/// The holder of a token, as a client of REST.
struct Caller {
    http: String,
    shown: String,
}

impl Caller {
    fn new(secured: &Secured, token: &Path) -> Result<Caller> {
        let token = fs::read_to_string(token)?;
        Ok(Caller {
            http: secured.server.http(),
            shown: format!("authorization: Bearer {}", token.trim()),
        })
    }

    async fn ask(&self, request: &str, body: &str) -> Result<Answer> {
        rest(&self.http, request, &[&self.shown], body).await
    }

    /// With one more header.
    async fn ask_with(&self, header: &str, request: &str, body: &str) -> Result<Answer> {
        rest(&self.http, request, &[&self.shown, header], body).await
    }

    /// What is answered to a request that must succeed.
    async fn done(&self, request: &str, body: &str) -> Result<Value> {
        let answer = self.ask(request, body).await?;
        ensure!([200, 201].contains(&answer.status), "{request}: {answer:?}");
        Ok(answer.body)
    }
}

/// All that an answer tells but its time.
fn told(answer: &Answer) -> (Vec<&str>, &Value) {
    let is_date = |line: &str| line.to_ascii_lowercase().starts_with("date:");
    let lines = answer.head.lines().filter(|line| !is_date(line));
    (lines.collect(), &answer.body)
}

/// Two tenants, each with a topic, a subscription and a message, and the tokens of both. That of
/// acme may do everything in its own tenant.
fn neighbours(secured: &Secured) -> Result<[PathBuf; 2]> {
    let tokens = [secured.tenant("acme")?, secured.tenant("rival")?];
    for (tenant, role) in [
        ("acme", "tenant-admin"),
        ("acme", "developer"),
        ("rival", "developer"),
    ] {
        let principal = format!("token:{tenant}/app");
        secured.as_admin(&["grant", "add", &principal, role, "--tenant", tenant])?;
    }
    for topic in ["acme/shop/orders", "rival/shop/plans"] {
        secured.as_admin(&["subscription", "create", topic, "s", "--from", "earliest"])?;
        secured.as_admin(&["produce", topic, "m"])?;
    }
    Ok(tokens)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_have_is_refused_like_what_is_absent() -> Result<()> {
    let mut secured = Secured::start().await?;
    let [acme, rival] = neighbours(&secured)?;
    let caller = Caller::new(&secured, &acme)?;
    let admin = Caller::new(&secured, &secured.admin())?;
    topics_are_refused_alike(&caller).await?;
    for words in [
        &["topic", "policy", "get"][..],
        &["topic", "unload"],
        &["subscription", "list"],
    ] {
        let of = |topic| secured.refused(Some(&acme), &[words, &[topic]].concat());
        let (foreign, absent) = (of("rival/shop/plans")?, of("rival/shop/nothing")?);
        ensure!(
            foreign.replace("plans", "nothing") == absent,
            "{foreign}\n{absent}"
        );
    }
    let of_rival = secured.id_of(&rival)?;
    let of_admin = secured.id_of(&secured.admin())?;
    let grant = ids_are_refused_alike(&caller, &admin, [&of_rival, &of_admin]).await?;

    // The other tenant has all that it had, and an administrator of all finds what was refused.
    let plans = "/api/v1/tenants/rival/namespaces/shop/topics/plans";
    let stats = admin.done(&format!("GET {plans}/stats"), "").await?;
    ensure!(stats["endIndex"] == "1", "{stats}");
    ensure!(stats["subscriptions"][0]["name"] == "s", "{stats}");
    let read = secured.succeeded(&rival, &["read", "rival/shop/plans"])?;
    ensure!(read == "m\n", "{read}");
    for (id, status) in [(&*grant, 200), (UNUSED, 404)] {
        let request = format!("DELETE /api/v1/tenants/rival/grants/{id}");
        let answer = admin.ask(&request, "").await?;
        ensure!(answer.status == status, "{request}: {answer:?}");
    }
    for (id, status) in [(&*of_rival, 200), (UNUSED, 404)] {
        let request = format!("DELETE /api/v1/tokens/{id}");
        let answer = admin.ask(&request, "").await?;
        ensure!(answer.status == status, "{request}: {answer:?}");
    }
    secured.server.stop()?;
    secured.server.check_logs()
}

/// Requests for a topic: verb, what follows its name, and body.
const OF_A_TOPIC: [(&str, &str, &str); 11] = [
    ("GET", "", ""),
    ("GET", "/stats", ""),
    ("GET", "/policies", ""),
    ("GET", "/ledgers", ""),
    ("GET", "/grants", ""),
    ("GET", "/subscriptions/s/messages", ""),
    ("PATCH", "/policies", r#"{"set": {"deduplication": true}}"#),
    ("POST", "/unload", "{}"),
    ("POST", "/subscriptions/s/seek", r#"{"place": "latest"}"#),
    ("DELETE", "/subscriptions/s", ""),
    ("DELETE", "", ""),
];

async fn topics_are_refused_alike(caller: &Caller) -> Result<()> {
    for (verb, tail, body) in OF_A_TOPIC {
        let mut answers = Vec::new();
        // The first one exists.
        for topic in [
            "rival/namespaces/shop/topics/plans",
            "rival/namespaces/shop/topics/nothing",
            "rival/namespaces/nothing/topics/plans",
            "nothing/namespaces/shop/topics/plans",
        ] {
            let request = format!("{verb} /api/v1/tenants/{topic}{tail}");
            let answer = caller.ask_with(SAME_ID, &request, body).await?;
            ensure!(answer.status == 403, "{request}: {answer:?}");
            answers.push(answer);
        }
        for absent in &answers[1..] {
            ensure!(
                told(&answers[0]) == told(absent),
                "{verb} {tail}: {answers:?}"
            );
        }
    }
    // Of its own tenant it is told what is there and what is not.
    for (topic, status) in [("orders", 200), ("nothing", 404)] {
        let answer = caller.ask(&format!("GET {TOPICS}/{topic}"), "").await?;
        ensure!(answer.status == status, "{topic}: {answer:?}");
    }
    Ok(())
}

/// An id that no token and no grant has.
const UNUSED: &str = "aaaaaaaaaaaaaaaaaaaaaaaaab";
const UNUSED_LEDGER: &str = "999999999";

/// Ids of what others have, in each field that takes one. `tokens` are those of others; answers the
/// grant that was tried.
async fn ids_are_refused_alike(
    caller: &Caller,
    admin: &Caller,
    [of_rival, of_admin]: [&str; 2],
) -> Result<String> {
    let grants = admin.done("GET /api/v1/tenants/rival/grants", "").await?;
    let grant = grants["grants"][0]["id"].as_str().context("a grant")?;
    let plans = "/api/v1/tenants/rival/namespaces/shop/topics/plans";
    let ledgers = admin.done(&format!("GET {plans}/ledgers"), "").await?;
    let ledger = ledgers["ledgers"][0]["ledgerId"].as_str();
    let ledger = ledger.context("a ledger")?;
    for (request, used, unused) in [
        ("GET /api/v1/ledgers/ID", ledger, UNUSED_LEDGER),
        ("DELETE /api/v1/grants/ID", grant, UNUSED),
        ("DELETE /api/v1/tenants/acme/grants/ID", grant, UNUSED),
        ("DELETE /api/v1/tenants/rival/grants/ID", grant, UNUSED),
        ("DELETE /api/v1/tokens/ID", of_rival, UNUSED),
        ("DELETE /api/v1/tokens/ID", of_admin, UNUSED),
        ("POST /api/v1/tokens/ID/rotate", of_rival, UNUSED),
        ("POST /api/v1/tokens/ID/rotate", of_admin, UNUSED),
    ] {
        let body = if request.starts_with("POST") {
            "{}"
        } else {
            ""
        };
        let foreign = request.replace("ID", used);
        let foreign = caller.ask_with(SAME_ID, &foreign, body).await?;
        let absent = request.replace("ID", unused);
        let absent = caller.ask_with(SAME_ID, &absent, body).await?;
        ensure!(foreign.status == 403, "{request}: {foreign:?}");
        ensure!(
            told(&foreign) == told(&absent),
            "{request}: {foreign:?} {absent:?}"
        );
    }

    // The position of a message, for a subscription of the caller's own.
    let seek = format!("POST {TOPICS}/orders/subscriptions/s/seek");
    let mut said = Vec::new();
    for id in [ledger, UNUSED_LEDGER] {
        let position = format!("{id}:0");
        let body = json!({"place": position}).to_string();
        let answer = caller.ask_with(SAME_ID, &seek, &body).await?;
        ensure!(answer.status == 400, "{answer:?}");
        said.push(answer.body.to_string().replace(&position, "POSITION"));
    }
    ensure!(said[0] == said[1], "{said:?}");

    // A caller that may see both is told which of them exists.
    for (id, status) in [(ledger, 200), (UNUSED_LEDGER, 404)] {
        let answer = admin.ask(&format!("GET /api/v1/ledgers/{id}"), "").await?;
        ensure!(answer.status == status, "{answer:?}");
    }
    Ok(grant.to_owned())
}

/// Rounds in which two administrators change different policies.
const DIFFERENT_ROUNDS: u64 = 200;
/// Rounds in which they change the same one.
const SAME_ROUNDS: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_changes_of_two_administrators_at_once_none_is_lost() -> Result<()> {
    let mut secured = Secured::start().await?;
    let acme = secured.tenant("acme")?;
    let grant = ["grant", "add", "token:acme/app", "tenant-admin"];
    secured.as_admin(&[&grant[..], &["--tenant", "acme"]].concat())?;
    let both = [
        Caller::new(&secured, &secured.admin())?,
        Caller::new(&secured, &acme)?,
    ];
    let [one, other] = &both;
    let (get, patch) = (format!("GET {POLICIES}"), format!("PATCH {POLICIES}"));
    for round in 1..=DIFFERENT_ROUNDS {
        let number = round.to_string();
        let rollover = json!({"sizeBytes": "1048576", "ageMs": "60000", "entries": number});
        let rollover = json!({"set": {"rollover": rollover}}).to_string();
        let retention = retain(round);
        let (first, second) =
            tokio::join!(one.done(&patch, &retention), other.done(&patch, &rollover));
        first.and(second)?;
        let found = one.done(&get, "").await?;
        let own = &found["policies"]["own"];
        ensure!(own["retention"]["sizeBytes"] == number, "{round}: {own}");
        ensure!(own["rollover"]["entries"] == number, "{round}: {own}");
    }
    for round in 1..=SAME_ROUNDS {
        one_of_two_wins(&both, round).await?;
    }
    secured.server.stop()?;
    secured.server.check_logs()
}

/// A change of the policy for retention.
fn retain(bytes: u64) -> String {
    json!({"set": {"retention": {"sizeBytes": bytes.to_string()}}}).to_string()
}

/// Both change the same policy, on the version that both have read.
async fn one_of_two_wins([one, other]: &[Caller; 2], round: u64) -> Result<()> {
    let (get, patch) = (format!("GET {POLICIES}"), format!("PATCH {POLICIES}"));
    let before = one.ask(&get, "").await?;
    let tag = format!("if-match: {}", before.header("etag"));
    let sizes = [2 * round, 2 * round + 1];
    let bodies = sizes.map(retain);
    let (first, second) = tokio::join!(
        one.ask_with(&tag, &patch, &bodies[0]),
        other.ask_with(&tag, &patch, &bodies[1])
    );
    let (first, second) = (first?, second?);
    let (made, refused, size) = match first.status {
        200 => (first, second, sizes[0]),
        _ => (second, first, sizes[1]),
    };
    ensure!(made.status == 200, "{round}: {refused:?} {made:?}");
    ensure!(refused.status == 412, "{round}: {refused:?} {made:?}");
    ensure!(refused.body["error"]["code"] == "CONFLICT", "{refused:?}");
    let now = one.ask(&get, "").await?;
    ensure!(now.header("etag") == made.header("etag"), "{now:?}");
    ensure!(now.header("etag") != before.header("etag"), "{now:?}");
    let retention = &now.body["policies"]["own"]["retention"];
    ensure!(retention["sizeBytes"] == *size.to_string(), "{now:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_show_what_is_granted_and_go_on_in_their_own_list() -> Result<()> {
    let mut secured = Secured::start().await?;
    let acme = secured.tenant("acme")?;
    let admin = Caller::new(&secured, &secured.admin())?;
    for number in 0..5 {
        // Names in front of those that are granted, and behind them.
        for letter in ["Z", "a", "b"] {
            let request = format!("PUT {TOPICS}/{letter}{number}");
            admin.done(&request, "").await?;
        }
    }
    let grant = ["grant", "add", "token:acme/app", "viewer"];
    secured.as_admin(&[&grant[..], &["--topic", "acme/shop/a*"]].concat())?;
    let caller = Caller::new(&secured, &acme)?;
    let (mut names, mut tokens) = (Vec::new(), Vec::<String>::new());
    loop {
        let more = tokens.last().map(|token| format!("&pageToken={token}"));
        let more = more.unwrap_or_default();
        let request = format!("GET {TOPICS}?pageSize=2{more}");
        let page = caller.done(&request, "").await?;
        let topics = page["topics"].as_array().context("topics")?;
        ensure!(topics.len() <= 2, "{page}");
        names.extend(topics.iter().map(|topic| topic["topic"].clone()));
        let next = page["nextPageToken"].as_str().context("a token")?;
        if next.is_empty() {
            break;
        }
        tokens.push(next.to_owned());
    }
    let expected: Vec<_> = (0..5)
        .map(|number| format!("persistent://acme/shop/a{number}"))
        .collect();
    ensure!(json!(names) == json!(expected), "{names:?}");
    let token = tokens.first().context("several pages")?;
    a_page_is_of_its_list(&caller, &admin, token).await?;

    // A token of a page gives nothing once the grant is gone.
    let grants = admin.done("GET /api/v1/tenants/acme/grants", "").await?;
    let grant = grants["grants"][0]["id"].as_str().context("a grant")?;
    let remove = format!("DELETE /api/v1/tenants/acme/grants/{grant}");
    admin.done(&remove, "").await?;
    let next = format!("GET {TOPICS}?pageToken={token}");
    let refused = caller.ask(&next, "").await?;
    ensure!(refused.status == 403, "{refused:?}");
    secured.server.stop()?;
    secured.server.check_logs()
}

/// The token of a page of topics of acme/shop, for the caller, is refused everywhere else, and so
/// is each change of it.
async fn a_page_is_of_its_list(caller: &Caller, admin: &Caller, token: &str) -> Result<()> {
    let refused = async |caller: &Caller, path: &str, token: &str| -> Result<()> {
        let request = format!("GET {path}?pageSize=2&pageToken={token}");
        let answer = caller.ask(&request, "").await?;
        ensure!(answer.status == 400, "{request}: {answer:?}");
        let code = &answer.body["error"]["code"];
        ensure!(code == "INVALID_ARGUMENT", "{request}: {answer:?}");
        Ok(())
    };
    for at in 0..token.len() {
        let letter = if token[at..].starts_with('A') {
            "B"
        } else {
            "A"
        };
        let mut changed = token.to_owned();
        changed.replace_range(at..=at, letter);
        refused(caller, TOPICS, &changed).await?;
    }
    refused(admin, TOPICS, token).await?;
    admin
        .done("PUT /api/v1/tenants/acme/namespaces/other", "")
        .await?;
    let own = admin.done(&format!("GET {TOPICS}?pageSize=2"), "").await?;
    let own = own["nextPageToken"].as_str().context("a token")?;
    refused(caller, TOPICS, own).await?;
    for path in [
        "/api/v1/tenants",
        "/api/v1/tenants/acme/namespaces",
        "/api/v1/tenants/acme/namespaces/other/topics",
        "/api/v1/tenants/acme/grants",
        "/api/v1/tokens",
        "/api/v1/ledgers",
    ] {
        refused(admin, path, own).await?;
        // The list itself is answered.
        admin.done(&format!("GET {path}?pageSize=2"), "").await?;
    }
    for (caller, token) in [(caller, token), (admin, own)] {
        let next = format!("GET {TOPICS}?pageSize=2&pageToken={token}");
        caller.done(&next, "").await?;
    }
    Ok(())
}

/// A text that is nowhere else.
const CANARY: &str = "canaryqvzmlxkptw";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_shows_nowhere_whatever_field_it_is_given_in() -> Result<()> {
    let mut secured = Secured::start().await?;
    let admin_token = fs::read_to_string(secured.admin())?;
    let admin = Caller::new(&secured, &secured.admin())?;
    let mut places = Vec::new();
    canaries_by_rest(&admin, &mut places).await?;
    canaries_by_grpc(&secured, &mut places).await?;
    secured.as_admin(&["produce", "t", CANARY])?;

    // Secrets that the server has made and answered, and that are used.
    let mut secrets = vec![CANARY.to_owned()];
    let made = admin.done("POST /api/v1/tokens", r#"{"name": "probe"}"#);
    let made = made.await?;
    let id = made["token"]["id"].as_str().context("an id")?;
    let rotate = format!("POST /api/v1/tokens/{id}/rotate");
    let rotated = admin.done(&rotate, "{}").await?;
    for answer in [&made, &rotated] {
        let secret = answer["secret"].as_str().context("a secret")?;
        let shown = format!("authorization: Bearer {secret}");
        let me = rest(&admin.http, "GET /api/v1/me", &[&shown], "").await?;
        ensure!(me.status == 200, "{me:?}");
        places.push(("answer", format!("{me:?}")));
        // Behind the id, which is no secret.
        secrets.push(secret.get(31..47).context("it is long")?.to_owned());
    }

    let tail = ["audit", "tail", "--lines", "200"];
    places.push(("audit", secured.as_admin(&tail)?));
    let metrics = metrics(&secured.server, admin_token.trim()).await?;
    places.push(("metrics", metrics));
    places.push(("greeting", secured.server.printed()));
    // A server that has ended has written all of its log.
    secured.server.stop()?;
    let log = secured.server.log();
    ensure!(log.contains("DEBUG"), "the canary needs debug logs");
    ensure!(log.contains("rotate_token"), "requests are in the log");
    places.push(("log", log));
    for secret in secrets {
        for (place, text) in &places {
            ensure!(!text.contains(&secret), "{place}: {secret}:\n{text}");
        }
    }
    secured.server.check_logs()
}

/// What was answered, and where a secret could show in it.
type Places = Vec<(&'static str, String)>;

async fn canaries_by_rest(admin: &Caller, places: &mut Places) -> Result<()> {
    let me = "GET /api/v1/me";
    for credential in [
        format!("Bearer {CANARY}"),
        format!("Bearer aqf_{CANARY}"),
        format!("Bearer {CANARY}.{CANARY}.{CANARY}"),
        format!("Basic {CANARY}"),
        CANARY.to_owned(),
    ] {
        let header = format!("authorization: {credential}");
        let answer = rest(&admin.http, me, &[&header], "").await?;
        ensure!(answer.status == 401, "{answer:?}");
        places.push(("refused credential", format!("{answer:?}")));
    }
    for name in ["cookie", "proxy-authorization", "x-api-key", "x-password"] {
        let header = format!("{name}: {CANARY}");
        let answer = admin.ask_with(&header, me, "").await?;
        ensure!(answer.status == 200, "{answer:?}");
        places.push(("header", format!("{answer:?}")));
    }
    let query = |path: &str| (format!("GET {path}={CANARY}"), String::new());
    let body = |text: &str| ("POST /api/v1/tokens".to_owned(), text.replace('*', CANARY));
    for ((request, body), status) in [
        (query("/api/v1/tenants?access_token"), 400),
        (query("/api/v1/tenants?pageSize"), 400),
        (query("/api/v1/tenants?pageToken"), 400),
        (query("/api/v1/nothing?password"), 404),
        (body(r#"{"name": "x", "password": "*"}"#), 400),
        (body(r#"{"name": "x", "lifetimeMs": "*"}"#), 400),
        (body(r#"{"name": "x", "tenant": {"secret": "*"}}"#), 400),
        (body(r#"{"name": "x", "secret": "*"#), 400),
        (body(r#"{"name": *}"#), 400),
    ] {
        let answer = admin.ask(&request, &body).await?;
        ensure!(answer.status == status, "{request} {body}: {answer:?}");
        places.push(("refused request", format!("{answer:?}")));
    }
    Ok(())
}

async fn canaries_by_grpc(secured: &Secured, places: &mut Places) -> Result<()> {
    let mut grpc = SecurityClient::connect(secured.server.url()).await?;
    for credential in ["Basic", "Bearer"] {
        let mut request = tonic::Request::new(v1::WhoAmIRequest {});
        let metadata = request.metadata_mut();
        metadata.insert("authorization", format!("{credential} {CANARY}").parse()?);
        metadata.insert("x-password", CANARY.parse()?);
        let refused = grpc.who_am_i(request).await.err();
        let refused = refused.context("it is no credential")?;
        ensure!(
            refused.code() == tonic::Code::Unauthenticated,
            "{refused:?}"
        );
        places.push(("status", format!("{refused:?}")));
    }
    let wrong = secured.path("wrong.token");
    fs::write(&wrong, format!("aqf_{CANARY}"))?;
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600))?;
    let why = secured.refused(Some(&wrong), &["topic", "list"])?;
    places.push(("errors", why));
    Ok(())
}
