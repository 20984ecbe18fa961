//! `aquifer grant` and `aquifer access`: gives grants, and says what is allowed.

use std::time::{Duration, UNIX_EPOCH};

use aquifer_client::security::{Allows, Grant, GrantScope, Identity, NewGrant, Security};
use serde_json::{Value, json};

use crate::args::{AccessCommand, GrantCommand, ScopeArgs};
use crate::connect::Connect;
use crate::exit::{CliError, Exit};
use crate::output::{Output, Table};

/// Every subscription.
const ALL: &str = "*";

/// Runs `aquifer grant`.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn grant(command: GrantCommand, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let security = client.security();
    match command {
        GrantCommand::Add {
            principal,
            role,
            actions,
            scope,
            subscription,
            expires,
        } => {
            let grant = NewGrant {
                principal,
                allows: role.map_or(Allows::Actions(actions), Allows::Role),
                scope: scope_of(&scope),
                subscriptions: subscription,
                lifetime: expires,
            };
            let grant = security.add_grant(grant).await?;
            match out.is_json() {
                true => out.object(&object(&grant)),
                false => out.line(sentence(&grant)),
            }
        }
        GrantCommand::List { scope, principal } => {
            let grants = security
                .list_grants(Some(&scope_of(&scope)), principal.as_deref())
                .await?;
            if out.is_json() {
                return grants
                    .iter()
                    .try_for_each(|grant| out.object(&object(grant)));
            }
            out.table(&table(&grants))
        }
        GrantCommand::Remove { id, tenant } => {
            let scope = match tenant {
                Some(tenant) => GrantScope::Tenant(tenant),
                None => found(&security, &id).await?,
            };
            security.remove_grant(&id, &scope).await?;
            match out.is_json() {
                true => out.object(&json!({"id": id, "removed": true})),
                false => out.line(format!("grant {id} is removed")),
            }
        }
    }
}

fn scope_of(args: &ScopeArgs) -> GrantScope {
    args.scope().unwrap_or(GrantScope::Cluster)
}

/// Where a grant is.
async fn found(security: &Security, id: &str) -> Result<GrantScope, CliError> {
    let hint = |error: CliError| error.advise("name the tenant that it is in with --tenant");
    let grants = security.list_grants(Some(&GrantScope::Cluster), None).await;
    let grants = grants.map_err(|error| hint(error.into()))?;
    let grant = grants.into_iter().find(|grant| grant.id == id);
    grant.map(|grant| grant.scope).ok_or_else(|| {
        hint(CliError::failed(format!(
            "there is no grant {id} that you may list"
        )))
    })
}

/// Runs `aquifer access`.
///
/// # Errors
/// When the broker refuses it or cannot be reached; with exit code 5 when the answer is no.
pub async fn access(
    command: AccessCommand,
    connect: &Connect,
    out: &Output,
) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let security = client.security();
    match command {
        AccessCommand::Check {
            principal,
            action,
            resource,
            subscription,
        } => {
            let subscription = subscription.as_deref();
            let asked = Some(principal.as_str());
            let decision = security
                .check_access(asked, &action, &resource, subscription)
                .await?;
            if out.is_json() {
                out.object(&json!({
                    "allowed": decision.allowed,
                    "grant": decision.grant,
                    "reason": decision.reason,
                }))?;
            } else {
                let answer = if decision.allowed { "yes" } else { "no" };
                out.line(format!("{answer}: {}", decision.reason))?;
            }
            match decision.allowed {
                true => Ok(()),
                false => Err(CliError::silent(Exit::Refused)),
            }
        }
        AccessCommand::Whoami => whoami(&security.who_am_i().await?, out),
    }
}

fn whoami(identity: &Identity, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        return out.object(&json!({
            "principal": identity.principal,
            "groups": identity.groups,
            "super_user": identity.super_user,
            "expires_ms": identity.expires_ms,
            "grants": identity.grants.iter().map(object).collect::<Vec<_>>(),
            "more_grants": identity.more_grants,
        }));
    }
    let Some(principal) = &identity.principal else {
        return out.line("authentication is off: everything is allowed");
    };
    let may = if identity.super_user {
        ", may do everything"
    } else {
        ""
    };
    out.line(format!("{principal}{may}"))?;
    if !identity.groups.is_empty() {
        out.line(format!("groups: {}", identity.groups.join(", ")))?;
    }
    if let Some(at) = identity.expires_ms {
        out.line(format!("the credential expires {}", date(at)))?;
    }
    match (identity.grants.is_empty(), identity.super_user) {
        (false, _) => {
            out.table(&table(&identity.grants))?;
            match identity.more_grants {
                true => out.line(format!(
                    "not all are shown: see `aquifer grant list --principal {principal}`"
                )),
                false => Ok(()),
            }
        }
        (true, true) => Ok(()),
        (true, false) => {
            out.line("nothing was granted: ask an administrator for `aquifer grant add`")
        }
    }
}

/// What a grant says.
fn sentence(grant: &Grant) -> String {
    let subscriptions = match grant.subscriptions.as_str() {
        "" | ALL => String::new(),
        some => format!(" (subscriptions {some})"),
    };
    let until = grant.expires_ms.map(|at| format!(" until {}", date(at)));
    format!(
        "grant {}: {} may {} on {}{subscriptions}{}",
        grant.id,
        grant.principal,
        grant.actions.join(", "),
        grant.scope,
        until.unwrap_or_default()
    )
}

fn object(grant: &Grant) -> Value {
    json!({
        "id": grant.id,
        "principal": grant.principal,
        "role": grant.role,
        "actions": grant.actions,
        "scope": grant.scope.to_string(),
        "subscriptions": grant.subscriptions,
        "created_ms": grant.created_ms,
        "created_by": grant.created_by,
        "expires_ms": grant.expires_ms,
    })
}

fn table(grants: &[Grant]) -> Table {
    let mut table = Table::new([
        "id",
        "principal",
        "role",
        "actions",
        "scope",
        "subscriptions",
        "expires",
    ]);
    for grant in grants {
        table.row([
            grant.id.clone(),
            grant.principal.clone(),
            grant.role.clone().unwrap_or_else(|| "-".to_owned()),
            grant.actions.join(","),
            grant.scope.to_string(),
            grant.subscriptions.clone(),
            grant.expires_ms.map_or("never".to_owned(), date),
        ]);
    }
    table
}

/// A time of a broker, for people.
pub fn date(ms: u64) -> String {
    // Larger numbers than a date can have are "never" to people.
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    let largest = Duration::from_secs(253_402_300_799);
    match at {
        Some(at) if ms / 1_000 <= largest.as_secs() => {
            humantime::format_rfc3339_seconds(at).to_string()
        }
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn billing() -> Grant {
        Grant {
            id: "7f2".to_owned(),
            principal: "token:acme/billing".to_owned(),
            role: Some("consumer".to_owned()),
            actions: vec!["describe".to_owned(), "consume".to_owned()],
            scope: "acme/shop/orders*".parse().unwrap(),
            subscriptions: "billing*".to_owned(),
            created_ms: 0,
            created_by: "token:admin".to_owned(),
            expires_ms: None,
        }
    }

    #[test]
    fn grants_are_told_in_a_sentence_and_listed_in_a_table() {
        assert_eq!(
            sentence(&billing()),
            "grant 7f2: token:acme/billing may describe, consume on acme/shop/orders* \
             (subscriptions billing*)"
        );
        let everywhere = Grant {
            role: None,
            scope: GrantScope::Cluster,
            subscriptions: ALL.to_owned(),
            expires_ms: Some(86_400_000),
            ..billing()
        };
        assert_eq!(
            sentence(&everywhere),
            "grant 7f2: token:acme/billing may describe, consume on cluster until \
             1970-01-02T00:00:00Z"
        );
        let lines = table(&[billing(), everywhere]).lines();
        assert!(lines[0].starts_with("id   principal"), "{}", lines[0]);
        assert!(
            lines[1].ends_with("acme/shop/orders*  billing*       never"),
            "{}",
            lines[1]
        );
        assert!(
            lines[2].contains("  -         describe,consume"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn dates_never_panic() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(u64::MAX), "never");
    }
}
