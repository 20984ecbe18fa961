"""Administers a cluster with TLS and tokens by clients that grpcio-tools generates from our .proto files.

Usage: administer.py PROTOS GENERATED ADDRESS CA_FILE TOKEN_FILE

It knows nothing of Aquifer but the .proto files and docs/operations/access.md. It ends with an
exception at the first answer that is not what these promise.
"""

import sys
import time
from pathlib import Path

import grpc
import grpc_tools
from grpc_tools import protoc

FILES = ["google/api/http", "google/api/annotations"] + [
    f"aquifer/v1/{name}" for name in ["admin", "broker", "error", "operator", "pull", "rest", "security"]
]
SECONDS = 20
TOPIC = "interop/shop/orders"


def generate(protos, out):
    out.mkdir(parents=True, exist_ok=True)
    # Google's own files, such as descriptor.proto, come with grpcio-tools.
    google = Path(grpc_tools.__file__).parent / "_proto"
    words = ["protoc", f"-I{protos}", f"-I{google}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(words + [f"{protos}/{name}.proto" for name in FILES]) != 0:
        raise SystemExit("grpcio-tools cannot read the .proto files")
    sys.path.insert(0, str(out))


def check(holds, what):
    if not holds:
        raise AssertionError(what)


class Caller:
    """The services, with a token or without one."""

    def __init__(self, channel, token=None):
        from aquifer.v1 import admin_pb2_grpc, operator_pb2_grpc, security_pb2_grpc

        self.admin = admin_pb2_grpc.AdminStub(channel)
        self.operator = operator_pb2_grpc.OperatorStub(channel)
        self.security = security_pb2_grpc.SecurityStub(channel)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []

    def ask(self, method, request):
        return method(request, timeout=SECONDS, metadata=self.metadata)

    def refused(self, method, request, status, code):
        """The error must have this status, and this code in its trailer."""
        from aquifer.v1 import error_pb2

        try:
            answer = self.ask(method, request)
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            detail = error_pb2.ErrorDetail.FromString(trailers["aquifer-error-bin"])
            name = error_pb2.ErrorCode.Name(detail.code)
            check(error.code() == status, f"{error.code()}: {error.details()}")
            check(name == f"ERROR_CODE_{code}", f"{name}: {detail.message}")
            check(detail.message and detail.advice, f"an error says what to do: {detail}")
            return detail
        raise AssertionError(f"it was done: {answer}")

    def eventually(self, method, request):
        """Grants and tokens are in force at every broker within two seconds."""
        until = time.monotonic() + SECONDS
        while True:
            try:
                return self.ask(method, request)
            except grpc.RpcError as error:
                early = error.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
                if not early or time.monotonic() > until:
                    raise
                time.sleep(0.05)


def make_tenant(root):
    from aquifer.v1 import admin_pb2 as a

    root.ask(root.admin.CreateTenant, a.CreateTenantRequest(tenant="interop"))
    policies = a.Policies(retention=a.Retention(time_ms=86_400_000, size_bytes=0))
    request = a.CreateNamespaceRequest(namespace="interop/shop", policies=policies)
    made = root.ask(root.admin.CreateNamespace, request).policies
    check(made.own.retention.time_ms == 86_400_000, made)
    change = a.UpdatePoliciesRequest(
        scope=a.PolicyScope(namespace="interop/shop"),
        set=a.Policies(deduplication=True),
        version=made.version,
    )
    changed = root.ask(root.admin.UpdatePolicies, change).policies
    check(changed.version != made.version and changed.own.HasField("retention"), changed)
    root.refused(root.admin.UpdatePolicies, change, grpc.StatusCode.ABORTED, "CONFLICT")
    listed, after = [], ""
    while True:
        page = root.ask(root.admin.ListTenants, a.ListTenantsRequest(after=after, limit=1))
        listed.extend(page.tenants)
        after = page.next
        if not after:
            break
    check("interop" in listed and listed == sorted(listed), listed)


def use_topics(admin):
    """As the administrator of the tenant, who knows nothing of the cluster."""
    from aquifer.v1 import admin_pb2 as a
    from aquifer.v1 import operator_pb2 as o

    request = a.CreateTopicRequest(topic=TOPIC, partitions=3)
    admin.eventually(admin.admin.CreateTopic, request)
    admin.refused(admin.admin.CreateTopic, request, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    described = admin.ask(admin.admin.DescribeTopic, a.DescribeTopicRequest(topic=TOPIC))
    check(len(described.ranges) == 3, described)
    check(described.ranges[2].last_hash == 2**32 - 1, described)
    stats = admin.ask(admin.admin.TopicStats, a.TopicStatsRequest(topic=TOPIC))
    check((stats.partitions, stats.end_index) == (3, 0), stats)
    listed = admin.ask(admin.admin.ListTopics, a.ListTopicsRequest(namespace="interop/shop"))
    check([topic.partitions for topic in listed.topics] == [3], listed)
    denied = grpc.StatusCode.PERMISSION_DENIED
    foreign = a.TopicStatsRequest(topic="public/default/orders")
    admin.refused(admin.admin.TopicStats, foreign, denied, "PERMISSION_DENIED")
    admin.refused(admin.admin.CreateTenant, a.CreateTenantRequest(tenant="x"), denied, "PERMISSION_DENIED")
    admin.refused(admin.operator.ListBookies, o.ListBookiesRequest(), denied, "PERMISSION_DENIED")
    would = admin.ask(admin.admin.DeleteTopic, a.DeleteTopicRequest(topic=TOPIC, dry_run=True))
    check(would.content.partitions == 3 and not would.content.in_use, would)
    admin.ask(admin.admin.DeleteTopic, a.DeleteTopicRequest(topic=TOPIC))
    gone = a.TopicStatsRequest(topic=TOPIC)
    admin.refused(admin.admin.TopicStats, gone, grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def delegate(root, channel):
    """Gives a token of the tenant the role of its administrator, and takes it away again."""
    from aquifer.v1 import admin_pb2 as a
    from aquifer.v1 import security_pb2 as s

    made = root.ask(root.security.CreateToken, s.CreateTokenRequest(name="admin", tenant="interop"))
    check(made.token.principal == "token:interop/admin" and made.secret.startswith("aqf_"), made.token)
    grant = s.AddGrantRequest(
        principal=made.token.principal,
        role="tenant-admin",
        scope=s.GrantScope(tenant="interop"),
        request_id=bytes(range(16)),
    )
    first = root.ask(root.security.AddGrant, grant).grant
    check(root.ask(root.security.AddGrant, grant).grant.id == first.id, "the same request, the same grant")
    admin = Caller(channel, made.secret)
    who = admin.eventually(admin.security.WhoAmI, s.WhoAmIRequest())
    check(who.principal == made.token.principal and not who.super_user, who)
    use_topics(admin)
    root.ask(root.security.RevokeToken, s.RevokeTokenRequest(id=made.token.id))
    until = time.monotonic() + SECONDS
    while True:
        try:
            admin.ask(admin.security.WhoAmI, s.WhoAmIRequest())
            check(time.monotonic() < until, "a revoked token goes on")
            time.sleep(0.05)
        except grpc.RpcError as error:
            check(error.code() == grpc.StatusCode.UNAUTHENTICATED, error)
            break
    until = time.monotonic() + SECONDS
    while True:
        audit = root.ask(root.security.ReadAudit, s.ReadAuditRequest(tenant="interop", limit=1000))
        if any("delete_topic" in line for line in audit.lines):
            break
        # Lines come to the topic behind what they are about.
        check(time.monotonic() < until, audit.lines)
        time.sleep(0.05)
    root.ask(root.admin.DeleteTenant, a.DeleteTenantRequest(tenant="interop", force=True))


def main():
    protos, generated, address, ca_file, token_file = sys.argv[1:]
    generate(Path(protos), Path(generated))
    from aquifer.v1 import operator_pb2 as o
    from aquifer.v1 import security_pb2 as s

    credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
    with grpc.secure_channel(address, credentials) as channel:
        stranger = Caller(channel)
        unknown = grpc.StatusCode.UNAUTHENTICATED
        stranger.refused(stranger.security.WhoAmI, s.WhoAmIRequest(), unknown, "UNAUTHENTICATED")
        root = Caller(channel, Path(token_file).read_text().strip())
        who = root.ask(root.security.WhoAmI, s.WhoAmIRequest())
        check(who.super_user and who.principal == "token:admin", who)
        brokers = root.ask(root.operator.ListBrokers, o.ListBrokersRequest()).brokers
        check(len(brokers) == 1 and brokers[0].self, brokers)
        bookies = root.ask(root.operator.ListBookies, o.ListBookiesRequest()).bookies
        check(len(bookies) >= 1, bookies)
        make_tenant(root)
        delegate(root, channel)
    print("done")


main()
