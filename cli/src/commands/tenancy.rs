//! `aquifer tenant` and `aquifer namespace`: creates and lists them, and their policies.

use aquifer_client::admin::{DeleteOptions, Removed};
use aquifer_model::policy::PolicyScope;
use serde_json::json;

use crate::args::{DeleteArgs, NamespaceArgs, NamespaceCommand, TenantArgs, TenantCommand};
use crate::commands::policy;
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
        TenantCommand::Policy(command) => policy::run(command, policy::tenant, &admin, out).await,
        TenantCommand::Delete { tenant, how } => {
            let removed = admin.delete_tenant(&tenant, options(how)).await?;
            let goes = format!(
                "{} namespaces, {} topics",
                removed.namespaces, removed.topics
            );
            deleted("tenant", &tenant, removed, &goes, how, out)
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
            // Parts that are not given are as they are inherited.
            let tenant = PolicyScope::Tenant(namespace.tenant().to_owned());
            let said = policy::said(&policies, &admin.get_policies(&tenant).await?);
            let view = admin.create_namespace(&namespace.to_string(), said).await?;
            policy::show_effective(&view, out)
        }
        NamespaceCommand::List { tenant } => {
            list("namespace", admin.list_namespaces(&tenant).await?, out)
        }
        NamespaceCommand::Delete { namespace, how } => {
            let name = namespace.to_string();
            let removed = admin.delete_namespace(&name, options(how)).await?;
            let goes = format!("{} topics", removed.topics);
            deleted("namespace", &name, removed, &goes, how, out)
        }
        NamespaceCommand::Show { namespace } => {
            let view = admin
                .get_policies(&PolicyScope::Namespace(namespace))
                .await?;
            policy::show_effective(&view, out)
        }
        NamespaceCommand::Policy(command) => {
            policy::run(command, policy::namespace, &admin, out).await
        }
    }
}

fn options(how: DeleteArgs) -> DeleteOptions {
    DeleteOptions {
        force: how.force,
        dry_run: how.dry_run,
    }
}

/// What was deleted, or would be.
fn deleted(
    what: &'static str,
    name: &str,
    removed: Removed,
    goes: &str,
    how: DeleteArgs,
    out: &Output,
) -> Result<(), CliError> {
    if out.is_json() {
        return out.object(&json!({
            what: name,
            "deleted": !how.dry_run,
            "namespaces": removed.namespaces,
            "topics": removed.topics,
        }));
    }
    out.line(match how.dry_run {
        true => format!("{what} {name} has {goes}; nothing is deleted"),
        false => format!("deleted {what} {name}: {goes}"),
    })
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
