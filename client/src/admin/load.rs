//! Load of brokers.

use aquifer_model::load::LoadReport;
use aquifer_proto::v1;

use crate::admin::{Admin, Operator};
use crate::error::{ClientError, Result};

impl Admin {
    /// The load of the broker that answers: give the client the address of the one that is meant.
    ///
    /// # Errors
    /// What every call may answer.
    pub async fn load_report(&self) -> Result<LoadReport> {
        let answer = self
            .operate("asking for load", true, |mut client: Operator| async move {
                client.load_report(v1::LoadReportRequest {}).await
            })
            .await?;
        LoadReport::try_from(answer).map_err(|error| ClientError::Protocol(error.to_string()))
    }
}
