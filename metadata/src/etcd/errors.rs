//! What etcd's errors mean for a request: whether it may have been applied, and whether asking
//! again helps. etcd has few codes; its messages, which are part of its interface, tell more.

use std::error::Error as StdError;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use crate::error::MetadataError;

/// Why a request got no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was changed, and asking again may help.
    Refused(String),
    /// It is not known whether anything was changed.
    Unknown(String),
    /// Nothing was changed; the credentials must be presented again first.
    Login(String),
    /// Nothing was changed: the lease has expired or was revoked.
    NoLease,
    /// The answer does not fit into a message: ask for less.
    AnswerTooLarge,
    /// Nothing was changed, and asking again is of no use.
    Final(MetadataError),
}

impl From<Failure> for MetadataError {
    fn from(failure: Failure) -> MetadataError {
        match failure {
            Failure::Refused(reason) | Failure::Unknown(reason) | Failure::Login(reason) => {
                MetadataError::Unavailable(reason)
            }
            Failure::NoLease => MetadataError::SessionExpired,
            Failure::AnswerTooLarge => {
                MetadataError::Invalid("a value is larger than a message of etcd may be".to_owned())
            }
            Failure::Final(error) => error,
        }
    }
}

/// What an error says of the request that got it.
pub(super) fn classify(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => of_status(status),
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::EndpointError(_) => {
            Failure::Final(MetadataError::Invalid(format!("etcd: {error}")))
        }
        Error::LeaseKeepAliveError(reason) if reason.contains("not found") => Failure::NoLease,
        other => Failure::Unknown(format!("etcd: {other}")),
    }
}

/// What an error says that came before anything was sent.
pub(super) fn before_sending(error: &Error) -> Failure {
    // Connecting is done on demand, so without a status it is about the settings.
    if let Error::TransportError(source) = error {
        return Failure::Final(MetadataError::Invalid(format!(
            "etcd: the TLS settings are not usable: {}",
            chain(source)
        )));
    }
    match classify(error) {
        Failure::Unknown(reason) => Failure::Refused(reason),
        other => other,
    }
}

/// What a message means.
type Meaning = fn(&str) -> Failure;

/// Parts of messages, and what they mean. The first that fits counts.
const KNOWN: [(&str, Meaning); 18] = [
    ("requested lease not found", |_| Failure::NoLease),
    ("invalid auth token", login),
    ("revision of auth store is old", login),
    ("authentication failed", |text| {
        refuse(text, "wrong user or password")
    }),
    ("user name is empty", |text| {
        refuse(text, "etcd wants a user and a password")
    }),
    ("authentication is not enabled", |text| {
        refuse(text, "a user is given, but etcd has authentication off")
    }),
    ("permission denied", |text| {
        refuse(
            text,
            "the user must be allowed to read and write the cluster's keys",
        )
    }),
    ("too many operations", invalid),
    ("duplicate key", invalid),
    ("request is too large", invalid),
    ("key is not provided", invalid),
    ("has been compacted", |text| {
        unavailable(
            text,
            "the snapshot is no longer available: restart the scan",
        )
    }),
    ("is a future revision", |text| {
        unavailable(text, "the snapshot is of another etcd: restart the scan")
    }),
    ("database space exceeded", |text| {
        Failure::Final(MetadataError::Full(format!(
            "etcd takes no more: compact, defragment and disarm its alarm, or raise its quota ({text})"
        )))
    }),
    ("corrupt cluster", |text| {
        unavailable(
            text,
            "etcd found that its members disagree: repair it first",
        )
    }),
    ("etcdserver: no leader", again),
    ("etcdserver: not leader", again),
    ("too many requests", again),
];

fn login(text: &str) -> Failure {
    Failure::Login(text.to_owned())
}

fn again(text: &str) -> Failure {
    Failure::Refused(text.to_owned())
}

fn invalid(text: &str) -> Failure {
    Failure::Final(MetadataError::Invalid(text.to_owned()))
}

fn refuse(text: &str, advice: &str) -> Failure {
    Failure::Final(MetadataError::Denied(format!("{advice} ({text})")))
}

fn unavailable(text: &str, advice: &str) -> Failure {
    Failure::Final(MetadataError::Unavailable(format!("{advice} ({text})")))
}

fn of_status(status: &Status) -> Failure {
    let message = status.message();
    if status.code() == Code::OutOfRange && message.contains("message length too large") {
        return Failure::AnswerTooLarge;
    }
    // Only etcd itself begins its messages like this; a proxy's words prove nothing.
    if message.starts_with("etcdserver: ")
        && let Some((_, meaning)) = KNOWN.iter().find(|(part, _)| message.contains(part))
    {
        return meaning(message);
    }
    let mut text = format!("etcd: {}", status.message());
    if let Some(source) = status.source() {
        if not_connected(source) {
            return Failure::Refused(format!("cannot connect to etcd: {}", chain(source)));
        }
        text = format!("{text}: {}", chain(source));
    }
    Failure::Unknown(text)
}

/// Whether there was no connection, so that nothing can have been sent.
fn not_connected(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error with its causes, each said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> Failure {
        classify(&Error::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn only_what_proves_it_counts_as_not_applied() {
        let refused = ["etcdserver: no leader", "etcdserver: too many requests"];
        for message in refused {
            assert!(matches!(
                of(Code::Unavailable, message),
                Failure::Refused(_)
            ));
        }
        let unknown = [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: leader changed",
            "etcdserver: server stopped",
            "no leader, says a proxy",
            "transport error",
            "",
        ];
        for message in unknown {
            assert!(
                matches!(of(Code::Unavailable, message), Failure::Unknown(_)),
                "{message}"
            );
        }
        let lease = of(Code::NotFound, "etcdserver: requested lease not found");
        assert!(matches!(lease, Failure::NoLease));
    }

    #[test]
    fn what_cannot_be_cured_by_asking_again_says_what_to_do() {
        let text = |code: Code, message: &str| MetadataError::from(of(code, message)).to_string();
        let login = "etcdserver: authentication failed, invalid user ID or password";
        assert!(text(Code::InvalidArgument, login).contains("wrong user or password"));
        let full = "etcdserver: mvcc: database space exceeded";
        assert!(text(Code::ResourceExhausted, full).contains("metadata is full"));
        let gone = "etcdserver: mvcc: required revision has been compacted";
        assert!(matches!(
            MetadataError::from(of(Code::OutOfRange, gone)),
            MetadataError::Unavailable(_)
        ));
        let large = "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes";
        assert!(matches!(
            of(Code::OutOfRange, large),
            Failure::AnswerTooLarge
        ));
    }
}
