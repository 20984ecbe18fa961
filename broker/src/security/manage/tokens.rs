//! Changes of tokens.

use aquifer_metadata::keys;
use aquifer_metadata::record;
use aquifer_metadata::update::{Change, UpdateError};
use aquifer_model::topic::NamespaceName;
use aquifer_proto::v1::TokenRecord;
use aquifer_protocol_api::admin::{Page, PageRequest};
use aquifer_protocol_api::context::{AuthMethod, RequestContext};
use aquifer_protocol_api::security::{CreateToken, NewToken, TokenInfo};
use aquifer_runtime::secret;

use crate::error::BrokerError;
use crate::namespace::Namespaces;
use crate::security::manage::{LIFETIME_MS_MAX, drawn_id, end_of, limit_of, owner};
use crate::security::token::{self, Token};
use crate::security::{Guard, principal};

/// For how long a secret goes on that was rotated, where the request does not say.
const GRACE_MS_DEFAULT: u64 = 24 * 3_600 * 1_000;

impl Guard {
    /// Makes a token.
    pub(crate) async fn create_token(
        &self,
        ctx: &RequestContext,
        create: CreateToken,
        namespaces: &Namespaces,
    ) -> Result<NewToken, BrokerError> {
        let CreateToken {
            name,
            tenant,
            lifetime_ms,
        } = create;
        NamespaceName::new(&name, "x").map_err(|error| {
            let text = error.to_string().replace("tenant", "the name of a token");
            BrokerError::invalid(text, "choose another name")
        })?;
        let guards = namespaces.taking_access(tenant.as_deref()).await?;
        let principal = principal::of_token(tenant.as_deref(), &name);
        self.check_may_give_all_of(ctx, &principal)?;
        let taken = self.records.read(|state| {
            let mut tokens = state.tokens_after(None);
            let is_it =
                |token: &Token| token.record.name == name && token.tenant() == tenant.as_deref();
            tokens.any(|token| is_it(token) && token.record.revoked_ms.is_none())
        });
        if taken {
            return Err(BrokerError::AlreadyExists {
                what: "token",
                name: principal,
            });
        }
        self.records.check_room(tenant.as_deref())?;
        let now = self.clock.wall_ms();
        let id = token::id_of(drawn_id()?);
        let drawn = token::draw(&id)?;
        let token = Token {
            record: TokenRecord {
                name,
                tenant: tenant.unwrap_or_default(),
                secret_sha256: drawn.digest.to_vec().into(),
                created_ms: now,
                expires_ms: end_of(now, lifetime_ms)?,
                created_by: ctx.principal.name().to_owned(),
                ..TokenRecord::default()
            },
            id,
        };
        let (key, value) = (keys::token(&token.id), record::encode(token.record.clone()));
        let written = self.create_record(key, value, guards).await?;
        let (of, said) = (owner(token.tenant()), token_said(&token));
        self.changed(ctx, "create_token", &of, &said, Some(written))
            .await;
        Ok(NewToken {
            token: token.info(),
            secret: drawn.secret,
        })
    }

    /// A page of the tokens of a tenant, or of the cluster.
    pub(crate) fn list_tokens(&self, tenant: Option<&str>, page: &PageRequest) -> Page<TokenInfo> {
        let limit = limit_of(page);
        self.records.read(|state| {
            let tokens = state.tokens_after(page.after.as_deref());
            let mut of_tenant = tokens.filter(|token| token.tenant() == tenant);
            let items: Vec<TokenInfo> = of_tenant.by_ref().take(limit).map(Token::info).collect();
            let more = of_tenant.next().is_some();
            let next = items.last().filter(|_| more).map(|last| last.id.clone());
            Page { items, next }
        })
    }

    /// Gives a token another secret.
    pub(crate) async fn rotate_token(
        &self,
        ctx: &RequestContext,
        id: &str,
        grace_ms: Option<u64>,
    ) -> Result<NewToken, BrokerError> {
        if let Some(principal) = self.principal_of_other(ctx, id) {
            self.check_may_give_all_of(ctx, &principal)?;
        }
        let drawn = token::draw(id)?;
        let now = self.clock.wall_ms();
        let grace = grace_ms.unwrap_or(GRACE_MS_DEFAULT).min(LIFETIME_MS_MAX);
        let digest = drawn.digest;
        let token = self.change_token(ctx, "rotate_token", id, |record| {
            if record.revoked_ms.is_some() {
                return Err(no_token(id));
            }
            // A commit whose outcome was not known is not made twice.
            if *record.secret_sha256 != digest {
                record.previous_sha256 = std::mem::take(&mut record.secret_sha256);
                record.previous_until_ms = now.saturating_add(grace);
                record.secret_sha256 = digest.to_vec().into();
            }
            Ok(())
        });
        Ok(NewToken {
            token: token.await?.info(),
            secret: drawn.secret,
        })
    }

    /// Ends a token.
    pub(crate) async fn revoke_token(
        &self,
        ctx: &RequestContext,
        id: &str,
    ) -> Result<(), BrokerError> {
        if let Some(principal) = self.principal_of_other(ctx, id) {
            self.check_not_above(ctx, &principal)?;
        }
        let now = self.clock.wall_ms();
        let revoked = self.change_token(ctx, "revoke_token", id, |record| {
            record.revoked_ms.get_or_insert(now);
            Ok(())
        });
        revoked.await.map(drop)
    }

    async fn change_token(
        &self,
        ctx: &RequestContext,
        request: &'static str,
        id: &str,
        change: impl Fn(&mut TokenRecord) -> Result<(), BrokerError>,
    ) -> Result<Token, BrokerError> {
        let key = keys::token(id);
        let changed = self.records.store().update(&key, &[], |stored| {
            let changed = match stored {
                None => Err(no_token(id)),
                Some(stored) => {
                    let record = record::decode::<TokenRecord>(&stored);
                    record.map_err(BrokerError::from).and_then(|mut record| {
                        change(&mut record)?;
                        let value = record::encode(record.clone());
                        let partition = keys::CLUSTER_PARTITION;
                        Ok(match value == stored.value {
                            true => Change::none(record),
                            false => Change::put(partition, value, record),
                        })
                    })
                }
            };
            std::future::ready(changed)
        });
        let updated = changed.await.map_err(UpdateError::flatten)?;
        let token = Token {
            id: id.to_owned(),
            record: updated.answer,
        };
        let (of, said) = (owner(token.tenant()), token_said(&token));
        self.changed(ctx, request, &of, &said, updated.applied)
            .await;
        Ok(token)
    }

    /// Whether a caller shows the present text of a token. A former one, which is good for its
    /// grace period, changes nothing: with it a thief could shut the holder out.
    pub(crate) fn shows(&self, ctx: &RequestContext, id: &str) -> bool {
        let Some(AuthMethod::Token { id: own, digest }) =
            ctx.principal.identity().map(|identity| &identity.method)
        else {
            return false;
        };
        let is_present = |token: &Token| secret::same(&token.record.secret_sha256, digest);
        own == id
            && self
                .records
                .read(|state| state.token(id).is_some_and(is_present))
    }

    /// The principal of a token that is there, unless it is the caller's own.
    fn principal_of_other(&self, ctx: &RequestContext, id: &str) -> Option<String> {
        let found = self
            .records
            .read(|state| state.token(id).map(Token::principal));
        found.filter(|_| !self.shows(ctx, id))
    }
}

fn no_token(id: &str) -> BrokerError {
    BrokerError::NotFound {
        what: "token",
        name: id.to_owned(),
        advice: "list the tokens of its tenant".to_owned(),
    }
}

pub(super) fn token_said(token: &Token) -> String {
    format!("token {} of {}", token.id, token.principal())
}
