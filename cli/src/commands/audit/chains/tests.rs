use aquifer_runtime::signing::{SigningKey, to_hex};

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
    check_with(lines, Vec::new())
}

fn key(number: u8) -> SigningKey {
    SigningKey::from_seed(&[number; 32])
}

fn check_with(lines: &[String], ends: Vec<AuditEnd>) -> Found {
    check_from(lines, ends, Some(1_000))
}

fn check_from(lines: &[String], ends: Vec<AuditEnd>, kept_since_ms: Option<u64>) -> Found {
    let mut chains = Chains::new(key(1).public().to_vec(), ends, kept_since_ms);
    lines.iter().for_each(|line| chains.take(line));
    chains.end()
}

/// A line that only its digest speaks for.
fn made_up(chain: &str, seq: u64, time_ms: u64) -> String {
    let line = format!(
        "{{\"chain\":\"{chain}\",\"seq\":{seq},\"prev\":\"{}\",\"time_ms\":{time_ms}}}",
        "00".repeat(32)
    );
    let hash = sha256_hex(line.as_bytes());
    line.replace('}', &format!(",\"hash\":\"{hash}\"}}"))
}

/// A chain whose every third line is a checkpoint, signed with a key.
fn signed_chain(name: &str, lines: u64, key: &SigningKey) -> Vec<String> {
    let mut prev = "00".repeat(32);
    let line = |seq: u64| {
        let request = if seq % 3 == 2 {
            CHECKPOINT
        } else {
            "delete_topic"
        };
        let mut line = format!(
            "{{\"chain\":\"{name}\",\"seq\":{seq},\"prev\":\"{prev}\",\"time_ms\":{},\
             \"request\":\"{request}\"}}",
            1_000 + seq
        );
        if request == CHECKPOINT {
            let signature = to_hex(&key.sign(line.as_bytes()));
            line = line.replace('}', &format!(",\"signature\":\"{signature}\"}}"));
        }
        prev = sha256_hex(line.as_bytes());
        line.replace('}', &format!(",\"hash\":\"{prev}\"}}"))
    };
    (0..lines).map(line).collect()
}

fn end_at(lines: &[String], seq: usize) -> AuditEnd {
    let line: Line = serde_json::from_str(&lines[seq]).unwrap();
    AuditEnd {
        chain: line.chain,
        seq: line.seq,
        hash: line.hash,
        time_ms: line.time_ms,
    }
}

fn whats(found: &Found) -> Vec<(u64, &str)> {
    let problems = found.problems.iter();
    problems
        .map(|problem| (problem.seq, problem.what.as_str()))
        .collect()
}

#[test]
fn checkpoints_prove_the_lines_before_them() {
    let lines = signed_chain("a", 8, &key(1));
    let found = check_with(&lines, vec![end_at(&lines, 5)]);
    assert!(whats(&found).is_empty(), "{found:?}");
    assert_eq!((found.proved_lines, found.unproved_lines), (6, 2));
    let proved = Proved {
        chain: "a".to_owned(),
        seq: 5,
        time_ms: 1_005,
    };
    assert_eq!(found.checkpoints, [proved]);
    // A newer checkpoint than the cluster remembers, and a place to begin behind that one.
    let found = check_from(&lines[4..], vec![end_at(&lines, 2)], None);
    assert!(whats(&found).is_empty(), "{found:?}");
    assert_eq!((found.proved_lines, found.unproved_lines), (2, 2));
}

#[test]
fn an_end_that_was_cut_off_shows() {
    let lines = signed_chain("a", 8, &key(1));
    let end = || vec![end_at(&lines, 5)];
    for left in [1, 3, 5] {
        let found = check_with(&lines[..left], end());
        let expected = "is missing: the cluster remembers a checkpoint there";
        assert_eq!(whats(&found), [(5, expected)], "{left}");
    }
    let other = signed_chain("b", 3, &key(1));
    let found = check_with(&other, end());
    let expected = "is missing with its whole chain: the cluster remembers a checkpoint there";
    assert_eq!(whats(&found), [(5, expected)]);
    // Older than what the topic keeps: it may have been trimmed.
    let old = vec![AuditEnd {
        time_ms: 999,
        ..end_at(&lines, 5)
    }];
    assert!(check_with(&other, old).problems.is_empty());
    // The start is cut off, with a whole chain, and what is left is as it was written.
    assert_eq!(
        whats(&check_with(&signed_chain("b", 9, &key(1)), end())),
        [(5, expected)]
    );
    let begun_later = check_from(&signed_chain("b", 9, &key(1))[6..], end(), None);
    assert!(begun_later.problems.is_empty(), "{begun_later:?}");
}

/// Lines that are made up say nothing about what is trimmed.
#[test]
fn a_line_that_is_made_up_hides_no_end_that_is_missing() {
    let lines = signed_chain("a", 8, &key(1));
    let end = || vec![end_at(&lines, 5)];
    let whole = "is missing with its whole chain: the cluster remembers a checkpoint there";
    let missing = "is missing: the cluster remembers a checkpoint there";
    let another = [made_up("z", 0, 99_999)];
    assert_eq!(whats(&check_with(&another, end())), [(5, whole)]);
    let of_the_chain = [made_up("a", 100, 99_999)];
    let found = check_with(&of_the_chain, end());
    assert_eq!(whats(&found), [(5, missing)]);
    // Where it was not asked for what is before them.
    for lines in [&another, &of_the_chain] {
        assert!(check_from(lines, end(), None).problems.is_empty());
    }
}

#[test]
fn lines_before_a_break_are_proved_by_no_checkpoint_behind_it() {
    let lines = signed_chain("a", 8, &key(1));
    let mut removed = lines.clone();
    removed.remove(4);
    let found = check(&removed);
    assert_eq!(whats(&found), [(5, "line 4 is missing before it")]);
    assert_eq!((found.proved_lines, found.unproved_lines), (4, 3));
    let mut changed = lines;
    changed[4] = changed[4].replace("delete", "create");
    let found = check(&changed);
    assert_eq!(whats(&found), [(4, "was changed: its digest is another")]);
    assert_eq!((found.proved_lines, found.unproved_lines), (4, 4));
}

#[test]
fn a_chain_that_was_written_again_without_the_key_shows() {
    let lines = signed_chain("a", 8, &key(1));
    let mut forged = signed_chain("a", 8, &key(2));
    let found = check_with(&forged, vec![end_at(&lines, 5)]);
    let unsigned = "is a checkpoint without the signature of the key";
    let other = "is not the checkpoint that the cluster remembers there";
    assert_eq!(whats(&found), [(2, unsigned), (5, unsigned), (5, other)]);
    assert_eq!((found.proved_lines, found.unproved_lines), (0, 8));
    assert!(found.checkpoints.is_empty(), "{found:?}");

    // Without checkpoints, and as long as it was.
    forged = chain("a", 8);
    let found = check_with(&forged, vec![end_at(&lines, 5)]);
    assert_eq!(whats(&found), [(5, other)]);
    assert_eq!(found.proved_lines, 0);
    // Nothing is remembered of it: it is not proved.
    let found = check_with(&forged, Vec::new());
    assert_eq!((found.proved_lines, found.unproved_lines), (0, 8));
}

/// One record is another, and every digest behind it is right.
#[test]
fn a_record_that_was_rewritten_with_all_digests_shows_at_the_next_checkpoint() {
    let lines = signed_chain("a", 8, &key(1));
    let mut prev = String::new();
    let forged: Vec<String> = (0..)
        .zip(&lines)
        .map(|(seq, line)| {
            let (before, hash) = line.rsplit_once(",\"hash\":").unwrap();
            let mut before = format!("{before}}}");
            if seq == 3 {
                before = before.replace("delete_topic", "create_topic");
            }
            if seq > 3 {
                let (start, rest) = before.split_once("\"prev\":\"").unwrap();
                before = format!("{start}\"prev\":\"{prev}{}", &rest[64..]);
            }
            prev = match seq < 3 {
                true => hash.trim_matches(['"', '}']).to_owned(),
                false => sha256_hex(before.as_bytes()),
            };
            before.replace('}', &format!(",\"hash\":\"{prev}\"}}"))
        })
        .collect();
    let found = check(&forged);
    let expected = "is a checkpoint without the signature of the key";
    assert_eq!(whats(&found), [(5, expected)]);
    assert_eq!((found.proved_lines, found.unproved_lines), (3, 5));
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

    // Behind the digest, where none covers it: a reader of the line would believe the last one.
    let mut changed = whole.clone();
    changed[3] = changed[3].replace("\"}", "\",\"outcome\":\"failed\"}");
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
