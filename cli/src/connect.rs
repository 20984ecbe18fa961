//! The way from the command line to a broker, shared by all commands that use one: flags first,
//! then the environment, then the context.

use std::path::PathBuf;
use std::time::Duration;

use aquifer_client::{Client, ClientBuilder, Token, TokenSource};
use aquifer_runtime::config;
use aquifer_runtime::net::tls::ClientTlsConfig;

use crate::args::{ConnectArgs, DEFAULT_URL};
use crate::contexts::{self, Contexts, Entry};
use crate::exit::CliError;

/// Bytes of unacknowledged messages that the client of a load may hold.
const LOAD_MEMORY_BYTES: usize = 256 * 1024 * 1024;
const TOKEN: &str = "AQUIFER_TOKEN";
const TOKEN_FILE: &str = "AQUIFER_TOKEN_FILE";
const CONTEXT: &str = "AQUIFER_CONTEXT";

/// Where the brokers are, who the caller is, and how long an operation may take.
#[derive(Debug, Clone)]
pub struct Connect {
    args: ConnectArgs,
}

/// What flags, environment and context come to.
#[derive(Debug, Clone)]
struct Resolved {
    urls: Vec<String>,
    tls: ClientTlsConfig,
    token: Option<TokenSource>,
}

impl Connect {
    /// From the global arguments.
    pub fn new(args: ConnectArgs) -> Connect {
        Connect { args }
    }

    /// The global arguments.
    pub fn args(&self) -> &ConnectArgs {
        &self.args
    }

    /// How long one operation may take.
    pub fn timeout(&self) -> Duration {
        self.args.timeout
    }

    /// A client of these brokers. Nothing is connected yet.
    ///
    /// # Errors
    /// When an address is no URL, or another setting wrong.
    pub fn client(&self) -> Result<Client, CliError> {
        let resolved = self.resolved()?;
        let builder = self.builder(&resolved).urls(&resolved.urls);
        builder.build().map_err(unusable)
    }

    /// A client for a load: with memory for everything that a measurement leaves unacknowledged.
    ///
    /// # Errors
    /// When an address is no URL, or another setting wrong.
    pub fn load_client(&self) -> Result<Client, CliError> {
        let resolved = self.resolved()?;
        let builder = self.builder(&resolved).urls(&resolved.urls);
        let builder = builder.memory_limit_bytes(LOAD_MEMORY_BYTES);
        builder.build().map_err(unusable)
    }

    /// A client of one broker that was named by another.
    ///
    /// # Errors
    /// When its address is no URL.
    pub fn to(&self, url: &str) -> Result<Client, CliError> {
        let builder = self.builder(&self.resolved()?).url(url);
        builder.build().map_err(unusable)
    }

    fn builder(&self, resolved: &Resolved) -> ClientBuilder {
        let builder = Client::builder()
            .operation_timeout(self.args.timeout)
            .tls(resolved.tls.clone())
            .allow_plaintext_credentials(self.args.allow_plaintext_credentials);
        match &resolved.token {
            Some(token) => builder.token_source(token.clone()),
            None => builder,
        }
    }

    fn resolved(&self) -> Result<Resolved, CliError> {
        let contexts = match contexts::path(config::env) {
            Some(path) => Contexts::load(&path)?,
            None => Contexts::default(),
        };
        resolve(&self.args, config::env, &contexts)
    }
}

/// What wins: a flag, the environment, the context. The token of a context goes to the context's
/// own brokers, unless the context was asked for by name.
fn resolve(
    args: &ConnectArgs,
    env: impl Fn(&str) -> Option<String>,
    contexts: &Contexts,
) -> Result<Resolved, CliError> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let asked = args.context.clone();
    let name = asked
        .clone()
        .or_else(|| env(CONTEXT))
        .or_else(|| contexts.current.clone());
    let context = match &name {
        Some(name) => contexts.get(name)?.clone(),
        None => Entry::default(),
    };
    let given = (env(TOKEN), env(TOKEN_FILE));
    let file = |path: &PathBuf| TokenSource::File(path.clone());
    let token = match (&args.token, &args.token_file, given) {
        (Some(token), ..) => Some(TokenSource::Value(Token::new(token))),
        (None, Some(path), _) => Some(file(path)),
        (None, None, (Some(_), Some(_))) => {
            let message = format!("{TOKEN} and {TOKEN_FILE} are both set");
            return Err(CliError::usage(message).advise("set one of them"));
        }
        (None, None, (Some(token), None)) => Some(TokenSource::Value(Token::new(token))),
        (None, None, (None, Some(path))) => Some(TokenSource::File(path.into())),
        (None, None, (None, None)) => {
            let is_meant = asked.is_some() || args.url.is_empty() || args.url == context.url;
            context.token_file.as_ref().filter(|_| is_meant).map(file)
        }
    };
    let urls = [&args.url, &context.url];
    let urls = urls.into_iter().find(|urls| !urls.is_empty());
    // A certificate and its key belong together.
    let own = args.tls_cert_file.is_some() || args.tls_key_file.is_some();
    let (cert_file, key_file) = match own {
        true => (args.tls_cert_file.clone(), args.tls_key_file.clone()),
        false => (context.tls_cert_file, context.tls_key_file),
    };
    Ok(Resolved {
        urls: urls
            .cloned()
            .unwrap_or_else(|| vec![DEFAULT_URL.to_owned()]),
        tls: ClientTlsConfig {
            ca_file: args.tls_ca_file.clone().or(context.tls_ca_file),
            cert_file,
            key_file,
        },
        token,
    })
}

fn unusable(error: aquifer_client::ClientError) -> CliError {
    CliError::usage(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Contexts {
        let entry = |name: &str| Entry {
            url: vec![format!("https://{name}:1")],
            token_file: Some(format!("/{name}.token").into()),
            tls_ca_file: Some(format!("/{name}.pem").into()),
            ..Entry::default()
        };
        Contexts {
            current: Some("east".to_owned()),
            all: ["east", "west"]
                .map(|name| (name.to_owned(), entry(name)))
                .into(),
        }
    }

    /// Addresses and token that these arguments and variables come to.
    fn resolved(args: &ConnectArgs, variables: &[(&str, &str)]) -> (String, String) {
        let env = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let resolved = resolve(args, env, &contexts()).unwrap();
        let token = match resolved.token {
            None => "nothing".to_owned(),
            Some(TokenSource::Value(token)) => token.expose().to_owned(),
            Some(TokenSource::File(path)) => path.display().to_string(),
            Some(other) => format!("{other:?}"),
        };
        (resolved.urls.join(","), token)
    }

    fn args() -> ConnectArgs {
        ConnectArgs::default()
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_context() {
        let expected = |url: &str, token: &str| (url.to_owned(), token.to_owned());
        let east = expected("https://east:1", "/east.token");
        assert_eq!(resolved(&args(), &[]), east);
        assert_eq!(resolved(&args(), &[(TOKEN, "")]), east);
        let west = expected("https://west:1", "/west.token");
        assert_eq!(resolved(&args(), &[(CONTEXT, "west")]), west);
        let named = ConnectArgs {
            context: Some("west".to_owned()),
            ..args()
        };
        assert_eq!(resolved(&named, &[(CONTEXT, "east")]), west);
        let environment = [(TOKEN_FILE, "/e.token")];
        assert_eq!(resolved(&args(), &environment).1, "/e.token");
        assert_eq!(resolved(&args(), &[(TOKEN, "aqf_e")]).1, "aqf_e");
        let flag = ConnectArgs {
            token_file: Some("/f.token".into()),
            ..args()
        };
        assert_eq!(resolved(&flag, &[(TOKEN, "aqf_e")]).1, "/f.token");
        let flag = ConnectArgs {
            token: Some("aqf_f".to_owned()),
            ..args()
        };
        assert_eq!(resolved(&flag, &environment).1, "aqf_f");
    }

    /// A token that was kept for one cluster is not sent to another by accident.
    #[test]
    fn the_token_of_a_context_goes_to_its_own_brokers() {
        let elsewhere = ConnectArgs {
            url: vec!["https://other:1".to_owned()],
            ..args()
        };
        assert_eq!(resolved(&elsewhere, &[]).1, "nothing");
        assert_eq!(resolved(&elsewhere, &[(CONTEXT, "west")]).1, "nothing");
        let asked = ConnectArgs {
            context: Some("west".to_owned()),
            ..elsewhere
        };
        let expected = ("https://other:1".to_owned(), "/west.token".to_owned());
        assert_eq!(resolved(&asked, &[]), expected);
        let same = ConnectArgs {
            url: vec!["https://east:1".to_owned()],
            ..args()
        };
        assert_eq!(resolved(&same, &[]).1, "/east.token");
    }

    #[test]
    fn contexts_that_are_not_there_and_two_tokens_are_refused() {
        let both = |name: &str| match name {
            TOKEN | TOKEN_FILE => Some("x".to_owned()),
            _ => None,
        };
        let error = resolve(&args(), both, &contexts()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(TOKEN_FILE), "{error}");
        let gone = |name: &str| (name == CONTEXT).then(|| "north".to_owned());
        let error = resolve(&args(), gone, &contexts()).map(|_| ()).unwrap_err();
        assert!(error.advice().contains("east, west"), "{error:?}");
        let nothing = resolve(&args(), |_| None, &Contexts::default()).unwrap();
        assert_eq!(nothing.urls, [DEFAULT_URL]);
        assert!(nothing.token.is_none());
    }
}
