//! `aquifer role`: makes, lists, changes and deletes roles that are not built in.

use aquifer_client::security::Role;
use serde_json::{Value, json};

use crate::args::RoleCommand;
use crate::commands::security::date;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::{Output, Table};

/// Runs the command.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn run(command: RoleCommand, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let security = client.security();
    match command {
        RoleCommand::Create {
            name,
            tenant,
            actions,
        } => {
            let made = security.create_role(&name, tenant.as_deref(), &actions);
            show(&made.await?, out)
        }
        RoleCommand::Update {
            name,
            tenant,
            actions,
        } => {
            let changed = security.update_role(&name, tenant.as_deref(), &actions);
            show(&changed.await?, out)
        }
        RoleCommand::Show { name, tenant } => {
            let found = security.get_role(&name, tenant.as_deref()).await?;
            show(&found, out)
        }
        RoleCommand::List { tenant } => {
            let roles = security.list_roles(tenant.as_deref()).await?;
            match out.is_json() {
                true => roles.iter().try_for_each(|role| out.object(&object(role))),
                false => out.table(&table(&roles)),
            }
        }
        RoleCommand::Delete { name, tenant } => {
            security.delete_role(&name, tenant.as_deref()).await?;
            match out.is_json() {
                true => out.object(&json!({"name": name, "tenant": tenant, "deleted": true})),
                false => out.line(format!("role {name} is deleted")),
            }
        }
    }
}

fn show(role: &Role, out: &Output) -> Result<(), CliError> {
    match out.is_json() {
        true => out.object(&object(role)),
        false => out.line(sentence(role)),
    }
}

fn sentence(role: &Role) -> String {
    let of = match (&role.tenant, role.built_in) {
        (_, true) => "built in".to_owned(),
        (Some(tenant), false) => format!("of tenant {tenant}"),
        (None, false) => "of the cluster".to_owned(),
    };
    format!("role {}, {of}: {}", role.name, role.actions.join(", "))
}

fn object(role: &Role) -> Value {
    json!({
        "name": role.name,
        "tenant": role.tenant,
        "actions": role.actions,
        "built_in": role.built_in,
        "created_ms": role.created_ms,
        "created_by": role.created_by,
    })
}

fn table(roles: &[Role]) -> Table {
    let mut table = Table::new(["role", "of", "actions", "created", "by"]);
    for role in roles {
        let (of, created) = match (&role.tenant, role.built_in) {
            (_, true) => ("built in".to_owned(), "-".to_owned()),
            (Some(tenant), false) => (format!("tenant {tenant}"), date(role.created_ms)),
            (None, false) => ("cluster".to_owned(), date(role.created_ms)),
        };
        let by = match role.created_by.as_str() {
            "" => "-",
            by => by,
        };
        let actions = role.actions.join(",");
        table.row([role.name.clone(), of, actions, created, by.to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_told_in_a_sentence_and_listed_in_a_table() {
        let reader = Role {
            name: "reader".to_owned(),
            tenant: Some("acme".to_owned()),
            actions: vec!["describe".to_owned(), "consume".to_owned()],
            built_in: false,
            created_ms: 0,
            created_by: "token:admin".to_owned(),
        };
        let said = "role reader, of tenant acme: describe, consume";
        assert_eq!(sentence(&reader), said);
        let viewer = Role {
            name: "viewer".to_owned(),
            tenant: None,
            actions: vec!["describe".to_owned()],
            built_in: true,
            created_ms: 0,
            created_by: String::new(),
        };
        let lines = table(&[reader, viewer]).lines();
        assert!(lines[1].starts_with("reader  tenant acme"), "{}", lines[1]);
        assert!(lines[1].ends_with("token:admin"), "{}", lines[1]);
        assert!(lines[2].starts_with("viewer  built in"), "{}", lines[2]);
    }
}
