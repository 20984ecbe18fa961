"""Checks the chart: renders presets and a matrix of values, and holds what comes out against the schemas of
Kubernetes, the rules of the house and the binary. Run by deploy/check.sh, which brings helm and the packages.

    check.py [--aquifer PROGRAM] [--update]

With a program the rendered configuration of every role goes through its --check-config. --update writes
the golden files of fields that an upgrade cannot change.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml

HERE = Path(__file__).parent
CHART = HERE / "aquifer"
GOLDEN = HERE / "immutable.json"
VERSIONS = ["1.30", "1.32", "1.34", "1.37"]
# Containers that run a server.
ROLES = {"bookie", "broker", "autorecovery", "offloader", "standalone"}
# Kinds of operators that need not be there.
FOREIGN = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "Certificate"}

PRODUCTION = ["-f", "presets/production.yaml", "--set", "metadata.endpoints={e1:2379,e2:2379,e3:2379}"]
TLS = "tls.clients.enabled=true,tls.internal.enabled=true,tls.http.enabled=true"
SECRETS = (
    "tls.clients.existingSecret=c,tls.http.existingSecret=h,tls.internal.existingSecrets.bookie=b,"
    "tls.internal.existingSecrets.broker=x,tls.internal.existingSecrets.autorecovery=a,"
    "tls.internal.existingSecrets.tool=t"
)
CERT_MANAGER = "tls.certManager.enabled=true,tls.certManager.issuerRef.name=ca"

# What must be rendered, by name.
GOOD = {
    "defaults": [],
    "dev": ["-f", "presets/dev.yaml"],
    "small": ["-f", "presets/small.yaml"],
    "production": PRODUCTION,
    "everything on": ["--set", "monitoring.annotations=true,monitoring.podMonitor=true,monitoring.rules=true"
                      ",monitoring.serviceMonitor=true,monitoring.dashboards=true,autorecovery.replicas=2"
                      ",tracing.endpoint=http://otel:4317,bookie.journal.separate=true"],
    "secrets of etcd": [*PRODUCTION, "--set", "metadata.auth.existingSecret=p,metadata.tls.existingSecret=t"
                        ",metadata.tls.clientCertificate=true,metadata.tls.serverName=etcd"],
    "tls by secrets": [*PRODUCTION, "--set", TLS, "--set", SECRETS],
    "tls by cert-manager": [*PRODUCTION, "--set", TLS, "--set", CERT_MANAGER],
    "client certificates": ["--set", TLS, "--set", CERT_MANAGER, "--set", "tls.clients.clientCertificates="
                            "required,tls.clients.clientCaSecret=ca,tests.clientSecret=me"],
    "authentication": ["--set", TLS, "--set", CERT_MANAGER, "--set", "auth.enabled=true,auth.scrapeTokenSecret=s"
                       ",tests.tokenSecret=t,tls.clients.clientCertificates=optional,tls.clients.clientCaSecret=ca"
                       ",monitoring.podMonitor=true"],
    "authentication standalone": ["-f", "presets/dev.yaml", "--set", CERT_MANAGER, "--set",
                                  "tls.clients.enabled=true,tls.http.enabled=true,auth.enabled=true"],
    "plain text in a mesh": ["-f", "presets/dev.yaml", "--set", "auth.enabled=true,auth.allowPlaintext=true"
                             ",auth.scrapeTokenSecret=s,tests.tokenSecret=t,monitoring.podMonitor=true"],
    "tls standalone": ["-f", "presets/dev.yaml", "--set", "tls.clients.enabled=true", "--set", CERT_MANAGER],
    "external listener": ["--set", "broker.external.enabled=true,broker.external.domain=example.org"
                          ",broker.external.tls.existingSecret=out", "--set-json",
                          'broker.external.annotations={"external-dns.alpha.kubernetes.io/hostname":"{host}"}'],
    "settings": ["--set", "config.common.telemetry.log_filter=debug,config.bookie.bookie.memtable_bytes=33554432"
                 ",config.broker.broker.balance.enabled=false,image.digest=sha256:" + "0" * 64],
    "one of each": ["--set", "etcd.replicas=1,bookie.replicas=1,broker.replicas=1,broker.quorum.ensemble=1"
                    ",broker.quorum.write=1,broker.quorum.ack=1,bookie.antiAffinity=none,upgradeCheck.enabled=false"],
    "placement": ["--set-json", 'bookie.nodeSelector={"disk":"nvme"}', "--set-json",
                  'bookie.tolerations=[{"key":"storage","operator":"Exists"}]', "--set-json",
                  'bookie.podAnnotations={"a":"b"}', "--set-json", 'bookie.extraEnv=[{"name":"A","value":"b"}]',
                  "--set", "image.pullSecrets={one,two},bookie.updateStrategy=OnDelete"],
    "offloaders": ["--set", "config.broker.cold.store=s3://bucket/prefix,offloader.replicas=2"
                   ",config.offloader.cold.workers_max=8"],
    "backups": ["--set", "config.broker.cold.store=s3://bucket/prefix,config.common.cold.endpoint=https://s3:9000"
                ",backup.schedule=17 2 * * *,backup.tenant=acme,backup.keysSecret=keys"],
    "backups with certificates": ["--set", TLS, "--set", CERT_MANAGER, "--set", "auth.enabled=true,backup.tokenSecret=t"
                                  ",tls.clients.clientCertificates=required,tls.clients.clientCaSecret=ca"
                                  ",backup.clientSecret=me,backup.schedule=@daily,backup.store=gs://bucket/prefix"],
    "backups to a store of their own": ["--set", "config.broker.cold.store=s3://b/p,config.broker.cold.endpoint=https://s3:9000"
                                        ",config.common.cold.ca_file=/etc/store/ca.crt,backup.schedule=@daily", "--set-json",
                                        'backup.extraVolumes=[{"name":"store","secret":{"secretName":"ca"}}]', "--set-json",
                                        'backup.extraVolumeMounts=[{"name":"store","mountPath":"/etc/store"}]'],
    "backups to a directory": ["--set", TLS, "--set", CERT_MANAGER, "--set", "config.broker.cold.store=file:///srv/cold/"
                               ",backup.schedule=@daily", "--set-json",
                               'backup.extraVolumes=[{"name":"cold","persistentVolumeClaim":{"claimName":"c"}}]',
                               "--set-json", 'backup.extraVolumeMounts=[{"name":"cold","mountPath":"/srv"}]'],
    "backups standalone": ["-f", "presets/dev.yaml", "--set", "config.standalone.cold.store=s3://b/p"
                           ",config.standalone.cold.allow_http=true,backup.schedule=@hourly"],
}

# What must be refused, and what the refusal says.
BAD = {
    "a misspelt value": (["--set", "bookie.replica=4"], "replica"),
    "a wrong type": (["--set", "broker.replicas=many"], "broker/replicas"),
    "ack above write": (["--set", "broker.quorum.ack=3,broker.quorum.write=2"], "ack (3) is more than write (2)"),
    "write above ensemble": (["--set", "broker.quorum.write=4"], "write (4) is more than ensemble (3)"),
    "ensemble above bookies": (["--set", "bookie.replicas=2"], "ensemble (3) is more than there are bookies (2)"),
    "zones above copies": (["--set", "broker.quorum.zonesMin=4"], "zonesMin (4) is more than write (3)"),
    "zones that are not there": (["--set", "broker.quorum.zonesMin=2"], "more than bookie.zones has (0)"),
    "two etcds": (["--set", "metadata.endpoints={e:2379}"], "metadata.endpoints and etcd.enabled"),
    "no etcd": (["--set", "etcd.enabled=false"], "give metadata.endpoints"),
    "an even number of members": (["--set", "etcd.replicas=2"], "etcd/replicas"),
    "an emptyDir for etcd": (["--set-json", 'etcd.emptyDir={}'], "emptyDir"),
    "no volume for etcd": (["--set", "etcd.storage="], "etcd/storage"),
    "a password in values": (["--set", "config.common.etcd.password=hunter2"], "password"),
    "a password in the environment": (["--set", "broker.extraEnv[0].name=AQUIFER_ETCD_PASSWORD"], "extraEnv"),
    "a password in an address": (["--set", "etcd.enabled=false,metadata.endpoints={u:p@e:2379}"], "endpoints"),
    "one etcd in production": (["--set", "production=true,bookie.replicas=4,etcd.replicas=1"], "etcd.replicas is less"),
    "bookies together in production": ([*PRODUCTION, "--set", "bookie.antiAffinity=soft"], "antiAffinity must be hard"),
    "no spare bookie in production": (["--set", "production=true"], "no place for a lost copy"),
    "one copy in production": ([*PRODUCTION, "--set", "broker.quorum.ack=1"], "ack must be at least 2"),
    "standalone in production": (["-f", "presets/dev.yaml", "--set", "production=true"], "standalone"),
    "a budget that stops writes": (["--set", "pdb.bookieMaxUnavailable=2"], "write - ack"),
    "no repair": (["--set", "bookie.autorecovery=false"], "autorecovery.replicas"),
    "offloaders without a place": (["--set", "offloader.replicas=1"], "cold.store"),
    "tls without secrets": (["--set", TLS], "give the Secret"),
    "tls of clients alone": (["--set", "tls.clients.enabled=true,tls.clients.existingSecret=c"], "tls.internal.enabled"),
    "client certificates without authority": (["--set", TLS, "--set", CERT_MANAGER, "--set",
                                               "tls.clients.clientCertificates=required"], "clientCaSecret"),
    "authentication in plain text": (["--set", "auth.enabled=true"], "tls.clients.enabled"),
    "authentication of REST in plain text": (["--set", "tls.clients.enabled=true,tls.internal.enabled=true", "--set",
                                              CERT_MANAGER, "--set", "auth.enabled=true,tls.clients.clientCertificates="
                                              "optional,tls.clients.clientCaSecret=ca"], "set auth.allowPlaintext=true"),
    "authentication of brokers in plain text": (["--set", "auth.enabled=true,auth.allowPlaintext=true"],
                                                "brokers know each other"),
    "authentication past the chart": (["--set", "config.broker.auth.enabled=true"], "config.broker: set auth.enabled"),
    "authentication past the chart, of every role": (["--set", "config.common.auth.enabled=true"], "config.common"),
    "a token of scrapers in plain text": (["--set", "auth.scrapeTokenSecret=s"], "needs tls.http.enabled"),
    "a token of tests in plain text": (["--set", "tests.tokenSecret=t"], "tests.tokenSecret needs tls.clients.enabled"),
    "a token of backups in plain text": (["--set", "backup.tokenSecret=t"], "backup.tokenSecret needs tls.clients"),
    "a password of etcd in plain text": ([*PRODUCTION, "--set", "metadata.auth.existingSecret=p"],
                                         "metadata.tls.existingSecret"),
    "authentication of brokers without certificates": (["--set", TLS, "--set", CERT_MANAGER, "--set",
                                                        "auth.enabled=true"], "clientCertificates=optional"),
    "authentication in plain text outside": (["--set", TLS, "--set", CERT_MANAGER, "--set", "auth.enabled=true"
                                              ",tls.clients.clientCertificates=optional,tls.clients.clientCaSecret=ca"
                                              ",broker.external.enabled=true,broker.external.domain=example.org"],
                                             "broker.external.tls.existingSecret"),
    "a token in the environment": (["--set", "broker.extraEnv[0].name=AQUIFER_TOKEN"], "extraEnv"),
    "an external listener without names": (["--set", "broker.external.enabled=true"], "broker.external.domain"),
    "the default listener twice": (["--set", "broker.external.listener=default"], "listener"),
    "backups to nowhere": (["--set", "backup.schedule=@daily"], "backup.store"),
    "backups to a directory without a volume": (["--set", "backup.schedule=@daily,backup.store=file:///srv/cold"],
                                                "backup.extraVolumeMounts"),
    "backups to a directory beside the volume": (["--set", "backup.schedule=@daily,backup.store=file:///srv/cold",
                                                  "--set-json", 'backup.extraVolumeMounts=[{"name":"c","mountPath":"/srv/co"}]'],
                                                 "backup.extraVolumeMounts"),
    "a schedule that is not one": (["--set", "backup.schedule=now"], "backup/schedule"),
    "a secret in the place of backups": (["--set", "backup.schedule=@daily,backup.store=s3://k:s@b"], "backup/store"),
    "Kubernetes 1.29": (["--kube-version", "1.29.0"], "kubeVersion"),
}


def helm(*args, check=True):
    done = subprocess.run(["helm", *args], cwd=CHART, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"helm {' '.join(args)}: {done.stderr}")
    return done


def render(args, version="1.34", name="aq"):
    text = helm("template", name, ".", "--namespace", "messaging", "--kube-version", f"{version}.0", *args).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def pods(documents):
    """(object, pod spec) of everything that makes pods."""
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Pod":
            yield document, document["metadata"], spec
        elif document["kind"] == "CronJob":
            template = spec["jobTemplate"]["spec"]["template"]
            yield document, template["metadata"], template["spec"]
        elif "template" in spec:
            yield document, spec["template"]["metadata"], spec["template"]["spec"]


def check_pods(name, documents):
    """What Kubernetes calls restricted, and what the binary needs."""
    for document, metadata, spec in pods(documents):
        where = f"{name}: {document['kind']} {document['metadata']['name']}"
        assert spec["enableServiceLinks"] is False, f"{where}: variables of Services would be taken for settings"
        assert spec["automountServiceAccountToken"] is False, where
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] == security["fsGroup"] == 65532, where
        assert security["seccompProfile"]["type"] == "RuntimeDefault", where
        for volume in spec.get("volumes", []):
            assert "hostPath" not in volume, where
            assert "emptyDir" not in volume or volume["name"] == "tmp", f"{where}: data on an emptyDir"
        for container in spec.get("initContainers", []) + spec["containers"]:
            inside = f"{where}, container {container['name']}"
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"], inside
            assert own["capabilities"]["drop"] == ["ALL"], inside
            limits = container["resources"].get("limits", {})
            assert "memory" in limits and "cpu" not in limits, inside
            check_probes(inside, container)
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            claims = document.get("spec", {}).get("volumeClaimTemplates", [])
            volumes |= {claim["metadata"]["name"] for claim in claims}
            assert mounts <= volumes, f"{inside}: {mounts - volumes} is no volume"
        labels = metadata.get("labels", {})
        if document["kind"] != "Pod":
            assert "helm.sh/chart" not in labels, f"{where}: pods would be replaced at each upgrade"


def check_probes(inside, container):
    """A process that replays a journal answers /healthz and is not ready: it must not be restarted for that."""
    asked = {kind: container.get(f"{kind}Probe", {}).get("httpGet") for kind in ("startup", "liveness", "readiness")}
    if container["name"] in ROLES:
        paths = {kind: probe and probe["path"] for kind, probe in asked.items()}
        assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}, f"{inside}: {paths}"


def check_references(name, documents):
    """Services, budgets and policies select pods that there are; ports have names that there are."""
    made = [(metadata.get("labels", {}), spec) for _, metadata, spec in pods(documents)]

    def selected(labels):
        return [spec for own, spec in made if labels.items() <= own.items()]

    for document in documents:
        where = f"{name}: {document['kind']} {document['metadata']['name']}"
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            labels = {k: v for k, v in spec["selector"].items() if k != "statefulset.kubernetes.io/pod-name"}
            found = selected(labels)
            assert found, f"{where} selects no pod"
            ports = {port["name"] for port in found[0]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in spec["ports"]} <= ports, where
        if document["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            labels = (spec.get("selector") or spec.get("podSelector"))["matchLabels"]
            assert selected(labels), f"{where} selects no pod"
        if document["kind"] == "NetworkPolicy":
            ports = {port["name"] for port in selected(labels)[0]["containers"][0]["ports"]}
            asked = {port["port"] for rule in spec["ingress"] for port in rule.get("ports", [])}
            assert asked <= ports, f"{where}: {asked - ports} is no port"


def check_backups(name, documents):
    """The tool of backups reaches the store as the brokers do, or the standalone server does."""
    config = "".join(d["data"]["aquifer.toml"] for d in documents if d["kind"] == "ConfigMap"
                     and d["metadata"]["name"] in ("aq-broker", "aq-standalone"))
    flags = {"endpoint": "--endpoint=", "region": "--region=", "ca_file": "--store-ca-file="}
    for document, _, spec in pods(documents):
        for container in spec.get("initContainers", []) + spec["containers"]:
            if document["kind"] == "CronJob":
                for key, flag in flags.items():
                    for value in re.findall(rf'^cold\.{key} = "(.*)"$', config, re.MULTILINE):
                        assert flag + value in container["args"], f"{name}: {container['name']} lacks {flag}{value}"


def check_config(name, documents, aquifer):
    """The binary takes the file of every role, with the arguments that its pod has."""
    files = {d["metadata"]["name"]: d["data"]["aquifer.toml"] for d in documents
             if d["kind"] == "ConfigMap" and "aquifer.toml" in d["data"]}
    for document, _, spec in pods(documents):
        check = [c for c in spec.get("initContainers", []) if c["name"] == "check-config"]
        if not check or not aquifer:
            continue
        config = next(v["configMap"]["name"] for v in spec["volumes"] if v["name"] == "config")
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(files[config])
            file.flush()
            args = [arg.replace("/etc/aquifer/config/aquifer.toml", file.name).replace("$(POD_NAME)", "p-0")
                    .replace("$(POD_NAMESPACE)", "ns") for arg in check[0]["args"]]
            user = {"AQUIFER_ETCD_USER": "u"} if "password_file" in files[config] else {}
            done = subprocess.run([aquifer, *args], capture_output=True, text=True, env=user)
            assert done.returncode == 0, f"{name}: {document['metadata']['name']}: {done.stderr}\n{files[config]}"


def immutable(documents):
    """What Kubernetes refuses to change in an upgrade."""
    fields = {}
    for document in documents:
        spec, name = document.get("spec", {}), f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "StatefulSet":
            keys = ("serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates")
            fields[name] = {key: spec.get(key) for key in keys}
        elif document["kind"] == "Deployment":
            fields[name] = {"selector": spec["selector"]}
        elif document["kind"] == "Service":
            fields[name] = {"clusterIP": spec.get("clusterIP")}
    return fields


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aquifer", help="the binary, for --check-config")
    parser.add_argument("--update", action="store_true", help="write the golden file")
    options = parser.parse_args()
    golden, count = {}, 0
    for name, args in GOOD.items():
        helm("lint", "--strict", "--quiet", "--kube-version", "1.34.0", ".", *args)
        for version in VERSIONS:
            documents = render(args, version)
            for document in documents:
                if document["kind"] not in FOREIGN:
                    kubernetes_validate.validate(document, version, strict=True)
                    count += 1
        check_pods(name, documents)
        check_references(name, documents)
        check_backups(name, documents)
        check_config(name, documents, options.aquifer)
        golden[name] = immutable(documents)
    for name, (args, message) in BAD.items():
        version = [] if "--kube-version" in args else ["--kube-version", "1.34.0"]
        done = helm("template", "aq", ".", *version, *args, check=False)
        assert done.returncode, f"{name}: not refused"
        assert message in done.stderr, f"{name}: refused without `{message}`: {done.stderr}"
    long = helm("template", "a" * 31, ".", "--kube-version", "1.34.0", check=False)
    assert "more than 30 characters" in long.stderr, long.stderr
    if options.update:
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    assert golden == json.loads(GOLDEN.read_text()), (
        "a field that an upgrade cannot change has changed: every user would have to delete objects by hand. "
        "Run check.py --update only if no release has it")
    checked = "with" if options.aquifer else "without"
    print(f"chart: {len(GOOD)} sets of values, {count} objects valid, {len(BAD) + 1} sets refused, {checked} --check-config")


main()
