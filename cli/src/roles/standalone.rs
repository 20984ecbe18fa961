//! Everything in one process, on one data directory: embedded metadata, one bookie that is called
//! instead of connected to, a broker, and the protocols of the registry. Only wiring is here.
//!
//! Parts start from the bottom up and stop from the top down, so that whatever a part still has to
//! finish finds what it stands on. Each part has a task group of its own; a group that ends by
//! itself has lost a task to a panic, and then the process ends too: it must not go on
//! acknowledging.

pub mod config;
mod greeting;
mod parts;
mod transport;

use std::time::Duration;

use crate::args::StandaloneArgs;
use crate::exit::CliError;
use crate::output::Output;
use crate::roles::open_files;
use crate::roles::process::{self, Parts as _, Signals};
use crate::roles::standalone::config::StandaloneConfig;
use crate::roles::standalone::greeting::Greeting;
use crate::roles::standalone::parts::Parts;

/// Runs a server until it is told to end. `began` is when the process did.
pub async fn run(args: StandaloneArgs, began: Duration, out: &Output) -> Result<(), CliError> {
    let (mut config, unknown) = StandaloneConfig::load(&args)?;
    if args.check_config {
        return process::check_config(&config, &unknown, out);
    }
    let mut signals = Signals::listen()?;
    let telemetry = process::start_telemetry(&config.telemetry, &unknown)?;
    let files = config.bookie.open_files_max.into();
    open_files::prepare(&mut config.protocols, files);
    let lock = process::lock_data_dir(&config.data_dir)?;
    let parts = Parts::start(&config, &telemetry, out).await?;
    let greeting = Greeting {
        url: parts.url.clone(),
        bookie: parts.bookie_address,
        http: parts.http_address,
        data_dir: config.data_dir.clone(),
        ready_ms: process::ready_ms(began),
    };
    parts.set_serving(true);
    greeting.print(out)?;
    let ended = process::serve(&parts, &mut signals).await;
    telemetry.shutdown();
    drop(lock);
    ended
}
