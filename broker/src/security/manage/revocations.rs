//! Changes of revocations of JSON Web Tokens.

use aquifer_metadata::store::{Expect, Operation, Transaction};
use aquifer_metadata::{keys, record};
use aquifer_protocol_api::access::Resource;
use aquifer_protocol_api::admin::{Page, PageRequest};
use aquifer_protocol_api::context::RequestContext;
use aquifer_protocol_api::security::{Refuses, RevocationInfo, Revoke};

use crate::error::BrokerError;
use crate::security::manage::{drawn_id, limit_of};
use crate::security::{Guard, revoked, sessions, token};

/// Revocations that have ended, and go with one that is made.
const ENDED_AT_ONCE: usize = 32;
/// By how much the time before which tokens are refused may be ahead.
const AHEAD_MS_MAX: u64 = 24 * 3_600 * 1_000;
/// Longest id of a token, with the alias of its issuer, in bytes.
const TOKEN_BYTES_MAX: usize = 1_024;

impl Guard {
    /// Refuses JSON Web Tokens from now on.
    pub(crate) async fn add_revocation(
        &self,
        ctx: &RequestContext,
        revoke: Revoke,
    ) -> Result<RevocationInfo, BrokerError> {
        let now = self.clock.wall_ms();
        let (refuses, alias, from) = self.refuses(revoke, now)?;
        let lifetime = self.issuers.lifetime_ms_max(&alias).ok_or_else(|| {
            let text = format!("no issuer has the alias {alias:?}");
            BrokerError::invalid(text, "`auth.jwt` in the brokers' settings has the aliases")
        })?;
        let ended: Vec<String> = self.records.read(|state| {
            let ended = state.revoked.after(None).filter(|old| old.ends_ms <= now);
            let ended = ended.take(ENDED_AT_ONCE);
            ended.map(|old| old.id.clone()).collect()
        });
        if ended.is_empty() {
            self.records.check_room_to_revoke()?;
        }
        let leeway = 2 * sessions::LEEWAY_MS;
        let info = RevocationInfo {
            id: token::id_of(drawn_id()?),
            refuses,
            created_ms: now,
            created_by: ctx.principal.name().to_owned(),
            ends_ms: from.saturating_add(lifetime).saturating_add(leeway),
        };
        let mut operations = vec![Operation::Put {
            key: keys::revocation(&info.id),
            value: record::encode(revoked::record(&info)),
            expect: Expect::Absent,
        }];
        operations.extend(ended.iter().map(|id| Operation::Delete {
            key: keys::revocation(id),
            expect: Expect::Any,
        }));
        let written = self.records.store().commit(Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations,
        });
        let written = written.await?;
        let (of, said) = (Resource::Cluster, revocation_said(&info));
        self.changed(ctx, "add_revocation", &of, &said, Some(written))
            .await;
        Ok(info)
    }

    /// What is refused, the alias of its issuer, and when the last of these tokens was issued.
    fn refuses(&self, revoke: Revoke, now: u64) -> Result<(Refuses, String, u64), BrokerError> {
        let wrong = |text: &str| BrokerError::invalid(text, "correct the revocation");
        match revoke {
            Revoke::Token(token) => {
                let text = "the id of a token is ALIAS:JTI in printable ASCII";
                let alias = alias_of(&token).ok_or_else(|| wrong(text))?;
                Ok((Refuses::Token(token), alias, now))
            }
            Revoke::Principal(principal, before) => {
                let text = "a principal of an issuer is jwt:ALIAS:SUB";
                let rest = principal.strip_prefix("jwt:");
                let alias = rest.and_then(alias_of).ok_or_else(|| wrong(text))?;
                let before = before.unwrap_or(now);
                if before > now.saturating_add(AHEAD_MS_MAX) {
                    return Err(wrong("the time is more than a day ahead"));
                }
                Ok((Refuses::IssuedBefore(principal, before), alias, before))
            }
        }
    }

    /// A page of the revocations.
    pub(crate) fn list_revocations(&self, page: &PageRequest) -> Page<RevocationInfo> {
        let limit = limit_of(page);
        self.records.read(|state| {
            let mut found = state.revoked.after(page.after.as_deref());
            let items: Vec<RevocationInfo> = found.by_ref().take(limit).cloned().collect();
            let more = found.next().is_some();
            let next = items.last().filter(|_| more).map(|last| last.id.clone());
            Page { items, next }
        })
    }

    /// Takes a revocation back.
    pub(crate) async fn remove_revocation(
        &self,
        ctx: &RequestContext,
        id: &str,
    ) -> Result<(), BrokerError> {
        let known = self.records.read(|state| state.revoked.get(id).cloned());
        let Some(known) = known else {
            return Err(BrokerError::NotFound {
                what: "revocation",
                name: id.to_owned(),
                advice: "`aquifer token revocations` lists them".to_owned(),
            });
        };
        let removed = self.records.store().commit(Transaction {
            partition: keys::CLUSTER_PARTITION.to_owned(),
            guards: Vec::new(),
            operations: vec![Operation::Delete {
                key: keys::revocation(id),
                expect: Expect::Any,
            }],
        });
        let removed = removed.await?;
        let (of, said) = (Resource::Cluster, revocation_said(&known));
        self.changed(ctx, "remove_revocation", &of, &said, Some(removed))
            .await;
        Ok(())
    }
}

/// The alias of the issuer in `ALIAS:REST`.
fn alias_of(text: &str) -> Option<String> {
    let legal = text.bytes().all(|byte| byte.is_ascii_graphic());
    let parts = text.split_once(':').filter(|_| legal);
    let parts = parts.filter(|(_, rest)| !rest.is_empty() && text.len() <= TOKEN_BYTES_MAX);
    parts.map(|(alias, _)| alias.to_owned())
}

/// Whether it could be a token or a principal of an issuer, known here or not.
pub(super) fn is_of_issuer(refuses: &Refuses) -> bool {
    let text = match refuses {
        Refuses::Token(token) => Some(token.as_str()),
        Refuses::IssuedBefore(principal, _) => principal.strip_prefix("jwt:"),
    };
    text.and_then(alias_of).is_some()
}

pub(super) fn revocation_said(info: &RevocationInfo) -> String {
    let id = &info.id;
    match &info.refuses {
        Refuses::Token(token) => format!("revocation {id} of the token {token}"),
        Refuses::IssuedBefore(principal, before_ms) => {
            format!("revocation {id} of tokens of {principal} issued before {before_ms}")
        }
    }
}
