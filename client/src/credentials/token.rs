//! The text of a credential.

use std::fmt;

use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

use crate::error::{ClientError, Result};

/// Longer ones are refused by brokers.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// A token: its text lets a caller in, so it is neither printed nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// A token with this text, without the white space around it.
    #[must_use]
    pub fn new(text: impl AsRef<str>) -> Token {
        Token(Zeroizing::new(text.as_ref().trim().to_owned()))
    }

    /// The text, to be written where only its owner reads it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The header that shows it.
    pub(super) fn header(&self) -> Result<MetadataValue<Ascii>> {
        let wrong = if self.0.is_empty() {
            "it is empty".to_owned()
        } else if self.0.len() > TOKEN_BYTES_MAX {
            format!("it is longer than {TOKEN_BYTES_MAX} bytes")
        } else if !self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            "it has characters that tokens do not have, such as spaces or several lines".to_owned()
        } else {
            let text = Zeroizing::new(format!("Bearer {}", *self.0));
            let header = MetadataValue::<Ascii>::try_from(text.as_str());
            let mut header = header.map_err(|_| unusable("it fits in no header"))?;
            header.set_sensitive(true);
            return Ok(header);
        };
        Err(unusable(&wrong))
    }
}

fn unusable(wrong: &str) -> ClientError {
    ClientError::Credential {
        reason: format!("the token cannot be used: {wrong}"),
        retryable: false,
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl From<&str> for Token {
    fn from(text: &str) -> Token {
        Token::new(text)
    }
}

impl From<String> for Token {
    fn from(text: String) -> Token {
        Token::new(Zeroizing::new(text).as_str())
    }
}
