//! Measures the loss of a whole cluster (`tests/harness/restored.rs`): prints one JSON object with
//! times and with the requests to the store that brokers counted.
//!
//! ```text
//! cargo run --release -p aquifer-tests --example restore -- [TOPICS [MESSAGES]]
//! ```
//!
//! With few topics it is among the integration tests, beside the loss of all bookies alone
//! (tests/integration/operators/node_loss.rs).

use anyhow::Result;
use aquifer_harness::figures::argument;
use aquifer_harness::restored::measure;

const TOPICS: usize = 1_000;
/// Messages of a topic.
const MESSAGES: usize = 100;

fn main() -> Result<()> {
    let topics = argument(0, TOPICS)?;
    let messages = argument(1, MESSAGES)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    println!("{:#}", runtime.block_on(measure(topics, messages))?);
    Ok(())
}
