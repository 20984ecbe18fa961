//! Tokens, grants, roles and revocations in memory, kept current by one watch: decisions wait for
//! nothing.
//!
//! Invariants:
//! - What was taken away is out of force when the watch has shown it. While the store is away,
//!   what is known goes on for [`STALE_MAX`] and then decides nothing any more.
//! - A record that cannot be read gives nothing and concerns nothing else.
//! - The records of one tenant leave room for those of the others, and tokens of issuers can be
//!   revoked when nothing else can be added.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::keys::{self, Key};
use aquifer_metadata::record;
use aquifer_metadata::scan;
use aquifer_metadata::store::{MetadataStore, Revision, Versioned, WatchEvent};
use aquifer_proto::v1::{GrantRecord, RevocationRecord, RoleRecord, TokenRecord};
use aquifer_protocol_api::security::RoleName;
use aquifer_runtime::clock::{self, SharedClock};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::error::{BrokerError, RECORDS_LIMIT};
use crate::security::grant::Grant;
use crate::security::own_role::{self, OwnRole};
use crate::security::revoked::{self, Revoked};
use crate::security::token::Token;

/// For how long decisions are made from what is known while the store is away.
const STALE_MAX: Duration = Duration::from_secs(600);
/// How often it is asked whether the store is there, and how long that may take.
const PROBE: Duration = Duration::from_secs(5);
/// How long a broken watch waits before it begins again.
const RETRY: Duration = Duration::from_millis(500);
/// Records that are kept in memory. More are an error, not a reason to forget some: what is known
/// gets old then, and decides nothing after a while.
const RECORDS_MAX: usize = 200_000;
/// Records beyond which only revocations are added.
const ADDED_MAX: u64 = 100_000;
/// Records beyond which no revocations are added. Brokers that add some at the same time do not see
/// those of each other.
const REVOKING_MAX: u64 = 190_000;
/// Items of a backup that are looked at.
pub(crate) const ITEMS_MAX: u64 = RECORDS_MAX as u64;

/// How many records there may be where another is added.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Tokens, grants and roles of its tenant.
    tenant: u64,
    /// All, for a token, a grant or a role.
    all: u64,
    /// All, for a revocation.
    revoking: u64,
}

impl Bounds {
    pub(crate) fn of_tenants(max: u64) -> Bounds {
        Bounds {
            tenant: max,
            all: ADDED_MAX,
            revoking: REVOKING_MAX,
        }
    }
}

/// See the module.
pub(crate) struct Records {
    store: Arc<dyn MetadataStore>,
    clock: SharedClock,
    bounds: Bounds,
    state: RwLock<State>,
    /// Up to where the state is current; changes with it.
    current: watch::Sender<Revision>,
    /// When the store was certainly there while it was followed, on the monotonic clock.
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    last: Duration,
    following: bool,
}

/// What is stored.
#[derive(Default)]
pub(crate) struct State {
    tokens: BTreeMap<String, Token>,
    /// By their keys, so that those of a tenant are together.
    grants: BTreeMap<String, Arc<Grant>>,
    /// The same by their principals.
    by_principal: HashMap<String, BTreeMap<String, Arc<Grant>>>,
    /// When grants end, and how many do then.
    ends: BTreeMap<u64, usize>,
    /// Roles that are not built in, by their keys.
    roles: BTreeMap<String, OwnRole>,
    /// The keys of grants that give such a role, by the key of the role, which may not be there.
    naming: HashMap<String, BTreeSet<String>>,
    /// How many tokens, grants and roles a tenant has, where it has any.
    owned: HashMap<String, u64>,
    pub(crate) revoked: Revoked,
}

impl Records {
    /// Reads everything for the first time.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn load(
        store: Arc<dyn MetadataStore>,
        clock: SharedClock,
        bounds: Bounds,
    ) -> Result<Arc<Records>, BrokerError> {
        let (state, revision) = read(&*store).await?;
        let last = clock.monotonic();
        Ok(Arc::new(Records {
            store,
            clock,
            bounds,
            state: RwLock::new(state),
            current: watch::Sender::new(revision),
            heard: Mutex::new(Heard {
                last,
                following: true,
            }),
        }))
    }

    /// The store that they are in.
    pub(crate) fn store(&self) -> &dyn MetadataStore {
        &*self.store
    }

    /// Reads what is known.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read())
    }

    /// Refuses another token, grant or role, of a tenant or of the cluster, where there is no room.
    pub(crate) fn check_room(&self, tenant: Option<&str>) -> Result<(), BrokerError> {
        self.read(|state| state.check_room(&self.bounds, tenant))
    }

    /// Refuses another revocation for which there is no room.
    pub(crate) fn check_room_to_revoke(&self) -> Result<(), BrokerError> {
        self.read(|state| state.check_all(self.bounds.revoking))
    }

    /// Changes whenever what decisions are made from does.
    pub(crate) fn changes(&self) -> watch::Receiver<Revision> {
        self.current.subscribe()
    }

    /// Waits until a change of our own is known here.
    pub(crate) async fn reached(&self, revision: Revision) {
        let mut current = self.current.subscribe();
        let reached = current.wait_for(|current| *current >= revision);
        // A watch that lags shows it a little later.
        let _ = clock::timeout(PROBE, reached).await;
    }

    /// Whether what is known is new enough to decide with.
    pub(crate) fn is_fresh(&self) -> bool {
        let last = self.heard.lock().last;
        self.clock.monotonic().saturating_sub(last) < STALE_MAX
    }

    /// Keeps them current until the task is dropped.
    pub(crate) async fn follow(&self) {
        loop {
            if let Err(error) = self.follow_once().await {
                tracing::warn!(%error, "the watch of tokens and grants begins again");
            }
            self.heard.lock().following = false;
            clock::sleep(RETRY).await;
        }
    }

    async fn follow_once(&self) -> Result<(), BrokerError> {
        loop {
            let (state, revision) = read(&*self.store).await?;
            *self.state.write() = state;
            self.current.send_replace(revision);
            let mut watch = self.store.watch(keys::AUTH_PREFIX, revision).await?;
            self.hear(true);
            loop {
                match watch.next().await {
                    Some(WatchEvent::Resync) => break,
                    Some(event) => self.take(event),
                    None => return Ok(()),
                }
            }
        }
    }

    /// Takes in what the watch shows.
    fn take(&self, event: WatchEvent) {
        let (key, revision) = match event {
            WatchEvent::Put(stored) => {
                self.state.write().put(&stored);
                (stored.key, stored.revision)
            }
            WatchEvent::Delete { key, revision } => {
                self.state.write().remove(&key);
                (key, revision)
            }
            WatchEvent::Resync => return,
        };
        self.hear(true);
        // Every broker writes checkpoints all the time, and nothing is decided by them.
        self.current.send_if_modified(|current| {
            *current = revision;
            key != keys::AUDIT_ENDS
        });
    }

    /// Asks from time to time whether the store is there: a watch says nothing while nothing
    /// changes.
    pub(crate) async fn probe(&self) {
        loop {
            clock::sleep(PROBE).await;
            let asked = self.store.scan(keys::TOKENS_PREFIX, None, 1);
            if let Ok(Ok(_)) = clock::timeout(PROBE, asked).await {
                self.hear(false);
            }
        }
    }

    fn hear(&self, follows: bool) {
        let mut heard = self.heard.lock();
        heard.following |= follows;
        if heard.following {
            heard.last = self.clock.monotonic();
        }
    }
}

async fn read(store: &dyn MetadataStore) -> Result<(State, Revision), BrokerError> {
    scan::each(store, keys::AUTH_PREFIX, State::default, |state, stored| {
        if state.len() >= RECORDS_MAX {
            let text = format!("there are more than {RECORDS_MAX} tokens and grants");
            return Err(MetadataError::Invalid(text).into());
        }
        state.put(stored);
        Ok(())
    })
    .await
}

impl State {
    /// The token of an id.
    pub(crate) fn token(&self, id: &str) -> Option<&Token> {
        self.tokens.get(id)
    }

    /// The tokens behind an id, in order.
    pub(crate) fn tokens_after(&self, after: Option<&str>) -> impl Iterator<Item = &Token> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.tokens.range::<str, _>((from, Bound::Unbounded));
        range.map(|(_, token)| token)
    }

    /// The grant at a key.
    pub(crate) fn grant(&self, key: &str) -> Option<&Arc<Grant>> {
        self.grants.get(key)
    }

    /// The grants behind a key, in order, with their keys.
    pub(crate) fn grants_after(
        &self,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&String, &Arc<Grant>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.grants.range::<str, _>((from, Bound::Unbounded))
    }

    /// The grants of a principal.
    pub(crate) fn grants_of(&self, principal: &str) -> impl Iterator<Item = &Arc<Grant>> {
        let held = self.by_principal.get(principal);
        held.into_iter().flat_map(BTreeMap::values)
    }

    /// Whether grants end after one time and up to another.
    pub(crate) fn some_end(&self, after: u64, until: u64) -> bool {
        let in_between = (Bound::Excluded(after), Bound::Included(until));
        after < until && self.ends.range(in_between).next().is_some()
    }

    fn check_room(&self, bounds: &Bounds, tenant: Option<&str>) -> Result<(), BrokerError> {
        if let Some(tenant) = tenant {
            let used = self.owned.get(tenant).copied().unwrap_or_default();
            if used >= bounds.tenant {
                return Err(full(format!("tenant {tenant}"), used, bounds.tenant));
            }
        }
        self.check_all(bounds.all)
    }

    fn check_all(&self, max: u64) -> Result<(), BrokerError> {
        let used = self.len() as u64;
        match used < max {
            true => Ok(()),
            false => Err(full("the cluster".to_owned(), used, max)),
        }
    }

    fn own(&mut self, tenant: Option<&str>) {
        if let Some(tenant) = tenant {
            *self.owned.entry(tenant.to_owned()).or_default() += 1;
        }
    }

    fn disown(&mut self, tenant: Option<&str>) {
        if let Some(tenant) = tenant
            && let Some(count) = self.owned.get_mut(tenant)
        {
            *count -= 1;
            if *count == 0 {
                self.owned.remove(tenant);
            }
        }
    }

    fn len(&self) -> usize {
        self.tokens.len() + self.grants.len() + self.roles.len() + self.revoked.len()
    }

    /// A role that is not built in.
    pub(crate) fn role(&self, name: &RoleName) -> Option<&OwnRole> {
        self.roles.get(&own_role::key(name))
    }

    /// The roles of a tenant, or of the cluster, in order.
    pub(crate) fn roles_of(&self, tenant: Option<&str>) -> impl Iterator<Item = &OwnRole> {
        let prefix = keys::roles_prefix(tenant);
        let from = self.roles.range(prefix.clone()..);
        from.take_while(move |(key, _)| key.starts_with(&prefix))
            .map(|(_, role)| role)
    }

    fn put(&mut self, stored: &Versioned) {
        match stored.key.parse() {
            Ok(Key::Token(id)) => match record::decode::<TokenRecord>(stored) {
                Ok(record) => {
                    self.remove_token(&id);
                    let token = Token { id, record };
                    self.own(token.tenant());
                    self.tokens.insert(token.id.clone(), token);
                }
                Err(error) => {
                    self.remove_token(&id);
                    tracing::warn!(id, %error, "a token is not understood and not accepted");
                }
            },
            Ok(Key::Grant(_, id)) => {
                self.remove(&stored.key);
                let record = record::decode::<GrantRecord>(stored);
                let grant = record.map_err(|error| error.to_string());
                match grant.and_then(|record| Grant::of(&id, record)) {
                    Ok(grant) => self.add(stored.key.clone(), Arc::new(grant)),
                    Err(error) => {
                        tracing::warn!(id, error, "a grant is not understood and gives nothing");
                    }
                }
            }
            Ok(Key::Role(tenant, name)) => {
                let name = RoleName { tenant, name };
                self.remove_role(&stored.key);
                let record = record::decode::<RoleRecord>(stored);
                let role = record.map_err(|error| error.to_string());
                match role.and_then(|record| OwnRole::of(name, record)) {
                    Ok(role) => {
                        self.own(role.name.tenant.as_deref());
                        self.roles.insert(stored.key.clone(), role);
                    }
                    Err(error) => {
                        let key = &stored.key;
                        tracing::warn!(key, error, "a role is not understood and gives nothing");
                    }
                }
                self.resolve(&stored.key);
            }
            Ok(Key::Revocation(id)) => {
                let record = record::decode::<RevocationRecord>(stored);
                let revocation = record.map_err(|error| error.to_string());
                match revocation.and_then(|record| revoked::of(&id, record)) {
                    Ok(revocation) => self.revoked.put(revocation),
                    Err(error) => {
                        tracing::error!(id, error, "a revocation is not understood");
                    }
                }
            }
            Ok(Key::Forgotten(_) | Key::ClusterKey(_) | Key::AuditEnds) => {}
            _ => tracing::debug!(key = stored.key, "neither a token nor a grant"),
        }
    }

    /// Gives the grants of a role the actions that it has now. Decisions wait meanwhile, so that no
    /// other grant is looked at.
    fn resolve(&mut self, role: &str) {
        let found = self.roles.get(role);
        let actions = found.map(|role| role.actions).unwrap_or_default();
        for key in self.naming.get(role).into_iter().flatten() {
            if let Some(grant) = self.grants.get_mut(key)
                && grant.actions != actions
                && let Some(name) = grant.own_role.clone()
            {
                *grant = Arc::new((**grant).clone().of_role(name, actions));
                if let Some(held) = self.by_principal.get_mut(&grant.info.principal) {
                    held.insert(key.clone(), Arc::clone(grant));
                }
            }
        }
    }

    fn remove_token(&mut self, id: &str) {
        if let Some(gone) = self.tokens.remove(id) {
            self.disown(gone.tenant());
        }
    }

    fn remove_role(&mut self, key: &str) {
        if let Some(gone) = self.roles.remove(key) {
            self.disown(gone.name.tenant.as_deref());
        }
    }

    fn add(&mut self, key: String, grant: Arc<Grant>) {
        let grant = match &grant.own_role {
            None => grant,
            Some(name) => {
                let of = own_role::key(name);
                let role = self.roles.get(&of);
                let actions = role.map(|role| role.actions).unwrap_or_default();
                self.naming.entry(of).or_default().insert(key.clone());
                Arc::new(Grant::clone(&grant).of_role(name.clone(), actions))
            }
        };
        if let Some(end) = grant.info.expires_ms {
            *self.ends.entry(end).or_default() += 1;
        }
        self.own(grant.info.scope.tenant());
        let principal = grant.info.principal.clone();
        let held = self.by_principal.entry(principal).or_default();
        held.insert(key.clone(), Arc::clone(&grant));
        self.grants.insert(key, grant);
    }

    fn remove(&mut self, key: &str) {
        match key.parse() {
            Ok(Key::Token(id)) => self.remove_token(&id),
            Ok(Key::Role(..)) => {
                self.remove_role(key);
                self.resolve(key);
            }
            Ok(Key::Revocation(id)) => self.revoked.remove(&id),
            _ => {}
        }
        let Some(gone) = self.grants.remove(key) else {
            return;
        };
        self.disown(gone.info.scope.tenant());
        if let Some(end) = gone.info.expires_ms
            && let Entry::Occupied(mut count) = self.ends.entry(end)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        let of = gone.own_role.as_ref().map(own_role::key);
        if let Some(of) = of
            && let Some(naming) = self.naming.get_mut(&of)
        {
            naming.remove(key);
            if naming.is_empty() {
                self.naming.remove(&of);
            }
        }
        let principal = &gone.info.principal;
        if let Some(held) = self.by_principal.get_mut(principal) {
            held.remove(key);
            if held.is_empty() {
                self.by_principal.remove(principal);
            }
        }
    }
}

/// The error of a bound that is reached.
pub(crate) fn full(scope: String, used: u64, max: u64) -> BrokerError {
    BrokerError::Quota {
        limit: RECORDS_LIMIT,
        what: "tokens, grants, roles and revocations",
        scope,
        used,
        max,
    }
}

#[cfg(test)]
mod tests;
