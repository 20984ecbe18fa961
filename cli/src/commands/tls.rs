//! `aquifer tls`: makes the certificates of a cluster, and shows what certificates say.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use aquifer_runtime::net::tls::describe;
use serde_json::json;

use crate::args::{TlsCommand, TlsInitArgs};
use crate::certificates::{self, Request};
use crate::exit::CliError;
use crate::output::Output;

/// Runs `aquifer tls`.
///
/// # Errors
/// When a file cannot be read, written or understood.
pub fn run(command: TlsCommand, out: &Output) -> Result<(), CliError> {
    match command {
        TlsCommand::Init(args) => init(args, out),
        TlsCommand::Show { files } => files.iter().try_for_each(|file| show(file, out)),
    }
}

fn show(file: &Path, out: &Output) -> Result<(), CliError> {
    let found = describe(file).map_err(|error| CliError::failed(error.to_string()))?;
    for certificate in found {
        let expires = date(certificate.expires_s);
        if out.is_json() {
            out.object(&json!({
                "file": file,
                "subject": certificate.subject,
                "issuer": certificate.issuer,
                "names": certificate.names,
                "authority": certificate.is_authority,
                "not_before": date(certificate.begins_s),
                "not_after": expires,
            }))?;
            continue;
        }
        let kind = match certificate.is_authority {
            true => "authority",
            false => "certificate",
        };
        out.line(format!(
            "{}: {kind} {}",
            file.display(),
            certificate.subject
        ))?;
        out.line(format!("  signed by  {}", certificate.issuer))?;
        out.line(format!(
            "  valid      {} to {expires}",
            date(certificate.begins_s)
        ))?;
        for name in certificate.names {
            out.line(format!("  name       {name}"))?;
        }
    }
    Ok(())
}

fn date(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

fn init(args: TlsInitArgs, out: &Output) -> Result<(), CliError> {
    let outcomes = certificates::make(&Request {
        dir: args.dir,
        cluster: args.cluster,
        hosts: args.hosts,
        users: args.users,
        days: args.days,
        renew: args.renew,
    })?;
    for outcome in outcomes {
        let state = match outcome.made {
            true => "made",
            false => "kept",
        };
        match out.is_json() {
            true => out.object(&json!({"file": outcome.path, "state": state}))?,
            false => out.line(format!("{state} {}", outcome.path.display()))?,
        }
    }
    Ok(())
}
