//! An etcd with TLS and users: roles and tools get in by the same settings, and a process
//! with wrong ones gets a clear error.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use aquifer_harness::etcd::{Certificates, Etcd, EtcdOptions};
use aquifer_harness::server::binary;

use crate::operators::run;

const PASSWORD: (&str, &str) = ("AQUIFER_ETCD_PASSWORD", "correct");

/// An etcd that lets only users in who show a certificate, and the file that says how.
async fn guarded(folder: &Path) -> Result<Etcd> {
    let certificates = Certificates::create(&folder.join("certificates"))?;
    let options = EtcdOptions {
        certificates: Some(certificates.clone()),
        ..EtcdOptions::members(1)
    };
    let etcd = Etcd::start(options).await?;
    for line in [
        "user add root:root-password",
        "user grant-role root root",
        "role add aquifer",
        "role grant-permission --prefix=true aquifer readwrite /aquifer/v1/guarded/",
        "user add aquifer:correct",
        "user grant-role aquifer aquifer",
        "auth enable",
    ] {
        etcd.ctl(&line.split(' ').collect::<Vec<_>>())?;
    }
    let file = |name: &str| certificates.file(name).display().to_string();
    let settings = format!(
        "cluster = \"guarded\"\nmetadata = \"{}\"\n[etcd]\nuser = \"aquifer\"\nca_file = \"{}\"\n\
         cert_file = \"{}\"\nkey_file = \"{}\"\n",
        etcd.url(0).replace("https://", "etcds://"),
        file("ca.pem"),
        file("client.pem"),
        file("client.key"),
    );
    fs::write(folder.join("aquifer.toml"), settings)?;
    Ok(etcd)
}

fn command(folder: &Path, words: &[&str], password: (&str, &str)) -> Command {
    let mut command = Command::new(binary());
    command
        .args(words)
        .args(["--output", "json", "--config"])
        .arg(folder.join("aquifer.toml"))
        .env(password.0, password.1)
        .stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_and_roles_get_into_a_guarded_etcd_and_a_wrong_password_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let etcd = guarded(folder).await?;
    let data_dir = folder.join("bookie").display().to_string();
    let anywhere = ["--bookie-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"];
    let bookie = [&["bookie", "--data-dir", &data_dir][..], &anywhere].concat();
    let wrong = ("AQUIFER_ETCD_PASSWORD", "wrong");
    for words in [
        &["bookie", "list"][..],
        &["ledger", "list"],
        &["doctor"],
        &["autorecovery", "--http-addr", "127.0.0.1:0"],
        &bookie,
    ] {
        let refused = run(command(folder, words, wrong))?;
        ensure!(refused.code == Some(5), "{words:?}: {refused:?}");
        ensure!(
            refused.said.contains("wrong user or password"),
            "{refused:?}"
        );
        ensure!(
            refused.said.contains("AQUIFER_ETCD_PASSWORD"),
            "{refused:?}"
        );
    }
    let mut serving = command(folder, &bookie, PASSWORD)
        .stdout(Stdio::piped())
        .spawn()?;
    let greeting = aquifer_harness::command::first_line(&mut serving)?;
    ensure!(greeting.contains("ready_ms"), "{greeting}");
    let listed = run(command(folder, &["bookie", "list"], PASSWORD))?.ok()?;
    ensure!(listed[0]["state"] == "writable", "{listed:?}");
    run(command(folder, &["ledger", "verify"], PASSWORD))?.ok()?;
    // Flags go over the file, as for servers: this user may not look at another cluster.
    let other = ["bookie", "list", "--cluster", "other"];
    let refused = run(command(folder, &other, PASSWORD))?;
    ensure!(refused.code == Some(5), "{refused:?}");
    serving.kill()?;
    serving.wait()?;
    drop(etcd);
    Ok(())
}
