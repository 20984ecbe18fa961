"""Checks dashboards, alert rules and runbooks against each other and against the code.

    check_monitoring.py [--prometheus URL]

Every metric that an expression names is one that the code makes, with the labels that it is selected and
grouped by, every expression parses, every alert has its page, and its histories: it fires, it is silent, and it resolves. With the address of a Prometheus that watches a running
cluster every expression is asked there too: it must have data, or be in EMPTY with a reason.
It needs PyYAML, and promtool in PATH.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent
# What has no data in a healthy cluster, and why.
EMPTY = {
    "aquifer_broker_append_failures_total": "no append has failed",
    "aquifer_broker_cursor_append_failures_total": "no acknowledgement has failed to be stored",
    "aquifer_broker_read_failures_total": "no read has failed",
    "aquifer_broker_damaged_messages_total": "nothing is damaged",
    "aquifer_broker_damaged_cursor_logs_total": "nothing is damaged",
    "aquifer_broker_duplicate_batches_total": "no producer has sent a batch again",
    "aquifer_bookie_damaged_entries_total": "nothing is damaged",
    "aquifer_bookie_scrub_damaged_entries_total": "nothing is damaged",
    "aquifer_bookie_scrub_passes_total": "the first round has not ended",
    "aquifer_bookie_scrubbed_bytes_total": "the first round has not begun",
    "aquifer_bookie_scrubbed_entries_total": "the first round has not begun",
    "aquifer_bookie_store_flush_seconds_bucket": "no store was flushed within the last minute",
    "aquifer_bookie_requests_refused_total": "no bookie had to refuse anything",
    "aquifer_log_append_failures_total": "no append has failed",
    "aquifer_log_bad_objects_total": "no object is missing or damaged",
    "aquifer_grpc_connections_refused_total": "no broker has as many connections as it may",
    "aquifer_broker_balance_moves_total": "nothing had to move",
    "aquifer_broker_balance_splits_total": "nothing had to be split",
    "aquifer_ledger_digest_failures_total": "nothing is damaged",
    "aquifer_ledger_overload_resends_total": "no bookie was overloaded",
    "aquifer_ledger_hedged_reads_total": "no bookie was slow to read",
    "aquifer_ledger_deleted_total": "no ledger was deleted",
    "aquifer_ledger_recoveries_total": "no ledger had to be recovered",
    "aquifer_ledger_recovery_seconds_bucket": "no ledger had to be recovered",
    "aquifer_ledger_read_entries_total": "consumers are served from the cache",
    "aquifer_ledger_read_bytes_total": "consumers are served from the cache",
    "aquifer_bookie_read_entries_total": "consumers are served from the cache",
    "aquifer_bookie_read_bytes_total": "consumers are served from the cache",
    "aquifer_repair_marked_ledgers_total": "no ledger lacks copies",
    "aquifer_repair_repaired_ledgers_total": "no ledger lacks copies",
    "aquifer_repair_swapped_positions_total": "no ledger lacks copies",
    "aquifer_repair_copied_bytes_total": "no ledger lacks copies",
    "aquifer_repair_copied_entries_total": "no ledger lacks copies",
    "aquifer_repair_failures_total": "no repair has failed",
    "aquifer_repair_rate_bytes_per_second": "no worker repairs",
    "aquifer_repair_orphans_total": "no ledger is without owner",
    "aquifer_tls_certificate_expires_seconds": "plain text",
    "aquifer_tls_reloads_total": "plain text",
}


# Labels that a scrape adds, as the chart and the compose file set them.
TARGET_LABELS = {"cluster", "instance", "job"}
# Names that the code puts together.
MADE = {"aquifer_broker_namespace_{what}_per_second": [
    f"aquifer_broker_namespace_{what}_{unit}_per_second" for what in ("published", "delivered") for unit in ("messages", "bytes")]}


def metrics_of(expression):
    return set(re.findall(r"\baquifer_[a-z0-9_]+\b", expression))


def sources():
    """(path, text) of what the program is made of: no comments, no tests, no commands that read metrics."""
    for path in sorted(ROOT.glob("**/src/**/*.rs")):
        parts = path.relative_to(ROOT).parts
        if {"target", "tests", "tests.rs"} & set(parts) or parts[:3] == ("cli", "src", "commands"):
            continue
        text = re.sub(r"(?m)^\s*//.*$", "", path.read_text())
        yield path, text.split("#[cfg(test)]\nmod tests {")[0]


def instruments():
    """The labels of each instrument in the sources, and of the series that a histogram makes of its name."""
    found = {}
    for path, text in sources():
        # An instrument may have the labels that are given in its file.
        labels = set(re.findall(r'KeyValue::new\(\s*"([a-z_]+)"', text))
        labels |= set(re.findall(r'counter_by\(\s*\w+,\s*[^,]+,\s*"([a-z_]+)"', text))
        for name in re.findall(r'"(aquifer_[a-z0-9_{}]+)"', text):
            for one in MADE.get(name, [name]):
                found.setdefault(one, set()).update(labels)
                if one.endswith("_seconds"):
                    found.setdefault(f"{one}_bucket", set()).update(labels | {"le"})
                    for end in ("_sum", "_count"):
                        found.setdefault(one + end, set()).update(labels)
    return found


def inside(expression, start):
    """What is between the parenthesis at a place and the one that closes it."""
    depth = 0
    for at in range(start, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[at], 0)
        if depth == 0:
            return expression[start:at + 1]
    raise AssertionError(f"a parenthesis is open in {expression}")


def check_labels(where, expression, known):
    """Series are selected and grouped by labels that their instruments have."""
    def check(metric, label):
        labels = known.get(metric, set()) | TARGET_LABELS
        assert label in labels, f"{where}: {metric} has no label {label}"

    for metric, selector in re.findall(r"\b(aquifer_[a-z0-9_]+|up)\{([^}]*)\}", expression):
        for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', selector):
            check(metric, label)
            for one in value.split("|") if label not in TARGET_LABELS else []:
                texts = (text for _, text in sources())
                assert any(re.search(rf"\b{one}\b", text) for text in texts), f"{where}: the code has no {label} {one}"
    for group in re.finditer(r"\b(?:by|without)\s*\(([^)]*)\)\s*\(", expression):
        for metric in metrics_of(inside(expression, group.end() - 1)):
            for label in group.group(1).split(","):
                check(metric, label.strip())


def check_text(where, text, expression, known):
    """A text names labels that the series of its expression have."""
    grouped = re.match(r"(?:topk\(\d+, *|histogram_quantile\([0-9.]+, *)?(?:sum|max|min|count|avg) by \(([^)]*)\)", expression.strip())
    of_metrics = [known.get(metric, set()) | TARGET_LABELS for metric in metrics_of(expression)]
    labels = set(re.split(r",\s*", grouped.group(1))) if grouped else set().union(TARGET_LABELS, *of_metrics)
    named = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
    assert named <= labels, f"{where}: `{text}` names {named - labels}, which its series do not have"


def expressions():
    """(where, expression) of every panel and alert, with Grafana's variables filled in."""
    for path in sorted((HERE / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids)), f"{path.name}: a panel id comes twice"
        for panel in dashboard["panels"]:
            assert panel["fieldConfig"]["defaults"]["unit"], f"{path.name}: {panel['title']} has no unit"
            for target in panel["targets"]:
                expr = target["expr"].replace("$__rate_interval", "1m").replace("$cluster", ".*")
                yield f"{path.name}: {panel['title']}", expr
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]


def rules():
    return [rule for group in yaml.safe_load((HERE / "alerts/aquifer.yaml").read_text())["groups"] for rule in group["rules"]]


def check_names():
    known, used = instruments(), set()
    for where, expression in expressions():
        unknown = metrics_of(expression) - set(known)
        assert not unknown, f"{where}: the code has no {', '.join(unknown)}"
        check_labels(where, expression, known)
        used |= metrics_of(expression)
    for path in sorted((HERE / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                check_text(f"{path.name}: {panel['title']}", target["legendFormat"], target["expr"], known)
    for rule in rules():
        check_text(f"alert {rule['alert']}", rule["annotations"]["summary"], rule["expr"], known)
    assert set(EMPTY) <= used, f"not used any more: {set(EMPTY) - used}"
    return used


def check_syntax():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        records = [{"record": f"r{at}", "expr": expr} for at, (_, expr) in enumerate(expressions())]
        yaml.safe_dump({"groups": [{"name": "all", "rules": records}]}, file)
        file.flush()
        for path in (file.name, HERE / "alerts/aquifer.yaml"):
            done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return len(records)


def histories(files):
    """For each alert what its histories expect of it, in the order of time: whether it fires."""
    found = {}
    for path in files:
        for one in yaml.safe_load(path.read_text())["tests"]:
            seen = {}
            for step in one["promql_expr_test"]:
                name = re.search(r'alertname="(\w+)"', step["expr"]).group(1)
                seen.setdefault(name, []).append(bool(step["exp_samples"]))
            for name, states in seen.items():
                found.setdefault(name, []).append(states)
    return found


def check_runbooks():
    files = [HERE / f"alerts/aquifer_{which}test.yaml" for which in ("", "days_", "resolves_")]
    tests, ends = "".join(path.read_text() for path in files), histories(files)
    pages = set()
    for rule in rules():
        name, page = rule["alert"], ROOT / rule["annotations"]["runbook_url"]
        assert page.exists(), f"{name}: there is no {page}"
        text = page.read_text()
        assert text.startswith(f"# {name}\n"), f"{page} is not the page of {name}"
        for section in ("## What it means", "## What to look at", "## What to do"):
            assert section in text, f"{page} lacks `{section}`"
        for what in ("fires", "is silent"):
            assert f"name: {name} {what}\n" in tests, f"no history in which {name} {what}"
        assert any(seen[:1] == [True] and seen[-1] is False for seen in ends.get(name, [])), f"no history in which {name} resolves"
        pages.add(page.name)
    there = {path.name for path in (ROOT / "docs/operations/runbooks").glob("*.md")} - {"README.md"}
    assert pages == there, f"pages without an alert: {there - pages}"
    index = (ROOT / "docs/operations/runbooks/README.md").read_text()
    missing = [page for page in pages if f"({page})" not in index]
    assert not missing, f"not in the index of runbooks: {missing}"


def ask(prometheus, expression):
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{query}", timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def check_data(prometheus):
    """Asks a running cluster. Alerts must parse and be silent there; their metrics must exist."""
    with_data, without, wrong, firing = 0, [], [], []
    for where, expression in expressions():
        found = ask(prometheus, expression)
        if where.startswith("alert "):
            firing += [where] if found else []
            for metric in metrics_of(expression):
                if not ask(prometheus, metric) and metric not in EMPTY:
                    wrong.append(f"{where}: {metric} has no data")
            with_data += 1
        elif found:
            with_data += 1
        elif metrics_of(expression) & set(EMPTY):
            without.append(f"{where}: {', '.join(EMPTY[m] for m in metrics_of(expression) & set(EMPTY))}")
        else:
            wrong.append(f"{where}: no data: {expression}")
    for line in without:
        print(f"  empty as expected: {line}")
    for line in firing:
        print(f"  pending or firing: {line}")
    assert not wrong, "\n".join(wrong)
    print(f"monitoring: {with_data} expressions have data or are silent alerts, {len(without)} are empty with a reason")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prometheus", help="address of a Prometheus that watches a running cluster")
    options = parser.parse_args()
    used = check_names()
    count = check_syntax()
    check_runbooks()
    print(f"monitoring: {count} expressions over {len(used)} metrics of the code, {len(rules())} alerts with their pages")
    if options.prometheus:
        check_data(options.prometheus)


try:
    main()
except AssertionError as error:
    sys.exit(f"monitoring: {error}")
