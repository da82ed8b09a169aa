"""Requests per second, latency and CPU per request of Heliostat over HTTP, beside what else one would use.

    python tests/benchmarks/serving.py [--seconds 10] [--only NAME,NAME] [--shapes single,list:16] [--profile]

One run, one model (a 22 M-parameter encoder with a classifier on it), one named corpus and seed, 32 connections. Each
server in turn has core 0 for its model process; the client, HAProxy and everything else of Ray share core 1. Beside
each server, just before and just after it, the in-process limit is taken on the same core: the same model over the
same texts with no server at all, packed, in float32. Ratios are to that limit.

Peers run at the best of their documented settings; what each was given is in tests/benchmarks/peers/. They live in
virtual environments of their own (.venv-peers/, made on first use), on the torch of this one. A peer that cannot be
installed is left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform as machine
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = HERE / "peers"
VENVS = ROOT / ".venv-peers"
SERVER_CORE, OTHER_CORE = 0, 1
CONNECTIONS = 32
WARM_S = 3.0
LIMIT_S = 4.0


@dataclass
class Row:
    """One server and one shape of request; `limit` is what the model alone did at that moment, in texts per second."""

    name: str
    shape: str
    texts_per_s: float
    limit: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms: float  # of the model's own process tree on core 0, a request
    front_cpu_ms: float  # of HAProxy or a proxy on core 1, a request
    failed: int
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.texts_per_s / self.limit if self.limit else 0.0


PARTS = {
    "model": ("inference/encoder.py", "torch/"),
    "batching and threads": ("heliostat/inference/", "threading.py"),
    "tokenise": ("words.py", "tokenizers/", "recipe.py"),
    "access log": ("logging/",),
    "our HTTP (endpoint, limits, keys, JSON)": ("heliostat/serve/", "json/"),
    "starlette and uvicorn": ("starlette/", "uvicorn/", "h11/"),
    "Ray Serve": ("ray/",),
    "event loop": ("asyncio/",),
}
"""What a sample of the replica's stack counts for: the first part that a frame belongs to, from the inmost out."""


@dataclass
class Server:
    """A running server: where it answers, and whose CPU is counted."""

    url: str
    model_pids: list[int]
    front_pids: list[int] = field(default_factory=list)
    header: str = ""


class Limit:
    """The in-process limit, in a process of its own that sleeps between passes."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), sys.executable, str(PEERS / "limit.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self._read()

    def ask(self, kind: str, seconds: float = LIMIT_S) -> float:
        """Texts per second of CPU time: another process's use of the core does not count against the model."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {seconds}\n")
        self.process.stdin.flush()
        return float(self._read()["per_cpu_s"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))


def measure(server: Server, *, shape: str, seconds: float) -> dict[str, Any]:
    """One load on one server, with the CPU time that the named processes took during the measured part."""
    command = [sys.executable, str(PEERS / "load.py"), server.url, str(CONNECTIONS), str(WARM_S), str(seconds), shape]
    load = subprocess.Popen(
        ["taskset", "-c", str(OTHER_CORE), *command, *([server.header] if server.header else [])],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert load.stdout is not None
    marks: dict[str, tuple[float, float]] = {}
    result: dict[str, Any] = {}
    for line in load.stdout:
        if line.startswith("{"):
            result = json.loads(line)
        elif line.strip() in ("start", "stop"):
            marks[line.strip()] = (cpu_seconds(server.model_pids), cpu_seconds(server.front_pids))
    load.wait()
    requests = max(1, result["requests"])
    model, front = (1000 * (marks["stop"][i] - marks["start"][i]) / requests for i in (0, 1))
    return {**result, "server_cpu_ms": model, "front_cpu_ms": front}


def profile(server: Server, folder: Path, *, seconds: float) -> dict[str, float]:
    """Shares of the samples in which a thread of the replica ran, by part, under the same load. Needs py-spy."""
    if shutil.which("py-spy", path=str(Path(sys.executable).parent)) is None:
        return {}
    out = folder / f"stacks-{server.url.rsplit('/', 1)[1]}.log"
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "--pid", str(server.model_pids[0])]
    command += [
        "--duration",
        str(int(seconds)),
        "--rate",
        "100",
        "--nonblocking",
        "--format",
        "raw",
        "--full-filenames",
    ]
    load = [sys.executable, str(PEERS / "load.py"), server.url, str(CONNECTIONS), "0", str(seconds + 4), "single"]
    with subprocess.Popen(
        ["taskset", "-c", str(OTHER_CORE), *load, server.header], stdout=subprocess.DEVNULL
    ) as sending:
        time.sleep(2)
        subprocess.run(
            ["taskset", "-c", str(OTHER_CORE), *command, "--output", str(out)], check=True, capture_output=True
        )
        sending.wait()
    counts: dict[str, int] = {}
    for line in out.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        part = part_of(stack.split(";"))
        counts[part] = counts.get(part, 0) + int(count)
    total = sum(counts.values())
    return {part: round(count / total, 4) for part, count in sorted(counts.items(), key=lambda pair: -pair[1])}


def part_of(stack: list[str]) -> str:
    for frame in reversed(stack):
        for part, marks in PARTS.items():
            if any(mark in frame for mark in marks):
                return part
    return "other"


def cpu_seconds(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def pin(pid: int, core: int) -> None:
    """Every thread of a process onto one core; threads that start later inherit it."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.sched_setaffinity(int(task.name), {core})


# ---- the model -------------------------------------------------------------------------------------------------


def make_model(folder: Path) -> dict[str, Any]:
    """The encoder as it comes, with a logistic regression of the intents as its head. Returns how bf16 compares."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    from heliostat.inference.encoder import IntentClassifier, load_pretrained, load_tokenizer, pack, pretrained_folder
    from train_jobs.intents import labels, sample, split

    source = pretrained_folder()
    encoder, tokenizer = load_pretrained(source).eval(), load_tokenizer(source)
    training, test = split(sample(per_intent=60, seed=0), seed=0)
    names = labels(training)

    def embed(model: torch.nn.Module, texts: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            parts = [model(*pack(tokenizer(texts[i : i + 32]))) for i in range(0, len(texts), 32)]
        return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1) * IntentClassifier.SCALE

    head = LogisticRegression(max_iter=300).fit(
        embed(encoder, [e.text for e in training]).numpy(), [names.index(e.label) for e in training]
    )
    model = IntentClassifier(encoder, classes=len(names)).eval()
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(np.asarray(head.coef_, dtype=np.float32)))
        model.head.bias.copy_(torch.from_numpy(np.asarray(head.intercept_, dtype=np.float32)))
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    shutil.copy(source / "tokenizer.json", folder)
    (folder / "labels.json").write_text(json.dumps(list(names)))
    (folder / "config.json").write_text(json.dumps({"encoder": dataclasses.asdict(encoder.config)}))
    texts, truth = [e.text for e in test], [names.index(e.label) for e in test]
    narrow = load_pretrained(source, dtype=torch.bfloat16).eval()
    vectors = {"fp32": embed(encoder, texts), "bf16": embed(narrow, texts)}
    f1 = {
        name: float(f1_score(truth, head.predict(vector.numpy()), average="macro")) for name, vector in vectors.items()
    }
    cosine = torch.nn.functional.cosine_similarity(vectors["fp32"], vectors["bf16"])
    return {
        "test_texts": len(texts),
        "macro_f1": {name: round(value, 4) for name, value in f1.items()},
        "f1_loss": round(f1["fp32"] - f1["bf16"], 5),
        "cosine_min": round(float(cosine.min()), 5),
        "cosine_mean": round(float(cosine.mean()), 5),
    }


# ---- Heliostat on its embedded cluster --------------------------------------------------------------------------

DEFINITION = """
name: bench-serving
head: {{cpus: 2}}
groups:
  serve: {{role: serving, market: on-demand, cpus: 1, gpus: 1, nodes: 0..1, idle_timeout: 10m}}
store: {{kind: embedded, bucket: heliostat}}
applications:
{apps}
tags: {{team: bench, project: serving}}
"""
APP = """  {name}:
    recipe: {recipe}
    model: bench@production
    group: serve
    route: /{name}
    replicas: 1..1
    idle_timeout: 10m
    max_queue: 60s
    {extra}
"""
TRIVIAL = '''
"""A model that does nothing: what is left is the platform's own cost."""
from heliostat.serve.recipe import TextModel


class Trivial(TextModel):
    @classmethod
    def load(cls, files, device):
        return cls()

    def tokenise(self, text):
        return [1]

    def forward(self, batch):
        return [{"label": "none", "probability": 1.0}] * len(batch)

    def present(self, result):
        return result
'''
INTENTS = "serve_apps.intent_classifier:IntentClassifierApp"
APPS = {
    "fp32": APP.format(name="fp32", recipe=INTENTS, extra=""),
    "bf16": APP.format(name="bf16", recipe=INTENTS, extra="dtype: bf16"),
    "trivial": APP.format(name="trivial", recipe="serve_apps.trivial:Trivial", extra=""),
}


@contextlib.contextmanager
def embedded_cluster(folder: Path, model: Path) -> Iterator[Any]:
    """A cluster of its own under `folder`, with the model published and in production; nothing of it is left."""
    from heliostat import sdk
    from heliostat.registry import ArtifactMetadata, Lineage, move_alias, publish

    project = folder / "project"
    shutil.copytree(ROOT / "serve_apps", project / "serve_apps", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "train_jobs", project / "train_jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "serve_apps" / "trivial.py").write_text(TRIVIAL)
    definition = project / "bench.yaml"
    definition.write_text(DEFINITION.format(apps="".join(APPS.values())))
    os.environ["HELIOSTAT_HOME"] = str(folder / "home")
    made = sdk.up(definition, progress=lambda line: print(f"  {line}", file=sys.stderr))
    try:
        metadata = ArtifactMetadata(
            framework="torch",
            lineage=Lineage(job="bench", code_version="bench", dataset_digest="sha256:bench"),
            parameters=22_000_000,
            dtype="float32",
            licence="Apache-2.0",
        )
        files = {path.name: path for path in sorted(model.iterdir())}
        artifact = publish(made.store, name="bench", files=files, metadata=metadata)
        move_alias(
            made.store, name="bench", alias="production", to_version=artifact.version, expected_version=None,
            who="bench", why="bench",
        )  # fmt: skip
        yield made
    finally:
        made.down()


@contextlib.contextmanager
def heliostat_app(platform: Any, name: str) -> Iterator[Server]:
    """One application, awake, its replica alone on core 0."""
    platform.apps.deploy(name)
    key = platform.settings.api_key.get_secret_value()
    url = platform.apps.url(name)
    header = f"Authorization: Bearer {key}"
    wait_answered(url, {"Authorization": f"Bearer {key}"}, limit_s=120)
    replicas, front = pin_ray(platform)
    try:
        yield Server(url, replicas, front, header)
    finally:
        platform.apps.remove(name)
        deadline = time.monotonic() + 60
        while any(app.name == name and app.replicas for app in platform.apps.list()) and time.monotonic() < deadline:
            time.sleep(0.5)


def pin_ray(platform: Any) -> tuple[list[int], list[int]]:
    """Replicas onto core 0, everything else of the cluster onto core 1. Returns (replicas, HAProxy)."""
    from heliostat.cluster import embedded, processes

    record = embedded.read_record(platform.settings.cluster)
    assert record is not None
    pids = [process.pid for process in processes.owned(embedded.mark(record))]
    return pin_all(pids)


def pin_all(pids: list[int]) -> tuple[list[int], list[int]]:
    titles = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            titles[pid] = " ".join(psutil.Process(pid).cmdline())
    replicas = [pid for pid, title in titles.items() if title.startswith("ray::ServeReplica")]
    front = [
        pid
        for pid, title in titles.items()
        if "haproxy" in title.split(" ", 1)[0] or title.startswith(("ray::ProxyActor", "ray::HAProxy"))
    ]
    for pid in titles:
        pin(pid, SERVER_CORE if pid in replicas else OTHER_CORE)
    return replicas, front


def wait_answered(url: str, headers: dict[str, str], *, limit_s: float, body: dict[str, Any] | None = None) -> None:
    deadline, said = time.monotonic() + limit_s, ""
    while time.monotonic() < deadline:
        try:
            answer = httpx.post(url, json=body or {"text": "is it ready"}, headers=headers, timeout=30)
            if answer.status_code == 200:
                return
            said = f"HTTP {answer.status_code} {answer.text[:200]}"
        except httpx.TransportError as error:
            said = f"{type(error).__name__}: {error}"
        time.sleep(0.3)
    raise RuntimeError(f"{url} did not answer within {limit_s:.0f} s: {said}")


# ---- the others --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_server(
    command: list[str], env: dict[str, str], *, port: int, path: str, log: Path, body: dict[str, Any] | None = None
) -> Iterator[Server]:
    """A server as one process tree on core 0; all of it is ended afterwards."""
    url = f"http://127.0.0.1:{port}{path}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=PEERS,
        )
    try:
        wait_answered(url, {}, limit_s=90, body=body)
        yield Server(url, tree(process.pid))
    finally:
        end_tree(process)


@contextlib.contextmanager
def ray_server(app: str, front: str, env: dict[str, str], *, port: int, log: Path) -> Iterator[Server]:
    """Ray Serve on a cluster of its own: the replica on core 0, the rest on core 1."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(OTHER_CORE), sys.executable, str(PEERS / "ray_app.py"), str(port), app, front],
            env=env,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url, header = f"http://127.0.0.1:{port}/classify", env.get("BENCH_HEADER", "")
        wait_answered(url, dict([header.split(": ", 1)]) if header else {}, limit_s=120)
        replicas, front_pids = pin_all(tree(process.pid))
        yield Server(url, replicas, front_pids, header)
    finally:
        assert process.stdin is not None
        children = tree(process.pid)
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        end_pids(children)


def tree(pid: int) -> list[int]:
    """A process, its descendants, and what shares their session."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def end_tree(process: subprocess.Popen[bytes]) -> None:
    pids = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    end_pids(pids)


def end_pids(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


REQUIREMENTS = {
    "mosec": ["mosec"],
    "litserve": ["litserve"],
    "bentoml": ["bentoml"],
    "infinity": ["infinity-emb[torch,server]"],
}


def peer_python(name: str) -> Path | str:
    """The interpreter of a peer's own environment, which sees this one's packages too; or why there is none."""
    python = VENVS / name / "bin" / "python"
    if (VENVS / name / ".ready").exists():
        return python
    print(f"  installing {name}", file=sys.stderr)
    steps = [[sys.executable, "-m", "venv", str(VENVS / name)]]
    try:
        subprocess.run(steps[0], check=True, capture_output=True, timeout=120)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        behind = VENVS / name / "lib" / version / "site-packages" / "zz_main.pth"
        behind.write_text(sysconfig.get_paths()["purelib"] + "\n")
        install = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
        subprocess.run(install, check=True, capture_output=True, timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"{name} could not be installed: {error}"
    (VENVS / name / ".ready").touch()
    return python


# ---- the run -----------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.seconds: float = arguments.seconds
        self.only = set(arguments.only.split(",")) if arguments.only else set()
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.profiles: dict[str, dict[str, float]] = {}
        self.model = folder / "model"
        self.accuracy = make_model(self.model)
        self.env = {
            **os.environ,
            "BENCH_MODEL": str(self.model),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DO_NOT_TRACK": "1",
            "BENTOML_DO_NOT_TRACK": "True",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(PEERS), str(ROOT / "platform")]),
        }
        self.limit = Limit(self.env)
        self.passes = {kind: self.limit.ask(kind, 6) for kind in ("packed", "sorted", "one")}
        self._port = 18200

    def wanted(self, name: str) -> bool:
        return not self.only or name in self.only

    def port(self) -> int:
        self._port += 200
        return self._port

    def shoot(
        self, name: str, make: Callable[[], Any], *, shapes: tuple[str, ...] = ("single",), note: str = ""
    ) -> None:
        """Measure one server between two passes of the limit; a server that cannot run is named and left out."""
        if not self.wanted(name):
            return
        try:
            with make() as server:
                for shape in shapes:
                    self._row(name, server, shape, note)
                if self.arguments.profile and name in ("heliostat", "trivial"):
                    self.profiles[name] = profile(server, self.folder, seconds=self.seconds)
                    for part, share in self.profiles[name].items():
                        print(f"    {share:7.2%}  {part}")
        except Exception as error:  # noqa: BLE001  # a peer that breaks must not end the others' measurement
            self.left_out.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            print(f"  {self.left_out[-1]}", file=sys.stderr)

    def _row(self, name: str, server: Server, shape: str, note: str) -> None:
        before = self.limit.ask("packed")
        found = measure(server, shape=shape, seconds=self.seconds)
        limit = statistics.fmean([before, self.limit.ask("packed")])
        many = int(shape.split(":")[1]) if ":" in shape else 1
        row = Row(
            name, "single" if shape == "infinity" else shape, found["per_s"] * many, limit, found["p50_ms"] or 0.0,
            found["p99_ms"] or 0.0, found["server_cpu_ms"], found["front_cpu_ms"], found["failed"], note,
        )  # fmt: skip
        self.rows.append(row)
        print(
            f"{row.name:<26} {row.shape:<8} {row.texts_per_s:8.1f} texts/s  {row.ratio:5.2f} of the limit "
            f"({row.limit:6.1f})  p50 {row.p50_ms:7.1f}  p99 {row.p99_ms:7.1f} ms  CPU {row.server_cpu_ms:6.2f} + "
            f"{row.front_cpu_ms:4.2f} ms/request  failed {row.failed}",
            flush=True,
        )

    def run(self) -> None:
        both = tuple(self.arguments.shapes.split(","))
        if any(self.wanted(name) for name in ("heliostat", "heliostat bf16", "trivial", "heliostat python-proxy")):
            with embedded_cluster(self.folder, self.model) as platform:
                self.shoot("heliostat", lambda: heliostat_app(platform, "fp32"), shapes=both)
                self.shoot("heliostat bf16", lambda: heliostat_app(platform, "bf16"), shapes=both)
                self.shoot("trivial", lambda: heliostat_app(platform, "trivial"))
                self._other_front(platform)
        self._ray_peers(both)
        self._process_peers(both)
        self.limit.close()

    def _other_front(self, platform: Any) -> None:
        """The same deployment behind Ray's default proxy, on a cluster of its own, from the same store."""
        spec = {
            "app": "fp32", "recipe": INTENTS, "model": "bench@production", "max_queue_s": 60, "cpus": 1, "gpus": 0,
            "label_selector": {},
        }  # fmt: skip
        env = {
            **self.env,
            "BENCH_ARGS": json.dumps(spec),
            "BENCH_HEADER": f"Authorization: Bearer {platform.settings.api_key.get_secret_value()}",
            "HELIOSTAT_SETTINGS": str(platform.settings.state_dir / "settings.json"),
            "PYTHONPATH": os.pathsep.join([self.env["PYTHONPATH"], str(ROOT)]),
        }
        self.shoot(
            "heliostat python-proxy",
            lambda: ray_server("heliostat", "python", env, port=self.port(), log=self.folder / "front.log"),
            note="Ray's default proxy, on core 1",
        )

    def _ray_peers(self, both: tuple[str, ...]) -> None:
        for name, app, front in (
            ("ray serve", "plain", "haproxy"),
            ("ray serve python-proxy", "plain", "python"),
            ("serve.batch 16", "batch:16", "haproxy"),
            ("serve.batch 64", "batch:64", "haproxy"),
        ):
            make = lambda app=app, front=front, name=name: ray_server(  # noqa: E731
                app, front, self.env, port=self.port(), log=self.folder / f"{name}.log"
            )
            self.shoot(name, make, shapes=both)

    def _process_peers(self, both: tuple[str, ...]) -> None:
        port = self.port()
        fast = [sys.executable, str(PEERS / "fastapi_app.py"), str(port)]
        self.shoot("fastapi", self._process("fastapi", fast, port, "/classify"), shapes=both)
        for batch in (1, 16):
            for peer, path in (("mosec", "/inference"), ("litserve", "/predict"), ("bentoml", "/classify")):
                self._peer(peer, path, batch, both)
        self._infinity()

    def _peer(self, peer: str, path: str, batch: int, both: tuple[str, ...]) -> None:
        name = peer if batch == 1 else f"{peer} batch {batch}"
        if not self.wanted(name):
            return
        python = peer_python(peer)
        if isinstance(python, str):
            self.left_out.append(python)
            return
        port = self.port()
        mosec = ["--timeout", "120000"]  # milliseconds; 3 s by default, which a list of texts exceeds
        commands = {
            "mosec": [str(python), "mosec_app.py", "--port", str(port), "--address", "127.0.0.1", *mosec],
            "litserve": [str(python), "litserve_app.py", str(port)],
            "bentoml": [
                str(python), "-m", "bentoml", "serve", "bento_app:Service", "--host", "127.0.0.1", "--port", str(port)
            ],
        }  # fmt: skip
        env = {**self.env, "BENCH_BATCH": str(batch)}
        shapes, body = both, None
        if peer == "bentoml" and batch > 1:  # its batching takes lists alone: of one text, and of sixteen
            shapes, body = tuple("list:1" if one == "single" else one for one in both), {"texts": ["is it ready"]}
        self.shoot(name, self._process(name, commands[peer], port, path, env=env, body=body), shapes=shapes)

    def _infinity(self) -> None:
        if not self.wanted("infinity"):
            return
        python = peer_python("infinity")
        if isinstance(python, str):
            self.left_out.append(python)
            return
        from heliostat.inference.encoder import pretrained_folder

        port = self.port()
        command = [str(python), "-c", "from infinity_emb.cli import cli; cli()", "v2"]
        command += ["--model-id", str(pretrained_folder()), "--served-model-name", "bench", "--engine", "torch"]
        command += ["--device", "cpu", "--dtype", "float32", "--no-bettertransformer", "--no-model-warmup"]
        command += ["--batch-size", "32", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
        body = {"input": ["is it ready"], "model": "bench"}
        self.shoot(
            "infinity", self._process("infinity", command, port, "/embeddings", body=body), shapes=("infinity",),
            note="embeddings, no classifier",
        )  # fmt: skip

    def _process(
        self,
        name: str,
        command: list[str],
        port: int,
        path: str,
        *,
        env: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Callable[[], Any]:
        log = self.folder / f"{name}.log"
        return lambda: process_server(command, env or self.env, port=port, path=path, log=log, body=body)

    def summary(self) -> dict[str, Any]:
        single = {row.name: row for row in self.rows if row.shape in ("single", "list:1")}
        ours, narrow, trivial = (single.get(name) for name in ("heliostat", "heliostat bf16", "trivial"))
        own = ("heliostat", "heliostat bf16", "trivial", "heliostat python-proxy")
        peers = {name: row for name, row in single.items() if name not in own}
        best = max(peers.values(), key=lambda row: row.ratio, default=None)
        batches = [row for name, row in peers.items() if name.startswith("serve.batch")]
        batched = max(batches, key=lambda row: row.ratio, default=None)
        front = single.get("heliostat python-proxy")

        def ratio(a: Row | None, b: Row | None) -> float | None:
            return round(a.ratio / b.ratio, 3) if a and b and b.ratio else None

        return {
            "benchmark": "serving",
            "ratio_to_limit": round(ours.ratio, 3) if ours else None,
            "bf16_ratio_to_fp32_limit": round(narrow.ratio, 3) if narrow else None,
            "vs_best_peer": ratio(ours, best),
            "best_peer": best.name if best else None,
            "vs_serve_batch": ratio(ours, batched),
            "overhead_cpu_ms": round(trivial.server_cpu_ms, 3) if trivial else None,
            "overhead_front_cpu_ms": round(trivial.front_cpu_ms, 3) if trivial else None,
            "python_proxy_ratio_to_limit": round(front.ratio, 3) if front else None,
            "bf16_gate": self.accuracy,
            "in_process": {kind: round(value / self.passes["packed"], 3) for kind, value in self.passes.items()},
            "rows": [dataclasses.asdict(row) | {"ratio": round(row.ratio, 3)} for row in self.rows],
            "profile": self.profiles,
            "left_out": self.left_out,
            "connections": CONNECTIONS,
            "machine": cpu(),
        }


def cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    flags = {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split()}
    told = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if flag in flags]
    return f"{os.cpu_count()} cores, {model} ({' '.join(told)}), Python {machine.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--only", help="these rows alone, separated by commas")
    parser.add_argument("--shapes", default="single,list:16", help="single, or a list of so many texts")
    parser.add_argument("--profile", action="store_true", help="say where the replica's time goes, by py-spy")
    parser.add_argument("--keep-logs", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    sys.path.insert(0, str(PEERS))
    import corpus

    print(f"{cpu()}; corpus: {corpus.NAME}, seed 0; {CONNECTIONS} connections; limit: packed float32 in process")
    with tempfile.TemporaryDirectory(prefix="hs-bench-") as name:
        bench = Bench(arguments, Path(name))
        try:
            bench.run()
        finally:
            if arguments.keep_logs:
                arguments.keep_logs.mkdir(parents=True, exist_ok=True)
                for log in Path(name).glob("*.log"):
                    shutil.copy(log, arguments.keep_logs)
    print("in process: " + ", ".join(f"{kind} {value:.0f} texts/s" for kind, value in bench.passes.items()))
    for reason in bench.left_out:
        print(f"left out: {reason}")
    print(json.dumps(bench.summary()))


if __name__ == "__main__":
    main()
