//! Tokens and grants of a backup come back with their tenant, which needs no topic for that.

use anyhow::{Result, ensure};

use crate::security::support::Secured;

/// A server that demands tokens, with a place for its objects.
async fn secured(place: &str) -> Result<Secured> {
    Secured::start_with(&format!("[cold]\nstore = \"{place}\"\n")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_without_topics_comes_back_with_its_tokens() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| format!("file://{}", folder.path().join(name).display());
    let (place, own) = (at("store"), at("own"));
    let mut old = secured(&place).await?;
    let acme = old.tenant("acme")?;
    let developer = ["grant", "add", "token:acme/app", "developer"];
    old.as_admin(&[&developer[..], &["--tenant", "acme"]].concat())?;
    old.as_admin(&["backup", "create", &place, "--tenant", "acme"])?;
    old.server.stop()?;
    old.server.check_logs()?;

    let mut new = secured(&own).await?;
    let restore = ["backup", "restore", &place, "--access"];
    new.as_admin(&restore)?;
    let who = new.succeeded(&acme, &["access", "whoami"])?;
    ensure!(who.starts_with("token:acme/app\n"), "{who}");
    // Its namespace is there as well.
    new.succeeded(&acme, &["topic", "list", "acme/shop"])?;
    new.as_admin(&restore)?;

    // What went with the tenant is refused, and the command does not end as if all were back.
    new.as_admin(&["tenant", "delete", "acme", "--force"])?;
    let refused = new.run(Some(&new.admin()), &restore)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(said.contains("2 tokens, grants and roles"), "{said}");
    new.as_admin(&["backup", "restore", &place])?;
    let unknown = new.run(
        Some(&new.admin()),
        &["backup", "restore", &place, "--tenant", "beta"],
    )?;
    ensure!(unknown.status.code() == Some(1), "{unknown:?}");
    new.server.stop()?;
    new.server.check_logs()
}
