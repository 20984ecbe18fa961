//! `aquifer support-bundle`: what a support engineer needs, in one file, without secrets.

mod archive;
mod redact;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aquifer_runtime::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use toml::Table;

use self::archive::Archive;
use self::redact::Redactor;
use crate::args::{LONG_VERSION, SupportBundleArgs};
use crate::commands::cluster::check;
use crate::commands::doctor;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;
use crate::probe::{Probed, Prober};
use crate::tool::ToolContext;

/// Files of logs, the newest, and the last bytes of each.
const LOGS_MAX: usize = 50;
/// Bytes of the name of a log, cut to what an archive takes.
const LOG_NAME_BYTES_MAX: usize = 60;
const LOG_BYTES_MAX: u64 = 1 << 20;

/// What is collected, before it is written.
#[derive(Default)]
struct Bundle {
    redactor: Redactor,
    files: Vec<(String, String)>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

impl Bundle {
    fn add(&mut self, name: impl Into<String>, text: impl Into<String>) {
        self.files.push((name.into(), text.into()));
    }

    fn missing(&mut self, what: &str, why: impl std::fmt::Display) {
        self.missing.push(format!("{what}: {why}"));
    }
}

/// Runs the command. What cannot be had is named in the bundle and does not end it: a cluster that
/// needs help may not answer.
///
/// # Errors
/// When the file cannot be written.
pub async fn run(args: SupportBundleArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let now_s = SystemClock.wall_ms() / 1000;
    let path = args.to_file.clone().unwrap_or_else(|| {
        let when = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(now_s));
        let when = when.to_string().replace(':', "");
        PathBuf::from(format!("aquifer-support-{when}.tar.gz"))
    });
    let mut bundle = Bundle::default();
    if let Some(token) = &connect.args().token {
        bundle.redactor.learn(token);
    }
    let files = [&connect.args().token_file, &connect.args().tls_key_file];
    for file in files.into_iter().flatten() {
        bundle.redactor.learn_file(file);
    }
    settings(&mut bundle, args.source.config.as_deref());
    let probed = processes(&mut bundle, &args.http, connect).await;
    cluster(&mut bundle, &args, &probed).await;
    if let Some(folder) = &args.logs {
        logs(&mut bundle, folder);
    }
    let count = write(&bundle, &path, now_s)?;
    for missing in &bundle.missing {
        out.note(&format!("not collected: {}", bundle.redactor.text(missing)));
    }
    if out.is_json() {
        return out.object(&json!({"file": path, "files": count, "missing": bundle.missing.len()}));
    }
    out.line(format!("{count} files in {}", path.display()))?;
    out.line("Look at what it has before you send it: it names hosts, topics and tenants.")
}

/// Writes everything, without secrets, and returns how many files there are.
fn write(bundle: &Bundle, path: &Path, now_s: u64) -> Result<usize, CliError> {
    let failed = |error: std::io::Error| {
        CliError::failed(format!("cannot write {}: {error}", path.display()))
            .advise("give a new file with --to-file")
    };
    let archive = Archive::create(path, now_s).map_err(failed)?;
    let written = fill(bundle, archive, now_s);
    if written.is_err() {
        // Half a bundle would be in the way of the next one.
        let _ = fs::remove_file(path);
    }
    written.map_err(failed)?;
    Ok(bundle.files.len() + 1)
}

fn fill(bundle: &Bundle, mut archive: Archive, now_s: u64) -> std::io::Result<()> {
    let manifest = json!({
        "version": LONG_VERSION.as_str(),
        "made_s": now_s,
        "files": bundle.files.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "missing": bundle.missing,
    });
    let pretty = format!("{manifest:#}\n");
    let own = ("manifest.json".to_owned(), pretty);
    for (name, text) in bundle.files.iter().chain([&own]) {
        let text = bundle.redactor.text(text);
        let name = format!("aquifer-support/{name}");
        archive.add(&name, text.as_bytes())?;
    }
    archive.finish()
}

/// The configuration file, without its comments, which may hold anything.
fn settings(bundle: &mut Bundle, config: Option<&Path>) {
    let Some(path) = config else {
        return bundle.missing("settings", "no file was named with --config");
    };
    let read = fs::read_to_string(path).map_err(|error| error.to_string());
    let parsed = read.and_then(|text| {
        // The error would show the line.
        text.parse::<Table>()
            .map_err(|_| "it is not TOML".to_owned())
    });
    match parsed {
        Ok(mut table) => {
            bundle.redactor.settings(&mut table);
            bundle.add("settings.toml", table.to_string());
        }
        Err(error) => bundle.missing(&path.display().to_string(), error),
    }
}

async fn processes(bundle: &mut Bundle, urls: &[String], connect: &Connect) -> Vec<Probed> {
    let mut probed = Vec::new();
    if urls.is_empty() {
        bundle.missing("processes", "no HTTP port was named with --http");
        return probed;
    }
    let prober = match Prober::new(connect.args()) {
        Ok(prober) => prober,
        Err(error) => {
            bundle.missing("processes", error);
            return probed;
        }
    };
    for (number, url) in (1..).zip(urls) {
        let one = prober.ask(url).await;
        for (path, answer) in &one.answers {
            match answer {
                Ok((status, text)) => {
                    let text = format!("# {}/{path}: {status}\n{text}", one.url);
                    bundle.add(format!("processes/{number}/{path}.txt"), text);
                }
                Err(error) => bundle.missing(&format!("{}/{path}", one.url), error),
            }
        }
        probed.push(one);
    }
    probed
}

/// What metadata says, and what the doctor makes of it.
async fn cluster(bundle: &mut Bundle, args: &SupportBundleArgs, probed: &[Probed]) {
    let opened = match ToolContext::open(&args.source).await {
        Ok(opened) => opened,
        Err(error) => return bundle.missing("cluster", error),
    };
    let config = args.source.config.as_deref();
    match doctor::examine(&opened, config, probed).await {
        Ok(findings) => {
            let findings = findings.iter().map(|finding| {
                json!({
                    "level": finding.level.as_str(),
                    "message": finding.what,
                    "advice": finding.advice,
                })
            });
            let findings = Value::Array(findings.collect());
            bundle.add("doctor.json", format!("{findings:#}\n"));
        }
        Err(error) => bundle.missing("doctor", error),
    }
    match check::describe(&opened).await {
        Ok(described) => bundle.add("cluster.json", format!("{described:#}\n")),
        Err(error) => bundle.missing("cluster", error),
    }
    opened.close().await;
}

/// The ends of the newest files of a directory.
fn logs(bundle: &mut Bundle, folder: &Path) {
    let shown = folder.display().to_string();
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) => return bundle.missing(&shown, error),
    };
    let mut files: Vec<(SystemTime, PathBuf)> = listed
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let known = entry.metadata().ok().filter(|known| known.is_file())?;
            Some((known.modified().ok()?, entry.path()))
        })
        .collect();
    files.sort();
    for (_, path) in files.iter().rev().take(LOGS_MAX) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name[..name.floor_char_boundary(LOG_NAME_BYTES_MAX)].to_owned();
        match tail(path) {
            Ok(text) => bundle.add(format!("logs/{name}"), text),
            Err(error) => bundle.missing(&path.display().to_string(), error),
        }
    }
}

/// The last whole lines of a file.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LOG_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // Half a line could hold half a secret, which is not found as one.
    Ok(match (from, text.split_once('\n')) {
        (0, _) => text,
        (_, Some((_, whole))) => whole.to_owned(),
        (_, None) => String::new(),
    })
}
