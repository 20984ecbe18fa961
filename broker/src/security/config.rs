//! The section `auth`.

use serde::{Deserialize, Serialize};

use crate::error::BrokerError;
use crate::security::jwt::JwtIssuer;
use crate::security::principal;

/// The principal that may do everything where nothing is configured: the first token.
const DEFAULT_SUPER_USER: &str = "token:admin";
/// Tokens, grants and roles of a tenant where nothing is configured.
const TENANT_RECORDS_MAX: u64 = 10_000;
/// How long a token or a grant that has ended is kept where nothing is configured: a week.
const ENDED_KEPT_MS: u64 = 7 * 24 * 3_600 * 1_000;
/// Longer than a broker goes on without news of the metadata store, and than clocks differ.
const ENDED_KEPT_MS_MIN: u64 = 3_600 * 1_000;

/// Whether callers are authenticated, and which of them may do everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// Whether callers must show who they are, and need grants.
    pub enabled: bool,
    /// Principals that may do everything. No grant makes one.
    pub super_users: Vec<String>,
    /// Issuers whose JSON Web Tokens are accepted.
    pub jwt: Vec<JwtIssuer>,
    /// Tokens, grants and roles that one tenant may have.
    pub tenant_records_max: u64,
    /// For how long tokens that were revoked or have expired, and grants that have expired, are
    /// kept before they are removed.
    pub ended_kept_ms: u64,
}

impl Default for AuthConfig {
    fn default() -> AuthConfig {
        AuthConfig {
            enabled: false,
            super_users: vec![DEFAULT_SUPER_USER.to_owned()],
            jwt: Vec::new(),
            tenant_records_max: TENANT_RECORDS_MAX,
            ended_kept_ms: ENDED_KEPT_MS,
        }
    }
}

impl AuthConfig {
    /// Checks what types cannot say.
    ///
    /// # Errors
    /// When a name is not that of a principal, or a value is out of its range.
    pub fn validate(&self) -> Result<(), BrokerError> {
        self.jwt.iter().try_for_each(JwtIssuer::validate)?;
        let mut aliases: Vec<&str> = self.jwt.iter().map(|issuer| &*issuer.alias).collect();
        aliases.sort_unstable();
        if let Some(twice) = aliases.windows(2).find(|pair| pair[0] == pair[1]) {
            let text = format!("auth.jwt has two issuers with the alias {:?}", twice[0]);
            return Err(BrokerError::Config(text));
        }
        for name in &self.super_users {
            principal::check(name).map_err(|reason| {
                BrokerError::Config(format!("auth.super_users has {name:?}: {reason}"))
            })?;
        }
        if self.ended_kept_ms < ENDED_KEPT_MS_MIN {
            let text = format!(
                "auth.ended_kept_ms is {}: give at least {ENDED_KEPT_MS_MIN}, an hour",
                self.ended_kept_ms
            );
            return Err(BrokerError::Config(text));
        }
        Ok(())
    }
}
