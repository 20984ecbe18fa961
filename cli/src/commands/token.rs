//! `aquifer token`: makes, lists, rotates and revokes tokens, and says what one is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aquifer_broker::token_id;
use aquifer_client::security::{NewToken, Refuses, Revocation, Security, TokenInfo};
use aquifer_runtime::clock;
use serde_json::{Value, json};

use crate::args::TokenCommand;
use crate::commands::security::date;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::{Output, Table};
use crate::private_file::{self, NewFile};

/// What a token begins with.
const PREFIX: &str = "aqf_";

/// Runs the command.
///
/// # Errors
/// When the broker refuses it or cannot be reached, or a file cannot be read or written.
pub async fn run(command: TokenCommand, connect: &Connect, out: &Output) -> Result<(), CliError> {
    if let TokenCommand::Inspect { given } = &command {
        return inspect(given, out);
    }
    let client = connect.client()?;
    client.connect().await?;
    let security = client.security();
    match command {
        TokenCommand::Create {
            name,
            tenant,
            expires,
            to_file,
        } => {
            // No token is made that there is no place for.
            let file = to_file.as_deref().map(NewFile::create).transpose()?;
            let tenant = tenant.as_deref();
            let made = security.create_token(&name, tenant, expires).await?;
            if let Some(file) = file {
                file.fill(made.token.expose())?;
            }
            show_new(&made, to_file.as_deref(), out)
        }
        TokenCommand::List { tenant } => {
            let tokens = security.list_tokens(tenant.as_deref()).await?;
            list(&tokens, out)
        }
        TokenCommand::Rotate { id, grace, to_file } => {
            rotate(&security, &id, grace, to_file, out).await
        }
        TokenCommand::Revoke {
            id: Some(id),
            jti: None,
            subject: None,
            ..
        } => {
            security.revoke_token(&id).await?;
            match out.is_json() {
                true => out.object(&json!({"id": id, "revoked": true})),
                false => out.line(format!("token {id} is revoked")),
            }
        }
        TokenCommand::Revoke { jti: Some(jti), .. } => {
            show_revocation(&security.revoke_jwt(&jti).await?, out)
        }
        TokenCommand::Revoke {
            subject,
            issued_before,
            ..
        } => {
            let (subject, before) = (subject.unwrap_or_default(), issued_before.map(since_1970));
            let made = security.revoke_principal(&subject, before).await?;
            show_revocation(&made, out)
        }
        TokenCommand::Revocations => list_revocations(&security.list_revocations().await?, out),
        TokenCommand::Unrevoke { id } => {
            security.remove_revocation(&id).await?;
            match out.is_json() {
                true => out.object(&json!({"id": id, "removed": true})),
                false => out.line(format!("revocation {id} is taken back")),
            }
        }
        TokenCommand::Inspect { .. } => Ok(()),
    }
}

fn show_revocation(made: &Revocation, out: &Output) -> Result<(), CliError> {
    match out.is_json() {
        true => out.object(&revocation_object(made)),
        false => out.line(revocation_said(made)),
    }
}

fn list_revocations(found: &[Revocation], out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        let mut found = found.iter();
        return found.try_for_each(|one| out.object(&revocation_object(one)));
    }
    out.table(&revocation_table(found))
}

fn since_1970(at: SystemTime) -> u64 {
    clock::millis(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn refused(revocation: &Revocation) -> String {
    match &revocation.refuses {
        Refuses::Token(jti) => format!("the token {jti}"),
        Refuses::Principal {
            principal,
            issued_before_ms,
        } => format!(
            "tokens of {principal} issued before {}",
            date(*issued_before_ms)
        ),
    }
}

fn revocation_said(revocation: &Revocation) -> String {
    let (id, what) = (&revocation.id, refused(revocation));
    format!("revocation {id}: not accepted any more: {what}")
}

fn revocation_object(revocation: &Revocation) -> Value {
    let (jti, principal, before_ms) = match &revocation.refuses {
        Refuses::Token(jti) => (Some(jti), None, None),
        Refuses::Principal {
            principal,
            issued_before_ms,
        } => (None, Some(principal), Some(issued_before_ms)),
    };
    json!({
        "id": revocation.id,
        "jti": jti,
        "principal": principal,
        "issued_before_ms": before_ms,
        "created_ms": revocation.created_ms,
        "created_by": revocation.created_by,
        "ends_ms": revocation.ends_ms,
    })
}

fn revocation_table(revocations: &[Revocation]) -> Table {
    let mut table = Table::new(["id", "refuses", "created", "by", "until"]);
    for revocation in revocations {
        table.row([
            revocation.id.clone(),
            refused(revocation),
            date(revocation.created_ms),
            revocation.created_by.clone(),
            date(revocation.ends_ms),
        ]);
    }
    table
}

async fn rotate(
    security: &Security,
    id: &str,
    grace: Option<Duration>,
    to_file: Option<PathBuf>,
    out: &Output,
) -> Result<(), CliError> {
    if let Some(path) = to_file.as_deref().filter(|path| path.exists()) {
        let held = read(path)?;
        if token_id(&held) != Some(id) {
            let message = format!("{} does not hold token {id}, and is kept", path.display());
            return Err(CliError::failed(message).advise("give another file"));
        }
    }
    let made = security.rotate_token(id, grace).await?;
    if let Some(path) = &to_file {
        let text = format!("{}\n", made.token.expose());
        // The former text is useless soon: this one must not be lost.
        if let Err(error) = private_file::replace(path, &text) {
            out.line(made.token.expose())?;
            let error = private_file::unwritable(path, &error);
            return Err(error.advise("the new token is on standard output: keep it"));
        }
    }
    show_new(&made, to_file.as_deref(), out)
}

fn show_new(made: &NewToken, file: Option<&Path>, out: &Output) -> Result<(), CliError> {
    let info = &made.info;
    if out.is_json() {
        let mut object = object(info);
        match file {
            Some(path) => object["file"] = json!(path),
            None => object["token"] = json!(made.token.expose()),
        }
        return out.object(&object);
    }
    let expires = match info.expires_ms {
        Some(at) => format!("expires {}", date(at)),
        None => "does not expire".to_owned(),
    };
    let (id, principal) = (&info.id, &info.principal);
    match file {
        Some(path) => {
            let path = path.display();
            out.line(format!(
                "token {id} for {principal} written to {path} (0600), {expires}"
            ))
        }
        None => {
            // Standard output has the token alone, so that it can be piped.
            out.note(&format!(
                "token {id} for {principal}, {expires}; it is shown only now:"
            ));
            out.line(made.token.expose())
        }
    }
}

fn object(info: &TokenInfo) -> Value {
    json!({
        "id": info.id,
        "name": info.name,
        "tenant": info.tenant,
        "principal": info.principal,
        "created_ms": info.created_ms,
        "created_by": info.created_by,
        "expires_ms": info.expires_ms,
        "revoked": info.revoked,
    })
}

fn list(tokens: &[TokenInfo], out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        return tokens
            .iter()
            .try_for_each(|token| out.object(&object(token)));
    }
    out.table(&table(tokens))
}

fn table(tokens: &[TokenInfo]) -> Table {
    let mut table = Table::new(["id", "principal", "created", "by", "expires", "state"]);
    for token in tokens {
        table.row([
            token.id.clone(),
            token.principal.clone(),
            date(token.created_ms),
            token.created_by.clone(),
            token.expires_ms.map_or("never".to_owned(), date),
            if token.revoked { "revoked" } else { "valid" }.to_owned(),
        ]);
    }
    table
}

fn inspect(given: &str, out: &Output) -> Result<(), CliError> {
    let text = match given.starts_with(PREFIX) {
        true => given.to_owned(),
        false => read(Path::new(given))?,
    };
    let id = token_id(&text).ok_or_else(|| {
        CliError::failed("it is not a token of Aquifer, or was changed")
            .advise("one is aqf_ID_SECRET, in one line, as `aquifer token create` writes it")
    })?;
    match out.is_json() {
        true => out.object(&json!({"id": id, "format": "ok"})),
        false => out.line(format!(
            "token {id}, well formed; `aquifer access whoami` says whether it is accepted"
        )),
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    let read = fs::read_to_string(path);
    let text =
        read.map_err(|error| CliError::failed(format!("cannot read {}: {error}", path.display())))?;
    Ok(text.trim().to_owned())
}
