//! The chains of the audit log: whether each line is as it was written, and in its place.
//!
//! A line has the name of its chain, its number in it, the digest of the line before and its own,
//! which is that of the line without it. Each process of a broker writes a chain of its own. Some
//! lines are checkpoints, which are signed: they prove the lines before them. The cluster remembers
//! the newest checkpoint of each chain, so that an end which was cut off shows.

use std::collections::BTreeMap;

use aquifer_client::security::AuditEnd;
use aquifer_runtime::secret::sha256_hex;
use aquifer_runtime::signing::{from_hex, is_signed};
use serde::Deserialize;

/// Problems that are told one by one.
const PROBLEMS_MAX: usize = 100;
/// The request that a checkpoint names.
const CHECKPOINT: &str = "checkpoint";

/// What is wrong with a line, or before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub chain: String,
    pub seq: u64,
    pub what: String,
}

/// The last checkpoint of a chain whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    pub chain: String,
    pub seq: u64,
    pub time_ms: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    pub lines: u64,
    pub chains: usize,
    /// Chains whose first line was not seen.
    pub begin_later: usize,
    pub problems: Vec<Problem>,
    /// Those beyond what is told one by one.
    pub more_problems: u64,
    /// Lines up to the last checkpoints of their chains.
    pub proved_lines: u64,
    /// Those behind them.
    pub unproved_lines: u64,
    /// The last checkpoint of each chain that has one.
    pub checkpoints: Vec<Proved>,
}

/// Takes lines in the order in which they are stored.
#[derive(Debug)]
pub struct Chains {
    /// By which signatures are known; empty: no checkpoint proves anything.
    key: Vec<u8>,
    /// Checkpoints that the topic must have and that were not seen yet, by chain.
    ends: BTreeMap<String, AuditEnd>,
    heads: BTreeMap<String, Head>,
    /// The time of the first line.
    since_ms: Option<u64>,
    found: Found,
}

/// The last line of a chain so far.
#[derive(Debug)]
struct Head {
    /// The first line that was seen.
    first: u64,
    seq: u64,
    hash: String,
    /// Lines since the last checkpoint.
    unproved: u64,
    proved: Option<Proved>,
}

#[derive(Deserialize)]
struct Line {
    chain: String,
    seq: u64,
    prev: String,
    hash: String,
    #[serde(default)]
    time_ms: u64,
    #[serde(default)]
    request: String,
}

impl Chains {
    /// Chains with checkpoints of this key, and what the cluster remembers of them.
    pub fn new(key: Vec<u8>, ends: Vec<AuditEnd>) -> Chains {
        let ends = ends.into_iter().map(|end| (end.chain.clone(), end));
        Chains {
            key,
            ends: ends.collect(),
            heads: BTreeMap::new(),
            since_ms: None,
            found: Found::default(),
        }
    }

    /// Takes the next line.
    pub fn take(&mut self, text: &str) {
        self.found.lines += 1;
        let Ok(line) = serde_json::from_str::<Line>(text) else {
            return self.problem("?", 0, "is no line of the audit log".to_owned());
        };
        self.since_ms.get_or_insert(line.time_ms);
        if digest(text).as_deref() != Some(line.hash.as_str()) {
            let what = "was changed: its digest is another".to_owned();
            self.problem(&line.chain, line.seq, what);
        }
        let is_proof = self.is_proof(&line, text);
        self.compare(&line);
        let Some(head) = self.heads.get(&line.chain) else {
            self.found.begin_later += usize::from(line.seq > 0);
            self.set_head(line, is_proof);
            return;
        };
        let expected = head.seq + 1;
        if line.seq == head.seq && line.hash == head.hash {
            // Stored twice: a broker that did not learn that it was stored.
            return;
        }
        if line.seq < expected {
            let what = format!(
                "comes behind line {}: it was moved, or is a second one",
                head.seq
            );
            return self.problem(&line.chain, line.seq, what);
        }
        if line.seq > expected {
            let what = match line.seq - expected {
                1 => format!("line {expected} is missing before it"),
                count => format!("{count} lines from {expected} on are missing before it"),
            };
            self.problem(&line.chain, line.seq, what);
        } else if line.prev != head.hash {
            let what = "does not follow the line before: one of them was replaced".to_owned();
            self.problem(&line.chain, line.seq, what);
        }
        self.set_head(line, is_proof);
    }

    /// Whether a line is a checkpoint with the signature of the key.
    fn is_proof(&mut self, line: &Line, text: &str) -> bool {
        if line.request != CHECKPOINT || self.key.is_empty() {
            return false;
        }
        let signed = signed(text);
        let is_right =
            signed.is_some_and(|(text, signature)| is_signed(&self.key, &text, &signature));
        if !is_right {
            let what = "is a checkpoint without the signature of the key".to_owned();
            self.problem(&line.chain, line.seq, what);
        }
        is_right
    }

    /// Compares a line with what the cluster remembers of its chain.
    fn compare(&mut self, line: &Line) {
        let Some(end) = self.ends.get(&line.chain) else {
            return;
        };
        if end.seq != line.seq {
            return;
        }
        let is_it = end.hash == line.hash;
        self.ends.remove(&line.chain);
        if !is_it {
            let what = "is not the checkpoint that the cluster remembers there".to_owned();
            self.problem(&line.chain, line.seq, what);
        }
    }

    /// What was found in all lines.
    pub fn end(mut self) -> Found {
        for end in std::mem::take(&mut self.ends).into_values() {
            let what = match self.heads.get(&end.chain) {
                // What was before it is trimmed, or was not asked for.
                Some(head) if head.first > end.seq => continue,
                Some(_) => "is missing: the cluster remembers a checkpoint there",
                None if self.since_ms.is_some_and(|since| end.time_ms < since) => continue,
                None => "is missing with its whole chain: the cluster remembers a checkpoint there",
            };
            self.problem(&end.chain, end.seq, what.to_owned());
        }
        self.found.chains = self.heads.len();
        for head in std::mem::take(&mut self.heads).into_values() {
            self.found.unproved_lines += head.unproved;
            self.found.checkpoints.extend(head.proved);
        }
        self.found
    }

    fn set_head(&mut self, line: Line, is_proof: bool) {
        let former = self.heads.remove(&line.chain);
        let (first, unproved, proved) = match former {
            Some(former) => (former.first, former.unproved + 1, former.proved),
            None => (line.seq, 1, None),
        };
        let mut head = Head {
            first,
            seq: line.seq,
            hash: line.hash,
            unproved,
            proved,
        };
        if is_proof {
            self.found.proved_lines += head.unproved;
            head.unproved = 0;
            head.proved = Some(Proved {
                chain: line.chain.clone(),
                seq: line.seq,
                time_ms: line.time_ms,
            });
        }
        self.heads.insert(line.chain, head);
    }

    fn problem(&mut self, chain: &str, seq: u64, what: String) {
        if self.found.problems.len() == PROBLEMS_MAX {
            self.found.more_problems += 1;
            return;
        }
        self.found.problems.push(Problem {
            chain: chain.to_owned(),
            seq,
            what,
        });
    }
}

/// The digest that a line must have.
fn digest(text: &str) -> Option<String> {
    let (before, _) = text.rsplit_once(",\"hash\":\"")?;
    let whole = format!("{before}}}");
    Some(sha256_hex(whole.as_bytes()))
}

/// What a checkpoint signs, and its signature.
fn signed(text: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let (before, _) = text.rsplit_once(",\"hash\":\"")?;
    let (signed, signature) = before.rsplit_once(",\"signature\":\"")?;
    let signature = from_hex(signature.strip_suffix('"')?)?;
    Some((format!("{signed}}}").into_bytes(), signature))
}

#[cfg(test)]
mod tests;
