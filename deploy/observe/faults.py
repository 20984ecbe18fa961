"""Makes alerts fire and resolve on a real cluster; see test.sh.

    faults.py PROGRAM [FAULT…]

Everything that it starts ends with it.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

RULES = Path(__file__).parent.parent / "alerts/aquifer.yaml"
# By how much the times of the rules are divided.
FASTER = 30
# Thresholds that no test can wait for: what they are, and what they are here.
SCALED = {"AquiferBacklogOld": ("> 86400", "> 20")}
# Alerts that need no fault of ours: why they may be there before it, or why nothing here makes them fire.
NOT_MADE = {
    "AquiferBookieInLimbo": "needs a journal that lost synced bytes; tests/integration/damage.rs makes one",
    "AquiferDiskLow": "5 GiB free of a real disk", "AquiferDiskFillsSoon": "hours of a trend",
    "AquiferSlowJournal": "a slow disk", "AquiferPublishSlow": "a slow disk",
    "AquiferBookieOverloaded": "more load than a test machine makes", "AquiferConnectionsRefused": "thousands of connections",
    "AquiferDamageFound": "damaged bytes; tests/integration/damage.rs", "AquiferReadFails": "damaged bytes",
    "AquiferScrubStalled": "two days", "AquiferInternalErrors": "a bug", "AquiferUnbalanced": "half an hour of load",
    "AquiferMetadataNearlyFull": "gigabytes of metadata", "AquiferMetadataSlow": "a slow disk of etcd",
    "AquiferOffloadLate": "an object store that is away; tests/integration/offload/under_faults.rs",
    "AquiferObjectBad": "a damaged object; tests/integration/offload/under_faults.rs",
    "AquiferFileDescriptors": "thousands of connections", "AquiferPublishFails": "it comes with other faults or not",
    "AquiferCursorFails": "it comes with other faults or not", "AquiferErrorsLogged": "it comes with other faults or not",
    "AquiferRepairPaused": "more than half of the bookies", "AquiferNoAuditor": "no bookie that audits",
    "AquiferRepairStuck": "half an hour without a copy",
}
# How long an alert may take to fire, and to resolve.
PATIENCE_S = 90
# Tuned so that what is looked at seldom is looked at every second.
ENVIRONMENT = {
    "AQUIFER_BROKER_HOUSEKEEPING_MS": "1000",
    "AQUIFER_BROKER_BALANCE_PERIOD_MS": "1000",
    "AQUIFER_ETCD_LEASE_MS": "3000",
    "AQUIFER_AUTORECOVERY_REPLICATION_LOST_AFTER_MS": "2000",
}


def shorter(text):
    """A duration of PromQL, divided."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    seconds = int(text[:-1]) * units[text[-1]] / FASTER
    return f"{max(2, round(seconds))}s"


def fast_rules():
    """The rules with their times divided."""
    document = yaml.safe_load(RULES.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            expr = re.sub(r"\[(\d+[smhd])\]", lambda m: f"[{shorter(m[1])}]", rule["expr"])
            rule["expr"] = re.sub(r"offset (\d+[smhd])", lambda m: f"offset {shorter(m[1])}", expr)
            if "for" in rule:
                rule["for"] = shorter(rule["for"])
            if rule["alert"] in SCALED:
                before, after = SCALED[rule["alert"]]
                assert before in rule["expr"], f"{rule['alert']} has no {before}"
                rule["expr"] = rule["expr"].replace(before, after)
    return document


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Cluster:
    def __init__(self, aquifer, work):
        self.aquifer, self.work, self.children, self.again = aquifer, work, [], {}
        self.processes, self.environment = {}, {**os.environ, **ENVIRONMENT}
        self.log = open(work / "log", "w")

    def begin(self):
        self.start([self.aquifer, "dev", "--tls", "--brokers", "2", "--output", "json", "--data-dir", str(self.work / "dev"),
                    "--grpc-addr", "127.0.0.1:0"], self.environment, stdout=subprocess.PIPE)
        line = self.children[0].stdout.readline()
        assert line, f"the cluster did not start: {(self.work / 'log').read_text()}"
        ready = json.loads(line)
        self.processes = {process["name"]: process for process in ready["processes"]}
        self.environment |= {"AQUIFER_URL": ready["url"], "AQUIFER_CLIENT_CA_FILE": ready["ca_file"]}

    def start(self, command, environment, stdout=None):
        child = subprocess.Popen(command, env=environment, text=True, stdout=stdout or self.log, stderr=self.log,
                                 stdin=subprocess.DEVNULL, start_new_session=True)
        self.children.append(child)
        return child

    def tool(self, *arguments, check=True):
        return subprocess.run([self.aquifer, *arguments], env=self.environment, check=check, capture_output=True, text=True,
                              timeout=PATIENCE_S)

    def send(self, name, number):
        os.kill(self.processes[name]["pid"], number)

    def end(self, name, number=signal.SIGKILL):
        """Ends a process, and waits until it has."""
        self.send(name, number)
        child = self.again.pop(name, None)
        if child:
            child.wait(PATIENCE_S)
        until(lambda: not running(self.processes[name]["pid"]), f"the end of {name}")

    def start_again(self, name, **settings):
        command = ["sh", "-c", f"exec {self.processes[name]['command']}"]
        child = self.start(command, {**self.environment, **settings})
        self.processes[name]["pid"], self.again[name] = child.pid, child

    def names(self, role):
        return [name for name, process in self.processes.items() if process["role"] == role]

    def stop(self):
        # The youngest first: clients before the cluster.
        for process in self.processes.values():
            if process["role"] == "etcd" and running(process["pid"]):
                os.kill(process["pid"], signal.SIGCONT)
        for child in reversed(self.children):
            if running(child.pid):
                child.terminate()
                try:
                    child.wait(30)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def running(pid):
    try:
        # A process that has ended and that nothing has waited for is there, as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition, what, patience=PATIENCE_S):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience} s"
        time.sleep(0.5)


class Prometheus:
    def __init__(self, cluster, work):
        (work / "rules.yaml").write_text(yaml.safe_dump(fast_rules()))
        jobs = {}
        for process in cluster.processes.values():
            if process["role"] != "etcd":
                jobs.setdefault(process["role"], []).append(process["http"].removeprefix("http://"))
        scrapes = [{"job_name": job, "static_configs": [{"targets": targets, "labels": {"cluster": "dev"}}]}
                   for job, targets in jobs.items()]
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(work / "rules.yaml")],
                  "scrape_configs": scrapes}
        (work / "prometheus.yml").write_text(json.dumps(config))
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}"
        cluster.start(["prometheus", f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/data",
                       f"--web.listen-address={address}", "--log.level=warn"], os.environ)
        until(lambda: self.ask("up == 1"), "Prometheus sees the cluster", 30)

    def ask(self, expression):
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return []

    def firing(self):
        found = self.ask('ALERTS{alertstate="firing"}')
        return {one["metric"]["alertname"] for one in found}


def bookie_killed(cluster):
    """A bookie is gone: its ledgers lack copies, and no other can take them."""
    cluster.end("bookie-1")
    yield {"AquiferBookieDown", "AquiferTooFewWritableBookies", "AquiferBookiesAway", "AquiferUnderReplicated"}
    cluster.start_again("bookie-1")


def broker_killed(cluster):
    cluster.end("broker-2")
    yield {"AquiferBrokerDown"}
    cluster.start_again("broker-2")


def broker_restarts(cluster):
    """A broker that starts again and again."""
    for _ in range(3):
        cluster.end("broker-2")
        cluster.start_again("broker-2")
        address = cluster.processes["broker-2"]["http"]
        until(lambda: answers(f"{address}/readyz"), "broker-2 serves")
        time.sleep(3)
    yield {"AquiferRestartLoop"}


def disk_below_its_mark(cluster):
    """More is to be free than there is."""
    more = str(shutil.disk_usage(cluster.work).total)
    cluster.end("bookie-2", signal.SIGTERM)
    cluster.start_again("bookie-2", AQUIFER_BOOKIE_READ_ONLY_BELOW_FREE_BYTES=more,
                        AQUIFER_BOOKIE_WRITABLE_ABOVE_FREE_BYTES=more)
    yield {"AquiferBookieReadOnly"}
    cluster.end("bookie-2", signal.SIGTERM)
    cluster.start_again("bookie-2")


def backlog(cluster):
    """A subscription without consumers, and a producer that goes on."""
    cluster.tool("topic", "create", "behind")
    cluster.tool("subscription", "create", "behind", "late", "--from", "earliest")
    cluster.tool("perf", "produce", "--topic", "behind", "--count", "120000", "--size", "100")
    load = cluster.start([cluster.aquifer, "perf", "produce", "--topic", "behind", "--rate", "100", "--size", "100",
                          "--seconds", "600"], cluster.environment)
    yield {"AquiferBacklogGrows", "AquiferBacklogOld"}
    load.terminate()
    load.wait()
    cluster.tool("subscription", "clear", "behind", "late")


def certificates(cluster, days):
    cluster.tool("tls", "init", "--dir", str(cluster.work / "dev/tls"), "--cluster", "dev", "--renew", "--days", str(days))
    for name in cluster.names("broker") + cluster.names("bookie"):
        cluster.send(name, signal.SIGHUP)


def certificate_near_its_end(cluster):
    certificates(cluster, 3)
    yield {"AquiferCertificateExpires"}
    certificates(cluster, 365)


def certificate_damaged(cluster):
    path = cluster.work / "dev/tls/server.pem"
    whole = path.read_text()
    path.write_text("not a certificate")
    cluster.send("broker-1", signal.SIGHUP)
    yield {"AquiferCertificateReloadFails"}
    path.write_text(whole)
    cluster.send("broker-1", signal.SIGHUP)


def etcd_away(cluster):
    name = cluster.names("etcd")[0]
    cluster.send(name, signal.SIGSTOP)
    yield {"AquiferMetadataFails"}
    cluster.send(name, signal.SIGCONT)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


# In this order: what disturbs others comes last.
FAULTS = [bookie_killed, broker_killed, disk_below_its_mark, backlog, certificate_near_its_end, certificate_damaged,
          broker_restarts, etcd_away]


def check_complete(made):
    """Every alert fires here, or there is a reason why not."""
    alerts = {rule["alert"] for group in fast_rules()["groups"] for rule in group["rules"]}
    missing = alerts - made - set(NOT_MADE)
    assert not missing, f"no fault makes {', '.join(sorted(missing))} fire, and NOT_MADE has no reason"
    unknown = set(NOT_MADE) - alerts
    assert not unknown, f"there is no {', '.join(sorted(unknown))}"


def run(cluster, prometheus, fault):
    began = time.monotonic()
    steps = fault(cluster)
    expected = next(steps)
    until(lambda: expected <= prometheus.firing(),
          f"{fault.__name__}: {', '.join(sorted(expected))} fire")
    fired, also = time.monotonic() - began, prometheus.firing() - expected
    for _ in steps:
        raise AssertionError("a fault has one step")
    until(lambda: not expected & prometheus.firing(),
          f"{fault.__name__}: {', '.join(sorted(expected))} resolve")
    until(lambda: not prometheus.firing() - {"AquiferErrorsLogged"}, f"{fault.__name__}: everything else resolves")
    also = f"; also {', '.join(sorted(also))}" if also else ""
    print(f"{fault.__name__}: {', '.join(sorted(expected))} fired after {fired:.0f} s, "
          f"resolved after {time.monotonic() - began:.0f} s{also}", flush=True)
    return expected


def main():
    aquifer, *wanted = sys.argv[1:]
    faults = [fault for fault in FAULTS if not wanted or fault.__name__ in wanted]
    assert faults, f"faults are {', '.join(fault.__name__ for fault in FAULTS)}"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        cluster = Cluster(aquifer, work)
        try:
            cluster.begin()
            prometheus = Prometheus(cluster, work)
            cluster.tool("topic", "create", "live")
            cluster.start([aquifer, "perf", "e2e", "--topic", "live", "--rate", "100", "--seconds", "3600"],
                          cluster.environment)
            until(lambda: prometheus.ask("sum(rate(aquifer_broker_delivered_messages_total[5s])) > 0"), "messages are delivered")
            made = set()
            for fault in faults:
                made |= run(cluster, prometheus, fault)
            if not wanted:
                check_complete(made)
        except BaseException:
            shutil.copy(work / "log", "/tmp/aquifer-observe.log")
            print("the log is in /tmp/aquifer-observe.log", file=sys.stderr)
            raise
        finally:
            cluster.stop()
    print(f"observe: {len(made)} alerts fired and resolved, {len(faults)} faults, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, subprocess.SubprocessError) as error:
        sys.exit(f"observe: {error}")
