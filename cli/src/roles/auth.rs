//! The section `auth` of a server: whether callers are authenticated, the first token, and who may
//! read metrics.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aquifer_broker::{AuthConfig, create_first_token};
use aquifer_metadata::store::MetadataStore;
use aquifer_runtime::clock::SharedClock;
use aquifer_runtime::secret::Secret;
use serde::{Deserialize, Serialize};

use crate::exit::CliError;
use crate::private_file;

/// The file of the first token in a data directory.
const ADMIN_TOKEN_FILE: &str = "admin.token";
/// Shorter tokens of scrapers can be guessed.
const SCRAPE_TOKEN_BYTES_MIN: usize = 16;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthSection {
    /// Whether callers must show who they are, and need grants.
    #[serde(flatten)]
    pub broker: AuthConfig,
    /// The file of a token with which metrics may be read, and nothing else.
    pub scrape_token_file: Option<PathBuf>,
}

impl AuthSection {
    /// The token of the file for scrapers, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read, others than its owner and its group can, or the token is too
    /// short.
    pub fn scrape_token(&self) -> Result<Option<Secret>, CliError> {
        self.scrape_token_file
            .as_deref()
            .map(scrape_token)
            .transpose()
    }

    /// Says at start that tokens would be sent in plain text.
    pub fn warn_of_plain_text(&self, open: &[&str]) {
        if self.broker.enabled && !open.is_empty() {
            tracing::warn!(
                listeners = open.join(","),
                "tokens come in plain text over a network: give these listeners certificates"
            );
        }
    }
}

/// The section `auth` of a server without clients: who may read its metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsSection {
    /// Whether metrics are for those with the token of scrapers alone, as those of brokers are.
    pub enabled: bool,
    /// The file of that token. Metrics are for those with it, where there is one.
    pub scrape_token_file: Option<PathBuf>,
}

impl MetricsSection {
    /// The token of the file for scrapers; `None` where metrics are open.
    ///
    /// # Errors
    /// When the file cannot be used, or is not named where metrics are not open.
    pub fn scrape_token(&self) -> Result<Option<Secret>, CliError> {
        match (self.scrape_token_file.as_deref(), self.enabled) {
            (Some(path), _) => scrape_token(path).map(Some),
            (None, false) => Ok(None),
            (None, true) => Err(
                CliError::usage("auth.enabled needs auth.scrape_token_file here").advise(
                    "name the file of a token with which metrics are read: nothing else of this \
                     process asks for a token",
                ),
            ),
        }
    }
}

fn scrape_token(path: &Path) -> Result<Secret, CliError> {
    let refused = |text: String| {
        CliError::failed(format!("auth.scrape_token_file {}: {text}", path.display()))
    };
    let mode = fs::metadata(path).map_err(|error| refused(error.to_string()))?;
    // As for keys: an orchestrator gives a group the files of secrets that a process reads.
    if mode.permissions().mode() & 0o027 != 0 {
        let error = refused("others than its owner and its group can read it".to_owned());
        return Err(error.advise(format!("chmod 600 {}", path.display())));
    }
    let text = fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let token = text.trim();
    if token.len() < SCRAPE_TOKEN_BYTES_MIN {
        let text = format!("a token has at least {SCRAPE_TOKEN_BYTES_MIN} characters");
        return Err(refused(text));
    }
    Ok(Secret::new(token))
}

/// Makes the first token of a server that has none, and keeps it in the data directory. Answers the
/// file, if it is there.
///
/// # Errors
/// When it cannot be made.
pub async fn first_token(
    store: &dyn MetadataStore,
    clock: &SharedClock,
    data_dir: &Path,
) -> Result<Option<PathBuf>, CliError> {
    let path = data_dir.join(ADMIN_TOKEN_FILE);
    let save = |secret: &Secret| save(&path, secret);
    let made = create_first_token(store, clock.wall_ms(), save).await;
    made.map_err(|error| CliError::failed(format!("the first token is not made: {error}")))?;
    Ok(path.exists().then_some(path))
}

/// Writes a token into a file that only its owner can read, in one step.
///
/// # Errors
/// What the file system says.
pub fn save(path: &Path, secret: &Secret) -> io::Result<()> {
    private_file::replace(path, &format!("{}\n", secret.expose()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scrape");
        save(&path, &Secret::new("0123456789abcdef")).unwrap();
        let section = AuthSection {
            scrape_token_file: Some(path.clone()),
            ..AuthSection::default()
        };
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let token = section.scrape_token().unwrap().unwrap();
        assert_eq!(token.expose(), "0123456789abcdef");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(section.scrape_token().unwrap().is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = section.scrape_token().unwrap_err();
        assert!(error.advice().contains("chmod 600"), "{error}");
        let metrics = |enabled, scrape_token_file| MetricsSection {
            enabled,
            scrape_token_file,
        };
        save(&path, &Secret::new("0123456789abcdef")).unwrap();
        let guarded = metrics(false, Some(path.clone())).scrape_token();
        assert!(guarded.unwrap().is_some());
        assert!(metrics(false, None).scrape_token().unwrap().is_none());
        let error = metrics(true, None).scrape_token().unwrap_err();
        assert!(error.to_string().contains("scrape_token_file"), "{error}");
        save(&path, &Secret::new("short")).unwrap();
        assert!(section.scrape_token().is_err());
    }
}
