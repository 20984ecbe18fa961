//! `aquifer read`: what a topic holds, without leaving a subscription behind.

use crate::args::ReadArgs;
use crate::commands::message;
use crate::connect::Connect;
use crate::exit::CliError;
use crate::output::Output;

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
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let next = match reader.next_available().await? {
            Some(message) => message,
            None if args.follow => {
                out.flush()?;
                reader.next().await?
            }
            None => break,
        };
        message::print(out, &next)?;
        progress.add(1);
        left -= 1;
    }
    out.flush()?;
    drop(progress);
    reader.close().await?;
    Ok(())
}
