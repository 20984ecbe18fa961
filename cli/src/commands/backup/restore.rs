//! `aquifer backup restore`.

mod dry_run;

use std::collections::BTreeSet;
use std::time::Duration;

use aquifer_client::{Admin, Client, ErrorCode, ErrorKind};
use aquifer_cold::backup::{self, Lists};
use aquifer_model::backup::{
    BackupTotals, RestoreAccess, RestoreOutcome, RestoreTopic, Restored, RestoredAccess,
};
use aquifer_model::id::{BackupId, LedgerId};
use aquifer_model::policy::{Policies, PolicyScope, PolicyUpdate};
use aquifer_model::topic::{NamespaceName, RESERVED_TENANT, TopicName};
use aquifer_proto::convert::backup::files;
use aquifer_proto::v1;
use aquifer_runtime::clock;
use serde_json::{Value, json};

use crate::args::NewName;
use crate::commands::backup::failures::{Failures, Trouble};
use crate::commands::backup::opened::{Opened, id_of};
use crate::commands::backup::topics::topic_object;
use crate::commands::object::failed;
use crate::exit::CliError;
use crate::output::Output;

/// What to bring back.
pub(super) struct Wanted {
    pub(super) tenant: Option<String>,
    pub(super) topic: Option<TopicName>,
    pub(super) new_name: Option<NewName>,
    pub(super) dry_run: bool,
    pub(super) access: bool,
    pub(super) trim_after: Duration,
}

/// A topic of the backup, with its name, and the other one that it gets.
struct Topic<'a> {
    name: TopicName,
    new_name: Option<TopicName>,
    entry: &'a v1::BackupTopicEntry,
}

impl Topic<'_> {
    fn target(&self) -> &TopicName {
        self.new_name.as_ref().unwrap_or(&self.name)
    }

    /// What it is called in texts.
    fn said(&self) -> String {
        match &self.new_name {
            Some(new_name) => format!("{} as {new_name}", self.entry.topic),
            None => self.entry.topic.clone(),
        }
    }

    fn object(&self, outcome: &str, totals: &BackupTotals) -> Value {
        let mut object = topic_object(&self.entry.topic, outcome, totals);
        if let Some(new_name) = &self.new_name {
            object["as"] = json!(new_name.to_string());
        }
        object
    }
}

pub(super) async fn run(
    opened: &Opened,
    wanted: &Wanted,
    client: &Client,
    out: &Output,
) -> Result<(), CliError> {
    let lists = opened.lists().await?;
    let (topics, scopes) = (chosen(&lists, wanted)?, Scopes::of(&lists, wanted)?);
    if let Some(new_name) = &wanted.new_name {
        let namespaces = scopes.namespaces.iter().map(|(name, _)| name);
        new_name.check(topics.iter().map(|topic| &topic.name), namespaces)?;
    }
    let has_access = wanted.access && !lists.access.is_empty();
    let has_others = !scopes.is_empty() || has_access;
    if topics.is_empty() && (wanted.topic.is_some() || !has_others) {
        return Err(CliError::failed("the backup has nothing of this")
            .advise("see what it has with `aquifer backup show`"));
    }
    let admin = client.admin();
    if wanted.dry_run {
        return dry_run::run(&lists, &scopes, &topics, wanted, &admin, out).await;
    }
    let run = Run {
        opened,
        client,
        admin,
        id: id_of(&opened.root)?,
        trim_after_ms: clock::millis(wanted.trim_after),
        new_name: wanted.new_name.as_ref(),
        out,
    };
    run.scopes(&scopes).await?;
    let refused = match wanted.access {
        true => run.access(&lists, wanted.tenant.clone()).await?,
        false => 0,
    };
    run.topics(&topics).await?;
    match refused {
        0 => Ok(()),
        refused => Err(CliError::failed(format!(
            "not everything is back: {refused} tokens, grants and roles were refused"
        ))
        .advise(
            "those that you may not give: run it again as one who may; those that were deleted with \
             their tenant: make them again",
        )),
    }
}

/// Tenants and namespaces that are wanted, whether they have topics or not.
struct Scopes<'a> {
    tenants: Vec<&'a v1::BackupTenant>,
    namespaces: Vec<(NamespaceName, &'a v1::BackupNamespace)>,
}

impl<'a> Scopes<'a> {
    /// All of the backup or of a tenant, or those that a topic is in.
    fn of(lists: &'a Lists, wanted: &Wanted) -> Result<Scopes<'a>, CliError> {
        let within = wanted.topic.as_ref().map(TopicName::namespace);
        // Brokers make their tenant themselves.
        let is_wanted = |tenant: &str| {
            tenant != RESERVED_TENANT
                && wanted.tenant.as_deref().is_none_or(|name| name == tenant)
                && within.is_none_or(|within| within.tenant() == tenant)
        };
        let tenants = lists.tenants.iter();
        let tenants = tenants.filter(|tenant| is_wanted(&tenant.tenant));
        let mut namespaces = Vec::new();
        for namespace in &lists.namespaces {
            let name: NamespaceName = namespace
                .namespace
                .parse()
                .map_err(|error| CliError::failed(format!("{}: {error}", namespace.namespace)))?;
            if is_wanted(name.tenant()) && within.is_none_or(|within| *within == name) {
                namespaces.push((name, namespace));
            }
        }
        Ok(Scopes {
            tenants: tenants.collect(),
            namespaces,
        })
    }

    /// The name that a namespace gets.
    fn name_of(
        name: &NamespaceName,
        new_name: Option<&NewName>,
    ) -> Result<NamespaceName, CliError> {
        match new_name {
            Some(new_name) => new_name
                .namespace(name)
                .map_err(|error| CliError::usage(format!("{name}: its new name: {error}"))),
            None => Ok(name.clone()),
        }
    }

    fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.namespaces.is_empty()
    }
}

/// The topics that are wanted, partitioned ones before their partitions.
fn chosen<'a>(lists: &'a Lists, wanted: &Wanted) -> Result<Vec<Topic<'a>>, CliError> {
    let mut topics = Vec::new();
    for entry in &lists.topics {
        let name: TopicName = entry
            .topic
            .parse()
            .map_err(|error| CliError::failed(format!("{}: {error}", entry.topic)))?;
        let tenant = wanted.tenant.as_deref();
        let of_tenant = tenant.is_none_or(|tenant| name.namespace().tenant() == tenant);
        let of_topic = wanted.topic.as_ref().is_none_or(|topic| {
            name == *topic || name.partition().is_some() && name.base() == *topic
        });
        // What brokers keep for themselves is refused: with all the rest it is left out.
        let is_all = wanted.tenant.is_none() && wanted.topic.is_none();
        let is_left_out = is_all && name.namespace().tenant() == RESERVED_TENANT;
        if of_tenant && of_topic && !is_left_out {
            let new_name = wanted.new_name.as_ref().map(|new| new.topic(&name));
            let new_name = new_name.transpose().map_err(|error| {
                CliError::usage(format!("{}: its new name: {error}", entry.topic))
            })?;
            topics.push(Topic {
                name,
                new_name,
                entry,
            });
        }
    }
    Ok(topics)
}

async fn exists(topic: &TopicName, admin: &Admin) -> Result<bool, CliError> {
    match admin.describe_topic(&topic.to_string()).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

struct Run<'a> {
    opened: &'a Opened,
    client: &'a Client,
    admin: Admin,
    id: BackupId,
    trim_after_ms: u64,
    new_name: Option<&'a NewName>,
    out: &'a Output,
}

impl Run<'_> {
    /// Tenants and namespaces, with their policies where none are set.
    async fn scopes(&self, scopes: &Scopes<'_>) -> Result<(), CliError> {
        for tenant in &scopes.tenants {
            let name = self
                .new_name
                .map_or(tenant.tenant.as_str(), NewName::tenant);
            match self.admin.create_tenant(name).await {
                // It is one that each cluster has, or a run was interrupted before its policies.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => created?,
            }
            if self.new_name.is_none_or(NewName::is_of_tenant) {
                let scope = PolicyScope::Tenant(name.to_owned());
                self.set(&scope, tenant.policies.clone()).await?;
            }
        }
        for (name, namespace) in &scopes.namespaces {
            let policies = policies_of(namespace.policies.clone())?;
            let name = Scopes::name_of(name, self.new_name)?;
            let text = name.to_string();
            let created = self.admin.create_namespace(&text, policies);
            match created.await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    if self.new_name.is_none_or(NewName::is_of_namespace) {
                        let scope = PolicyScope::Namespace(name);
                        self.set(&scope, namespace.policies.clone()).await?;
                    }
                }
                created => drop(created?),
            }
        }
        Ok(())
    }

    /// Revocations, and tokens and grants, those of a tenant or all. Answers how many were refused.
    async fn access(&self, lists: &Lists, tenant: Option<String>) -> Result<u64, CliError> {
        let wanted = RestoreAccess {
            url: self.opened.url.clone(),
            cluster: self.opened.root.cluster.clone(),
            backup: self.id,
            files: lists.access.clone(),
            tenant,
        };
        let restored = self.client.backups().restore_access(&wanted).await?;
        let RestoredAccess {
            revocations,
            tokens,
            grants,
            kept,
            refused,
        } = restored;
        match self.out.is_json() {
            true => self.out.object(&json!({
                "revocations": revocations,
                "tokens": tokens,
                "grants": grants,
                "kept": kept,
                "refused": refused,
            })),
            false => self.out.line(format!(
                "{revocations} revocations, {tokens} tokens, and {grants} grants and roles are back; {kept} are here and stay as they \
                 are; {refused} may not be given or lack their tenant"
            )),
        }?;
        Ok(refused)
    }

    /// Sets policies where none are set, and says where others are.
    async fn set(
        &self,
        scope: &PolicyScope,
        policies: Option<v1::Policies>,
    ) -> Result<(), Trouble> {
        let set = policies_of(policies).map_err(Trouble::Topic)?;
        if set == Policies::default() {
            return Ok(());
        }
        let update = PolicyUpdate {
            set,
            unset: Vec::new(),
            version: Some(0),
        };
        match self.admin.update_policies(scope, update).await {
            Err(error) if error.code() == Some(ErrorCode::Conflict) => {}
            set => return Ok(set.map(drop)?),
        }
        // Those of the backup are there when this was run before.
        let is_done = self.admin.get_policies(scope).await?.own == set;
        match is_done {
            true => Ok(()),
            false => self.kept(scope).map_err(Trouble::Every),
        }
    }

    fn kept(&self, scope: &PolicyScope) -> Result<(), CliError> {
        match self.out.is_json() {
            true => self.out.object(&json!({
                "policies": scope.to_string(),
                "outcome": "kept",
            })),
            false => self.out.line(format!(
                "{scope}: its policies stay as they are, and differ from those of the backup"
            )),
        }
    }

    /// Brings topics back, also when some of them fail.
    async fn topics(&self, topics: &[Topic<'_>]) -> Result<(), CliError> {
        let (mut rows, mut failures) = (Vec::new(), Failures::default());
        let ended = self.each(topics, &mut rows, &mut failures).await;
        self.summary(&rows)?;
        if failures.count > 0 {
            match self.out.is_json() {
                true => self.out.object(&failures)?,
                false => failures.lines(self.out)?,
            }
        }
        ended?;
        failures.result(
            "not everything is back",
            "run it again: what is done stays done",
        )
    }

    /// An error concerns every topic.
    async fn each(
        &self,
        topics: &[Topic<'_>],
        rows: &mut Vec<(RestoreOutcome, BackupTotals)>,
        failures: &mut Failures,
    ) -> Result<(), CliError> {
        let mut left_out: BTreeSet<TopicName> = BTreeSet::new();
        // Partitioned, and to be seen when its partitions are there.
        let mut open: Option<&Topic<'_>> = None;
        for topic in topics {
            let base = topic.name.base();
            if let Some(done) = open.take_if(|open| open.name != base)
                && let Some(restored) = self.attempt(done, false, failures).await?
            {
                rows.push(self.told(done, restored)?);
            }
            if topic.name.partition().is_some() && left_out.contains(&base) {
                continue;
            }
            let is_partitioned = !topic.entry.partitions.is_empty();
            let restored = self.attempt(topic, is_partitioned, failures).await?;
            if is_partitioned
                && restored.is_none_or(|restored| restored.outcome != RestoreOutcome::Prepared)
            {
                left_out.insert(topic.name.clone());
            }
            match restored {
                // Without one of its partitions the topic is not to be seen.
                None => open = None,
                Some(restored) if restored.outcome == RestoreOutcome::Prepared => {
                    open = Some(topic);
                }
                Some(restored) => rows.push(self.told(topic, restored)?),
            }
        }
        if let Some(done) = open
            && let Some(restored) = self.attempt(done, false, failures).await?
        {
            rows.push(self.told(done, restored)?);
        }
        Ok(())
    }

    /// Brings a topic back with its policies. None when it failed; an error concerns every topic.
    async fn attempt(
        &self,
        topic: &Topic<'_>,
        prepare: bool,
        failures: &mut Failures,
    ) -> Result<Option<Restored>, CliError> {
        let trouble = match self.restore(topic, prepare).await {
            Ok(restored) => return Ok(Some(restored)),
            Err(trouble) => trouble,
        };
        let error = trouble.of_topic(self.probe()).await?;
        failures.add(&topic.entry.topic, &error);
        Ok(None)
    }

    /// Looks whether the store of the backup and the cluster answer.
    async fn probe(&self) -> Result<(), CliError> {
        let root = backup::read_root(&*self.opened.store, &self.opened.root.cluster, self.id);
        root.await.map_err(failed)?;
        self.admin.list_tenants().await?;
        Ok(())
    }

    fn summary(&self, rows: &[(RestoreOutcome, BackupTotals)]) -> Result<(), CliError> {
        if self.out.is_json() {
            return Ok(());
        }
        let of =
            |wanted: RestoreOutcome| rows.iter().filter(move |(outcome, _)| *outcome == wanted);
        let bytes: u64 = of(RestoreOutcome::Restored)
            .map(|(_, totals)| totals.bytes)
            .sum();
        self.out.line(format!(
            "restored {} topics, {bytes} bytes; {} exist and stay as they are, {} were restored before",
            of(RestoreOutcome::Restored).count(),
            of(RestoreOutcome::Exists).count(),
            of(RestoreOutcome::Done).count()
        ))
    }

    fn told(
        &self,
        topic: &Topic<'_>,
        restored: Restored,
    ) -> Result<(RestoreOutcome, BackupTotals), CliError> {
        let (outcome, totals) = (restored.outcome, restored.totals);
        let name = outcome.name();
        if self.out.is_json() {
            self.out.object(&topic.object(name, &totals))?;
        } else {
            self.out.line(format!(
                "{}: {name}, indexes {} to before {}, {} entries, {} bytes, {} subscriptions",
                topic.said(),
                totals.first,
                totals.end,
                totals.entries,
                totals.bytes,
                totals.subscriptions
            ))?;
        }
        Ok((outcome, totals))
    }

    async fn restore(&self, topic: &Topic<'_>, prepare: bool) -> Result<Restored, Trouble> {
        let root = &self.opened.root;
        let parts = files(topic.entry.parts.clone());
        let wanted = RestoreTopic {
            url: self.opened.url.clone(),
            cluster: root.cluster.clone(),
            backup: self.id,
            topic: topic.name.clone(),
            as_topic: topic.new_name.clone(),
            files: parts.map_err(|reason| Trouble::Topic(CliError::failed(reason)))?,
            last_ledger: LedgerId(root.last_ledger_id),
            trim_after_ms: Some(self.trim_after_ms),
            prepare,
        };
        let restored = loop {
            let restored = self.client.backups().restore(&wanted).await;
            let restored = restored.map_err(|error| Trouble::of_backup(error, self.id))?;
            if restored.outcome != RestoreOutcome::Copying {
                break restored;
            }
        };
        // One that is done may have been interrupted before its policies were set.
        let is_back = matches!(
            restored.outcome,
            RestoreOutcome::Restored | RestoreOutcome::Done
        );
        if is_back && topic.name.partition().is_none() {
            let scope = PolicyScope::Topic(topic.target().clone());
            self.set(&scope, topic.entry.policies.clone()).await?;
        }
        Ok(restored)
    }
}

fn policies_of(policies: Option<v1::Policies>) -> Result<Policies, CliError> {
    let Some(policies) = policies else {
        return Ok(Policies::default());
    };
    let policies = Policies::try_from(policies);
    policies.map_err(|error| CliError::failed(format!("policies of the backup: {error}")))
}
