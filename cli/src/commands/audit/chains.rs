//! The chains of the audit log: whether each line is as it was written, and in its place.
//!
//! A line has the name of its chain, its number in it, the digest of the line before and its own,
//! which is that of the line without it. Each process of a broker writes a chain of its own.

use std::collections::BTreeMap;

use aquifer_runtime::secret::sha256_hex;
use serde::Deserialize;

/// Problems that are told one by one.
const PROBLEMS_MAX: usize = 100;

/// What is wrong with a line, or before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub chain: String,
    pub seq: u64,
    pub what: String,
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
}

/// Takes lines in the order in which they are stored.
#[derive(Debug, Default)]
pub struct Chains {
    heads: BTreeMap<String, Head>,
    found: Found,
}

/// The last line of a chain so far.
#[derive(Debug)]
struct Head {
    seq: u64,
    hash: String,
}

#[derive(Deserialize)]
struct Line {
    chain: String,
    seq: u64,
    prev: String,
    hash: String,
}

impl Chains {
    /// Takes the next line.
    pub fn take(&mut self, text: &str) {
        self.found.lines += 1;
        let Ok(line) = serde_json::from_str::<Line>(text) else {
            return self.problem("?", 0, "is no line of the audit log".to_owned());
        };
        if digest(text).as_deref() != Some(line.hash.as_str()) {
            let what = "was changed: its digest is another".to_owned();
            self.problem(&line.chain, line.seq, what);
        }
        let Some(head) = self.heads.get(&line.chain) else {
            self.found.begin_later += usize::from(line.seq > 0);
            self.set_head(line);
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
        self.set_head(line);
    }

    /// What was found in all lines.
    pub fn end(mut self) -> Found {
        self.found.chains = self.heads.len();
        self.found
    }

    fn set_head(&mut self, line: Line) {
        let head = Head {
            seq: line.seq,
            hash: line.hash,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str, lines: u64) -> Vec<String> {
        let mut prev = "00".repeat(32);
        (0..lines)
            .map(|seq| {
                let line = format!("{{\"chain\":\"{name}\",\"seq\":{seq},\"prev\":\"{prev}\"}}");
                let hash = sha256_hex(line.as_bytes());
                prev = hash.clone();
                line.replace('}', &format!(",\"hash\":\"{hash}\"}}"))
            })
            .collect()
    }

    fn check(lines: &[String]) -> Found {
        let mut chains = Chains::default();
        lines.iter().for_each(|line| chains.take(line));
        chains.end()
    }

    fn problems(lines: &[String]) -> Vec<(u64, String)> {
        let found = check(lines).problems.into_iter();
        found.map(|problem| (problem.seq, problem.what)).collect()
    }

    #[test]
    fn whole_chains_that_are_mixed_have_no_problem() {
        let (one, other) = (chain("a", 5), chain("b", 4));
        let mut mixed = Vec::new();
        for number in 0..5 {
            mixed.extend(one.get(number).cloned());
            mixed.extend(other.get(number).cloned());
            // A batch that was stored twice.
            mixed.extend(other.get(number).cloned());
        }
        let found = check(&mixed);
        assert_eq!(found.problems, []);
        assert_eq!((found.chains, found.begin_later), (2, 0));
        assert_eq!(check(&one[2..]).begin_later, 1);
        assert_eq!(check(&one[2..]).problems, []);
    }

    #[test]
    fn what_is_changed_removed_or_moved_is_named() {
        let whole = chain("a", 6);
        let mut changed = whole.clone();
        changed[3] = changed[3].replace("\"seq\":3", "\"seq\": 3");
        assert_eq!(
            problems(&changed),
            [(3, "was changed: its digest is another".to_owned())]
        );

        let mut removed = whole.clone();
        removed.remove(2);
        assert_eq!(
            problems(&removed),
            [(3, "line 2 is missing before it".to_owned())]
        );

        let mut moved = whole.clone();
        moved.swap(2, 3);
        assert_eq!(
            problems(&moved),
            [
                (3, "line 2 is missing before it".to_owned()),
                (
                    2,
                    "comes behind line 3: it was moved, or is a second one".to_owned()
                ),
            ]
        );

        // Written again, with a digest of its own that is right.
        let mut replaced = whole.clone();
        let other = "{\"chain\":\"a\",\"seq\":3,\"prev\":\"x\"}";
        let hash = sha256_hex(other.as_bytes());
        replaced[3] = other.replace('}', &format!(",\"hash\":\"{hash}\"}}"));
        let found = problems(&replaced);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found
                .iter()
                .all(|(_, what)| what.starts_with("does not follow"))
        );
        assert_eq!(problems(&["no line".to_owned()]).len(), 1);
    }
}
