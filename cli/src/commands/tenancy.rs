//! `aquifer tenant` and `aquifer namespace`: who may use the cluster, and by which policies.

use aquifer_model::policy::{NamespacePolicies, PolicyChanges};
use serde_json::json;

use crate::args::{NamespaceArgs, NamespaceCommand, PolicyArgs, TenantArgs, TenantCommand};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;

/// Runs `aquifer tenant`.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn tenant(args: TenantArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let admin = client.admin();
    match args.command {
        TenantCommand::Create { tenant } => {
            admin.create_tenant(&tenant).await?;
            match out.is_json() {
                true => out.object(&json!({"tenant": tenant})),
                false => out.line(format!("created {tenant}")),
            }
        }
        TenantCommand::List => list("tenant", admin.list_tenants().await?, out),
    }
}

/// Runs `aquifer namespace`.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn namespace(
    args: NamespaceArgs,
    connect: &Connect,
    out: &Output,
) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let admin = client.admin();
    match args.command {
        NamespaceCommand::Create {
            namespace,
            policies,
        } => {
            let namespace = namespace.to_string();
            let policies = admin
                .create_namespace(&namespace, changes(&policies))
                .await?;
            show(&namespace, policies, out)
        }
        NamespaceCommand::List { tenant } => {
            list("namespace", admin.list_namespaces(&tenant).await?, out)
        }
        NamespaceCommand::Show { namespace } => {
            let namespace = namespace.to_string();
            let policies = admin.get_namespace(&namespace).await?;
            show(&namespace, policies, out)
        }
        NamespaceCommand::Update {
            namespace,
            policies,
        } => {
            if policies == PolicyArgs::default() {
                let text = "nothing to change: give a policy, see aquifer namespace update --help";
                return Err(CliError::usage(text));
            }
            let namespace = namespace.to_string();
            let policies = admin
                .update_namespace(&namespace, changes(&policies))
                .await?;
            show(&namespace, policies, out)
        }
    }
}

fn list(what: &'static str, names: Vec<String>, out: &Output) -> Result<(), CliError> {
    for name in names {
        match out.is_json() {
            true => out.object(&json!({what: name}))?,
            false => out.line(name)?,
        }
    }
    Ok(())
}

/// What is given: only that changes.
fn changes(args: &PolicyArgs) -> PolicyChanges {
    PolicyChanges {
        quorum: args.quorum,
        retention_ms: args.retention_time,
        retention_bytes: args.retention_size,
        rollover_bytes: args.rollover_size,
        rollover_ms: args
            .rollover_time
            .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        rollover_entries: args.rollover_entries,
        deduplication: args.deduplication,
        auto_create_topics: args.auto_create_topics,
    }
}

fn show(namespace: &str, policies: NamespacePolicies, out: &Output) -> Result<(), CliError> {
    let NamespacePolicies {
        quorum,
        retention,
        rollover,
        deduplication,
        auto_create_topics,
    } = policies;
    if out.is_json() {
        return out.object(&json!({
            "namespace": namespace,
            "ensemble": quorum.ensemble(),
            "write_quorum": quorum.write(),
            "ack_quorum": quorum.ack(),
            "retention_ms": retention.time_ms,
            "retention_bytes": retention.size_bytes,
            "deduplication": deduplication,
            "auto_create_topics": auto_create_topics,
            "rollover_bytes": rollover.size_bytes,
            "rollover_ms": rollover.age_ms,
            "rollover_entries": rollover.entries,
        }));
    }
    let time =
        |ms: u64| humantime::format_duration(std::time::Duration::from_millis(ms)).to_string();
    let kept = match (retention.time_ms, retention.size_bytes) {
        (None, _) | (_, None) => "for ever".to_owned(),
        (Some(ms), Some(0)) => time(ms),
        (Some(ms), Some(bytes)) => format!("{}, and the newest {bytes} bytes", time(ms)),
    };
    let rows = [
        ("namespace", namespace.to_owned()),
        (
            "quorum",
            format!("{},{},{}", quorum.ensemble(), quorum.write(), quorum.ack()),
        ),
        ("retention", kept),
        ("deduplication", deduplication.to_string()),
        ("auto-create topics", auto_create_topics.to_string()),
        (
            "rollover",
            format!(
                "{} bytes, {} or {} entries",
                rollover.size_bytes,
                time(rollover.age_ms),
                rollover.entries
            ),
        ),
    ];
    for (name, value) in rows {
        out.line(format!("{name:<18} {value}"))?;
    }
    Ok(())
}
