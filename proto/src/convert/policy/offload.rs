//! When closed ledgers go into objects.

use aquifer_model::policy::offload::{OffloadCompression, OffloadPolicy};

use crate::v1;

impl From<OffloadPolicy> for v1::Offload {
    fn from(policy: OffloadPolicy) -> v1::Offload {
        let compression = match policy.compression {
            OffloadCompression::None => v1::OffloadCompression::None,
            OffloadCompression::Auto => v1::OffloadCompression::Auto,
        };
        v1::Offload {
            enabled: policy.enabled,
            age_ms: policy.age_ms,
            bytes: policy.bytes,
            lag_ms: policy.lag_ms,
            compression: compression.into(),
        }
    }
}

impl TryFrom<v1::Offload> for OffloadPolicy {
    type Error = String;

    fn try_from(policy: v1::Offload) -> Result<OffloadPolicy, String> {
        let compression = match policy.compression() {
            v1::OffloadCompression::None => OffloadCompression::None,
            v1::OffloadCompression::Auto => OffloadCompression::Auto,
            v1::OffloadCompression::Unspecified => {
                return Err("an offload policy without a compression: none or auto".to_owned());
            }
        };
        Ok(OffloadPolicy {
            enabled: policy.enabled,
            age_ms: policy.age_ms,
            bytes: policy.bytes,
            lag_ms: policy.lag_ms,
            compression,
        })
    }
}
