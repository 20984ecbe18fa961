//! `aquifer tenant|namespace|topic policy`: the policies set at each level, and those in force.

mod given;
mod shown;

use aquifer_client::Admin;
use aquifer_client::ErrorCode;
use aquifer_model::policy::{EffectivePolicies, PolicyName, PolicyScope, PolicyUpdate, PolicyView};
use aquifer_model::topic::{NamespaceName, TopicName};
use serde_json::{Map, Value, json};

pub use self::given::said;
use self::shown::{text, value};
use crate::args::{PolicyCommand, PolicyValue};
use crate::exit::CliError;
use crate::output::Output;

/// How often a change is made again when others change the same policies.
const ATTEMPTS_MAX: u32 = 16;

/// The scope of a tenant.
pub fn tenant(name: &str) -> Result<PolicyScope, CliError> {
    let checked = NamespaceName::new(name, "default");
    checked.map_err(|error| CliError::usage(error.to_string()))?;
    Ok(PolicyScope::Tenant(name.to_owned()))
}

/// The scope of a namespace.
pub fn namespace(name: &str) -> Result<PolicyScope, CliError> {
    let name = name.parse::<NamespaceName>();
    let name = name.map_err(|error| CliError::usage(error.to_string()))?;
    Ok(PolicyScope::Namespace(name))
}

/// The scope of a topic.
pub fn topic(name: &str) -> Result<PolicyScope, CliError> {
    let name = name.parse::<TopicName>();
    let name = name.map_err(|error| CliError::usage(error.to_string()))?;
    Ok(PolicyScope::Topic(name))
}

/// Runs a command on the scope that `scope` makes of its argument.
///
/// # Errors
/// When the broker refuses it or cannot be reached.
pub async fn run(
    command: PolicyCommand,
    scope: fn(&str) -> Result<PolicyScope, CliError>,
    admin: &Admin,
    out: &Output,
) -> Result<(), CliError> {
    match command {
        PolicyCommand::Get {
            scope: name,
            effective,
        } => {
            let scope = scope(&name)?;
            let view = admin.get_policies(&scope).await?;
            match effective {
                true => show_effective(&view, out),
                false => show_own(&scope, &view, out),
            }
        }
        PolicyCommand::Set {
            scope: name,
            values,
            if_version,
        } => {
            let scope = scope(&name)?;
            let view = set(&scope, &values, if_version, admin).await?;
            show_own(&scope, &view, out)
        }
        PolicyCommand::Unset {
            scope: name,
            names,
            if_version,
        } => {
            let scope = scope(&name)?;
            let update = PolicyUpdate {
                unset: names,
                version: if_version,
                ..PolicyUpdate::default()
            };
            let view = admin.update_policies(&scope, update).await?;
            show_own(&scope, &view, out)
        }
    }
}

/// A policy is replaced whole, so that one that is given in part is read, changed and compared.
async fn set(
    scope: &PolicyScope,
    values: &[PolicyValue],
    if_version: Option<u64>,
    admin: &Admin,
) -> Result<PolicyView, CliError> {
    let mut attempts = 1;
    loop {
        let view = admin.get_policies(scope).await?;
        // Values that are whole are set whatever the others are: then nothing can conflict.
        let version = if_version.or_else(|| {
            values
                .iter()
                .any(PolicyValue::is_part)
                .then_some(view.version)
        });
        let update = PolicyUpdate {
            set: said(values, &view),
            unset: Vec::new(),
            version,
        };
        match admin.update_policies(scope, update).await {
            Err(error)
                if error.code() == Some(ErrorCode::Conflict)
                    && if_version.is_none()
                    && attempts < ATTEMPTS_MAX =>
            {
                attempts += 1;
            }
            outcome => return Ok(outcome?),
        }
    }
}

fn show_own(scope: &PolicyScope, view: &PolicyView, out: &Output) -> Result<(), CliError> {
    let said = PolicyName::ALL
        .iter()
        .copied()
        .filter(|name| view.own.has(*name));
    // Of a ceiling a lower value may be in force.
    let own = EffectivePolicies::try_from(view.own.or(view.effective.into()));
    let own = own.unwrap_or(view.effective);
    let said: Vec<(PolicyName, Value)> = said.map(|name| (name, value(name, &own))).collect();
    if out.is_json() {
        let policies: Map<String, Value> = said
            .into_iter()
            .map(|(name, value)| (name.to_string(), value))
            .collect();
        let shown = json!({
            "scope": scope.to_string(),
            "version": view.version,
            "policies": policies,
        });
        return out.object(&shown);
    }
    out.line(format!("{scope}, version {}", view.version))?;
    if said.is_empty() {
        return out.line("no policy is set here; --effective shows those that are inherited");
    }
    for (name, value) in said {
        out.line(format!("{:<24} {}", name.as_str(), text(&value)))?;
    }
    Ok(())
}

/// Shows what is in force and where it is said.
pub fn show_effective(view: &PolicyView, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        let each = view.origins.iter().map(|(name, origin)| {
            let mut shown = json!({
                "value": value(*name, &view.effective),
                "origin": origin.level.as_str(),
            });
            if let (Some(by), Value::Object(parts)) = (origin.capped_by, &mut shown) {
                parts.insert("cappedBy".to_owned(), json!(by.as_str()));
            }
            (name.to_string(), shown)
        });
        return out.object(&Value::Object(each.collect()));
    }
    for (name, origin) in &view.origins {
        let value = text(&value(*name, &view.effective));
        let capped = origin.capped_by;
        let capped = capped.map_or_else(String::new, |by| format!(", capped by {}", by.as_str()));
        let (name, origin) = (name.as_str(), origin.level.as_str());
        out.line(format!("{name:<24} {value:<44} {origin}{capped}"))?;
    }
    Ok(())
}
