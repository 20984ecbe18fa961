#!/usr/bin/env bash
# Asks every expression of dashboards and alerts of a real cluster: `aquifer dev --tls` on this machine under
# traffic, watched by Prometheus. Takes about a minute and a half, and needs etcd. Each expression must have data, or be
# in the list of deploy/check_monitoring.py with a reason why it has none in a healthy cluster.
#
#   deploy/check_live.sh PROGRAM
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh
aquifer="$(realpath "${1:?$(sed -n 's/^#   \(deploy.*\)/usage: \1/p' "$0")}")"
need_python
need_promtool

work="$(mktemp -d)"
pids=()
stop() {
  trap - EXIT INT TERM
  local pid
  # The youngest first: clients before the cluster.
  for ((at = ${#pids[@]} - 1; at >= 0; at--)); do
    pid="${pids[$at]}"
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 1' INT TERM

"$aquifer" dev --tls --output json --data-dir "$work/dev" --grpc-addr 127.0.0.1:0 >"$work/ready" 2>"$work/dev.log" &
pids+=($!)
for _ in $(seq 300); do
  [ -s "$work/ready" ] && break
  kill -0 "${pids[0]}" 2>/dev/null || { cat "$work/dev.log" >&2; exit 1; }
  sleep 0.2
done

# Roles are jobs, as the chart has them.
python - "$work" <<'P'
import json, sys
from pathlib import Path

work = Path(sys.argv[1])
ready = json.loads((work / "ready").read_text().splitlines()[0])
jobs = {}
for process in ready["processes"]:
    if process["role"] != "etcd":
        jobs.setdefault(process["role"], []).append(process["http"].removeprefix("http://"))
config = {
    "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
    "rule_files": [str(Path("alerts/aquifer.yaml").resolve())],
    "scrape_configs": [
        {"job_name": job, "static_configs": [{"targets": targets, "labels": {"cluster": "dev"}}]}
        for job, targets in jobs.items()
    ],
}
(work / "prometheus.yml").write_text(json.dumps(config))
(work / "client").write_text(f"export AQUIFER_URL={ready['url']} AQUIFER_CLIENT_CA_FILE={ready['ca_file']}\n")
P
. "$work/client"

port="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address="127.0.0.1:$port" \
  --log.level=warn >"$work/prometheus.log" 2>&1 &
pids+=($!)

# Fresh messages, a backlog that is read from bookies, topics that come and go, and requests that are refused.
"$aquifer" perf e2e --topic live --rate 300 --seconds 75 >"$work/perf.log" 2>&1 &
pids+=($!)
"$aquifer" perf produce --topic backlog --count 20000 --size 1000 >>"$work/perf.log" 2>&1
"$aquifer" subscription create backlog late --from earliest >/dev/null
"$aquifer" read backlog --count 20000 >/dev/null
for n in 1 2 3; do
  "$aquifer" produce "gone-$n" message >/dev/null
  "$aquifer" topic delete "gone-$n" --force >/dev/null
  "$aquifer" topic stats "missing/there/t-$n" >/dev/null 2>&1 || true
done
sleep 45
"$aquifer" read backlog --count 20000 >/dev/null
python check_monitoring.py --prometheus "http://127.0.0.1:$port"
