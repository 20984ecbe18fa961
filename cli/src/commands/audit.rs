//! `aquifer audit`: shows, searches and checks the audit log.

mod chains;

use std::time::Duration;

use aquifer_client::security::Security;
use aquifer_model::id::Index;
use aquifer_model::place::{Place, rfc3339_ms};
use aquifer_runtime::clock::{Clock as _, SystemClock};
use aquifer_runtime::signing::{from_hex, to_hex};
use serde_json::{Map, Value, json};

use crate::args::{AuditCommand, AuditSearch};
use crate::commands::audit::chains::{Chains, Found};
use crate::connect::Connect;
use crate::exit::{CliError, Exit};
use crate::output::Output;

/// Lines asked for at once.
const PAGE_LINES: u32 = 1_000;
/// Bytes of a public key.
const KEY_BYTES: usize = 32;
/// The topic keeps lines for 400 days: those of the last 399 are there, also where clocks differ.
const KEPT_MS: u64 = 399 * 86_400_000;
/// How long one request waits for a line.
const WAIT: Duration = Duration::from_secs(20);

/// Runs the command.
///
/// # Errors
/// When the broker refuses it or cannot be reached; with exit code 1 when `verify` finds something.
pub async fn run(command: AuditCommand, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let security = client.security();
    match command {
        AuditCommand::Tail {
            lines,
            follow,
            tenant,
        } => tail(&security, tenant.as_deref(), lines, follow, out).await,
        AuditCommand::Search { wanted } => search(&security, &wanted, out).await,
        AuditCommand::Verify { from, key } => {
            let key = key.as_deref().map(public_key).transpose()?;
            verify(&security, from, key, out).await
        }
        AuditCommand::Key => show_key(&security, out).await,
    }
}

async fn tail(
    security: &Security,
    tenant: Option<&str>,
    lines: usize,
    follow: bool,
    out: &Output,
) -> Result<(), CliError> {
    let end = security
        .read_audit(tenant, (Place::Latest, None), 1, Duration::ZERO)
        .await?;
    let mut next = end.next;
    for line in newest(security, tenant, end.next, lines).await? {
        show(&line, out)?;
    }
    if !follow {
        return Ok(());
    }
    loop {
        out.flush()?;
        let page = security
            .read_audit(tenant, (Place::Index(next), None), PAGE_LINES, WAIT)
            .await?;
        note_missing(page.missing, out);
        page.lines.iter().try_for_each(|line| show(line, out))?;
        next = page.next;
    }
}

/// The newest lines before an index, oldest first: looked for in parts that double, since only some
/// lines may be about the tenant.
async fn newest(
    security: &Security,
    tenant: Option<&str>,
    end: Index,
    wanted: usize,
) -> Result<Vec<String>, CliError> {
    let mut found: Vec<String> = Vec::new();
    let (mut until, mut width) = (end.0, u64::from(PAGE_LINES));
    while found.len() < wanted && until > 0 {
        let from = until.saturating_sub(width);
        let (mut part, mut at) = (Vec::new(), from);
        while at < until {
            let part_of_it = (Place::Index(Index(at)), Some(Index(until)));
            let page = security
                .read_audit(tenant, part_of_it, PAGE_LINES, Duration::ZERO)
                .await?;
            part.extend(page.lines);
            if page.at_end || page.next.0 <= at {
                break;
            }
            at = page.next.0;
        }
        part.append(&mut found);
        found = part;
        (until, width) = (from, width.saturating_mul(2));
    }
    let more = found.len().saturating_sub(wanted);
    found.drain(..more);
    Ok(found)
}

/// Gives every line from a place on to a function, until it says that it has enough.
async fn each(
    security: &Security,
    tenant: Option<&str>,
    from: Place,
    out: &Output,
    mut take: impl FnMut(&str) -> Result<bool, CliError>,
) -> Result<u64, CliError> {
    let progress = out.progress("lines", None);
    let (mut from, mut missing) = (from, 0);
    loop {
        let page = security
            .read_audit(tenant, (from, None), PAGE_LINES, Duration::ZERO)
            .await?;
        missing += page.missing;
        progress.add(page.lines.len() as u64);
        for line in &page.lines {
            if !take(line)? {
                return Ok(missing);
            }
        }
        if page.at_end || from == Place::Index(page.next) {
            return Ok(missing);
        }
        from = Place::Index(page.next);
    }
}

async fn search(security: &Security, wanted: &AuditSearch, out: &Output) -> Result<(), CliError> {
    let mut left = wanted.count.unwrap_or(usize::MAX);
    let tenant = wanted.tenant.as_deref();
    let missing = each(security, tenant, wanted.from, out, |line| {
        if left > 0 && matches(wanted, &object_of(line)) {
            left -= 1;
            show(line, out)?;
        }
        Ok(left > 0)
    })
    .await?;
    note_missing(missing, out);
    Ok(())
}

/// Whether a line fulfils all conditions.
fn matches(wanted: &AuditSearch, line: &Map<String, Value>) -> bool {
    let is = |field: &str, value: &Option<String>| {
        let value = value.as_deref();
        value.is_none_or(|value| text(line, field) == value)
    };
    let about = wanted.resource.as_deref();
    is("principal", &wanted.principal)
        && is("request", &wanted.request)
        && is("outcome", &wanted.outcome)
        && is("request_id", &wanted.request_id)
        && about.is_none_or(|part| text(line, "resource").contains(part))
}

/// A public key from its hexadecimal digits.
fn public_key(text: &str) -> Result<Vec<u8>, CliError> {
    let key = from_hex(text).filter(|key| key.len() == KEY_BYTES);
    key.ok_or_else(|| CliError::usage("--key takes 64 hexadecimal digits, as `audit key` prints"))
}

async fn show_key(security: &Security, out: &Output) -> Result<(), CliError> {
    let key = security.audit_seal().await?.public_key;
    if key.is_empty() {
        return Err(CliError::failed("this broker signs no checkpoints"));
    }
    let key = to_hex(&key);
    match out.is_json() {
        true => out.object(&json!({ "key": key })),
        false => out.line(key),
    }
}

async fn verify(
    security: &Security,
    from: Place,
    key: Option<Vec<u8>>,
    out: &Output,
) -> Result<(), CliError> {
    // Before the lines, so that these have what it names.
    let seal = security.audit_seal().await?;
    let key = key.unwrap_or_else(|| seal.public_key.to_vec());
    let named = to_hex(&key);
    let kept_since_ms = SystemClock.wall_ms().saturating_sub(KEPT_MS);
    let kept_since_ms = (from == Place::Earliest).then_some(kept_since_ms);
    let mut chains = Chains::new(key, seal.ends, kept_since_ms);
    let missing = each(security, None, from, out, |line| {
        chains.take(line);
        Ok(true)
    })
    .await?;
    let found = chains.end();
    let is_whole = found.problems.is_empty() && missing == 0;
    if out.is_json() {
        out.object(&as_object(&found, missing, is_whole, &named))?;
    } else {
        for problem in &found.problems {
            let place = format!("chain {} line {}", problem.chain, problem.seq);
            out.line(format!("{place}: {}", problem.what))?;
        }
        if found.more_problems > 0 {
            out.line(format!("and {} more problems", found.more_problems))?;
        }
        let (lines, chains) = (found.lines, found.chains);
        let whole = match is_whole {
            true => "all in their places",
            false => "NOT whole",
        };
        out.line(format!("{lines} lines of {chains} chains: {whole}"))?;
        out.line(proof(&found, &named))?;
        if found.begin_later > 0 {
            let text = format!(
                "{} chains begin later than their first line: what was before it is trimmed, lies \
                 before the place that was given, or is missing",
                found.begin_later
            );
            out.line(text)?;
        }
        note_missing(missing, out);
    }
    match is_whole {
        true => Ok(()),
        false => Err(CliError::silent(Exit::Failed)),
    }
}

/// What was found, as an object.
fn as_object(found: &Found, missing: u64, is_whole: bool, key: &str) -> Value {
    let checkpoints = found.checkpoints.iter().map(
        |proved| json!({ "chain": proved.chain, "seq": proved.seq, "time_ms": proved.time_ms }),
    );
    let problems = found.problems.iter().map(
        |problem| json!({ "chain": problem.chain, "seq": problem.seq, "problem": problem.what }),
    );
    json!({
        "whole": is_whole,
        "lines": found.lines,
        "chains": found.chains,
        "unreadable": missing,
        "begin_later": found.begin_later,
        "key": key,
        "proved_lines": found.proved_lines,
        "unproved_lines": found.unproved_lines,
        "checkpoints": checkpoints.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
        "more_problems": found.more_problems,
    })
}

/// Up to where the lines are proved.
fn proof(found: &Found, key: &str) -> String {
    let newest = found.checkpoints.iter().max_by_key(|proved| proved.time_ms);
    let Some(newest) = newest else {
        return "no line is proved: there is no checkpoint".to_owned();
    };
    format!(
        "{} lines are proved by key {key}, up to the checkpoint of {} (chain {} line {}); {} lines \
         behind the last checkpoints are not",
        found.proved_lines,
        rfc3339_ms(newest.time_ms),
        newest.chain,
        newest.seq,
        found.unproved_lines,
    )
}

fn note_missing(missing: u64, out: &Output) {
    if missing > 0 {
        out.note(&format!(
            "{missing} places of the audit topic cannot be read"
        ));
    }
}

/// A line as an object; empty for what is not an object.
fn object_of(line: &str) -> Map<String, Value> {
    serde_json::from_str(line).unwrap_or_default()
}

/// A field as text: that of a number is its digits.
fn text(line: &Map<String, Value>, field: &str) -> String {
    match line.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(value) => value.to_string(),
    }
}

/// Prints a line: as it is, or for people.
fn show(line: &str, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        return out.line(line);
    }
    out.line(sentence(&object_of(line)))
}

/// `TIME PRINCIPAL REQUEST RESOURCE: OUTCOME (DETAIL)`.
fn sentence(line: &Map<String, Value>) -> String {
    let time = line.get("time_ms").and_then(Value::as_u64);
    let time = time.map_or_else(String::new, rfc3339_ms);
    let mut outcome = text(line, "outcome");
    if text(line, "decision") == "denied" {
        outcome = "denied".to_owned();
    }
    let mut said = format!(
        "{time} {} {} {}: {outcome}",
        text(line, "principal"),
        text(line, "request"),
        text(line, "resource"),
    );
    for field in ["error_code", "detail"] {
        let more = text(line, field);
        if !more.is_empty() {
            said.push_str(&format!(" ({more})"));
        }
    }
    let count = text(line, "count");
    if !count.is_empty() {
        said.push_str(&format!(" × {count}"));
    }
    // Names come from callers; what a terminal would obey is not printed.
    said.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "{\"chain\":\"b\",\"seq\":4,\"time_ms\":1700000000000,\"request_id\":17,\
        \"principal\":\"token:a\",\"request\":\"delete_topic\",\"resource\":\"topic acme/shop/x\",\
        \"decision\":\"allowed\",\"outcome\":\"failed\",\"error_code\":\"NotFound\"}";

    fn search_for(change: impl FnOnce(&mut AuditSearch)) -> bool {
        let mut wanted = AuditSearch {
            from: Place::Earliest,
            tenant: None,
            principal: None,
            request: None,
            resource: None,
            outcome: None,
            request_id: None,
            count: None,
        };
        change(&mut wanted);
        matches(&wanted, &object_of(LINE))
    }

    #[test]
    fn all_conditions_must_apply() {
        assert!(search_for(|_| ()));
        assert!(search_for(
            |wanted| wanted.resource = Some("shop/x".to_owned())
        ));
        assert!(search_for(
            |wanted| wanted.request_id = Some("17".to_owned())
        ));
        assert!(!search_for(
            |wanted| wanted.principal = Some("token".to_owned())
        ));
        assert!(!search_for(|wanted| {
            wanted.request = Some("delete_topic".to_owned());
            wanted.outcome = Some("done".to_owned());
        }));
    }

    #[test]
    fn a_line_for_people_obeys_no_caller() {
        let said = sentence(&object_of(LINE));
        let expected = "2023-11-14T22:13:20.000Z token:a delete_topic topic acme/shop/x: failed \
                        (NotFound)";
        assert_eq!(said, expected);
        let evil = "{\"principal\":\"x\\u001b[31m\\r\\n\"}";
        assert!(!sentence(&object_of(evil)).contains(['\u{1b}', '\r', '\n']));
    }
}
