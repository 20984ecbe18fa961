//! What a bookie says of a loss when it starts: what was given up, or what is in danger.

use aquifer_bookie::{Bookie, LossReport, SetAsideReport};
use serde_json::json;

use crate::exit::CliError;
use crate::output::Output;

/// Prints the loss that was accepted, or warns of the one that is not.
///
/// # Errors
/// When standard output is closed.
pub fn report_loss(bookie: &Bookie, out: &Output) -> Result<(), CliError> {
    if let Some(loss) = bookie.accepted_loss() {
        for line in loss_lines(loss) {
            tracing::warn!(loss = line, "loss accepted");
        }
        print_loss(loss, out)?;
    }
    if let Some(aside) = bookie.set_aside() {
        for line in aside_lines(aside) {
            tracing::warn!(aside = line, "damaged files set aside");
        }
        print_aside(aside, out)?;
    }
    let status = bookie.status();
    if let Some(damage) = status.damage {
        let what = format!(
            "warning: files of the ledger store are damaged, so nothing new is stored: {damage}."
        );
        let advice = if bookie.cluster().is_empty() {
            "What can be read is served; the log says what cannot. Restore the files of the whole \
             data directory from a backup, or restart with --accept-loss: the damaged files are then \
             set aside, and what cannot be read of them is given up."
        } else {
            "What can be read is served, and the ledgers concerned are marked for repair. Look at \
             the disk; then either decommission this bookie, or restart it with --accept-loss: the \
             damaged files are then set aside, and what they had is copied from other bookies."
        };
        out.note(&format!("{what}\n{advice}"));
    }
    if let Some(loss) = status.limbo {
        for line in loss_lines(&loss) {
            tracing::error!(loss = line, "data may be lost");
        }
        let what = "warning: storage has lost synced data; every ledger is in limbo: stored entries \
                    are served, and no entry is reported as absent.";
        let advice = if bookie.cluster().is_empty() {
            "Restore the files, or restart with --accept-loss to give up what is missing."
        } else {
            "Missing entries are copied from other bookies; limbo ends when all are here."
        };
        out.note(&format!("{what}\n{advice}"));
    }
    Ok(())
}

/// Prints what is missing after a loss was accepted.
fn print_loss(loss: &LossReport, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        let ledgers = loss.ledgers.iter().map(|ledger| {
            json!({
                "ledger": ledger.ledger.0,
                "last_entry": ledger.last_entry.map(|entry| entry.0),
                "fenced": ledger.fenced,
            })
        });
        out.object(&json!({"accepted_loss": {
            "reason": loss.reason,
            "first_commit": loss.first_commit,
            "last_commit": loss.last_commit,
            "ledgers": ledgers.collect::<Vec<_>>(),
            "ledgers_not_listed": loss.ledgers_not_listed,
        }}))?;
        return out.flush();
    }
    for line in loss_lines(loss) {
        out.line(line)?;
    }
    out.flush()
}

/// Prints what became of damaged files.
fn print_aside(aside: &SetAsideReport, out: &Output) -> Result<(), CliError> {
    if out.is_json() {
        let files = aside.files.iter().map(|file| {
            json!({
                "name": file.name,
                "first_ledger": file.first.0,
                "last_ledger": file.last.0,
                "what": file.what,
            })
        });
        let lost = aside.lost.iter().map(|lost| {
            json!({
                "ledger": lost.ledger.0,
                "first_entry": lost.first.0,
                "last_entry": lost.last.0,
            })
        });
        out.object(&json!({"set_aside": {
            "directory": aside.directory.display().to_string(),
            "files": files.collect::<Vec<_>>(),
            "lost": lost.collect::<Vec<_>>(),
            "lost_not_listed": aside.lost_not_listed,
        }}))?;
        return out.flush();
    }
    for line in aside_lines(aside) {
        out.line(line)?;
    }
    out.flush()
}

/// Says what could not be read of files that were set aside.
fn aside_lines(aside: &SetAsideReport) -> Vec<String> {
    let directory = aside.directory.display();
    let mut lines = Vec::new();
    for file in &aside.files {
        let (name, what) = (&file.name, &file.what);
        lines.push(format!("{name} was set aside into {directory}: {what}"));
    }
    for lost in &aside.lost {
        let (ledger, first, last) = (lost.ledger, lost.first, lost.last);
        lines.push(format!(
            "  ledger {ledger}: entries {first} to {last} could not be read"
        ));
    }
    if aside.lost_not_listed > 0 {
        lines.push(format!("  and {} more ranges", aside.lost_not_listed));
    }
    lines
}

/// Says what a loss touches; also for the warning while it is not accepted.
fn loss_lines(loss: &LossReport) -> Vec<String> {
    let mut lines = vec![match loss.last_commit {
        // Nothing of the journal is missing.
        0 => loss.reason.clone(),
        last => format!(
            "journal commits {} to {last} are missing: {}",
            loss.first_commit, loss.reason
        ),
    }];
    for ledger in &loss.ledgers {
        let kept = match ledger.last_entry {
            Some(last) => format!("entries after {last} may be missing"),
            None => "every entry may be missing".to_owned(),
        };
        lines.push(format!("  ledger {}: {kept}", ledger.ledger));
    }
    if loss.ledgers_not_listed > 0 {
        lines.push(format!("  and {} more ledgers", loss.ledgers_not_listed));
    }
    lines
}

#[cfg(test)]
mod tests {
    use aquifer_bookie::LedgerLoss;
    use aquifer_model::id::{EntryId, LedgerId};

    use super::*;

    #[test]
    fn a_loss_names_every_ledger_and_what_is_left() {
        let ledger = |id, last: Option<u64>| LedgerLoss {
            ledger: LedgerId(id),
            last_entry: last.map(EntryId),
            fenced: false,
        };
        let loss = LossReport {
            first_commit: 5,
            last_commit: 9,
            reason: "why".to_owned(),
            ledgers: vec![ledger(1, Some(41)), ledger(2, None)],
            ledgers_not_listed: 3,
        };
        let text = loss_lines(&loss).join("\n");
        for part in [
            "5 to 9 are missing",
            "why",
            "ledger 1: entries after 41",
            "ledger 2: every",
            "3 more",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
