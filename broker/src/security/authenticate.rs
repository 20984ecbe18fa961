//! From what a caller shows to who it is. A token, when one is shown, is the identity; a
//! certificate counts without one. They are never added up.

use std::sync::Arc;

use aquifer_protocol_api::context::{AuthMethod, Identity, Principal};
use aquifer_protocol_api::error::ApiError;
use aquifer_protocol_api::security::Shown;
use aquifer_runtime::net::tls::PeerCertificate;

use crate::security::audit::Record;
use crate::security::{Guard, stale, unauthenticated};
use crate::security::{principal, token};

impl Guard {
    /// The principal that shows this.
    ///
    /// # Errors
    /// `Unauthenticated`, which is recorded; `Unavailable` when what is known is too old.
    pub(crate) fn authenticate(&self, shown: &Shown<'_>) -> Result<Principal, ApiError> {
        if !self.records.is_fresh() {
            return Err(stale());
        }
        let found = match (shown.bearer, shown.certificate) {
            (Err(reason), _) => Err(reason),
            (Ok(Some(text)), _) => self.of_token(text).ok_or("the token is not accepted"),
            (Ok(None), Some(certificate)) => self
                .of_certificate(certificate)
                .ok_or("the certificate has not exactly one name"),
            (Ok(None), None) => Err("there is no credential"),
        };
        match found {
            Ok(identity) => Ok(Principal::Named(Arc::new(identity))),
            Err(reason) => {
                let error = unauthenticated();
                let record = Record::about(&Principal::Anonymous, shown.protocol, shown.request);
                let mut record = record.came_from(shown.peer).detail(reason);
                if let Some(id) = shown.request_id {
                    record = record.named(id);
                }
                self.audit.refuse(record.refused(error.kind));
                Err(error)
            }
        }
    }

    fn of_token(&self, text: &str) -> Option<Identity> {
        let now = self.clock.wall_ms();
        let Some(shown) = token::parse(text) else {
            return self.of_issuer(text, now);
        };
        self.records.read(|state| {
            let token = state.token(shown.id)?;
            let expires_ms = token.valid(&shown.digest, now)?;
            Some(Identity {
                name: token.principal(),
                groups: Vec::new(),
                method: AuthMethod::Token {
                    id: shown.id.to_owned(),
                    digest: shown.digest,
                },
                expires_ms,
            })
        })
    }

    fn of_issuer(&self, text: &str, now_ms: u64) -> Option<Identity> {
        let verified = self.issuers.verify(text, now_ms)?;
        let (id, issued_ms) = (verified.id, verified.issued_ms);
        let is_refused = self.records.read(|state| {
            let revoked = &state.revoked;
            revoked.refuses(id.as_deref(), &verified.principal, issued_ms)
        });
        (!is_refused).then_some(Identity {
            name: verified.principal,
            groups: verified.groups,
            method: AuthMethod::Jwt { id, issued_ms },
            expires_ms: Some(verified.expires_ms),
        })
    }

    /// The connection's handshake has verified the chain, and goes on verifying it. That of a
    /// broker is verified against the authority of the cluster: an authority of clients must not
    /// make brokers.
    fn of_certificate(&self, certificate: &PeerCertificate) -> Option<Identity> {
        let internal = certificate.internal().filter(|_| {
            let brokers = self.brokers.as_ref();
            brokers
                .is_some_and(|tls| tls.admits(Some(certificate)) && tls.still_accepts(certificate))
        });
        let (name, method) = match internal {
            Some(broker) => (principal::of_broker(&broker.name), AuthMethod::Internal),
            None => {
                let name = principal::of_certificate(certificate.name()?);
                (name, AuthMethod::Certificate)
            }
        };
        Some(Identity {
            name,
            groups: Vec::new(),
            method,
            expires_ms: None,
        })
    }
}
