//! Going through a file again: its lines have fixed sequence ids, so a run that was interrupted is
//! repeated, and stores what is not stored yet.
//!
//! Another file under the same name would lose its first lines without a word. So the newest
//! message that the name has stored, of each partition, is compared with the line that has its id,
//! before anything is sent.

use std::path::{Path, PathBuf};

use aquifer_client::{Client, Place, Producer, ReceivedMessage, StoredBefore};
use aquifer_model::limits::BATCH_MESSAGES_MAX;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::commands::produce::input::Input;
use crate::commands::produce::keys::{KeySource, Keyed};
use crate::exit::CliError;

/// Partitions that are asked at once.
const ASKED_MAX: usize = 16;

/// A file whose lines have fixed sequence ids.
#[derive(Debug)]
pub struct Resume {
    file: PathBuf,
    /// Sequence id of the first line.
    from: u64,
    is_checked: bool,
}

impl Resume {
    /// What the arguments ask for: a file under a name of the producer can be gone through again,
    /// if it is one that has a beginning. A pipe, for instance, has none.
    pub fn new(
        file: Option<&Path>,
        is_named: bool,
        from: Option<u64>,
        is_checked: bool,
    ) -> Result<Option<Resume>, CliError> {
        let regular = file.filter(|file| std::fs::metadata(file).is_ok_and(|of| of.is_file()));
        match (regular, file) {
            (Some(regular), _) if is_named => Ok(Some(Resume {
                file: regular.to_owned(),
                from: from.unwrap_or(0),
                is_checked,
            })),
            (None, Some(file)) if from.is_some() && file.exists() => Err(CliError::usage(format!(
                "--sequence-from needs a regular file, and {} is not one",
                file.display()
            ))),
            _ => Ok(None),
        }
    }

    /// The sequence id of a line, counted from 0.
    pub fn sequence_id(&self, line: u64) -> Result<u64, CliError> {
        let id = self.from.checked_add(line);
        id.ok_or_else(|| CliError::usage("--sequence-from is too high for the number of lines"))
    }

    /// Compares what the name has stored with the file.
    ///
    /// # Errors
    /// When they differ, or cannot be compared.
    pub async fn check(
        &self,
        client: &Client,
        producer: &Producer,
        keys: KeySource,
    ) -> Result<(), CliError> {
        let name = producer.name();
        let mut stored = producer.stored_before();
        // What is below was stored from something else.
        stored.retain(|stored| stored.sequence_id >= self.from);
        if stored.is_empty() || !self.is_checked {
            return Ok(());
        }
        let next = stored.iter().map(|stored| stored.sequence_id).max();
        let next = next.unwrap_or_default().saturating_add(1);
        let asked: Vec<_> = stored
            .iter()
            .map(|stored| newest(client, name, stored))
            .collect();
        let answers = futures::stream::iter(asked).buffered(ASKED_MAX);
        let mut newest: Vec<ReceivedMessage> = answers.try_collect().await?;
        newest.sort_by_key(|message| message.sequence_id);
        self.compare(name, keys, &newest)
            .await
            .map_err(|error| error.advise(advice(next)))
    }

    /// Looks for the messages among the lines; they ascend.
    async fn compare(
        &self,
        name: &str,
        mut keys: KeySource,
        newest: &[ReceivedMessage],
    ) -> Result<(), CliError> {
        let file = self.file.display();
        let mut input = Input::open(Vec::new(), Some(&self.file)).await?;
        let mut line = 0_u64;
        for message in newest {
            let wanted = message.sequence_id - self.from;
            let found = loop {
                let Some(payload) = input.next().await? else {
                    return Err(CliError::failed(format!(
                        "producer {name} has stored line {} of a file, and {file} has only {line} \
                         lines",
                        wanted + 1
                    )));
                };
                let keyed = keys.key_of(&payload);
                line += 1;
                if line > wanted {
                    break keyed.is_ok_and(|keyed| is_message(&keyed, &payload, message));
                }
            };
            if !found {
                return Err(CliError::failed(format!(
                    "producer {name} has stored another message as line {line} than {file} has: \
                     nothing was sent"
                )));
            }
        }
        Ok(())
    }
}

fn is_message(keyed: &Keyed, payload: &Bytes, message: &ReceivedMessage) -> bool {
    let key = match keyed {
        Keyed::Header => return false,
        Keyed::Key(key) => Some(key),
        Keyed::NotAsked | Keyed::Missing => None,
    };
    message.payload == *payload && message.key.as_ref() == key
}

/// The newest message of the name in a partition.
async fn newest(
    client: &Client,
    name: &str,
    stored: &StoredBefore,
) -> Result<ReceivedMessage, CliError> {
    let gone = || {
        CliError::failed(format!(
            "what producer {name} stored last on {} cannot be read any more, so it is not known \
             whether the file is the same: nothing was sent",
            stored.topic
        ))
        .advise("repeat with --no-check if it is the same, or give it another --producer-name")
    };
    let index = stored.index.ok_or_else(gone)?;
    let reader = client
        .reader(&stored.topic.to_string())
        .start(Place::Index(index))
        .open()
        .await?;
    // The batch begins at the index; what follows it is of later batches.
    for _ in 0..BATCH_MESSAGES_MAX {
        let Some(message) = reader.next_available().await? else {
            break;
        };
        if &*message.producer_name != name || message.sequence_id > stored.sequence_id {
            break;
        }
        if message.sequence_id == stored.sequence_id {
            // What is left to say about the reader is of no interest.
            let _ = reader.close().await;
            return Ok(message);
        }
    }
    Err(gone())
}

fn advice(next: u64) -> String {
    format!(
        "give each file a --producer-name of its own, or store this one behind the other with \
         --sequence-from {next}"
    )
}
