#!/usr/bin/env bash
# Installs the chart on a real Kubernetes on this machine (cluster.sh) and does to it what people do: helm test,
# an upgrade under traffic, an upgrade that is refused, drains, a rollback, a second release with TLS, the preset
# for development. Everything ends with it. Needs root, and an image from deploy/docker/build.sh.
#
#   deploy/kube/test.sh IMAGE-ARCHIVE      an archive of localhost/aquifer:test
set -euo pipefail
cd "$(dirname "$0")/.."
archive="$(realpath "${1:?$(sed -n 's/^#   \(deploy.*\)/usage: \1/p' "$0")}")"
cluster=kube/cluster.sh
ns=messaging
chart=helm/aquifer
images=(--set image.repository=localhost/aquifer,image.tag=test,image.pullPolicy=Never
  --set etcd.image.repository=localhost/etcd,etcd.image.pullPolicy=Never)
# Pods of this machine are small, and start quickly.
small=("${images[@]}" -f "$chart/presets/small.yaml" --set bookie.storage.size=1Gi,etcd.storage=1Gi,bookie.minReadySeconds=5
  --set bookie.antiAffinity=hard --set bookie.resources.requests.cpu=50m,broker.resources.requests.cpu=50m)

step() { echo "== $SECONDS s: $*"; }
k() { "$cluster" kubectl "$@"; }
h() { "$cluster" helm "$@" 2> >(grep -v 'found symbolic link' >&2); }
fail() {
  echo "FAILED: $*" >&2
  k get pods -A -o wide >&2 || true
  k -n "$ns" get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 25 >&2 || true
  exit 1
}
trap '"$cluster" down' EXIT
trap 'exit 1' INT TERM

restarts() { k -n "$ns" get pods -o 'jsonpath={range .items[*]}{.status.containerStatuses[0].restartCount}{"\n"}{end}' | awk '{ sum += $1 } END { print sum + 0 }'; }

# Published and consumed at 500 messages a second, by a pod like those of the chart.
traffic() { # NAME SECONDS
  k -n "$ns" apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  restartPolicy: Never
  enableServiceLinks: false
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  nodeSelector: {kubernetes.io/hostname: n3}
  tolerations: [{operator: Exists}]
  containers:
    - name: perf
      image: localhost/aquifer:test
      imagePullPolicy: Never
      args: [--url, "http://aq.$ns.svc:7650", --output, json, perf, e2e, --topic, $1, --rate, "500", --seconds, "$2"]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
Y
  k -n "$ns" wait "pod/$1" --for=condition=Ready --timeout=60s >/dev/null || fail "$1 does not start"
}

traffic_ends() { # NAME
  k -n "$ns" wait "pod/$1" --for=jsonpath='{.status.phase}'=Succeeded --timeout=180s >/dev/null ||
    { k -n "$ns" logs "$1" >&2; fail "$1 did not succeed"; }
  local said
  said="$(k -n "$ns" logs "$1" | grep '^{' | tail -n 1)"
  echo "$said" | python3 -c '
import json, sys
said = json.load(sys.stdin)
took = {key: f"{value / 1000:.0f} ms" for key, value in said["latency_us"].items()}
print("   ", said["messages"], "messages,", said["errors"], "errors,", took)
sys.exit(said["errors"] != 0)' || fail "$1: $said"
}

step "Kubernetes"
"$cluster" build
"$cluster" up "$archive"
k create namespace "$ns" >/dev/null
k label namespace "$ns" pod-security.kubernetes.io/enforce=restricted >/dev/null

step "install"
h install aq "$chart" -n "$ns" "${small[@]}" --wait --timeout 5m >/dev/null || fail "the installation is not ready"
step "installed, $(restarts) restarts"
[ "$(restarts)" = 0 ] || fail "a container was restarted during the installation"
h test aq -n "$ns" >/dev/null || fail "helm test"
step "helm test passed"
k -n "$ns" exec aq-broker-0 -c broker -- aquifer doctor --strict --config /etc/aquifer/config/aquifer.toml || fail "doctor"

step "upgrade under traffic"
traffic rolling 60
h upgrade aq "$chart" -n "$ns" "${small[@]}" --set-string bookie.podAnnotations.roll=1,broker.podAnnotations.roll=1 --wait --timeout 5m >/dev/null ||
  fail "the upgrade is not ready"
step "upgraded"
traffic_ends rolling

step "an upgrade is refused while a bookie is away"
node="$(k -n "$ns" get pod aq-bookie-0 -o 'jsonpath={.spec.nodeName}')"
k cordon "$node" >/dev/null
k -n "$ns" delete pod aq-bookie-0 --wait=true >/dev/null
before="$(k -n "$ns" get pods -l app.kubernetes.io/component=broker -o 'jsonpath={.items[*].metadata.uid}')"
if h upgrade aq "$chart" -n "$ns" "${small[@]}" --set-string broker.podAnnotations.roll=2 --timeout 90s >/dev/null 2>&1; then
  fail "the upgrade was made"
fi
[ "$before" = "$(k -n "$ns" get pods -l app.kubernetes.io/component=broker -o 'jsonpath={.items[*].metadata.uid}')" ] ||
  fail "the refused upgrade replaced pods"
k uncordon "$node" >/dev/null
k -n "$ns" rollout status statefulset/aq-bookie --timeout=120s >/dev/null || fail "the bookie did not come back"
step "refused, and no pod was touched"

step "drain of nodes under traffic"
traffic draining 60
k drain n1 --ignore-daemonsets --delete-emptydir-data --timeout=120s >/dev/null || fail "n1 is not drained"
if k drain n2 --ignore-daemonsets --delete-emptydir-data --timeout=10s >/dev/null 2>&1; then
  fail "two bookies were taken away"
fi
k uncordon n1 >/dev/null
k uncordon n2 >/dev/null
k -n "$ns" rollout status statefulset/aq-bookie --timeout=120s >/dev/null || fail "the bookies did not come back"
k -n "$ns" rollout status statefulset/aq-etcd --timeout=120s >/dev/null || fail "etcd did not come back"
step "drained; the second node was refused while a bookie was away"
traffic_ends draining

step "rollback"
k -n "$ns" exec aq-broker-0 -c broker -- aquifer doctor --config /etc/aquifer/config/aquifer.toml || true
h rollback aq 1 -n "$ns" --no-hooks --wait --timeout 5m >/dev/null || fail "the rollback is not ready"
h test aq -n "$ns" >/dev/null || fail "helm test after the rollback"
h uninstall aq -n "$ns" --wait >/dev/null
[ "$(k -n "$ns" get pvc --no-headers | wc -l)" = 6 ] || fail "claims did not stay"
step "rolled back, uninstalled; the claims are there"

step "TLS and authentication, with a second listener"
tls="$(mktemp -d)"
aquifer_files="$(mktemp -d)"
trap 'rm -rf "$tls" "$aquifer_files"; "$cluster" down' EXIT
# The binary of the image makes the certificates.
tar -xf "$archive" -C "$aquifer_files"
for layer in "$aquifer_files"/*.tar; do tar -xf "$layer" -C "$aquifer_files" usr/bin/aquifer 2>/dev/null || true; done
"$aquifer_files/usr/bin/aquifer" tls init --dir "$tls" --cluster safe --host safe --host "safe.$ns.svc" \
  --host "*.safe-broker.$ns.svc" --host "*.safe-bookie.$ns.svc" >/dev/null
for role in server bookie broker autorecovery tool; do
  k -n "$ns" create secret generic "tls-$role" --from-file=tls.crt="$tls/$role.pem" --from-file=tls.key="$tls/$role.key" \
    --from-file=ca.crt="$tls/ca.pem" >/dev/null
done
h install safe "$chart" -n "$ns" "${small[@]}" --set "tls.clients.enabled=true,tls.clients.existingSecret=tls-server" \
  --set tls.internal.enabled=true,tls.http.enabled=true,tls.http.existingSecret=tls-server \
  --set tls.internal.existingSecrets.bookie=tls-bookie,tls.internal.existingSecrets.broker=tls-broker \
  --set tls.internal.existingSecrets.autorecovery=tls-autorecovery,tls.internal.existingSecrets.tool=tls-tool \
  --set broker.external.enabled=true,broker.external.domain=example.org,broker.external.type=ClusterIP \
  --set auth.enabled=true,tls.clients.clientCertificates=optional,tls.clients.clientCaSecret=tls-server,tests.tokenSecret=admin \
  --set broker.external.tls.existingSecret=tls-server --wait --timeout 5m >/dev/null || fail "the installation with TLS is not ready"
member="$(k -n "$ns" get pod safe-etcd-0 -o 'jsonpath={.status.podIP}')"
"$cluster" enter "$aquifer_files/usr/bin/aquifer" cluster init-auth --metadata "etcd://$member:2379" --cluster safe \
  --to-file "$tls/admin.token" >/dev/null
k -n "$ns" create secret generic admin --from-literal=token="$(cat "$tls/admin.token")" >/dev/null
h test safe -n "$ns" >/dev/null || fail "helm test with TLS and a token"
if k -n "$ns" exec safe-broker-0 -c broker -- aquifer produce --url "https://safe.$ns.svc:7650" \
  --tls-ca-file /etc/aquifer/tls/clients/ca.crt hello message 2>"$tls/said"; then
  fail "a client without a token was let in"
fi
h upgrade safe "$chart" -n "$ns" --reuse-values --set-string broker.podAnnotations.roll=1 --wait --timeout 5m >/dev/null ||
  fail "the upgrade with TLS, with its check"
h uninstall safe -n "$ns" --wait >/dev/null
step "TLS works, and a client without a token is refused: $(grep -v "^command terminated" "$tls/said" | head -n 1)"

step "the preset for development"
h install dev "$chart" -n "$ns" "${images[@]}" -f "$chart/presets/dev.yaml" --wait --timeout 2m >/dev/null || fail "dev is not ready"
h test dev -n "$ns" >/dev/null || fail "helm test of dev"
h uninstall dev -n "$ns" --wait >/dev/null
step "all passed"
