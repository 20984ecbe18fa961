//! `aquifer tenant|namespace|topic policy`: the policies set at each level, and those in force.

use aquifer_client::Admin;
use aquifer_client::ErrorCode;
use aquifer_model::policy::{
    EffectivePolicies, Policies, PolicyName, PolicyScope, PolicyUpdate, PolicyView, Retention,
    Rollover,
};
use aquifer_model::topic::{NamespaceName, TopicName};
use serde_json::{Map, Value, json};

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

/// What is said by these values; parts that are not given are as they are in force.
pub fn said(values: &[PolicyValue], view: &PolicyView) -> Policies {
    let mut said = Policies::default();
    let now = view.effective;
    for value in values {
        match *value {
            PolicyValue::Persistence(quorum) => said.persistence = Some(quorum),
            PolicyValue::RetentionTime(time_ms) => {
                said.retention.get_or_insert(now.retention).time_ms = time_ms;
            }
            PolicyValue::RetentionSize(size_bytes) => {
                said.retention.get_or_insert(now.retention).size_bytes = size_bytes;
            }
            PolicyValue::RolloverSize(size_bytes) => {
                said.rollover.get_or_insert(now.rollover).size_bytes = size_bytes;
            }
            PolicyValue::RolloverAge(age_ms) => {
                said.rollover.get_or_insert(now.rollover).age_ms = age_ms;
            }
            PolicyValue::RolloverEntries(entries) => {
                said.rollover.get_or_insert(now.rollover).entries = entries;
            }
            PolicyValue::Deduplication(on) => said.deduplication = Some(on),
            PolicyValue::AutoCreateTopics(on) => said.auto_create_topics = Some(on),
        }
    }
    said
}

fn show_own(scope: &PolicyScope, view: &PolicyView, out: &Output) -> Result<(), CliError> {
    let said = PolicyName::ALL
        .iter()
        .copied()
        .filter(|name| view.own.has(*name));
    // What is said is in force only if nothing nearer says otherwise; its own level is the nearest.
    let said: Vec<(PolicyName, Value)> = said
        .map(|name| (name, value(name, &view.effective)))
        .collect();
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
        out.line(format!("{:<18} {}", name.as_str(), text(&value)))?;
    }
    Ok(())
}

/// Shows what is in force and where it is said.
pub fn show_effective(view: &PolicyView, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        let each = view.origins.iter().map(|(name, origin)| {
            let shown = json!({"value": value(*name, &view.effective), "origin": origin.as_str()});
            (name.to_string(), shown)
        });
        return out.object(&Value::Object(each.collect()));
    }
    for (name, origin) in &view.origins {
        let value = text(&value(*name, &view.effective));
        out.line(format!(
            "{:<18} {value:<44} {}",
            name.as_str(),
            origin.as_str()
        ))?;
    }
    Ok(())
}

/// A value, its parts in the form in which `set` takes them.
fn value(name: PolicyName, policies: &EffectivePolicies) -> Value {
    let time =
        |ms: u64| humantime::format_duration(std::time::Duration::from_millis(ms)).to_string();
    match name {
        PolicyName::Persistence => json!({
            "ensemble": policies.persistence.ensemble(),
            "writeQuorum": policies.persistence.write(),
            "ackQuorum": policies.persistence.ack(),
        }),
        PolicyName::Retention => {
            let Retention {
                time_ms,
                size_bytes,
            } = policies.retention;
            json!({
                "time": time_ms.map_or_else(|| "forever".to_owned(), time),
                "size": size_bytes.map_or_else(|| "everything".to_owned(), |n| n.to_string()),
            })
        }
        PolicyName::Rollover => {
            let Rollover {
                size_bytes,
                age_ms,
                entries,
            } = policies.rollover;
            json!({
                "size": size_bytes.to_string(),
                "age": time(age_ms),
                "entries": entries.to_string(),
            })
        }
        PolicyName::Deduplication => json!(policies.deduplication),
        PolicyName::AutoCreateTopics => json!(policies.auto_create_topics),
    }
}

/// A value in a line of text.
fn text(value: &Value) -> String {
    match value {
        Value::Object(parts) => {
            let parts = parts.iter().map(|(name, part)| match part {
                Value::String(part) => format!("{name}={part}"),
                part => format!("{name}={part}"),
            });
            parts.collect::<Vec<_>>().join(" ")
        }
        Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
        other => other.to_string(),
    }
}
