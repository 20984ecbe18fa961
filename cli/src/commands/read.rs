//! `aquifer read`: what a topic holds, without leaving a subscription behind.

use std::time::Duration;

use aquifer_client::{ClientError, Reader, ReceivedMessage};
use aquifer_runtime::clock::timeout;

use crate::args::ReadArgs;
use crate::commands::consume::close;
use crate::commands::message::{self, Damage};
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;

/// How long nothing must arrive before what was read is shown.
const QUIET: Duration = Duration::from_millis(20);

/// Runs the command.
///
/// # Errors
/// When the topic cannot be read or standard output be written.
pub async fn run(args: ReadArgs, connect: &Connect, out: &Output) -> Result<(), CliError> {
    let client = connect.client()?;
    client.connect().await?;
    let reader = client.reader(&args.topic.to_string()).start(args.from);
    let reader = reader.open().await?;

    let progress = out.progress("messages", args.count);
    let mut damage = Damage::new(out, args.on_damage);
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let next = match args.follow {
            true => follow(&reader, out).await?.map(Some),
            false => reader.next_available().await,
        };
        match next {
            Ok(Some(message)) => {
                message::print(out, &message)?;
                progress.add(1);
                left -= 1;
            }
            Ok(None) => break,
            Err(ClientError::Damaged(damaged)) => damage.met(&damaged)?,
            Err(ClientError::EndOfTopic) => break,
            Err(error) => return Err(error.into()),
        }
    }
    out.flush()?;
    drop(progress);
    close(reader.close().await)?;
    damage.end()
}

/// The next message, whenever it comes: the reader rides out a server that is away. What was read
/// is shown before waiting.
async fn follow(
    reader: &Reader,
    out: &Output,
) -> Result<Result<ReceivedMessage, ClientError>, CliError> {
    if let Ok(next) = timeout(QUIET, reader.next()).await {
        return Ok(next);
    }
    out.flush()?;
    Ok(reader.next().await)
}
