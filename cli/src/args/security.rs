//! Arguments of `aquifer token`, `grant`, `role`, `access`, `context` and `completion`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use aquifer_client::security::GrantScope;
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token. Its text is shown only now, and grants say what it may do.
    Create {
        /// Its name: the principal is token:NAME, or token:TENANT/NAME.
        name: String,
        /// The tenant that it belongs to [default: the cluster].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
        /// How long it is accepted, such as 90d [default: for ever].
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
        /// Write its text to a new file that only you can read, instead of standard output.
        #[arg(long, value_name = "PATH")]
        to_file: Option<PathBuf>,
    },
    /// List the tokens of a tenant, or of the cluster.
    List {
        /// The tenant [default: the cluster].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
    /// Say what a token is, without asking a broker.
    Inspect {
        /// The file with the token, or the token itself.
        #[arg(value_name = "FILE|TOKEN")]
        given: String,
    },
    /// Give a token another text. Whatever has the former one needs the new one before the grace
    /// period ends.
    Rotate {
        /// The token, by its id as `list` shows it.
        id: String,
        /// How long the former text is accepted still, such as 1h.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        grace: Option<Duration>,
        /// Write the new text to this file, which may hold the former one, instead of standard
        /// output.
        #[arg(long, value_name = "PATH")]
        to_file: Option<PathBuf>,
    },
    /// Make a token useless at once; whatever is connected with it is disconnected.
    Revoke {
        /// The token, by its id as `list` shows it.
        #[arg(required_unless_present_any = ["jti", "subject"])]
        id: Option<String>,
        /// A JSON Web Token instead, by the alias of its issuer and its id.
        #[arg(long, value_name = "ALIAS:JTI", conflicts_with_all = ["id", "subject"])]
        jti: Option<String>,
        /// The JSON Web Tokens of a principal instead that were issued until now.
        #[arg(long, value_name = "jwt:ALIAS:SUB", conflicts_with = "id")]
        subject: Option<String>,
        /// Those that were issued before this time, such as 2026-01-31T12:00:00Z [default: now].
        #[arg(
            long,
            value_name = "TIME",
            value_parser = humantime::parse_rfc3339_weak,
            requires = "subject"
        )]
        issued_before: Option<SystemTime>,
    },
    /// List what was revoked of JSON Web Tokens.
    Revocations,
    /// Take a revocation of JSON Web Tokens back: they are accepted again until they expire.
    Unrevoke {
        /// The revocation, by its id as `revocations` shows it.
        id: String,
    },
}

/// To what a grant applies.
#[derive(Debug, Clone, Default, Args)]
pub struct ScopeArgs {
    /// A tenant, and all that it has.
    #[arg(long, value_name = "T", group = "scope")]
    pub tenant: Option<String>,
    /// A namespace, and all that it has; its name may end with a star.
    #[arg(long, value_name = "T/N", group = "scope", value_parser = namespace)]
    pub namespace: Option<GrantScope>,
    /// A topic; its name may end with a star.
    #[arg(long, value_name = "T/N/X", group = "scope", value_parser = topic)]
    pub topic: Option<GrantScope>,
}

impl ScopeArgs {
    /// What is named; `None` for nothing.
    pub fn scope(&self) -> Option<GrantScope> {
        let tenant = self.tenant.clone().map(GrantScope::Tenant);
        let narrower = self.topic.clone().or_else(|| self.namespace.clone());
        narrower.or(tenant)
    }
}

/// What to do with grants.
#[derive(Debug, Subcommand)]
pub enum GrantCommand {
    /// Let a principal do something: in the cluster, or in what a flag names.
    Add {
        /// Who: a principal such as token:acme/billing, or group:ALIAS:NAME.
        principal: String,
        /// The role: viewer, producer, consumer, developer, namespace-admin, tenant-admin,
        /// operator, auditor, or one that `aquifer role create` has made.
        #[arg(required_unless_present = "actions")]
        role: Option<String>,
        /// Actions instead of a role: describe, produce, consume, manage, grant, operate, audit.
        #[arg(
            long,
            value_name = "A,B",
            value_delimiter = ',',
            conflicts_with = "role"
        )]
        actions: Vec<String>,
        /// Where.
        #[command(flatten)]
        scope: ScopeArgs,
        /// The subscriptions that may be consumed; the name may end with a star [default: all].
        #[arg(long, value_name = "P")]
        subscription: Option<String>,
        /// How long it lasts, such as 30d [default: for ever].
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
    },
    /// List grants of the cluster, or of what a flag names.
    List {
        /// Where.
        #[command(flatten)]
        scope: ScopeArgs,
        /// Only those of this principal.
        #[arg(long, value_name = "PRINCIPAL")]
        principal: Option<String>,
    },
    /// Take a grant back.
    Remove {
        /// The grant, by its id as `list` shows it.
        id: String,
        /// The tenant that it is in [default: it is looked for in all that you may list].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
}

/// What to do with roles.
#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Make a role: a name for actions, which `aquifer grant add` takes.
    Create {
        /// Its name.
        name: String,
        /// The tenant that it belongs to; grants within that tenant may name it [default: the
        /// cluster, and grants everywhere].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
        /// What it allows: describe, produce, consume, manage.
        #[arg(long, value_name = "A,B", value_delimiter = ',', required = true)]
        actions: Vec<String>,
    },
    /// List the roles that grants may name in the cluster, or in a tenant.
    List {
        /// The tenant [default: the cluster].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
    /// Show a role.
    Show {
        /// The role.
        name: String,
        /// The tenant that it belongs to [default: the cluster].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
    /// Give a role other actions. Grants that name it allow these from then on.
    Update {
        /// The role.
        name: String,
        /// The tenant that it belongs to [default: the cluster].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
        /// What it allows: describe, produce, consume, manage.
        #[arg(long, value_name = "A,B", value_delimiter = ',', required = true)]
        actions: Vec<String>,
    },
    /// Delete a role that no grant names.
    Delete {
        /// The role.
        name: String,
        /// The tenant that it belongs to [default: the cluster].
        #[arg(long, value_name = "T")]
        tenant: Option<String>,
    },
}

/// What to ask about access.
#[derive(Debug, Subcommand)]
pub enum AccessCommand {
    /// Say whether a principal may do something, and which grant decides; exit code 5 when not.
    Check {
        /// Who.
        principal: String,
        /// What: describe, produce, consume, manage, grant, operate, audit.
        action: String,
        /// On what: cluster, TENANT, TENANT/NAMESPACE or TENANT/NAMESPACE/TOPIC.
        resource: GrantScope,
        /// The subscription, to consume.
        #[arg(long, value_name = "S")]
        subscription: Option<String>,
    },
    /// Say who you are for the broker, and what you may do.
    Whoami,
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Keep addresses, TLS files and token file under a name: those that flags or environment
    /// variables give. What is not given stays as it was. The first context is used at once.
    Set {
        /// The context.
        name: String,
    },
    /// Use a context from now on.
    Use {
        /// The context.
        name: String,
    },
    /// List the contexts.
    List,
    /// Show a context.
    Show {
        /// The context [default: the one in use].
        name: Option<String>,
    },
    /// Forget a context. Files that it names stay.
    Remove {
        /// The context.
        name: String,
    },
}

/// Arguments of `aquifer completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: ShellArg,
}

/// A shell that completes commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShellArg {
    /// Put the output into ~/.local/share/bash-completion/completions/aquifer.
    Bash,
    /// Put the output into a file _aquifer in a directory of fpath.
    Zsh,
    /// Put the output into ~/.config/fish/completions/aquifer.fish.
    Fish,
}

impl From<ShellArg> for Shell {
    fn from(shell: ShellArg) -> Shell {
        match shell {
            ShellArg::Bash => Shell::Bash,
            ShellArg::Zsh => Shell::Zsh,
            ShellArg::Fish => Shell::Fish,
        }
    }
}

fn namespace(text: &str) -> Result<GrantScope, String> {
    match text.parse() {
        Ok(scope @ GrantScope::Namespace(..)) => Ok(scope),
        _ => Err("give TENANT/NAMESPACE".to_owned()),
    }
}

fn topic(text: &str) -> Result<GrantScope, String> {
    match text.parse() {
        Ok(scope @ GrantScope::Topic(..)) => Ok(scope),
        _ => Err("give TENANT/NAMESPACE/TOPIC".to_owned()),
    }
}
