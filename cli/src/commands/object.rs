//! `aquifer object`: lists, inspects, checks and prints objects of offloaded ledgers. Objects say
//! themselves what they are: neither a cluster nor its metadata is needed, but to compare both.

mod care;

use std::path::Path;
use std::sync::Arc;

use aquifer_client::stored::messages_of;
use aquifer_cold::config::StoreConfig;
use aquifer_cold::error::ColdError;
use aquifer_cold::format::block::Block;
use aquifer_cold::format::tail::Tail;
use aquifer_cold::library;
use aquifer_cold::listing;
use aquifer_cold::object::{SUFFIX, read_tail, verify};
use aquifer_cold::store::{ColdStore, Listed};
use aquifer_model::entry::EntryData;
use aquifer_model::id::{EntryId, Index, TopicIncarnation};
use aquifer_model::place::rfc3339_ms;
use aquifer_model::topic::TopicName;
use bytes::Bytes;
use serde_json::json;

use crate::args::{ObjectCommand, StoreArgs};
use crate::commands::message;
use crate::exit::CliError;
use crate::output::{Output, Table};

/// Runs the command.
///
/// # Errors
/// When the store cannot be reached, or an object is damaged.
pub async fn run(command: ObjectCommand, out: &Output) -> Result<(), CliError> {
    match command {
        ObjectCommand::List { url, count, store } => list(&url, count, &store, out).await,
        ObjectCommand::Inspect { url, store } => {
            let object = Object::open(&url, &store).await?;
            inspect(&object, &object.tail().await?, out)
        }
        ObjectCommand::Verify { url, store } => {
            let object = Object::open(&url, &store).await?;
            object.verify(out).await
        }
        ObjectCommand::Cat {
            url,
            from,
            count,
            store,
        } => {
            let object = Object::open(&url, &store).await?;
            cat(&object, from, count, out).await
        }
        ObjectCommand::Audit {
            young,
            delete,
            yes,
            adopt,
            source,
            store,
        } => {
            let request = care::AuditRequest {
                source,
                store,
                young,
                delete,
                yes,
                adopt,
            };
            care::audit(request, out).await
        }
        ObjectCommand::Scrub {
            rate,
            source,
            store,
        } => care::scrub(&source, &store, rate, out).await,
    }
}

fn config_of(args: &StoreArgs) -> StoreConfig {
    let defaults = StoreConfig::default();
    StoreConfig {
        store: String::new(),
        endpoint: args.endpoint.clone().unwrap_or_default(),
        region: args.region.clone().unwrap_or(defaults.region),
        allow_http: args.allow_http,
        ca_file: args.store_ca_file.clone().unwrap_or_default(),
        access_key_file: args.access_key_file.clone().unwrap_or_default(),
        secret_key_file: args.secret_key_file.clone().unwrap_or_default(),
    }
}

/// What a failure of a store means to a command.
pub fn failed(error: ColdError) -> CliError {
    match error {
        ColdError::Config(_) => CliError::usage(error.to_string()),
        error => CliError::failed(error.to_string()),
    }
}

/// Opens the place at a URL.
///
/// # Errors
/// When it is no such URL, or a directory that does not exist.
pub fn open(url: &str, args: &StoreArgs) -> Result<Arc<dyn ColdStore>, CliError> {
    // A tool makes no directories.
    if let Some(path) = url.strip_prefix("file://")
        && !Path::new(path).is_dir()
    {
        return Err(CliError::failed(format!("there is no directory {path}")));
    }
    library::open(url, &config_of(args)).map_err(failed)
}

async fn list(
    url: &str,
    count: Option<usize>,
    args: &StoreArgs,
    out: &Output,
) -> Result<(), CliError> {
    let store = open(url, args)?;
    let mut left = count.unwrap_or(usize::MAX);
    let mut table = Table::new(["object", "bytes"]);
    let base = url.trim_end_matches('/');
    let show = |object: Listed| {
        if left == 0 {
            return Err(None);
        }
        if !object.name.ends_with(SUFFIX) {
            return Ok(());
        }
        left -= 1;
        let url = format!("{base}/{}", object.name);
        if out.is_json() {
            out.object(&json!({"url": url, "bytes": object.bytes}))
                .map_err(Some)?;
        } else {
            table.row([url, object.bytes.to_string()]);
        }
        Ok(())
    };
    match listing::each(&*store, "", show).await.map_err(failed)? {
        // All of them, or as many as were asked for.
        Ok(()) | Err(None) => {}
        Err(Some(error)) => return Err(error),
    }
    match out.is_json() {
        true => Ok(()),
        false => out.table(&table),
    }
}

/// An object by its URL.
struct Object {
    url: String,
    store: Arc<dyn ColdStore>,
    name: String,
    bytes: u64,
}

impl Object {
    async fn open(url: &str, args: &StoreArgs) -> Result<Object, CliError> {
        let usage = || CliError::usage(format!("{url} names no object"));
        let (_, rest) = url.split_once("://").ok_or_else(usage)?;
        let at = url.len() - rest.len();
        // A bucket is no part of a name, a directory is.
        let (place, name) = match url.starts_with("file://") {
            true => {
                let end = url.rfind('/').filter(|end| *end >= at).ok_or_else(usage)?;
                (&url[..end.max(at + 1)], &url[end + 1..])
            }
            false => {
                let end = at + rest.find('/').ok_or_else(usage)?;
                (&url[..end], &url[end + 1..])
            }
        };
        if name.is_empty() {
            return Err(usage());
        }
        let store = open(place, args)?;
        let bytes = store.size(name).await.map_err(failed)?;
        Ok(Object {
            url: url.to_owned(),
            store,
            name: name.to_owned(),
            bytes,
        })
    }

    async fn tail(&self) -> Result<Tail, CliError> {
        let read = read_tail(&*self.store, &self.name, self.bytes, None).await;
        Ok(read.map_err(failed)?.0)
    }

    async fn verify(&self, out: &Output) -> Result<(), CliError> {
        let (mut blocks, mut entries) = (0_u64, 0_u64);
        let count = |_: &Tail, block: &Block| {
            blocks += 1;
            entries += u64::from(block.head.entries);
        };
        let checked = verify(&*self.store, &self.name, self.bytes, None, count).await;
        let tail = checked.map_err(failed)?;
        if out.is_json() {
            return out.object(&json!({
                "url": self.url,
                "ledger": tail.ledger().0,
                "bytes": self.bytes,
                "blocks": blocks,
                "entries": entries,
                "whole": true,
            }));
        }
        out.line(format!(
            "{} is whole: ledger {}, {entries} entries in {blocks} blocks, {} bytes",
            self.url,
            tail.ledger(),
            self.bytes
        ))
    }
}

fn inspect(object: &Object, tail: &Tail, out: &Output) -> Result<(), CliError> {
    let (footer, section) = (&tail.footer, &tail.section);
    let incarnation = TopicIncarnation::try_from(section.incarnation.as_ref());
    let incarnation = incarnation.map(|id| id.to_string()).unwrap_or_default();
    let location = tail.location().map(|id| id.to_string()).unwrap_or_default();
    if out.is_json() {
        return out.object(&json!({
            "url": object.url,
            "bytes": object.bytes,
            "attempt": tail.attempt.to_string(),
            "writer": footer.writer,
            "cluster": footer.cluster,
            "location": location,
            "created": rfc3339_ms(footer.created_ms),
            "topic": section.topic,
            "incarnation": incarnation,
            "ledger": section.ledger_id,
            "quorum": [section.ensemble, section.write_quorum, section.ack_quorum],
            "entries": section.last_entry_id + 1,
            "messages": section.messages,
            "first_index": section.first_index,
            "end_index": section.end_index,
            "first_time": rfc3339_ms(section.first_time_ms),
            "last_time": rfc3339_ms(section.last_time_ms),
            "ledger_bytes": section.length_bytes,
            "raw_bytes": section.raw_bytes,
            "stored_bytes": section.stored_bytes,
            "blocks": section.blocks,
            "body_formats": section.body_formats,
        }));
    }
    let mut lines = described(object, tail).into_iter();
    lines.try_for_each(|(what, text)| out.line(format!("{what:<9}{text}")))
}

/// What the footer says, for people.
fn described(object: &Object, tail: &Tail) -> [(&'static str, String); 8] {
    let (footer, section) = (&tail.footer, &tail.section);
    [
        ("object", object.url.clone()),
        ("topic", section.topic.clone()),
        ("ledger", section.ledger_id.to_string()),
        (
            "messages",
            format!(
                "{}, indexes {} to before {}",
                section.messages, section.first_index, section.end_index
            ),
        ),
        (
            "times",
            format!(
                "{} to {}",
                rfc3339_ms(section.first_time_ms),
                rfc3339_ms(section.last_time_ms)
            ),
        ),
        (
            "entries",
            format!("{} in {} blocks", section.last_entry_id + 1, section.blocks),
        ),
        (
            "bytes",
            format!(
                "{} of entries, {} stored, {} of the object",
                section.length_bytes, section.stored_bytes, object.bytes
            ),
        ),
        (
            "written",
            format!(
                "{} by {} of cluster {}, attempt {}",
                rfc3339_ms(footer.created_ms),
                footer.writer,
                footer.cluster,
                tail.attempt
            ),
        ),
    ]
}

async fn cat(
    object: &Object,
    from: Option<u64>,
    count: Option<u64>,
    out: &Output,
) -> Result<(), CliError> {
    let tail = object.tail().await?;
    let topic: TopicName = tail.section.topic.parse().map_err(|error| {
        CliError::failed(format!("its topic {:?}: {error}", tail.section.topic))
    })?;
    let topic = Arc::new(topic);
    let from = Index(from.unwrap_or(tail.section.first_index));
    let first = EntryId(tail.entries_at_index(from).start);
    let blocks = &tail.blocks[tail.block_of(first).unwrap_or(0)..];
    let mut left = count.unwrap_or(u64::MAX);
    for row in blocks {
        let bytes = object.store.get(&object.name, row.offset..row.end()).await;
        let block = Block::decode(tail.attempt, &bytes.map_err(failed)?);
        let damaged = |error| failed(ColdError::damaged(&object.name, &error));
        let block = block.map_err(damaged)?;
        block.check_digests(tail.ledger()).map_err(damaged)?;
        for entry in block.entries_from(first) {
            let data = EntryData {
                head: Bytes::new(),
                body: entry.data,
            };
            let (head, body) = data
                .split()
                .map_err(|error| CliError::failed(format!("entry {}: {error}", entry.entry)))?;
            if head.flags.is_control() {
                continue;
            }
            for message in messages_of(&topic, (tail.ledger(), entry.entry), &head, body)? {
                let message = message?;
                if message.index < from {
                    continue;
                }
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                message::print(out, &message)?;
            }
        }
    }
    Ok(())
}
