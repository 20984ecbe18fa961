//! Arguments of everything that uses a broker: where it is, and who the caller is.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// Where brokers are, and who the caller is. What is not given comes from the context.
#[derive(Debug, Clone, Default, Args)]
pub struct ConnectArgs {
    /// Addresses of brokers, one or several separated by commas [default: that of the context, or
    /// http://127.0.0.1:7650].
    #[arg(
        long,
        global = true,
        env = "AQUIFER_URL",
        value_delimiter = ',',
        value_name = "URL[,URL…]"
    )]
    pub url: Vec<String>,

    /// Authorities that certificates of brokers at https addresses are checked against (PEM); those
    /// of the operating system where it is not given.
    #[arg(
        long,
        global = true,
        env = "AQUIFER_CLIENT_CA_FILE",
        value_name = "PATH"
    )]
    pub tls_ca_file: Option<PathBuf>,

    /// The certificate that is shown to brokers which ask for one (PEM).
    #[arg(
        long,
        global = true,
        env = "AQUIFER_CLIENT_CERT_FILE",
        value_name = "PATH"
    )]
    pub tls_cert_file: Option<PathBuf>,

    /// The key of that certificate (PEM).
    #[arg(
        long,
        global = true,
        env = "AQUIFER_CLIENT_KEY_FILE",
        value_name = "PATH"
    )]
    pub tls_key_file: Option<PathBuf>,

    /// The file with the token that says who you are [env: AQUIFER_TOKEN_FILE]. It is read again
    /// when it changes.
    #[arg(long, global = true, value_name = "PATH")]
    pub token_file: Option<PathBuf>,

    /// The token itself [env: AQUIFER_TOKEN]. As an argument it shows in the list of processes:
    /// prefer --token-file.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        conflicts_with = "token_file"
    )]
    pub token: Option<String>,

    /// Send the token in plain text to other machines too, where everything in between can read it.
    #[arg(long, global = true, env = "AQUIFER_ALLOW_PLAINTEXT_CREDENTIALS")]
    pub allow_plaintext_credentials: bool,

    /// The context to use: addresses, TLS files and token file under one name, as `aquifer context
    /// set` keeps them [env: AQUIFER_CONTEXT].
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// How long one operation may take, retries included.
    #[arg(long, global = true, value_parser = time_limit, default_value = "30s")]
    pub timeout: Duration,
}

/// How long an operation may take: a duration above zero.
fn time_limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("give a time above zero, such as 30s".to_owned()),
        Ok(limit) => Ok(limit),
        Err(error) => Err(error.to_string()),
    }
}
