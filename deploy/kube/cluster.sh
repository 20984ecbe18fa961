#!/usr/bin/env bash
# A real Kubernetes on one machine, in one network namespace, for tests of the chart: API server, controllers,
# scheduler, kube-proxy, three kubelets with a containerd each, DNS and volumes. Needs root, and Debian's
# packages containerd, runc, containernetworking-plugins, catatonit, iptables, conntrack and buildah.
#
#   deploy/kube/cluster.sh build            builds Kubernetes and etcd once (10 minutes), kept in the user's cache
#   deploy/kube/cluster.sh up IMAGE…        starts it; IMAGE is a docker-archive that every node gets
#   deploy/kube/cluster.sh kubectl …        kubectl in it; likewise helm
#   deploy/kube/cluster.sh enter COMMAND…   a command in the network of the nodes and pods
#   deploy/kube/cluster.sh down             ends everything, and removes every trace
#
# AQUIFER_KUBE_DIR is where it runs (default: /tmp/aquifer-kube).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
. "$here/../tools.sh"

run="${AQUIFER_KUBE_DIR:-/tmp/aquifer-kube}"
nodes=3
version=1.34.4
netns=aquifer-kube
bridge=aqkube0
cgroup=aqkube
kapi="$aquifer_tools/bin/kapi"
# What ip netns exec does beside would hide the cgroups.
inside=(nsenter "--net=/run/netns/$netns" nice -n 19)

build_go() { # NAME DIRECTORY CGO LDFLAGS
  local stamp
  stamp="$(cat "$here/$2"/*.go "$here/$2"/go.* | sha256sum)"
  [ "$(cat "$aquifer_tools/$1.sources" 2>/dev/null)" = "$stamp" ] && return
  echo "building $1, which takes minutes" >&2
  mkdir -p "$aquifer_tools/bin"
  (cd "$here/$2" && CGO_ENABLED=$3 nice -n 19 go build -p 2 -trimpath -ldflags "-s -w $4" -o "$aquifer_tools/bin/$1" .)
  printf '%s\n' "$stamp" >"$aquifer_tools/$1.sources"
}

build() {
  local at=k8s.io/component-base/version
  # This one runs in a container without libraries too.
  build_go etcd-kube etcd 0 ""
  build_go kapi kapi 1 "-X $at.gitVersion=v$version -X $at.gitMajor=1 -X $at.gitMinor=34"
  need_helm
}

# The images that are not ours: what holds a pod together, and etcd for the chart.
images() {
  local work
  mkdir -p "$run/images"
  work="$(mktemp -d)"
  cp "$(command -v catatonit)" "$work/pause"
  printf 'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause","-P"]\n' >"$work/Pause"
  cp "$aquifer_tools/bin/etcd-kube" "$work/etcd"
  printf 'FROM scratch\nCOPY etcd /usr/local/bin/etcd\nENTRYPOINT ["/usr/local/bin/etcd"]\n' >"$work/Etcd"
  local image=(buildah --storage-driver vfs --root "$work/root" --runroot "$work/run")
  "${image[@]}" build --quiet --isolation chroot -f "$work/Pause" -t localhost/pause:1 "$work" >/dev/null
  "${image[@]}" build --quiet --isolation chroot -f "$work/Etcd" -t localhost/etcd:v3.6.6 "$work" >/dev/null
  "${image[@]}" push --quiet localhost/pause:1 "docker-archive:$run/images/pause.tar:localhost/pause:1"
  "${image[@]}" push --quiet localhost/etcd:v3.6.6 "docker-archive:$run/images/etcd.tar:localhost/etcd:v3.6.6"
  rm -rf "$work"
}

start() { # NAME COMMAND…
  local name="$1"
  shift
  "${inside[@]}" setsid "$@" >"$run/log/$name.log" 2>&1 </dev/null &
  echo $! >"$run/$name.pid"
}

wait_for() { # WHAT COMMAND…
  local what="$1" began=$SECONDS
  shift
  until "$@" >/dev/null 2>&1; do
    if [ $((SECONDS - began)) -gt 120 ]; then
      echo "$what: not within 120 s; logs are in $run/log" >&2
      return 1
    fi
    sleep 0.3
  done
}

network() {
  ip netns add "$netns"
  "${inside[@]}" ip link set lo up
  "${inside[@]}" ip link add "$bridge" type bridge
  local n
  for n in $(seq 1 $nodes); do "${inside[@]}" ip addr add "10.88.0.$n/16" dev "$bridge"; done
  "${inside[@]}" ip link set "$bridge" up
  "${inside[@]}" ip route replace default dev "$bridge"
  "${inside[@]}" sysctl -qw net.ipv4.ip_forward=1
  "${inside[@]}" sysctl -qw net.bridge.bridge-nf-call-iptables=1 || true
  ls /run/netns >"$run/netns.before"
}

control_plane() {
  local pki="$run/pki"
  mkdir -p "$pki"
  openssl genrsa -out "$pki/sa.key" 2048 2>/dev/null
  openssl rsa -in "$pki/sa.key" -pubout -out "$pki/sa.pub" 2>/dev/null
  echo 'tok,admin,1,"system:masters"' >"$pki/tokens.csv"
  cat >"$run/kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://10.88.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: tok}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
Y
  chmod 600 "$run/kubeconfig"
  start etcd "$aquifer_tools/bin/etcd-kube" --data-dir "$run/etcd" --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  export GOMAXPROCS=2
  start apiserver "$kapi" apiserver --etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range=10.96.0.0/16 \
    --bind-address=10.88.0.1 --advertise-address=10.88.0.1 --secure-port=6443 --cert-dir="$pki" \
    --token-auth-file="$pki/tokens.csv" --authorization-mode=RBAC --service-account-issuer=https://aquifer.test \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --disable-admission-plugins=ServiceAccount --enable-priority-and-fairness=false --allow-privileged=false \
    --kubelet-preferred-address-types=InternalIP
  wait_for "the API server" "${inside[@]}" curl -fsk -H "Authorization: Bearer tok" https://10.88.0.1:6443/readyz
  start controllers "$kapi" controller-manager --kubeconfig="$run/kubeconfig" --leader-elect=false \
    '--controllers=*,-bootstrapsigner,-tokencleaner,-csrsigning,-csrapproving,-nodeipam' \
    --service-account-private-key-file="$pki/sa.key" --bind-address=127.0.0.1 --node-monitor-period=2s \
    --node-monitor-grace-period=20s --authentication-skip-lookup=true
  start scheduler "$kapi" scheduler --kubeconfig="$run/kubeconfig" --leader-elect=false --bind-address=127.0.0.1 \
    --authentication-skip-lookup=true
  mkdir -p "$run/volumes"
  start addons env "KUBECONFIG=$run/kubeconfig" DNS_ADDR=10.88.0.1:53 "VOLUMES=$run/volumes" "$kapi" addons
  cat >"$run/proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $run/kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
hostnameOverride: n1
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: $bridge}
metricsBindAddress: 127.0.0.1:10249
healthzBindAddress: 127.0.0.1:10256
Y
  start proxy "$kapi" kube-proxy --config="$run/proxy.yaml"
}

cgroups() { # NODE
  local controller
  for controller in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
    mkdir -p "/sys/fs/cgroup/$controller/$cgroup$1"
  done
  cat /sys/fs/cgroup/cpuset/cpuset.cpus >"/sys/fs/cgroup/cpuset/$cgroup$1/cpuset.cpus"
  cat /sys/fs/cgroup/cpuset/cpuset.mems >"/sys/fs/cgroup/cpuset/$cgroup$1/cpuset.mems"
}

node() { # NODE IMAGE…
  local n="$1" d="$run/n$1" image
  shift
  mkdir -p "$d"
  cat >"$d/containerd.toml" <<T
version = 2
root = "$d/root"
state = "$d/state"
[grpc]
  address = "$d/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  stream_server_port = "0"
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$run/cni"
T
  start "containerd$n" containerd -c "$d/containerd.toml"
  wait_for "containerd of node $n" test -S "$d/containerd.sock"
  for image in "$run"/images/*.tar "$@"; do
    ctr -a "$d/containerd.sock" -n k8s.io images import "$image" >/dev/null
  done
  cat >"$d/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 10.88.0.$n
port: 10250
healthzBindAddress: 10.88.0.$n
readOnlyPort: 0
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup$n
cgroupsPerQOS: true
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDNS: [10.88.0.1]
clusterDomain: cluster.local
resolvConf: $run/resolv.conf
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
containerRuntimeEndpoint: unix://$d/containerd.sock
podLogsDir: $d/podlogs
maxPods: 50
syncFrequency: 10s
nodeStatusUpdateFrequency: 4s
volumePluginDir: $d/volplugins
protectKernelDefaults: false
Y
  cgroups "$n"
  start "kubelet$n" "$kapi" kubelet --config="$d/kubelet.yaml" --kubeconfig="$run/kubeconfig" --root-dir="$d/kubelet" \
    --cert-dir="$d/pki" --hostname-override="n$n" --node-ip="10.88.0.$n" \
    --node-labels="topology.kubernetes.io/zone=z$n" --v=2
}

ready_nodes() {
  [ "$(kubectl get nodes --no-headers 2>/dev/null | grep -cw Ready)" = "$nodes" ]
}

up() {
  # A cluster that was left behind goes first.
  down
  mkdir -p "$run/log" "$run/cni"
  images
  network
  control_plane
  cat >"$run/cni/10-bridge.conflist" <<Y
{"cniVersion":"1.0.0","name":"aquifer-kube","plugins":[
 {"type":"bridge","bridge":"$bridge","isGateway":false,"hairpinMode":true,"ipam":{"type":"host-local","dataDir":"$run/ipam",
  "ranges":[[{"subnet":"10.88.0.0/16","rangeStart":"10.88.1.1","gateway":"10.88.0.1"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
Y
  echo 'nameserver 10.88.0.1' >"$run/resolv.conf"
  local n
  for n in $(seq 1 $nodes); do node "$n" "$@"; done
  wait_for "the nodes" ready_nodes
  kubectl apply -f - >/dev/null <<'Y'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local-dir
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: aquifer.test/local-dir
volumeBindingMode: Immediate
Y
}

kubectl() { KUBECONFIG="$run/kubeconfig" "${inside[@]}" "$kapi" kubectl "$@"; }
enter() { "${inside[@]}" "$@"; }
helm() { KUBECONFIG="$run/kubeconfig" "${inside[@]}" "$aquifer_tools/bin/helm" "$@"; }

in_cgroups() { find /sys/fs/cgroup -path "*/$cgroup[0-9]*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u; }

end() { # SIGNAL FILE…: ends the processes that the files name
  local signal="$1" file pid
  shift
  for file in "$@"; do
    pid="$(cat "$file" 2>/dev/null)" || continue
    # The number may belong to another process by now.
    if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -e "$run/" -e "$kapi"; then
      kill "-$signal" "$pid" 2>/dev/null || true
    fi
  done
}

down() {
  [ -d "$run" ] || return 0
  local pid mount name round
  # Kubelets first, or they would start again what is ended.
  end TERM "$run"/kubelet*.pid "$run"/{proxy,addons,scheduler,controllers}.pid
  end TERM "$run"/containerd*.pid
  sleep 0.5
  for round in 1 2 3; do
    # shellcheck disable=SC2046
    kill -9 $(in_cgroups) 2>/dev/null || true
    sleep 0.3
  done
  # Shims outlive their containerd; they name its socket.
  for pid in $(pgrep -f "containerd-shim-runc-v2 .*-address $run/" || true); do kill -9 "$pid" 2>/dev/null || true; done
  end KILL "$run"/*.pid
  sleep 0.5
  # Deepest first.
  awk -v at="$run/" 'index($2, at) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do
    umount -l "$mount" || true
  done
  if [ -e "$run/netns.before" ]; then
    for name in $(ls /run/netns); do
      case "$name" in
        cni-*) grep -qx "$name" "$run/netns.before" || ip netns del "$name" 2>/dev/null || true ;;
      esac
    done
  fi
  ip netns del "$netns" 2>/dev/null || true
  find /sys/fs/cgroup -depth -type d -path "*/$cgroup[0-9]*" -exec rmdir {} \; 2>/dev/null || true
  rm -rf "$run"
}

case "${1:-}" in
  build | up | down | kubectl | helm | enter) "$@" ;;
  *) sed -n 's/^#   \(deploy.*\)/\1/p' "$0" >&2 && exit 2 ;;
esac
