//! `aquifer tenant` and `aquifer namespace`: creates and lists them, and their policies.

use aquifer_model::policy::PolicyScope;
use serde_json::json;

use crate::args::{NamespaceArgs, NamespaceCommand, TenantArgs, TenantCommand};
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

fn list(what: &'static str, names: Vec<String>, out: &Output) -> Result<(), CliError> {
    for name in names {
        match out.is_json() {
            true => out.object(&json!({what: name}))?,
            false => out.line(name)?,
        }
    }
    Ok(())
}
