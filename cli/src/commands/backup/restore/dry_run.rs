//! `aquifer backup restore --dry-run`: what a restore would do, in its order. Nothing is changed.

use std::collections::BTreeSet;

use aquifer_client::Admin;
use aquifer_cold::backup::Lists;
use aquifer_model::policy::{Policies, PolicyScope};
use aquifer_model::topic::TopicName;
use aquifer_proto::v1;
use serde_json::json;

use crate::args::NewName;
use crate::commands::backup::restore::{Scopes, Topic, Wanted, exists, policies_of};
use crate::commands::backup::topics::{topics_table, totals_of};
use crate::exit::CliError;
use crate::output::{Output, Table};

const CREATED: &str = "would be created";
const EXISTS: &str = "exists";
const RESTORED: &str = "would be restored";

/// A tenant, a namespace, or policies.
struct Row {
    what: &'static str,
    name: String,
    outcome: &'static str,
}

/// What comes back of topics.
#[derive(Default)]
struct Total {
    topics: u64,
    messages: u64,
    bytes: u64,
    ledgers: u64,
    subscriptions: u64,
    copied_bytes: u64,
}

pub(super) async fn run(
    lists: &Lists,
    scopes: &Scopes<'_>,
    topics: &[Topic<'_>],
    wanted: &Wanted,
    admin: &Admin,
    out: &Output,
) -> Result<(), CliError> {
    let mut rows = of_scopes(scopes, wanted.new_name.as_ref(), admin).await?;
    let there = there(topics, admin).await?;
    for topic in topics {
        let scope = PolicyScope::Topic(topic.target().clone());
        if topic.name.partition().is_none() && !there.contains(topic.target()) {
            rows.extend(policies(&scope, topic.entry.policies.clone(), None)?);
        }
    }
    show(&rows, out)?;
    access(lists, wanted, out)?;
    show_topics(topics, &there, out)
}

/// Tenants and namespaces with their policies.
async fn of_scopes(
    scopes: &Scopes<'_>,
    new_name: Option<&NewName>,
    admin: &Admin,
) -> Result<Vec<Row>, CliError> {
    let tenants: BTreeSet<String> = admin.list_tenants().await?.into_iter().collect();
    let mut namespaces: BTreeSet<String> = BTreeSet::new();
    let wanted = scopes.namespaces.iter().map(|(name, _)| name.tenant());
    let wanted = wanted.map(|tenant| new_name.map_or(tenant, NewName::tenant));
    for tenant in wanted.collect::<BTreeSet<&str>>() {
        if tenants.contains(tenant) {
            namespaces.extend(admin.list_namespaces(tenant).await?);
        }
    }
    let mut rows = Vec::new();
    for tenant in &scopes.tenants {
        let name = new_name.map_or(tenant.tenant.as_str(), NewName::tenant);
        let is_there = tenants.contains(name);
        rows.push(row("tenant", name, is_there));
        if new_name.is_none_or(NewName::is_of_tenant) {
            let scope = PolicyScope::Tenant(name.to_owned());
            let own = own(&scope, is_there, admin).await?;
            rows.extend(policies(&scope, tenant.policies.clone(), own)?);
        }
    }
    for (name, namespace) in &scopes.namespaces {
        let name = Scopes::name_of(name, new_name)?;
        let text = name.to_string();
        let is_there = namespaces.contains(&text);
        rows.push(row("namespace", &text, is_there));
        if !is_there || new_name.is_none_or(NewName::is_of_namespace) {
            let scope = PolicyScope::Namespace(name);
            let own = own(&scope, is_there, admin).await?;
            rows.extend(policies(&scope, namespace.policies.clone(), own)?);
        }
    }
    Ok(rows)
}

fn row(what: &'static str, name: &str, is_there: bool) -> Row {
    Row {
        what,
        name: name.to_owned(),
        outcome: match is_there {
            true => EXISTS,
            false => CREATED,
        },
    }
}

/// The policies that are set there; `None`: none are.
async fn own(
    scope: &PolicyScope,
    is_there: bool,
    admin: &Admin,
) -> Result<Option<Policies>, CliError> {
    if !is_there {
        return Ok(None);
    }
    let view = admin.get_policies(scope).await?;
    Ok((view.version != 0).then_some(view.own))
}

/// What becomes of policies of the backup, where it has some.
fn policies(
    scope: &PolicyScope,
    saved: Option<v1::Policies>,
    own: Option<Policies>,
) -> Result<Option<Row>, CliError> {
    let saved = policies_of(saved)?;
    if saved == Policies::default() {
        return Ok(None);
    }
    let outcome = match own {
        None => "would be set",
        Some(own) if own == saved => "set",
        Some(_) => "kept",
    };
    Ok(Some(Row {
        what: "policies",
        name: scope.to_string(),
        outcome,
    }))
}

fn show(rows: &[Row], out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        let mut rows = rows.iter();
        return rows
            .try_for_each(|row| out.object(&json!({row.what: row.name, "outcome": row.outcome})));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(["what", "name", "outcome"]);
    for row in rows {
        let outcome = match row.outcome {
            "kept" => "differ from those of the backup, and stay",
            "set" => "are those of the backup",
            outcome => outcome,
        };
        table.row([row.what.to_owned(), row.name.clone(), outcome.to_owned()]);
    }
    out.table(&table)
}

/// Revocations, tokens, grants and roles of the backup, as far as they are asked for.
fn access(lists: &Lists, wanted: &Wanted, out: &Output) -> Result<(), CliError> {
    if wanted.topic.is_some() || lists.access.is_empty() {
        return Ok(());
    }
    let is_wanted = |of: &str| wanted.tenant.as_deref().is_none_or(|tenant| of == tenant);
    let tokens = lists.tokens.iter().filter_map(|item| item.token.as_ref());
    let tokens = tokens.filter(|token| is_wanted(&token.tenant)).count();
    let grants = lists.grants.iter().filter_map(|item| item.grant.as_ref());
    let grants = grants.filter(|grant| is_wanted(&grant.tenant)).count();
    let roles = lists.roles.iter().filter(|role| is_wanted(&role.tenant));
    let (roles, revocations) = (roles.count(), lists.revocations.len());
    if out.is_json() {
        return out.object(&json!({
            "revocations": revocations,
            "tokens": tokens,
            "grants": grants,
            "roles": roles,
            "outcome": match wanted.access {
                true => RESTORED,
                false => "left out",
            },
        }));
    }
    let end = match wanted.access {
        true => "would be restored where nothing stands in their place, and you may give them",
        false => "stay in the backup without --access",
    };
    out.line(format!(
        "{revocations} revocations, {tokens} tokens, {grants} grants and {roles} roles {end}"
    ))
}

/// The topics that are in the cluster, with their partitions.
async fn there(topics: &[Topic<'_>], admin: &Admin) -> Result<BTreeSet<TopicName>, CliError> {
    let mut there: BTreeSet<TopicName> = BTreeSet::new();
    for topic in topics {
        let target = topic.target();
        let is_there = match target.partition() {
            Some(_) => there.contains(&target.base()),
            None => exists(target, admin).await?,
        };
        if is_there {
            there.insert(target.clone());
        }
    }
    Ok(there)
}

fn show_topics(
    topics: &[Topic<'_>],
    there: &BTreeSet<TopicName>,
    out: &Output,
) -> Result<(), CliError> {
    let (mut rows, mut total) = (Vec::new(), Total::default());
    for topic in topics {
        let totals = totals_of(topic.entry);
        let state = match there.contains(topic.target()) {
            true => EXISTS,
            false => {
                total.topics += u64::from(topic.name.partition().is_none());
                total.messages += totals.end.0.saturating_sub(totals.first.0);
                total.bytes += totals.bytes;
                total.ledgers += totals.ledgers;
                total.subscriptions += totals.subscriptions;
                if topic.new_name.is_some() {
                    total.copied_bytes += totals.bytes;
                }
                RESTORED
            }
        };
        rows.push((topic, state.to_owned(), totals));
    }
    let Total {
        topics,
        messages,
        bytes,
        ledgers,
        subscriptions,
        copied_bytes,
    } = total;
    if out.is_json() {
        for (topic, state, totals) in &rows {
            out.object(&topic.object(state, totals))?;
        }
        return out.object(&json!({"total": {
            "topics": topics,
            "messages": messages,
            "bytes": bytes,
            "ledgers": ledgers,
            "subscriptions": subscriptions,
            "copied_bytes": copied_bytes,
        }}));
    }
    if !rows.is_empty() {
        let rows = rows.into_iter();
        let rows = rows.map(|(topic, state, totals)| (topic.said(), state, totals));
        out.table(&topics_table(rows))?;
    }
    out.line(format!(
        "{topics} topics, {messages} messages, {bytes} bytes in {ledgers} ledgers, {subscriptions} \
         subscriptions; {}",
        match copied_bytes {
            0 => "no bytes are copied: they are read from the objects of the backup".to_owned(),
            copied => format!("{copied} bytes are written again, under their new names"),
        }
    ))?;
    out.line("messages that are not acknowledged in the backup are delivered again")
}
