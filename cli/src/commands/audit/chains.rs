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
    /// Where the first line is the first one that the topic has: since when it keeps all lines.
    kept_since_ms: Option<u64>,
    /// The time of the first checkpoint whose signature is right: others can make up any.
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
    /// Chains with checkpoints of this key, and what the cluster remembers of them. Where the topic
    /// is looked at from its start, it has every line since a time.
    pub fn new(key: Vec<u8>, ends: Vec<AuditEnd>, kept_since_ms: Option<u64>) -> Chains {
        let ends = ends.into_iter().map(|end| (end.chain.clone(), end));
        Chains {
            key,
            ends: ends.collect(),
            heads: BTreeMap::new(),
            kept_since_ms,
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
        let is_changed = digest(text).as_deref() != Some(line.hash.as_str());
        if is_changed {
            let what = "was changed: its digest is another".to_owned();
            self.problem(&line.chain, line.seq, what);
        }
        let is_proof = self.is_proof(&line, text) && !is_changed;
        if is_proof {
            self.since_ms.get_or_insert(line.time_ms);
        }
        self.compare(&line);
        let chain = line.chain.clone();
        self.place(line, is_proof);
        if is_changed {
            self.leave_unproved(&chain);
        }
    }

    /// Puts a line behind those of its chain that came before it.
    fn place(&mut self, line: Line, is_proof: bool) {
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
            self.leave_unproved(&line.chain);
        } else if line.prev != head.hash {
            let what = "does not follow the line before: one of them was replaced".to_owned();
            self.problem(&line.chain, line.seq, what);
            self.leave_unproved(&line.chain);
        }
        self.set_head(line, is_proof);
    }

    /// The lines of a chain since its last checkpoint are proved by no later one.
    fn leave_unproved(&mut self, chain: &str) {
        if let Some(head) = self.heads.get_mut(chain) {
            self.found.unproved_lines += std::mem::take(&mut head.unproved);
        }
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
        let (kept_since_ms, since_ms) = (self.kept_since_ms, self.since_ms);
        for end in std::mem::take(&mut self.ends).into_values() {
            // It is trimmed, or was not asked for.
            let is_before = match kept_since_ms {
                Some(since) => end.time_ms < since,
                None => since_ms.is_none_or(|since| end.time_ms < since),
            };
            let may_be_before = is_before || kept_since_ms.is_none();
            let what = match self.heads.get(&end.chain) {
                Some(head) if head.first > end.seq && may_be_before => continue,
                Some(_) => "is missing: the cluster remembers a checkpoint there",
                None if is_before => continue,
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

/// The digest of a line that ends with it. A field behind it would be in no digest, and what shows
/// a line might take it for one of the others.
fn digest(text: &str) -> Option<String> {
    let (before, behind) = text.rsplit_once(",\"hash\":\"")?;
    let whole = format!("{before}}}");
    let digest = sha256_hex(whole.as_bytes());
    (behind.strip_suffix("\"}") == Some(digest.as_str())).then_some(digest)
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
