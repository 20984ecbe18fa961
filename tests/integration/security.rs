//! Authentication and grants, as users meet them: a standalone server that demands tokens, two
//! tenants that share it, tokens that are revoked and rotated under running tools, and no trace of
//! a token where it does not belong.

mod acceptance;
pub mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aquifer_client::{Client, ClientError, Message};
use aquifer_harness::http;
use aquifer_harness::wait::until;

use self::support::{Secured, Tool, metrics, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_writes_an_administrators_token_and_others_are_told_what_to_do()
-> Result<()> {
    let mut secured = Secured::start().await?;
    let admin = secured.admin();
    // The server is ready with its first line, and says more behind it.
    until("the file of the token is named", async || {
        let printed = secured.server.printed();
        Ok(printed.contains(&text(&admin)).then_some(()))
    })
    .await?;
    let mode = fs::metadata(&admin)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let who = secured.as_admin(&["access", "whoami"])?;
    ensure!(who.starts_with("token:admin"), "{who}");
    secured.as_admin(&["produce", "t", "m"])?;

    for words in [
        &["topic", "list"][..],
        &["produce", "t", "m"],
        &["access", "whoami"],
    ] {
        let why = secured.refused(None, words)?;
        ensure!(why.contains("--token-file"), "{why}");
    }
    let wrong = secured.path("wrong.token");
    fs::write(&wrong, "aqf_nothing")?;
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600))?;
    let why = secured.refused(Some(&wrong), &["read", "t"])?;
    ensure!(!why.contains("aqf_nothing"), "{why}");

    let before = fs::read(&admin)?;
    secured.server.stop()?;
    secured.server.restart()?;
    ensure!(fs::read(&admin)? == before, "it is made once");
    ensure!(secured.as_admin(&["read", "t"])? == "m\n");
    secured.server.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_survives_restarts_and_is_checked() -> Result<()> {
    let mut secured = Secured::start().await?;
    let acme = secured.tenant("acme")?;
    secured.as_admin(&["topic", "create", "acme/shop/orders"])?;
    secured.refused(Some(&acme), &["topic", "delete", "acme/shop/orders"])?;
    secured.server.stop()?;
    secured.server.restart()?;
    secured.as_admin(&["topic", "delete", "acme/shop/orders"])?;

    let search = ["audit", "search", "--tenant", "acme", "--output", "json"];
    let deletions = [&search[..], &["--request", "delete_topic"]].concat();
    let found = until("the deletion is in the audit log", async || {
        let found = secured.as_admin(&deletions)?;
        Ok(found.contains("\"done\"").then_some(found))
    })
    .await?;
    let lines: Vec<serde_json::Value> = found
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let outcomes = lines.iter().map(|line| {
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        [text("principal"), text("decision"), text("outcome")].join(" ")
    });
    let expected = [
        "token:acme/app denied failed",
        "token:admin allowed intended",
        "token:admin allowed done",
    ];
    ensure!(outcomes.eq(expected), "{found}");
    ensure!(
        lines[0]["chain"] != lines[1]["chain"],
        "a process is a chain: {found}"
    );

    let verified = secured.as_admin(&["audit", "verify"])?;
    ensure!(
        verified.contains(" lines of 2 chains: all in their places"),
        "{verified}"
    );
    the_first_chain_is_proved(&secured)?;
    let tail = secured.as_admin(&["audit", "tail", "--lines", "1", "--tenant", "acme"])?;
    ensure!(
        tail.lines().count() == 1 && tail.contains("token:admin delete_topic topic"),
        "{tail}"
    );
    secured.refused(Some(&acme), &["audit", "tail"])?;
    secured.server.check_logs()
}

/// The first process has ended cleanly, and so with a checkpoint.
fn the_first_chain_is_proved(secured: &Secured) -> Result<()> {
    let key = secured.as_admin(&["audit", "key"])?;
    let key = key.trim();
    ensure!(key.len() == 64, "{key}");
    let verify = ["audit", "verify", "--output", "json"];
    let found = secured.as_admin(&[&verify[..], &["--key", key]].concat())?;
    let found: serde_json::Value = serde_json::from_str(&found)?;
    ensure!(found["whole"] == true && found["key"] == key, "{found}");
    let checkpoints = found["checkpoints"].as_array().context("a list")?;
    ensure!(!checkpoints.is_empty(), "{found}");
    ensure!(found["proved_lines"].as_u64() > Some(0), "{found}");

    let other = "0".repeat(64);
    let forged = [&verify[..], &["--key", other.as_str()]].concat();
    let forged = secured.run(Some(&secured.admin()), &forged)?;
    ensure!(forged.status.code() == Some(1), "{forged:?}");
    let found: serde_json::Value = serde_json::from_slice(&forged.stdout)?;
    let problem = found["problems"][0]["problem"].as_str().context("a text")?;
    ensure!(problem.contains("without the signature"), "{found}");
    let short = [&verify[..], &["--key", "00"]].concat();
    let short = secured.run(Some(&secured.admin()), &short)?;
    ensure!(short.status.code() == Some(2), "{short:?}");
    Ok(())
}

/// The same change by the command line, over gRPC, and over REST: what it leaves and what is
/// recorded of it differ in the protocol alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_the_same_by_the_command_line_and_by_rest() -> Result<()> {
    let secured = Secured::start().await?;
    secured.tenant("acme")?;
    secured.as_admin(&["topic", "create", "acme/shop/one", "--partitions", "2"])?;
    let token = fs::read_to_string(secured.admin())?;
    let shown = format!("authorization: Bearer {}", token.trim());
    let path = "/api/v1/tenants/acme/namespaces/shop/topics";
    let put = format!("PUT {path}/two");
    let body = r#"{"partitions": 2}"#;
    let made = http::rest(&secured.server.http(), &put, &[&shown], body).await?;
    ensure!(made.status == 201, "{made:?}");

    let mut described = Vec::new();
    for topic in ["one", "two"] {
        let get = format!("GET {path}/{topic}");
        let mut found = http::rest(&secured.server.http(), &get, &[&shown], "")
            .await?
            .body;
        for own in ["topic", "incarnation"] {
            found[own] = serde_json::Value::Null;
        }
        described.push(found);
    }
    ensure!(described[0] == described[1], "{described:?}");

    let search = ["audit", "search", "--tenant", "acme", "--output", "json"];
    let search = [&search[..], &["--request", "create_topic"]].concat();
    let lines = until("both are in the audit log", async || {
        let found = secured.as_admin(&search)?;
        let lines = found.lines().map(serde_json::from_str::<serde_json::Value>);
        let lines: Vec<_> = lines.collect::<Result<_, _>>()?;
        Ok((lines.len() == 4).then_some(lines))
    })
    .await?;
    let same = |line: &serde_json::Value| {
        let fields = [
            "principal",
            "auth_method",
            "action",
            "tenant",
            "decision",
            "grant",
            "outcome",
        ];
        fields.map(|field| line[field].clone())
    };
    ensure!(same(&lines[0]) == same(&lines[2]), "{lines:?}");
    ensure!(same(&lines[1]) == same(&lines[3]), "{lines:?}");
    ensure!(lines[0]["protocol"] != lines[2]["protocol"], "{lines:?}");
    secured.server.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_see_and_touch_what_they_were_granted() -> Result<()> {
    let secured = Secured::start().await?;
    let (acme, rival) = (secured.tenant("acme")?, secured.tenant("rival")?);
    let who = secured.succeeded(&acme, &["access", "whoami"])?;
    ensure!(who.starts_with("token:acme/app\n"), "{who}");
    secured.as_admin(&[
        "grant",
        "add",
        "token:rival/app",
        "developer",
        "--tenant",
        "rival",
    ])?;
    let orders = ["--topic", "acme/shop/orders*"];
    let grant = |role| [&["grant", "add", "token:acme/app", role][..], &orders].concat();
    secured.as_admin(&grant("producer"))?;
    let said = secured.as_admin(&[&grant("consumer")[..], &["--subscription", "app*"]].concat())?;
    ensure!(said.contains("may describe, consume on"), "{said}");
    ensure!(said.contains("(subscriptions app*)"), "{said}");

    // Within the stars.
    secured.succeeded(&acme, &["produce", "acme/shop/orders-eu", "one"])?;
    let consume = ["consume", "acme/shop/orders-eu", "-s"];
    let consumed = secured.succeeded(&acme, &[&consume[..], &["app-1"]].concat())?;
    ensure!(consumed == "one\n", "{consumed}");
    secured.refused(Some(&acme), &[&consume[..], &["audit"]].concat())?;
    secured.refused(Some(&acme), &["produce", "acme/shop/invoices", "x"])?;

    // What belongs to others and what does not exist are the same.
    secured.succeeded(&rival, &["produce", "rival/shop/plans", "secret"])?;
    for words in [&["read"][..], &["topic", "stats"], &["topic", "delete"]] {
        let of = |topic| secured.refused(Some(&acme), &[words, &[topic]].concat());
        let (foreign, absent) = (of("rival/shop/plans")?, of("rival/shop/nothing")?);
        ensure!(
            foreign.replace("plans", "nothing") == absent,
            "{foreign}\n{absent}"
        );
        ensure!(foreign.contains("aquifer access whoami"), "{foreign}");
    }

    // Lists have what may be described.
    secured.as_admin(&["topic", "create", "acme/shop/invoices"])?;
    let topics = secured.succeeded(&acme, &["topic", "list", "acme/shop"])?;
    ensure!(
        topics.contains("orders-eu") && !topics.contains("invoices"),
        "{topics}"
    );
    let all = secured.as_admin(&["topic", "list", "acme/shop"])?;
    ensure!(all.contains("invoices"), "{all}");

    // Questions and their exit codes.
    let check = [
        "access",
        "check",
        "token:acme/app",
        "consume",
        "acme/shop/orders-eu",
    ];
    let yes = secured.as_admin(&[&check[..], &["--subscription", "app-2"]].concat())?;
    ensure!(yes.starts_with("yes: "), "{yes}");
    let no = [&check[..], &["--subscription", "audit"]].concat();
    let no = secured.run(Some(&secured.admin()), &no)?;
    ensure!(no.status.code() == Some(5), "{no:?}");
    ensure!(
        no.stdout.starts_with(b"no: ") && no.stderr.is_empty(),
        "{no:?}"
    );

    // A grant that is taken back.
    let listed = secured.as_admin(&["grant", "list", "--tenant", "acme", "--output", "json"])?;
    for line in listed.lines() {
        let grant: serde_json::Value = serde_json::from_str(line)?;
        let id = grant["id"].as_str().context("an id")?;
        secured.as_admin(&["grant", "remove", id, "--tenant", "acme"])?;
    }
    until("the grants are gone", async || {
        let output = secured.run(Some(&acme), &["produce", "acme/shop/orders-eu", "two"])?;
        Ok((output.status.code() == Some(5)).then_some(()))
    })
    .await?;
    secured.server.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_ends_tools_that_run_with_it() -> Result<()> {
    let secured = Secured::start().await?;
    let acme = secured.tenant("acme")?;
    secured.as_admin(&[
        "grant",
        "add",
        "token:acme/app",
        "developer",
        "--tenant",
        "acme",
    ])?;
    let topic = "acme/shop/orders";
    let consume = ["consume", topic, "-s", "s", "--follow"];
    let consume = Tool::start(&secured, "consume", &acme, &consume)?;
    let produce = ["produce", topic, "--output", "json"];
    let produce = Tool::start(&secured, "produce", &acme, &produce)?;
    produce.tell("it-runs");
    produce.prints("position").await?;
    let admin = fs::read_to_string(secured.admin())?;
    consume.prints("it-runs").await?;

    let id = secured.id_of(&acme)?;
    let revoked = secured.as_admin(&["token", "revoke", &id])?;
    ensure!(revoked.contains("revoked"), "{revoked}");
    for tool in [&consume, &produce] {
        let status = until("a tool without a token ends", async || {
            // One that waits for input learns of it when there is some.
            tool.tell("more");
            tool.status()
        })
        .await?;
        ensure!(status.code() == Some(5), "{status}: {}", tool.said());
        ensure!(tool.said().contains("credential"), "{}", tool.said());
    }
    let listed = secured.as_admin(&["token", "list", "--tenant", "acme"])?;
    ensure!(listed.contains("revoked"), "{listed}");
    ensure!(!listed.contains(admin.trim()), "{listed}");

    // A program is told the same.
    let client = Client::builder()
        .url(secured.server.url())
        .token_file(&acme);
    let error = client.build()?.connect().await.unwrap_err();
    ensure!(
        matches!(error, ClientError::Unauthenticated(_)),
        "{error:?}"
    );
    secured.server.check_logs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_replaced_in_its_file_leaves_no_gap() -> Result<()> {
    let secured = Secured::start().await?;
    let file = secured.tenant("acme")?;
    secured.as_admin(&[
        "grant",
        "add",
        "token:acme/app",
        "developer",
        "--tenant",
        "acme",
    ])?;
    let topic = "acme/shop/orders";
    let consume = ["consume", topic, "-s", "s", "--follow"];
    let consume = Tool::start(&secured, "consume", &file, &consume)?;
    let client = Client::builder()
        .url(secured.server.url())
        .token_file(&file);
    let producer = client.build()?.producer(topic).open().await?;
    producer.send(Message::new("message-0")).await?;
    consume.prints("message-0").await?;

    let stale = secured.path("stale.token");
    for round in 1..4 {
        // Another token takes the place of the former one, which is then revoked.
        let name = format!("app-{round}");
        let next = text(&secured.path(&format!("{name}.token")));
        let create = [
            "token",
            "create",
            &name,
            "--tenant",
            "acme",
            "--to-file",
            &next,
        ];
        secured.as_admin(&create)?;
        let principal = format!("token:acme/{name}");
        secured.as_admin(&["grant", "add", &principal, "developer", "--tenant", "acme"])?;
        let former = secured.id_of(&file)?;
        fs::rename(&file, &stale)?;
        fs::rename(&next, &file)?;
        secured.as_admin(&["token", "revoke", &former])?;
        secured.refused(Some(&stale), &["read", topic])?;
        let payload = format!("message-{round}");
        producer.send(Message::new(payload.clone())).await?;
        consume.prints(&payload).await?;
    }
    let printed = fs::read_to_string(&consume.out)?;
    let expected = "message-0\nmessage-1\nmessage-2\nmessage-3\n";
    ensure!(printed == expected, "{printed}");
    rotate_in_its_file(&secured, &file, topic)?;
    secured.server.check_logs()
}

/// The same token gets another text, in the same file.
fn rotate_in_its_file(secured: &Secured, file: &Path, topic: &str) -> Result<()> {
    let stale = secured.path("stale.token");
    let (id, former) = (secured.id_of(file)?, fs::read_to_string(file)?);
    let to_file = text(file);
    let rotate = [
        "token",
        "rotate",
        &id,
        "--grace",
        "0s",
        "--to-file",
        &to_file,
    ];
    secured.as_admin(&rotate)?;
    ensure!(secured.id_of(file)? == id && fs::read_to_string(file)? != former);
    fs::write(&stale, former)?;
    secured.refused(Some(&stale), &["read", topic])?;
    secured.succeeded(file, &["read", topic])?;
    let other = text(&stale);
    let foreign = [
        "token",
        "rotate",
        "aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "--to-file",
        &other,
    ];
    let output = secured.run(Some(&secured.admin()), &foreign)?;
    ensure!(
        output.status.code() == Some(1),
        "it is another token's file: {output:?}"
    );
    Ok(())
}

/// Every place that a token could leak to is searched for its secret part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_shows_nowhere() -> Result<()> {
    let secured = Secured::start().await?;
    let acme = secured.tenant("acme")?;
    secured.as_admin(&[
        "grant",
        "add",
        "token:acme/app",
        "developer",
        "--tenant",
        "acme",
    ])?;
    let topic = "acme/shop/orders";
    let consume = ["consume", topic, "-s", "s", "--follow"];
    let consume = Tool::start(&secured, "consume", &acme, &consume)?;
    secured.succeeded(&acme, &["produce", topic, "canary"])?;
    consume.prints("canary").await?;
    let mut places = Vec::new();
    for pid in [secured.server.id()?, i32::try_from(consume.child().id())?] {
        let arguments = fs::read(format!("/proc/{pid}/cmdline"))?;
        places.push((
            "arguments",
            String::from_utf8_lossy(&arguments).into_owned(),
        ));
    }
    let admin_token = fs::read_to_string(secured.admin())?;
    let metrics = metrics(&secured.server, admin_token.trim()).await?;
    places.push(("metrics", metrics));
    for words in [
        &["access", "whoami", "--output", "json"][..],
        &["token", "list", "--tenant", "acme", "--output", "json"],
        &["grant", "list", "--tenant", "acme"],
        &["token", "inspect", &text(&acme)],
    ] {
        let output = secured.run(Some(&secured.admin()), words)?;
        places.push((
            "output",
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ));
        places.push((
            "errors",
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    let check = ["standalone", "--auth", "--check-config"];
    let check = secured.run(None, &check)?;
    ensure!(check.status.success(), "{check:?}");
    places.push((
        "configuration",
        String::from_utf8_lossy(&check.stdout).into_owned(),
    ));
    // A caller that is refused leaves its token in no log either.
    let wrong = secured.path("wrong.token");
    let refused = format!("{}x", fs::read_to_string(&acme)?.trim());
    fs::write(&wrong, &refused)?;
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600))?;
    let why = secured.refused(Some(&wrong), &["read", topic])?;
    places.push(("refusal", why));
    places.push(("tool", consume.said()));
    let log = secured.server.log();
    ensure!(
        log.contains("DEBUG") || log.contains("debug"),
        "the canary needs debug logs"
    );
    places.push(("log", log));
    places.push(("greeting", secured.server.printed()));
    for token in [fs::read_to_string(&acme)?, admin_token] {
        // Behind the id, which is no secret.
        let secret = token.get(31..47).context("it is long")?;
        for (place, text) in &places {
            ensure!(!text.contains(secret), "the {place} show a token:\n{text}");
        }
    }
    secured.server.check_logs()
}
