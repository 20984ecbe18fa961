//! `aquifer context`: clusters under names.

use std::path::Path;

use aquifer_runtime::config;
use serde_json::{Value, json};

use crate::args::{ConnectArgs, ContextCommand};
use crate::connect::Connect;
use crate::contexts::{self, Contexts, Entry};
use crate::exit::CliError;
use crate::output::{Output, Table};

/// Runs the command.
///
/// # Errors
/// When there is no such context, or the file cannot be read or written.
pub fn run(command: ContextCommand, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let path = contexts::path(config::env).ok_or_else(|| {
        CliError::usage("there is no place for contexts: HOME is not set")
            .advise("set HOME or XDG_CONFIG_HOME")
    })?;
    let mut contexts = Contexts::load(&path)?;
    match command {
        ContextCommand::Set { name } => {
            set(&mut contexts, &name, connect.args())?;
            contexts.save(&path)?;
            show(&contexts, &name, out)
        }
        ContextCommand::Use { name } => {
            contexts.get(&name)?;
            contexts.current = Some(name.clone());
            contexts.save(&path)?;
            done(&name, "is used from now on", out)
        }
        ContextCommand::List => list(&contexts, out),
        ContextCommand::Show { name } => {
            let name = name.or_else(|| contexts.current.clone()).ok_or_else(|| {
                CliError::usage("no context is in use")
                    .advise("name one, or `aquifer context use NAME`")
            })?;
            show(&contexts, &name, out)
        }
        ContextCommand::Remove { name } => {
            contexts.get(&name)?;
            contexts.all.remove(&name);
            contexts.current = contexts.current.take().filter(|current| *current != name);
            contexts.save(&path)?;
            done(&name, "is removed", out)
        }
    }
}

fn set(contexts: &mut Contexts, name: &str, given: &ConnectArgs) -> Result<(), CliError> {
    contexts::check_name(name)?;
    if given.token.is_some() {
        return Err(CliError::usage("a context names files and keeps no tokens")
            .advise("write the token to a file that only you can read, and give --token-file"));
    }
    let mut entry = contexts.all.get(name).cloned().unwrap_or_default();
    if !given.url.is_empty() {
        entry.url.clone_from(&given.url);
    }
    for (kept, given) in [
        (&mut entry.token_file, &given.token_file),
        (&mut entry.tls_ca_file, &given.tls_ca_file),
        (&mut entry.tls_cert_file, &given.tls_cert_file),
        (&mut entry.tls_key_file, &given.tls_key_file),
    ] {
        if let Some(path) = given {
            // It is to be found from every directory.
            *kept = Some(std::path::absolute(path).map_err(|error| {
                CliError::usage(format!("{} cannot be named: {error}", path.display()))
            })?);
        }
    }
    if entry == Entry::default() {
        return Err(CliError::usage("nothing to keep")
            .advise("give --url, --token-file, --tls-ca-file or others"));
    }
    contexts.all.insert(name.to_owned(), entry);
    contexts.current.get_or_insert_with(|| name.to_owned());
    Ok(())
}

fn done(name: &str, what: &str, out: &Output) -> Result<(), CliError> {
    match out.is_json() {
        true => out.object(&json!({"context": name})),
        false => out.line(format!("context {name} {what}")),
    }
}

fn list(contexts: &Contexts, out: &Output) -> Result<(), CliError> {
    let mut table = Table::new(["", "context", "url", "token file"]);
    for (name, entry) in &contexts.all {
        let is_current = contexts.current.as_ref() == Some(name);
        if out.is_json() {
            out.object(&object(name, entry, is_current))?;
            continue;
        }
        table.row([
            if is_current { "*" } else { "" }.to_owned(),
            name.clone(),
            entry.url.join(","),
            shown(entry.token_file.as_deref()),
        ]);
    }
    match out.is_json() {
        true => Ok(()),
        false => out.table(&table),
    }
}

fn show(contexts: &Contexts, name: &str, out: &Output) -> Result<(), CliError> {
    let entry = contexts.get(name)?;
    let is_current = contexts.current.as_deref() == Some(name);
    if out.is_json() {
        return out.object(&object(name, entry, is_current));
    }
    let used = if is_current { ", in use" } else { "" };
    out.line(format!("context {name}{used}"))?;
    for (what, value) in [
        ("url", entry.url.join(",")),
        ("token file", shown(entry.token_file.as_deref())),
        ("TLS authorities", shown(entry.tls_ca_file.as_deref())),
        ("TLS certificate", shown(entry.tls_cert_file.as_deref())),
        ("TLS key", shown(entry.tls_key_file.as_deref())),
    ] {
        if !value.is_empty() {
            out.line(format!("  {what:<16} {value}"))?;
        }
    }
    Ok(())
}

fn object(name: &str, entry: &Entry, is_current: bool) -> Value {
    json!({
        "context": name,
        "current": is_current,
        "url": entry.url,
        "token_file": entry.token_file,
        "tls_ca_file": entry.tls_ca_file,
        "tls_cert_file": entry.tls_cert_file,
        "tls_key_file": entry.tls_key_file,
    })
}

fn shown(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_is_not_given_stays_and_tokens_are_not_kept() {
        let mut contexts = Contexts::default();
        let first = ConnectArgs {
            url: vec!["https://a:1".to_owned()],
            token_file: Some(PathBuf::from("a.token")),
            ..ConnectArgs::default()
        };
        set(&mut contexts, "prod", &first).unwrap();
        let second = ConnectArgs {
            tls_ca_file: Some(PathBuf::from("/ca.pem")),
            ..ConnectArgs::default()
        };
        set(&mut contexts, "prod", &second).unwrap();
        let entry = contexts.get("prod").unwrap();
        assert_eq!(entry.url, first.url);
        assert!(entry.token_file.as_ref().unwrap().is_absolute());
        assert_eq!(entry.tls_ca_file, second.tls_ca_file);
        assert_eq!(contexts.current.as_deref(), Some("prod"));
        set(&mut contexts, "other", &second).unwrap();
        assert_eq!(contexts.current.as_deref(), Some("prod"));
        assert!(set(&mut contexts, "empty", &ConnectArgs::default()).is_err());
        let secret = ConnectArgs {
            token: Some("aqf_secret".to_owned()),
            ..first
        };
        let error = set(&mut contexts, "prod", &secret).unwrap_err();
        assert!(error.advice().contains("--token-file"));
    }
}
