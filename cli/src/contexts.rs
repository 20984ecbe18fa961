//! Contexts: where a cluster is and who the caller is there, under a name, in one file of the user.
//! It names files with secrets and holds none.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::CliError;
use crate::private_file;

const FILE: &str = "aquifer/config.toml";
const NAME_BYTES_MAX: usize = 128;

/// The contexts of a user.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contexts {
    /// The one in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All of them.
    #[serde(rename = "context")]
    pub all: BTreeMap<String, Entry>,
}

/// One context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Entry {
    /// Addresses of brokers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub url: Vec<String>,
    /// The file with the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Authorities of brokers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca_file: Option<PathBuf>,
    /// The certificate of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<PathBuf>,
}

/// Where the file is: in XDG_CONFIG_HOME, or in .config of the home directory; `None` where the
/// environment names neither.
pub fn path(env: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let directory = |name| env(name).filter(|path| Path::new(path).is_absolute());
    let config = directory("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| directory("HOME").map(|home| Path::new(&home).join(".config")));
    config.map(|config| config.join(FILE))
}

impl Contexts {
    /// Those of a file, which need not exist.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn load(path: &Path) -> Result<Contexts, CliError> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(CliError::usage(format!("cannot read {shown}: {error}")));
            }
        };
        toml::from_str(&text).map_err(|error| {
            CliError::usage(format!("{shown} cannot be used: {}", error.message()))
                .advise("mend it, or remove it and set the contexts again")
        })
    }

    /// Writes them.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), CliError> {
        let text = toml::to_string(self);
        let text = text.map_err(|error| CliError::failed(format!("cannot be kept: {error}")))?;
        private_file::make_directory_of(path)?;
        let kept = private_file::replace(path, &text);
        kept.map_err(|error| private_file::unwritable(path, &error))
    }

    /// The context of a name.
    ///
    /// # Errors
    /// When there is no such context.
    pub fn get(&self, name: &str) -> Result<&Entry, CliError> {
        self.all.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.all.keys().map(String::as_str).collect();
            let error = CliError::usage(format!("there is no context {name:?}"));
            error.advise(match known.is_empty() {
                true => "make one with `aquifer context set NAME --url URL --token-file FILE`"
                    .to_owned(),
                false => format!("there are: {}", known.join(", ")),
            })
        })
    }
}

/// Checks the name of a new context.
///
/// # Errors
/// When it has other characters than names have.
pub fn check_name(name: &str) -> Result<(), CliError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_dots = name.bytes().all(|byte| byte == b'.');
    if name.len() <= NAME_BYTES_MAX && !is_dots && name.bytes().all(legal) {
        return Ok(());
    }
    Err(CliError::usage(format!(
        "{name:?} is not a name of a context: it has 1 to {NAME_BYTES_MAX} of letters, digits, -, _ \
         and ."
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_read_as_they_were_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config.toml");
        assert_eq!(Contexts::load(&path).unwrap(), Contexts::default());
        let entry = Entry {
            url: vec!["https://a:1".to_owned(), "https://b:1".to_owned()],
            token_file: Some("/secrets/token".into()),
            ..Entry::default()
        };
        let contexts = Contexts {
            current: Some("prod.1".to_owned()),
            all: [
                ("prod.1".to_owned(), entry),
                ("local".to_owned(), Entry::default()),
            ]
            .into(),
        };
        contexts.save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), contexts);
        let error = contexts.get("prod").unwrap_err();
        assert!(error.advice().contains("local, prod.1"), "{error:?}");
        fs::write(&path, "[context.a]\ntoken = \"secret\"\n").unwrap();
        let error = Contexts::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("token") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn the_file_is_where_configuration_is() {
        let at = |variables: &[(&str, &str)]| {
            path(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let expected = |text: &str| Some(PathBuf::from(text));
        let home = ("HOME", "/users/a");
        assert_eq!(
            at(&[home]),
            expected("/users/a/.config/aquifer/config.toml")
        );
        let both = [home, ("XDG_CONFIG_HOME", "/config")];
        assert_eq!(at(&both), expected("/config/aquifer/config.toml"));
        let relative = [home, ("XDG_CONFIG_HOME", "config")];
        assert_eq!(at(&relative), at(&[home]));
        assert_eq!(at(&[]), None);
    }

    #[test]
    fn names_are_names() {
        for fine in ["a", "prod-1", "x_.y"] {
            check_name(fine).unwrap();
        }
        for wrong in ["", "..", "a/b", "a b", "ü"] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
