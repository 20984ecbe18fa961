"""Makes the dashboards beside it: plain JSON of Grafana, with the data source as a variable.

    generate.py [--check]

With --check nothing is written, and a dashboard that differs from its file is an error. It needs no package.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
C = 'cluster=~"$cluster"'


def rate(metric, by, labels=C):
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(q, metric, by=""):
    by = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{{{C}}}[$__rate_interval])))"


def panel(title, unit, *series, kind="timeseries", width=8, about=""):
    """A panel; series are pairs of an expression and its legend."""
    return {"title": title, "unit": unit, "series": series, "kind": kind, "width": width, "about": about}


def stat(title, unit, expression, about=""):
    return panel(title, unit, (expression, ""), kind="stat", width=4, about=about)


OVERVIEW = [
    stat("Brokers", "short", f'sum(up{{{C}, job=~"broker|standalone"}})'),
    stat("Writable bookies", "short", f"sum(aquifer_bookie_writable{{{C}}})"),
    stat("Published", "cps", f"sum(rate(aquifer_broker_published_messages_total{{{C}}}[$__rate_interval]))"),
    stat("Backlog", "short", f"sum(aquifer_broker_backlog_messages{{{C}}})", "Messages that subscriptions of loaded topics have not acknowledged."),
    stat("Oldest of it", "s", f"max(aquifer_broker_backlog_age_seconds_max{{{C}}})", "Age of the oldest message that is not acknowledged, about."),
    stat("Ledgers that wait for copies", "short", f"max(aquifer_repair_under_replicated_ledgers{{{C}}})", "Counted by the process that audits."),
    panel("Messages", "cps", (rate("aquifer_broker_published_messages_total", "cluster"), "published"),
          (rate("aquifer_broker_delivered_messages_total", "cluster"), "delivered"), width=12),
    panel("Bytes", "Bps", (rate("aquifer_broker_published_bytes_total", "cluster"), "published"),
          (rate("aquifer_broker_delivered_bytes_total", "cluster"), "delivered"), width=12),
    panel("Time to acknowledge a batch", "s", (quantile(0.5, "aquifer_broker_publish_seconds"), "p50"),
          (quantile(0.99, "aquifer_broker_publish_seconds"), "p99"), (quantile(0.999, "aquifer_broker_publish_seconds"), "p99.9")),
    panel("Time to deliver a message", "s", (quantile(0.5, "aquifer_broker_dispatch_seconds"), "p50"),
          (quantile(0.99, "aquifer_broker_dispatch_seconds"), "p99"), about="From when it was stored, to consumers that keep up."),
    panel("Time to store an acknowledgement", "s", (quantile(0.5, "aquifer_broker_acknowledge_seconds"), "p50"),
          (quantile(0.99, "aquifer_broker_acknowledge_seconds"), "p99"), about="A group of them is one entry."),
    panel("Time of a commit at bookies", "s", (quantile(0.5, "aquifer_bookie_journal_commit_seconds"), "p50"),
          (quantile(0.99, "aquifer_bookie_journal_commit_seconds"), "p99"), about="One write and one fdatasync for everything that waits."),
    panel("Failures", "cps", (rate("aquifer_broker_append_failures_total", "instance"), "append {{instance}}"),
          (rate("aquifer_broker_cursor_append_failures_total", "instance"), "acknowledgement {{instance}}"),
          (rate("aquifer_broker_read_failures_total", "instance"), "read {{instance}}"),
          about="Empty while nothing has failed since the processes started."),
    panel("Errors and warnings logged", "cps", (f"sum by (level) (rate(aquifer_process_log_events_total{{{C}}}[$__rate_interval]))", "{{level}}"),
          about="An error needs a person."),
    panel("Free disk space", "bytes", (f"min by (instance) (aquifer_bookie_disk_free_bytes{{{C}}})", "{{instance}}"), width=12),
    panel("Memory", "bytes", (f"max by (job, instance) (aquifer_process_resident_bytes{{{C}}})", "{{job}} {{instance}}"), width=12),
]

BROKERS = [
    panel("Published messages", "cps", (rate("aquifer_broker_published_messages_total", "instance"), "{{instance}}")),
    panel("Delivered messages", "cps", (rate("aquifer_broker_delivered_messages_total", "instance"), "{{instance}}")),
    panel("Time to acknowledge a batch, p99", "s", (quantile(0.99, "aquifer_broker_publish_seconds", "instance"), "{{instance}}")),
    panel("Time to deliver a message, p99", "s", (quantile(0.99, "aquifer_broker_dispatch_seconds", "instance"), "{{instance}}"),
          about="From when it was stored, to consumers that keep up."),
    panel("Time to store an acknowledgement, p99", "s", (quantile(0.99, "aquifer_broker_acknowledge_seconds", "instance"), "{{instance}}")),
    panel("Oldest message that is not acknowledged", "s", (f"aquifer_broker_backlog_age_seconds_max{{{C}}}", "{{instance}}"),
          (f"aquifer_broker_unloaded_backlog_age_seconds_max{{{C}}}", "not loaded, {{instance}}"),
          about="Estimated from the times of its ledger."),
    panel("Loaded topics", "short", (f"aquifer_broker_topics_loaded{{{C}}}", "{{instance}}")),
    panel("Producers", "short", (f"aquifer_broker_producers_connected{{{C}}}", "{{instance}}")),
    panel("Consumers", "short", (f"aquifer_broker_consumers_connected{{{C}}}", "{{instance}}")),
    panel("Backlog", "short", (f"aquifer_broker_backlog_messages{{{C}}}", "all, {{instance}}"),
          (f"aquifer_broker_backlog_messages_max{{{C}}}", "largest, {{instance}}"),
          (f"aquifer_broker_unloaded_backlog_messages{{{C}}}", "not loaded, {{instance}}")),
    panel("Topics whose backlog is not known", "short", (f"aquifer_broker_unloaded_backlog_unknown_topics{{{C}}}", "{{instance}}"),
          about="A crash left them open, and they were not loaded since."),
    panel("Time to load a topic", "s", (quantile(0.5, "aquifer_broker_topic_load_seconds"), "p50"),
          (quantile(0.99, "aquifer_broker_topic_load_seconds"), "p99")),
    panel("Records of acknowledgements", "cps", (rate("aquifer_broker_cursor_records_total", "instance"), "{{instance}}")),
    panel("Refused requests", "cps", (rate("aquifer_broker_request_errors_total", "request, kind"), "{{request}} {{kind}}"),
          about="Redirects are among them: a client asked a broker that does not serve the topic."),
    panel("Repeated batches", "cps", (rate("aquifer_broker_duplicate_batches_total", "instance"), "{{instance}}"), about="Sent again by producers, and stored once."),
    panel("Damaged messages", "short", (f"aquifer_broker_damaged_messages_total{{{C}}}", "{{instance}}"),
          (f"aquifer_broker_damaged_cursor_logs_total{{{C}}}", "records of acknowledgements, {{instance}}")),
    panel("Bytes of producers in flight", "bytes", (f"aquifer_broker_publish_bytes{{{C}}}", "{{instance}}")),
    panel("Bytes of deliveries in flight", "bytes", (f"aquifer_broker_delivery_bytes{{{C}}}", "{{instance}}")),
    panel("Bytes of requests being read", "bytes", (f"aquifer_grpc_inbound_bytes{{{C}}}", "{{instance}}")),
    panel("Connections", "short", (f"aquifer_grpc_connections_open{{{C}}}", "{{instance}}"),
          (rate("aquifer_grpc_connections_refused_total", "instance"), "refused a second, {{instance}}")),
    panel("Streams", "short", (f"sum by (instance, stream) (aquifer_grpc_streams_open{{{C}}})", "{{stream}} {{instance}}")),
    panel("Time of calls, p99", "s", (quantile(0.99, "aquifer_grpc_request_seconds", "method"), "{{method}}")),
    panel("Payload on streams", "Bps", (rate("aquifer_grpc_payload_bytes_total", "stream, direction"), "{{stream}} {{direction}}")),
    panel("Calls", "cps", (rate("aquifer_grpc_request_seconds_count", "method"), "{{method}}")),
    panel("Failed calls and streams", "cps", (rate("aquifer_grpc_request_errors_total", "method"), "{{method}}")),
    panel("Errors to clients", "cps", (rate("aquifer_grpc_errors_total", "code"), "{{code}}")),
    panel("Load", "short", (f"aquifer_broker_load_units{{{C}}}", "{{instance}}"), about="A message a second is one, and so is a KiB, in either direction."),
    panel("Bundles", "short", (f"aquifer_broker_bundles_owned{{{C}}}", "{{instance}}"),
          (f"aquifer_broker_is_balancer{{{C}}}", "balances load: {{instance}}")),
    panel("Highest load by mean load", "short", (f"max(aquifer_broker_balance_spread_ratio{{{C}}})", "spread"), about="Without traffic it says little."),
    panel("Bundles moved and split", "short", (f"sum(increase(aquifer_broker_balance_moves_total{{{C}}}[$__rate_interval]))", "moved"),
          (f"sum(increase(aquifer_broker_balance_splits_total{{{C}}}[$__rate_interval]))", "split")),
    panel("Appends to topic logs", "cps", (rate("aquifer_log_appended_entries_total", "instance"), "{{instance}}"),
          (rate("aquifer_log_append_failures_total", "instance"), "failed, {{instance}}")),
    panel("Time of an append to bookies", "s", (quantile(0.5, "aquifer_log_append_seconds"), "p50"), (quantile(0.99, "aquifer_log_append_seconds"), "p99")),
    panel("Reads from the tail cache", "percentunit", (
        f"sum by (instance) (rate(aquifer_log_tail_hits_total{{{C}}}[$__rate_interval])) / (sum by (instance) (rate(aquifer_log_tail_hits_total{{{C}}}[$__rate_interval]))"
        f" + (sum by (instance) (rate(aquifer_log_tail_misses_total{{{C}}}[$__rate_interval])) or sum by (instance) (rate(aquifer_log_tail_hits_total{{{C}}}[$__rate_interval])) * 0))", "{{instance}}")),
]

BOOKIES = [
    panel("Takes entries", "short", (f"aquifer_bookie_writable{{{C}}}", "{{instance}}"), about="0: read-only."),
    panel("In limbo", "short", (f"aquifer_bookie_limbo{{{C}}}", "{{instance}}"), about="1: it may have lost synced data."),
    panel("Free disk space", "bytes", (f"aquifer_bookie_disk_free_bytes{{{C}}}", "{{instance}}"),
          (f"aquifer_bookie_removing_bytes{{{C}}}", "being removed, {{instance}}")),
    panel("Disk in use", "percentunit", (f"1 - aquifer_bookie_disk_free_bytes{{{C}}} / aquifer_bookie_disk_total_bytes{{{C}}}", "{{instance}}"),
          about="Of the fuller one of journal and ledgers."),
    panel("Time of a read", "s", (quantile(0.5, "aquifer_bookie_read_seconds", "instance"), "p50 {{instance}}"),
          (quantile(0.99, "aquifer_bookie_read_seconds", "instance"), "p99 {{instance}}")),
    panel("Commits", "cps", (rate("aquifer_bookie_journal_commits_total", "instance"), "{{instance}}")),
    panel("Records in a commit", "short", (
        f"sum by (instance) (rate(aquifer_bookie_journal_records_total{{{C}}}[$__rate_interval])) / "
        f"sum by (instance) (rate(aquifer_bookie_journal_commits_total{{{C}}}[$__rate_interval]))", "{{instance}}")),
    panel("Time of a commit", "s", (quantile(0.5, "aquifer_bookie_journal_commit_seconds", "instance"), "p50 {{instance}}"),
          (quantile(0.99, "aquifer_bookie_journal_commit_seconds", "instance"), "p99 {{instance}}")),
    panel("Journal", "Bps", (rate("aquifer_bookie_journal_bytes_total", "instance"), "{{instance}}")),
    panel("Journal that a start would replay", "bytes", (f"aquifer_bookie_journal_live_bytes{{{C}}}", "{{instance}}")),
    panel("Entries in flight", "bytes", (f"aquifer_bookie_in_flight_bytes{{{C}}}", "{{instance}}")),
    panel("Read entries", "cps", (rate("aquifer_bookie_read_entries_total", "instance"), "{{instance}}")),
    panel("Read bytes", "Bps", (rate("aquifer_bookie_read_bytes_total", "instance"), "{{instance}}")),
    panel("Refused requests", "cps", (rate("aquifer_bookie_requests_refused_total", "reason"), "{{reason}}"),
          about="`absent` is usual: recovery and readers at the tail ask for entries that are not there yet."),
    panel("Stored", "bytes", (f"aquifer_bookie_store_bytes{{{C}}}", "{{instance}}")),
    panel("Time of a flush, p99", "s", (quantile(0.99, "aquifer_bookie_store_flush_seconds", "instance"), "{{instance}}")),
    panel("Verified", "Bps", (rate("aquifer_bookie_scrubbed_bytes_total", "instance"), "{{instance}}"), about="By the scrubber, in rounds with pauses."),
    panel("Damaged entries", "short", (f"aquifer_bookie_damaged_entries_total{{{C}}}", "read, {{instance}}"),
          (f"aquifer_bookie_scrub_damaged_entries_total{{{C}}}", "scrubber, {{instance}}"), about="Empty while nothing was damaged."),
    panel("Rounds of the scrubber", "short", (f"aquifer_bookie_scrub_passes_total{{{C}}}", "{{instance}}")),
    panel("Verified entries", "cps", (rate("aquifer_bookie_scrubbed_entries_total", "instance"), "{{instance}}")),
]

REPAIR = [
    stat("Ledgers that wait for copies", "short", f"max(aquifer_repair_under_replicated_ledgers{{{C}}})"),
    stat("Bookies away", "short", f"max(aquifer_repair_bookies_away{{{C}}})"),
    stat("Repair is paused", "short", f"max(aquifer_repair_paused{{{C}}})"),
    stat("Metadata, of its quota", "percentunit", f"max(aquifer_metadata_used_bytes{{{C}}} / aquifer_metadata_quota_bytes{{{C}}})"),
    stat("Copied", "Bps", f"sum(rate(aquifer_repair_copied_bytes_total{{{C}}}[$__rate_interval]))"),
    stat("Failed attempts", "short", f"sum(increase(aquifer_repair_failures_total{{{C}}}[1h]))"),
    panel("Marked and repaired ledgers", "short", (f"sum(increase(aquifer_repair_marked_ledgers_total{{{C}}}[$__rate_interval]))", "marked"),
          (f"sum(increase(aquifer_repair_repaired_ledgers_total{{{C}}}[$__rate_interval]))", "repaired"),
          (f"sum(increase(aquifer_repair_swapped_positions_total{{{C}}}[$__rate_interval]))", "positions with another bookie")),
    panel("Copied bytes", "Bps", (rate("aquifer_repair_copied_bytes_total", "instance"), "{{instance}}"),
          (f"aquifer_repair_rate_bytes_per_second{{{C}}}", "may, {{instance}}")),
    panel("Copied entries", "cps", (rate("aquifer_repair_copied_entries_total", "instance"), "{{instance}}")),
    panel("Auditor", "short", (f"aquifer_repair_is_auditor{{{C}}}", "{{instance}}"), about="1 at the process that audits."),
    panel("Time of an audit", "s", (quantile(0.5, "aquifer_repair_scan_seconds"), "p50"), (quantile(0.99, "aquifer_repair_scan_seconds"), "p99")),
    panel("Without owner, to be deleted", "short", (f"aquifer_repair_orphans_total{{{C}}}", "{{instance}}")),
    panel("Metadata", "bytes", (f"max(aquifer_metadata_used_bytes{{{C}}})", "used"), (f"max(aquifer_metadata_quota_bytes{{{C}}})", "quota")),
    panel("Time of metadata requests, p99", "s", (quantile(0.99, "aquifer_metadata_request_seconds", "operation"), "{{operation}}"),
          about="As the processes see them. `watch` is the time to begin one."),
    panel("Metadata requests", "cps", (rate("aquifer_metadata_request_seconds_count", "operation"), "{{operation}}"),
          (rate("aquifer_metadata_request_failures_total", "operation"), "without an answer, {{operation}}")),
    panel("Ledgers created and deleted", "cps", (rate("aquifer_ledger_created_total", "cluster"), "created"), (rate("aquifer_ledger_deleted_total", "cluster"), "deleted")),
    panel("Recoveries", "cps", (rate("aquifer_ledger_recoveries_total", "instance"), "{{instance}}")),
    panel("Time of a recovery, p99", "s", (quantile(0.99, "aquifer_ledger_recovery_seconds"), "p99")),
    panel("Entries read from bookies", "cps", (rate("aquifer_ledger_read_entries_total", "instance"), "{{instance}}"),
          (rate("aquifer_ledger_hedged_reads_total", "instance"), "asked a second bookie, {{instance}}")),
    panel("Bytes read from bookies", "Bps", (rate("aquifer_ledger_read_bytes_total", "instance"), "{{instance}}")),
    panel("Damage and overload between processes", "cps", (rate("aquifer_ledger_digest_failures_total", "instance"), "wrong digest, {{instance}}"),
          (rate("aquifer_ledger_overload_resends_total", "instance"), "sent again, {{instance}}"), about="Empty while there was none."),
]

PROCESSES = [
    panel("Up", "short", (f'up{{{C}, job=~"bookie|broker|autorecovery|offloader|standalone"}}', "{{job}} {{instance}}")),
    panel("Serves", "short", (f"aquifer_process_ready{{{C}}}", "{{job}} {{instance}}"), about="1 while /readyz says so."),
    panel("CPU", "short", (rate("aquifer_process_cpu_seconds_total", "job, instance"), "{{job}} {{instance}}"), about="Cores in use."),
    panel("Memory", "bytes", (f"aquifer_process_resident_bytes{{{C}}}", "{{job}} {{instance}}")),
    panel("Open files", "short", (f"aquifer_process_open_fds{{{C}}}", "{{job}} {{instance}}")),
    panel("Open files, of what is allowed", "percentunit", (f"aquifer_process_open_fds{{{C}}} / aquifer_process_max_fds{{{C}}}", "{{job}} {{instance}}")),
    panel("Threads that run tasks, busy", "percentunit", (
        f"sum by (job, instance) (rate(aquifer_runtime_busy_seconds_total{{{C}}}[$__rate_interval])) / sum by (job, instance) (aquifer_runtime_workers{{{C}}})", "{{job}} {{instance}}")),
    panel("Tasks", "short", (f"aquifer_runtime_tasks{{{C}}}", "{{job}} {{instance}}"),
          (f"aquifer_runtime_queued_tasks{{{C}}}", "wait for a thread, {{job}} {{instance}}")),
    panel("Errors and warnings logged", "cps", (rate("aquifer_process_log_events_total", "job, instance, level"), "{{level}} {{job}} {{instance}}")),
    panel("Versions", "short", (f"count by (version) (aquifer_build_info{{{C}}})", "{{version}}")),
    panel("Time since the start", "s", (f"time() - aquifer_process_start_time_ms{{{C}}} / 1000", "{{job}} {{instance}}")),
    panel("Certificates expire in", "s", (f"aquifer_tls_certificate_expires_seconds{{{C}}} - time()", "{{port}} {{instance}}"),
          (f"increase(aquifer_tls_reloads_total{{{C}}}[1h])", "reloads {{result}}, {{port}} {{instance}}"), about="Empty without TLS."),
]

def of_namespaces(what, by="tenant"):
    return f"sum by ({by}) (aquifer_broker_namespace_{what}{{{C}}})"


def largest(what):
    return f"topk(10, {of_namespaces(what, 'tenant, namespace')})"


TENANTS = [
    panel("Published messages", "cps", (of_namespaces("published_messages_per_second"), "{{tenant}}"), about="Over the last minutes, of the namespaces that brokers show by themselves."),
    panel("Delivered messages", "cps", (of_namespaces("delivered_messages_per_second"), "{{tenant}}")),
    panel("Topics in use", "short", (of_namespaces("topics"), "{{tenant}}"), about="Loaded at brokers."),
    panel("Published bytes", "Bps", (of_namespaces("published_bytes_per_second"), "{{tenant}}")),
    panel("Delivered bytes", "Bps", (of_namespaces("delivered_bytes_per_second"), "{{tenant}}")),
    panel("Producers and consumers", "short", (of_namespaces("sessions"), "{{tenant}}")),
    panel("Backlog", "short", (of_namespaces("backlog_messages"), "{{tenant}}"), about="Messages that subscriptions of loaded topics have not acknowledged."),
    panel("Backlog of topics that are not loaded", "short", (of_namespaces("unloaded_backlog_messages"), "{{tenant}}"), about="As the last walk over their records found it."),
    panel("Oldest message that is not acknowledged", "s", (f"max by (tenant) (aquifer_broker_namespace_backlog_age_seconds{{{C}}})", "{{tenant}}")),
    panel("Namespaces with the largest backlog", "short", (largest("backlog_messages"), "{{tenant}}/{{namespace}}")),
    panel("Namespaces that publish most", "Bps", (largest("published_bytes_per_second"), "{{tenant}}/{{namespace}}")),
    panel("Namespaces that consume most", "Bps", (largest("delivered_bytes_per_second"), "{{tenant}}/{{namespace}}")),
    panel("Namespaces with the oldest backlog", "s", (
        f"topk(10, max by (tenant, namespace) (aquifer_broker_namespace_backlog_age_seconds{{{C}}}))", "{{tenant}}/{{namespace}}"),
          (f"topk(10, max by (tenant, namespace) (aquifer_broker_namespace_unloaded_backlog_age_seconds{{{C}}}))", "not loaded, {{tenant}}/{{namespace}}")),
    panel("Waits for rates", "cps", (rate("aquifer_broker_throttled_waits_total", "limit"), "{{limit}}"), about="Of producers and subscriptions."),
    panel("Time that publishes waited for rates, p99", "s", (quantile(0.99, "aquifer_broker_throttled_seconds", "limit"), "{{limit}}")),
    panel("Messages that waited", "cps", (rate("aquifer_broker_throttled_messages_total", "limit"), "{{limit}}"),
          (rate("aquifer_broker_throttled_bytes_total", "limit"), "bytes, {{limit}}")),
    panel("Refused by quota", "cps", (rate("aquifer_broker_quota_refusals_total", "limit"), "{{limit}}")),
    panel("Expired messages", "cps", (rate("aquifer_broker_expired_messages_total", "policy"), "{{policy}}"), about="Acknowledged by policy, without a consumer."),
]

OFFLOAD = [
    stat("To be offloaded by policy", "bytes", f"sum(aquifer_log_offload_lag_bytes{{{C}}})"),
    stat("Ledgers due", "short", f"sum(aquifer_log_offload_lag_ledgers{{{C}}})"),
    stat("Due since", "s", f"max(aquifer_log_offload_lag_seconds{{{C}}})"),
    stat("Late ledgers", "short", f"sum(aquifer_log_offload_late_ledgers{{{C}}})", "Due for four times what the policy says."),
    stat("Bad objects", "short", f"sum(increase(aquifer_log_bad_objects_total{{{C}}}[1d]))", "Missing or damaged, of a day."),
    stat("Bookies short of space", "short", f"max(aquifer_log_pressed_bookies{{{C}}})", "Copies go from them before their lag is over."),
    panel("Attempts", "cps", (rate("aquifer_log_offload_attempts_total", "outcome"), "{{outcome}}"), about="To write a ledger into an object."),
    panel("Offloaded", "Bps", (rate("aquifer_log_offloaded_bytes_total", "instance"), "{{instance}}")),
    panel("To be offloaded by policy", "bytes", (f"aquifer_log_offload_lag_bytes{{{C}}}", "{{instance}}")),
    panel("Ledgers late to be offloaded", "short", (f"aquifer_log_offload_late_ledgers{{{C}}}", "{{instance}}"), about="Due for four times what the policy says."),
    panel("Objects under way", "short", (f"aquifer_log_objects_in_flight{{{C}}}", "written, {{instance}}"), (f"aquifer_log_objects_dying{{{C}}}", "to be deleted, {{instance}}")),
    panel("Ledgers whose copies at bookies have gone", "cps", (rate("aquifer_log_dropped_ledgers_total", "instance"), "{{instance}}")),
    panel("Reads of objects", "cps", (rate("aquifer_log_object_reads_total", "instance"), "{{instance}}"),
          (rate("aquifer_log_object_read_failures_total", "instance"), "failed, {{instance}}")),
    panel("Blocks found in memory", "cps", (rate("aquifer_log_object_cache_hits_total", "instance"), "found, {{instance}}"),
          (rate("aquifer_log_object_cache_misses_total", "instance"), "fetched, {{instance}}")),
    panel("Loads of topics for their offload", "cps", (rate("aquifer_broker_offload_visits_total", "instance"), "{{instance}}"), about="Of topics that no client uses."),
    panel("Requests to object stores", "cps", (rate("aquifer_cold_requests_total", "kind"), "{{kind}}")),
    panel("Outcomes of these", "cps", (rate("aquifer_cold_requests_total", "status"), "{{status}}")),
    panel("Bytes to and from object stores", "Bps", (rate("aquifer_cold_bytes_total", "direction"), "{{direction}}")),
    panel("Scrubbed objects", "cps", (rate("aquifer_log_scrubbed_objects_total", "outcome"), "{{outcome}}")),
    panel("Scrubbed bytes", "Bps", (rate("aquifer_log_scrubbed_bytes_total", "instance"), "{{instance}}")),
    panel("Bad objects", "short", (f"sum by (what) (aquifer_log_bad_objects_total{{{C}}})", "{{what}}")),
]

DASHBOARDS = {
    "overview": ("Aquifer: overview", OVERVIEW),
    "brokers": ("Aquifer: brokers", BROKERS),
    "bookies": ("Aquifer: bookies", BOOKIES),
    "tenants": ("Aquifer: tenants", TENANTS),
    "offload": ("Aquifer: offload", OFFLOAD),
    "repair": ("Aquifer: repair and metadata", REPAIR),
    "processes": ("Aquifer: processes", PROCESSES),
}


def made(panels):
    """Panels in Grafana's form, placed in rows of 24 columns."""
    x = y = height = 0
    for number, one in enumerate(panels, 1):
        tall = 4 if one["kind"] == "stat" else 8
        if x + one["width"] > 24:
            x, y = 0, y + height
        height = tall
        source = {"type": "prometheus", "uid": "${datasource}"}
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}} if one["kind"] == "stat" else {
            "legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        yield {
            "id": number, "type": one["kind"], "title": one["title"], "description": one["about"],
            "datasource": source, "gridPos": {"x": x, "y": y, "w": one["width"], "h": tall},
            "fieldConfig": {"defaults": {"unit": one["unit"], "min": 0}, "overrides": []},
            "options": options,
            "targets": [{"refId": chr(65 + at), "datasource": source, "expr": expr, "legendFormat": legend}
                        for at, (expr, legend) in enumerate(one["series"])],
        }
        x += one["width"]


def dashboard(name, title, panels):
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {"name": "cluster", "type": "query", "label": "Cluster", "includeAll": True, "allValue": ".*",
         "current": {"text": "All", "value": "$__all"}, "refresh": 2,
         "datasource": {"type": "prometheus", "uid": "${datasource}"},
         "query": "label_values(aquifer_process_resident_bytes, cluster)"},
    ]
    links = [{"type": "dashboards", "tags": ["aquifer"], "asDropdown": False, "title": "", "keepTime": True}]
    return {
        "uid": f"aquifer-{name}", "title": title, "tags": ["aquifer"], "schemaVersion": 39, "version": 1,
        "editable": True, "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "timezone": "utc",
        "links": links, "templating": {"list": variables}, "panels": list(made(panels)),
    }


def main():
    for name, (title, panels) in DASHBOARDS.items():
        path = HERE / f"{name}.json"
        text = json.dumps(dashboard(name, title, panels), indent=1) + "\n"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path.name} is old: run deploy/dashboards/generate.py")


main()
