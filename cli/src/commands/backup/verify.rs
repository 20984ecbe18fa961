//! `aquifer backup verify`.

use aquifer_cold::backup::verify::{Verified, verify};
use aquifer_cold::location::PlaceOfObjects;
use serde_json::json;

use crate::commands::backup::opened::{Opened, id_of};
use crate::commands::object::failed;
use crate::exit::CliError;
use crate::output::Output;

/// Looks for everything that a backup names.
pub(super) async fn look(opened: &Opened, deep: bool) -> Result<Verified, CliError> {
    let lists = opened.lists().await?;
    let places = opened.places().await?;
    let open = |place: &PlaceOfObjects| places.open(place);
    let found = verify(&*opened.store, &opened.root, &lists, &open, deep).await;
    found.map_err(failed)
}

pub(super) async fn run(opened: &Opened, deep: bool, out: &Output) -> Result<(), CliError> {
    let mut found = look(opened, deep).await?;
    let root = &opened.root;
    let is_it = found.topics == root.topics
        && found.entries == root.entries
        && found.bytes == root.bytes
        && found.object_bytes == root.object_bytes
        && found.last_ledger == root.last_ledger_id
        && found.objects_sha256.as_slice() == root.objects_sha256.as_ref();
    if !is_it {
        let what = "its lists are not what its root says".to_owned();
        found.problems.push(what);
    }
    let id = id_of(root)?;
    if out.is_json() {
        out.object(&json!({
            "backup": id.to_string(),
            "cluster": root.cluster,
            "deep": deep,
            "topics": found.topics,
            "objects": found.ledgers,
            "object_bytes": found.object_bytes,
            "problems": found.problems,
            "whole": found.problems.is_empty(),
        }))?;
    } else {
        for problem in &found.problems {
            out.line(problem)?;
        }
    }
    if !found.problems.is_empty() {
        return Err(CliError::failed(format!(
            "backup {id} is not whole: {} problems",
            found.problems.len()
        )));
    }
    if out.is_json() {
        return Ok(());
    }
    out.line(format!(
        "backup {id} is whole: {} topics, {} objects, {} bytes{}",
        found.topics,
        found.ledgers,
        found.object_bytes,
        match deep {
            true => ", every byte read",
            false => "",
        }
    ))
}
