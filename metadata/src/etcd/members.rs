//! What each member of etcd says of itself, for tools that judge a cluster.

use etcd_client::{Client, StatusResponse};

use crate::error::MetadataError;
use crate::etcd::EtcdStore;
use crate::etcd::errors::Failure;
use crate::etcd::usage_watch::usage;
use crate::store::Usage;

/// A member of etcd, by the address at which this process was told to find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    /// Its address.
    pub url: String,
    /// What it says, `None` where it does not let this user ask; or why it does not answer.
    pub status: Result<Option<MemberStatus>, String>,
}

/// What a member says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// The version of etcd.
    pub version: String,
    /// Whether it knows a leader: without one it serves nothing.
    pub has_leader: bool,
    /// How full it is.
    pub usage: Usage,
}

impl EtcdStore {
    /// Asks every member that this process knows once.
    pub async fn members(&self) -> Vec<EtcdMember> {
        let ask = |mut client: Client| async move { client.status().await };
        let asked = self.shared.endpoints.each(ask).await;
        let member = |(url, answer)| EtcdMember {
            url,
            status: self.status(answer),
        };
        asked.into_iter().map(member).collect()
    }

    fn status(
        &self,
        answer: Result<StatusResponse, Failure>,
    ) -> Result<Option<MemberStatus>, String> {
        match answer {
            Ok(status) => Ok(Some(MemberStatus {
                version: status.version().to_owned(),
                has_leader: status.leader() != 0,
                usage: usage(&status, self.shared.quota_bytes),
            })),
            Err(Failure::Final(MetadataError::Denied(_))) => Ok(None),
            Err(failure) => Err(MetadataError::from(failure).to_string()),
        }
    }
}
