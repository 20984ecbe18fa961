//! Arguments of `policy`, which tenants, namespaces and topics have.

use std::str::FromStr;

use aquifer_model::policy::PolicyName;
use aquifer_model::quorum::Quorum;
use clap::Subcommand;

use super::roles::quorum;

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the policies that are set here, or all that are in force.
    Get {
        /// The tenant, namespace or topic.
        scope: String,
        /// Show all policies in force, each with the level that sets it.
        #[arg(long)]
        effective: bool,
    },
    /// Set policies; policies that are not given stay as they are.
    ///
    /// Policies, with values of each kind:
    ///   persistence=3,3,2            copies of new ledgers: ensemble, write quorum, ack quorum
    ///   retention.time=7days         minimum time that messages are kept, or forever
    ///   retention.size=10GiB         minimum of newest bytes that are kept, or everything
    ///   rollover.size=1GiB           a ledger ends at this size,
    ///   rollover.age=4h              at this age,
    ///   rollover.entries=1000000     or at this number of entries
    ///   deduplication=on             on or off
    ///   autoCreateTopics=off         on or off
    #[command(verbatim_doc_comment)]
    Set {
        /// The tenant, namespace or topic.
        scope: String,
        /// Policies.
        #[arg(required = true, value_name = "NAME=VALUE")]
        values: Vec<PolicyValue>,
        /// Fail unless the policies have this version, which `get` shows.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// Unset policies, so that they are inherited again.
    Unset {
        /// The tenant, namespace or topic.
        scope: String,
        /// Policies: persistence, retention, rollover, deduplication, autoCreateTopics.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<PolicyName>,
        /// Fail unless the policies have this version, which `get` shows.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
}

/// A policy, or a part of one, with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyValue {
    /// Copies of new ledgers.
    Persistence(Quorum),
    /// Milliseconds; none: for ever.
    RetentionTime(Option<u64>),
    /// Bytes; none: everything.
    RetentionSize(Option<u64>),
    /// Bytes.
    RolloverSize(u64),
    /// Milliseconds.
    RolloverAge(u64),
    /// Entries.
    RolloverEntries(u64),
    /// On or off.
    Deduplication(bool),
    /// On or off.
    AutoCreateTopics(bool),
}

impl PolicyValue {
    /// Whether it is a part of a policy, which is replaced whole.
    pub fn is_part(&self) -> bool {
        match self {
            PolicyValue::RetentionTime(_)
            | PolicyValue::RetentionSize(_)
            | PolicyValue::RolloverSize(_)
            | PolicyValue::RolloverAge(_)
            | PolicyValue::RolloverEntries(_) => true,
            PolicyValue::Persistence(_)
            | PolicyValue::Deduplication(_)
            | PolicyValue::AutoCreateTopics(_) => false,
        }
    }
}

impl FromStr for PolicyValue {
    type Err = String;

    fn from_str(text: &str) -> Result<PolicyValue, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| "it is NAME=VALUE, such as retention.time=7days".to_owned())?;
        let parsed = match name {
            "persistence" => quorum(value).map(PolicyValue::Persistence),
            "retention.time" => match value {
                "forever" => Ok(PolicyValue::RetentionTime(None)),
                _ => time(value)
                    .map(|ms| PolicyValue::RetentionTime(Some(ms)))
                    .map_err(|error| format!("{error}, or forever")),
            },
            "retention.size" => match value {
                "everything" => Ok(PolicyValue::RetentionSize(None)),
                _ => size(value)
                    .map(|bytes| PolicyValue::RetentionSize(Some(bytes)))
                    .map_err(|error| format!("{error}, or everything")),
            },
            "rollover.size" => size(value)
                .and_then(positive)
                .map(PolicyValue::RolloverSize),
            "rollover.age" => time(value).and_then(positive).map(PolicyValue::RolloverAge),
            "rollover.entries" => value
                .parse()
                .map_err(|_| "it is a number of entries".to_owned())
                .and_then(positive)
                .map(PolicyValue::RolloverEntries),
            "deduplication" => switch(value).map(PolicyValue::Deduplication),
            "autoCreateTopics" => switch(value).map(PolicyValue::AutoCreateTopics),
            _ => Err("`policy set --help` lists the policies".to_owned()),
        };
        parsed.map_err(|error| format!("{name}: {error}"))
    }
}

fn positive(number: u64) -> Result<u64, String> {
    match number {
        0 => Err("it is at least 1".to_owned()),
        number => Ok(number),
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

/// Milliseconds of a duration.
fn time(text: &str) -> Result<u64, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; it is a duration such as 7days or 12h"))?;
    u64::try_from(time.as_millis()).map_err(|_| "that is too long".to_owned())
}

/// A number of bytes, with a binary unit or without one.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err("units are KiB, MiB, GiB and TiB".to_owned()),
    };
    let number = digits.trim_end().parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "it is a number of bytes such as 1048576, 500MiB or 10GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_units() {
        use PolicyValue as Value;
        for (text, expected) in [
            ("retention.time=forever", Value::RetentionTime(None)),
            (
                "retention.time=12h",
                Value::RetentionTime(Some(12 * 3_600_000)),
            ),
            ("retention.size=everything", Value::RetentionSize(None)),
            ("retention.size=0", Value::RetentionSize(Some(0))),
            (
                "retention.size=500 MiB",
                Value::RetentionSize(Some(500 << 20)),
            ),
            ("rollover.size=10GiB", Value::RolloverSize(10 << 30)),
            ("rollover.entries=7", Value::RolloverEntries(7)),
            ("deduplication=off", Value::Deduplication(false)),
            ("autoCreateTopics=on", Value::AutoCreateTopics(true)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for wrong in [
            "retention",
            "retention=1h",
            "retention.time=soon",
            "retention.size=1GB",
            "retention.size=99999999TiB",
            "rollover.size=0",
            "rollover.age=0s",
            "rollover.entries=-1",
            "persistence=3",
            "persistence=2,3,2",
            "deduplication=maybe",
            "quotas=1",
        ] {
            assert!(wrong.parse::<PolicyValue>().is_err(), "{wrong}");
        }
    }
}
