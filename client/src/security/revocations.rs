//! JSON Web Tokens that are refused before they expire.

use aquifer_proto::v1;

use crate::error::Result;
use crate::security::{Client, PAGE_ITEMS, Security, given, without};

/// A revocation of JSON Web Tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Its id.
    pub id: String,
    /// What is refused.
    pub refuses: Refuses,
    /// When it was made, in ms since the Unix epoch.
    pub created_ms: u64,
    /// The principal that made it.
    pub created_by: String,
    /// When the last token that it refuses has expired, in ms since the Unix epoch.
    pub ends_ms: u64,
}

/// What a revocation refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refuses {
    /// The token of this `ALIAS:JTI`.
    Token(String),
    /// Tokens of a principal, `jwt:ALIAS:SUB`, that were issued before a time.
    Principal {
        /// Whose.
        principal: String,
        /// In ms since the Unix epoch.
        issued_before_ms: u64,
    },
}

impl Security {
    /// Refuses the JSON Web Token of an issuer's alias and an id, `ALIAS:JTI`, and ends what is
    /// connected with it.
    ///
    /// # Errors
    /// `PermissionDenied`, `Invalid` for an issuer that brokers do not know, and what every call
    /// may answer.
    pub async fn revoke_jwt(&self, jti: &str) -> Result<Revocation> {
        let request = v1::AddRevocationRequest {
            jti: jti.to_owned(),
            ..v1::AddRevocationRequest::default()
        };
        self.revoke(request).await
    }

    /// Refuses the JSON Web Tokens of a principal, `jwt:ALIAS:SUB`, that were issued before a time
    /// in ms since the Unix epoch, by default until now, and ends what is connected with them.
    ///
    /// # Errors
    /// Those of [`revoke_jwt`](Security::revoke_jwt).
    pub async fn revoke_principal(
        &self,
        principal: &str,
        issued_before_ms: Option<u64>,
    ) -> Result<Revocation> {
        let request = v1::AddRevocationRequest {
            principal: principal.to_owned(),
            issued_before_ms,
            ..v1::AddRevocationRequest::default()
        };
        self.revoke(request).await
    }

    async fn revoke(&self, request: v1::AddRevocationRequest) -> Result<Revocation> {
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.add_revocation(request).await }
        };
        // Another one of the same refuses the same.
        let answer = self.call("revoking tokens", true, call).await?;
        let revocation = answer.revocation.map(Revocation::from);
        revocation.ok_or_else(|| without("a revocation"))
    }

    /// The revocations of JSON Web Tokens.
    ///
    /// # Errors
    /// `PermissionDenied`, and what every call may answer.
    pub async fn list_revocations(&self) -> Result<Vec<Revocation>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let request = v1::ListRevocationsRequest {
                after,
                limit: PAGE_ITEMS,
            };
            let call = move |mut client: Client| {
                let request = request.clone();
                async move { client.list_revocations(request).await }
            };
            let page = self.call("listing revocations", true, call).await?;
            all.extend(page.revocations.into_iter().map(Revocation::from));
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// Takes a revocation back: what it refused is accepted again.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, and what every call may answer.
    pub async fn remove_revocation(&self, id: &str) -> Result<()> {
        let request = v1::RemoveRevocationRequest { id: id.to_owned() };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.remove_revocation(request).await }
        };
        self.call("removing the revocation", false, call)
            .await
            .map(|_| ())
    }
}

impl From<v1::Revocation> for Revocation {
    fn from(revocation: v1::Revocation) -> Revocation {
        let refuses = match given(revocation.jti) {
            Some(token) => Refuses::Token(token),
            None => Refuses::Principal {
                principal: revocation.principal,
                issued_before_ms: revocation.issued_before_ms,
            },
        };
        Revocation {
            id: revocation.id,
            refuses,
            created_ms: revocation.created_ms,
            created_by: revocation.created_by,
            ends_ms: revocation.ends_ms,
        }
    }
}
