//! What a step moved, in what time and by which requests.

use std::future::Future;

use anyhow::Result;
use aquifer_runtime::clock::{Clock, SystemClock};

use crate::objects::requests::Requests;
use crate::server::Measured;

/// See the module.
pub struct Moved {
    pub bytes: f64,
    pub seconds: f64,
    pub requests: Requests,
}

impl Moved {
    pub fn megabytes_per_second(&self) -> f64 {
        self.bytes / self.seconds.max(1e-9) / 1e6
    }
}

/// Runs a step; the caller says how many bytes it moved.
pub async fn measured(server: &Measured, step: impl Future<Output = Result<()>>) -> Result<Moved> {
    let before = Requests::of(server).await?;
    let began = SystemClock.monotonic();
    step.await?;
    let seconds = SystemClock.monotonic().saturating_sub(began).as_secs_f64();
    let requests = Requests::of(server).await?.since(&before);
    Ok(Moved {
        bytes: 0.0,
        seconds,
        requests,
    })
}
