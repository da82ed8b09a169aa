"""Every door of an embedded cluster, tried without a credential, with a wrong one, and with another cluster's.

    python tests/benchmarks/doors.py [--quick]

A door is a listening port of the cluster's own processes (heliostat.cluster.listeners) and, behind it, each HTTP route
or gRPC method. Routes of Ray's dashboard and agents are those that the running processes say they have registered;
methods are all that Ray and SeaweedFS have, asked for with an empty message. Each try is refused (401, 403,
UNAUTHENTICATED, a TLS handshake without a certificate), or it is listed in `OPEN` with what it gives away, or it is a
violation. The right credential is tried too, so that a door which is merely broken does not pass for a closed one.

Prints a table of doors and one line of JSON. `--quick` takes made-up credentials of the right shape for the other
cluster's; otherwise a second cluster is started for its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import secrets
import socket
import ssl
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))

import world

MISSING, WRONG, FOREIGN, RIGHT = "none", "wrong", "another cluster's", "right"
REFUSED_HTTP = frozenset({401, 403})
NOTHING_THERE = frozenset({404, 405, 501})
LIMIT_S = 10.0


@dataclass(frozen=True)
class Open:
    """A door that is open by design. `what` is what somebody without a credential learns or does there."""

    port: str
    doors: str
    """A pattern for the whole of the door's name."""
    what: str


OPEN = (
    Open("dashboard", r"(GET|HEAD) /", "the page, which then asks for the token"),
    Open("dashboard", r"(GET|HEAD) /favicon\.ico", "an icon"),
    Open("dashboard", r"(GET|HEAD) /static.*", "the page's scripts"),
    Open("dashboard", r"(GET|HEAD) /api/authentication_mode", "that a token is asked for"),
    Open("dashboard|agent", r"(GET|HEAD) /api/((gcs_|local_raylet_)?healthz)", "health"),
    Open("dashboard|serve|hold|proxy|replica", r"(GET|HEAD) /-/healthz", "health"),
    Open("serve|hold|proxy|replica", r"(GET|HEAD) /-/routes", "names and routes of the applications"),
    Open("serve|hold|proxy|replica", r"(GET|HEAD) \{app\}/healthz", "health of one application"),
    Open("serve|hold|proxy|replica", r"(GET|HEAD) \{app\}/openapi\.json", "an application's interface"),
    Open("hold", r"GET /-/metrics", "counts of requests"),
    Open("haproxy_stats", r"[A-Z*]+ .*", "counts of requests, whatever the verb; there is no admin level on this port"),
    Open("haproxy_metrics", r"[A-Z*]+ /metrics", "counts of requests, whatever the verb"),
    Open("controller_metrics|metrics|prometheus.*", r"[A-Z]+ .*", "metrics, whatever the verb"),
    Open("store", r"GET /(healthz|status)", "health"),
    Open("ray::DashboardAgent", r"GET /(metrics|stats)?", "metrics of a worker node"),
    Open(".*", r"/grpc\.reflection\..*", "names of gRPC services"),
    Open(".*", r"/grpc\.health\.v1\.Health/.*", "health"),
    Open(".*", r"/ray\.rpc\..*/(CheckAlive|HealthCheck)", "health"),
)  # fmt: skip
"""Reads only, each of them."""


@dataclass(frozen=True)
class Try:
    """What came of one door and one credential. `outcome`: refused | nothing there | open | unreachable."""

    port: int
    name: str
    door: str
    credential: str
    outcome: str
    told: str
    note: str = ""


@dataclass(frozen=True)
class Credential:
    """One cluster's three secrets; "" where there is none."""

    token: str = ""
    api_key: str = ""
    store_key: str = ""


@dataclass
class Found:
    """All that was tried. A violation is an open door that is not listed, or a listed one that is not there to see."""

    tries: list[Try] = field(default_factory=list)

    def of(self, outcome: str) -> list[Try]:
        return [one for one in self.tries if one.outcome == outcome and one.credential != RIGHT]

    @property
    def violations(self) -> list[Try]:
        return [one for one in self.of("open") if not one.note]

    @property
    def named_open(self) -> list[Try]:
        return [one for one in self.of("open") if one.note]


def of_cluster(platform: Any) -> Credential:
    settings = platform.settings
    return Credential(
        settings.token_path.read_text().strip(),
        settings.api_key.get_secret_value(),
        settings.store.secret_access_key.get_secret_value(),
    )


def made_up() -> Credential:
    """Of the shape that `heliostat up` makes."""
    return Credential(*(secrets.token_hex(24) for _ in range(3)))


def look(platform: Any, foreign: Credential, *, app: str | None = None) -> Found:
    """Try every door of a running cluster. `app`: an application that is deployed, and its route."""
    from heliostat.cluster import embedded
    from heliostat.cluster.listeners import Listener, listeners

    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    credentials = {MISSING: Credential(), WRONG: made_up(), FOREIGN: foreign, RIGHT: of_cluster(platform)}
    routes = _ray_routes(Path(record.temp_dir))
    found = Found()
    doors = listeners(embedded.mark(record))
    doors += [Listener("127.0.0.1", port, 0, "") for port in _not_seen(record.ports, {door.port for door in doors})]
    with ThreadPoolExecutor(8) as pool:
        tried = pool.map(lambda one: _try_port(one, record.ports, credentials, routes, app, platform), doors)
        for tries in tried:
            found.tries += tries
    return found


def _not_seen(ports: Mapping[str, int], seen: set[int]) -> list[int]:
    """The cluster's own ports that answer, though no process of its own was seen to listen there."""
    found = []
    for port in ports.values():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            if port not in seen:
                found.append(port)
    return found


def _try_port(
    listener: Any, ports: Mapping[str, int], credentials: Mapping[str, Credential],
    routes: Mapping[str, Sequence[tuple[str, str]]], app: str | None, platform: Any,
) -> list[Try]:  # fmt: skip
    name = _name(listener, ports)
    if name == "store":
        return [
            *_try_store(listener.port, platform, credentials),
            *_http(listener.port, name, [("GET", "/healthz")], {}),
        ]
    if _wants_a_certificate(listener.port):
        # Nothing behind it is reached, so there is one door. A token is no certificate, whosever it is.
        return [
            Try(listener.port, name, "TLS", kind, "refused", "certificate required")
            for kind in credentials if kind != RIGHT
        ]  # fmt: skip
    if not _speaks_http(listener.port):
        return _grpc(listener.port, name, credentials)
    return _http(listener.port, name, _doors_of(name, routes, app), credentials)


def _name(listener: Any, ports: Mapping[str, int]) -> str:
    """What a port is called: the cluster's own name for it, or who listens there."""
    for name, port in ports.items():
        if port == listener.port and name != "serve_http_min":
            return name
    if ports["serve_http_min"] <= listener.port < ports["serve_http_min"] + 1000:
        return "replica"
    try:
        command = Path(f"/proc/{listener.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "gone"  # since it was seen to listen
    if " mini " in command:
        flag = re.search(rf"-(\S+)={listener.port}\b", command)
        return f"store {flag[1]}" if flag else "store other"
    if "raylet/raylet" in command.split(" ")[0]:  # whose arguments name the agents that it starts
        return "raylet"
    for part, called in (
        ("runtime_env/agent", "runtime env agent"), ("dashboard/agent.py", "node agent"), ("gcs_server", "gcs"),
        ("autoscaler", "prometheus autoscaler"), ("dashboard.py", "prometheus dashboard"),
    ):  # fmt: skip
        if part in command:
            return called
    return command.split(" ")[0].split("/")[-1] or listener.command


def _wants_a_certificate(port: int) -> bool:
    """Whether the port speaks TLS and ends it with whoever shows no certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=3) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as talk,
        ):
            talk.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            talk.recv(16)  # the refusal comes here: in TLS 1.3 the client's half is done before
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in str(error)
    except OSError:
        return False
    return False


def _speaks_http(port: int) -> bool:
    """Whether HTTP/1.1 is answered; gRPC servers close the connection, or answer in HTTP/2 frames."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=3) as talk:
        talk.settimeout(3)
        talk.sendall(b"GET /nothing-here HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return talk.recv(16).startswith(b"HTTP/1")
    return False


# ---- HTTP -----------------------------------------------------------------------------------------------------------


def _ray_routes(temp_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """(verb, path) of every route that the running dashboard and agents have written into their logs."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, log in (("dashboard", "dashboard.log"), ("agent", "dashboard_agent.log")):
        text = "".join(
            path.read_text(errors="replace") for path in temp_dir.glob(f"session_latest/logs/{log.split('.')[0]}*.log")
            if (name == "agent") == ("agent" in path.name)
        )  # fmt: skip
        routes = re.findall(r"<ResourceRoute \[(\w+|\*)\] <(?:Plain|Dynamic|Static)Resource\s+(\S+?)(?:>| ->)", text)
        found[name] = sorted({(verb, path) for verb, path in routes})
    return found


def _doors_of(name: str, routes: Mapping[str, Sequence[tuple[str, str]]], app: str | None) -> list[tuple[str, str]]:
    if name in ("dashboard", "agent"):
        return [*routes[name], ("GET", "/-/healthz")]
    if name == "node agent":
        return list(routes["agent"])
    if name in ("serve", "hold", "proxy", "replica"):
        paths = ["/-/healthz", "/-/routes", "/-/metrics"]
        inner = [
            "",
            "/healthz",
            "/openapi.json",
            "/docs",
            "/v1/models",
            "/v1/completions",
            "/v1/embeddings",
            "/any/thing",
        ]
        applied = [(verb, "{app}" + path) for path in inner for verb in ("GET", "POST", "PUT", "DELETE")] if app else []
        return [("GET", path) for path in paths] + applied
    if name == "runtime env agent":
        paths = ["/get_or_create_runtime_env", "/delete_runtime_env_if_possible", "/get_runtime_envs_info"]
        return [("POST", path) for path in paths]
    if name.startswith("store"):
        return [
            ("GET", "/"), ("GET", "/dir/assign"), ("GET", "/dir/lookup?volumeId=1"), ("GET", "/dir/status"),
            ("GET", "/col/delete?collection=nothing"), ("GET", "/vol/vacuum"), ("POST", "/submit"),
            ("GET", "/cluster/status"), ("GET", "/buckets/"), ("GET", "/buckets/?pretty=y"),
            ("PUT", "/buckets/heliostat/open-door"), ("POST", "/buckets/heliostat/open-door"),
            ("DELETE", "/buckets/heliostat/open-door"), ("PUT", "/9999,0000"), ("DELETE", "/9999,0000"),
            ("GET", "/status"), ("GET", "/healthz"), ("GET", "/ui/index.html"), ("GET", "/stats/counter"),
        ]  # fmt: skip
    return [(verb, path) for path in ("/", "/metrics", "/stats") for verb in ("GET", "POST", "PUT", "DELETE")]


def _http(port: int, name: str, doors: Iterable[tuple[str, str]], credentials: Mapping[str, Credential]) -> list[Try]:
    found = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, follow_redirects=False) as client:
        for verb, path in doors:
            for kind, credential in (credentials or {MISSING: Credential()}).items():
                if kind == RIGHT and not (name in ("dashboard",) and (verb, path) == ("GET", "/api/jobs/")):
                    continue  # nothing is to be changed here; one read shows that the right one opens
                found.append(_ask(client, port, name, verb, path, kind, credential))
    return found


def _ask(client: httpx.Client, port: int, name: str, verb: str, path: str, kind: str, credential: Credential) -> Try:
    secret = credential.api_key if name in ("serve", "hold", "proxy", "replica") else credential.token
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    shown = f"{verb} {path}"
    filled = re.sub(r"\{[^}]+\}", "nothing", path.replace("{app}", ROUTE))
    if path.endswith(("/logs/tail",)):
        headers |= {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip
    verb = "GET" if verb == "*" else verb
    try:
        with client.stream(verb, filled, headers=headers, content=b"{}" if verb in ("POST", "PUT") else None) as answer:
            status = answer.status_code
    except httpx.HTTPError as error:
        return Try(port, name, shown, kind, "unreachable", type(error).__name__)
    outcome = "refused" if status in REFUSED_HTTP else "nothing there" if status in NOTHING_THERE else "open"
    if status == 503 and name.startswith("haproxy"):
        outcome = "nothing there"  # HAProxy's own word for a port without a server behind it
    return Try(port, name, shown, kind, outcome, str(status), _note(name, shown) if outcome == "open" else "")


def _note(name: str, door: str) -> str:
    for one in OPEN:
        if re.fullmatch(one.port, name) and re.fullmatch(one.doors, door):
            return one.what
    return ""


ROUTE = "/intent-classifier"
"""Of the application that is asked for; set by whoever deploys another."""


# ---- gRPC -----------------------------------------------------------------------------------------------------------

_STORE_METHODS = (
    "/filer_pb.SeaweedFiler/ListEntries", "/filer_pb.SeaweedFiler/LookupDirectoryEntry",
    "/filer_pb.SeaweedFiler/CreateEntry", "/filer_pb.SeaweedFiler/DeleteEntry", "/filer_pb.SeaweedFiler/Statistics",
    "/filer_pb.SeaweedFiler/GetFilerConfiguration", "/filer_pb.SeaweedFiler/KvGet", "/filer_pb.SeaweedFiler/KvPut",
    "/master_pb.Seaweed/Assign", "/master_pb.Seaweed/LookupVolume", "/master_pb.Seaweed/CollectionList",
    "/master_pb.Seaweed/CollectionDelete", "/master_pb.Seaweed/VolumeList", "/master_pb.Seaweed/GetMasterConfiguration",
    "/volume_server_pb.VolumeServer/VolumeServerStatus", "/volume_server_pb.VolumeServer/DeleteCollection",
    "/volume_server_pb.VolumeServer/BatchDelete", "/messaging_pb.SeaweedS3IamCache/PutIdentity",
    "/s3_pb.SeaweedS3/Configure", "/iam_pb.SeaweedIdentityAccessManagement/ListUsers",
    "/worker_pb.WorkerService/WorkerStream",
)  # fmt: skip


_NO_STUBS = tuple(f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects"))
"""Those that Ray's wheel has no Python for."""


def ray_methods() -> list[str]:
    """Every gRPC method of the installed Ray, from its generated stubs."""
    import ray

    folder = Path(ray.__file__).parent
    texts = [path.read_text() for part in ("core", "serve") for path in folder.glob(f"{part}/generated/*_pb2_grpc.py")]
    found = {method for text in texts for method in re.findall(r"'(/ray[\w.]*/\w+)'", text)}
    return sorted(found | set(_NO_STUBS))


def _grpc(port: int, name: str, credentials: Mapping[str, Credential]) -> list[Try]:
    import grpc

    found = []
    methods = list(_STORE_METHODS) if name.startswith("store") else ray_methods()
    methods += ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method in methods:
            first = _call(channel, port, name, method, MISSING, "")
            found.append(first)
            if first.outcome == "unreachable" and method == methods[0]:
                break  # no gRPC without a certificate, or none at all
            if first.outcome != "nothing there":
                found += [
                    _call(channel, port, name, method, kind, credentials[kind].token)
                    for kind in (WRONG, FOREIGN)
                    if kind in credentials
                ]
        if name == "gcs":
            method = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
            found.append(_call(channel, port, name, method, RIGHT, credentials[RIGHT].token))
    # Doors that are not there tell nothing but their number.
    return found


def _call(channel: Any, port: int, name: str, method: str, kind: str, token: str) -> Try:
    import grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        channel.unary_unary(method)(b"", metadata=metadata, timeout=3)
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
        details = error.details() or ""
        if code == "UNAVAILABLE" or (code == "UNKNOWN" and "HTTP" in details):
            return Try(port, name, method, kind, "unreachable", f"{code} {details[:80]}")
    outcome = {"UNAUTHENTICATED": "refused", "PERMISSION_DENIED": "refused", "UNIMPLEMENTED": "nothing there"}
    decided = outcome.get(code, "open")
    return Try(port, name, method, kind, decided, code, _note(name, method) if decided == "open" else "")


# ---- S3 -------------------------------------------------------------------------------------------------------------


def _try_store(port: int, platform: Any, credentials: Mapping[str, Credential]) -> list[Try]:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    bucket = platform.settings.store.bucket
    found = []
    for kind, credential in credentials.items():
        config = Config(signature_version=UNSIGNED if kind == MISSING else None, retries={"max_attempts": 0})
        client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", config=config,
            aws_access_key_id="heliostat", aws_secret_access_key=credential.store_key or "none",
        )  # fmt: skip
        calls: dict[str, Callable[[], Any]] = {
            "list buckets": client.list_buckets,
            "list": lambda c=client: c.list_objects_v2(Bucket=bucket),  # type: ignore[misc]
            "get": lambda c=client: c.get_object(Bucket=bucket, Key="open-door"),  # type: ignore[misc]
            "put": lambda c=client: c.put_object(Bucket=bucket, Key="open-door", Body=b"x"),  # type: ignore[misc]
            "delete": lambda c=client: c.delete_object(Bucket=bucket, Key="open-door"),  # type: ignore[misc]
            "create bucket": lambda c=client: c.create_bucket(Bucket="open-door"),  # type: ignore[misc]
            "delete bucket": lambda c=client: c.delete_bucket(Bucket="open-door"),  # type: ignore[misc]
        }
        if kind == RIGHT:
            calls = {"list": calls["list"]}
        for door, call in calls.items():
            try:
                call()
                outcome, told = "open", "200"
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                outcome, told = ("refused" if status in REFUSED_HTTP else "open"), str(status)
            found.append(Try(port, "store", f"S3 {door}", kind, outcome, told))
    return found


# ---- a page and a line ----------------------------------------------------------------------------------------------


def summary(found: Found) -> dict[str, Any]:
    right = [one for one in found.tries if one.credential == RIGHT]
    ports = {one.port for one in found.tries}
    opened = sorted({(one.name, one.door.split(" (")[0], one.note) for one in found.named_open})
    return {
        "ports": len(ports),
        "doors": len({(one.port, one.door) for one in found.tries if one.outcome != "nothing there"}),
        "tries": len([one for one in found.tries if one.credential != RIGHT]),
        "refused": len(found.of("refused")),
        "nothing_there": len(found.of("nothing there")),
        "unreachable": len(found.of("unreachable")),
        "named_open": [list(one) for one in opened],
        "violations": [asdict(one) for one in found.violations],
        "right_credential_opens": sum(one.outcome == "open" for one in right),
        "right_credential_tried": len(right),
    }


def show(found: Found) -> None:
    by_port: dict[tuple[int, str], Counter[str]] = {}
    for one in found.tries:
        if one.credential != RIGHT:
            kind = "VIOLATION" if one in found.violations else "named open" if one.outcome == "open" else one.outcome
            by_port.setdefault((one.port, one.name), Counter())[kind] += 1
    for (port, name), counts in sorted(by_port.items(), key=lambda item: item[0][1]):
        print(f"{name:<28} {port:>6}  {', '.join(f'{count} {kind}' for kind, count in sorted(counts.items()))}")
    for one in sorted(set(found.violations), key=lambda v: (v.name, v.door)):
        print(f"VIOLATION {one.name} {one.port} {one.door} with {one.credential} credential: {one.told}")


@contextlib.contextmanager
def _second(platform: Any) -> Iterator[Credential]:
    from heliostat import sdk
    from heliostat.cluster import embedded

    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    other = sdk.up(Path(record.definition_path), name="another")
    try:
        yield of_cluster(other)
    finally:
        other.down()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no second cluster")
    parsed = parser.parse_args()
    global ROUTE
    ROUTE = "/echo"
    apps = [world.App("echo", "serve_apps.echo:Echo", {"none.txt": b"none"}, "1..1")]
    with (
        tempfile.TemporaryDirectory(prefix="hl") as name,
        world.cluster(Path(name), apps, recipes={"echo": world.ECHO}, name="doors") as platform,
    ):
        world.wait_answered(platform, platform.apps.url("echo"), {"text": "ready"})
        with contextlib.ExitStack() as stack:
            foreign = made_up() if parsed.quick else stack.enter_context(_second(platform))
            found = look(platform, foreign, app="echo")
        still = {"answers_still": platform.status().up}
    show(found)
    print(json.dumps({"benchmark": "doors", **summary(found), **still}))
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
