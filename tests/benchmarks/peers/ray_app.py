"""Ray Serve on a small cluster of its own, on loopback: plain, with `serve.batch`, or Heliostat's deployment.

    python ray_app.py PORT APP FRONT

APP is plain, batch:16, batch:64 or heliostat (BENCH_ARGS: the arguments of its deployment, as JSON); FRONT is haproxy
or python. Prints "ready" and ends when standard input is closed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
PORT, APP, FRONT = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def environment(folder: Path) -> dict[str, str]:
    """Loopback, no statistics, workers at their normal priority; HAProxy with files and ports of its own."""
    env = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_DEDUP_LOGS": "0",
    }
    if FRONT == "python":
        return env
    from heliostat.cluster.haproxy import write_wrapper

    write_wrapper(folder / "haproxy")
    return env | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(PORT + 1),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(PORT + 2),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(PORT + 10),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(PORT + 99),
    }


def application() -> Any:
    from ray import serve

    options = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 1}}
    if APP == "heliostat":
        from ray.serve.config import RequestRouterConfig

        from heliostat.serve.config import MAX_ONGOING
        from heliostat.serve.deployment import AppArguments, ModelDeployment

        router = RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=0.02)  # as serve/config.py has it
        deployment = ModelDeployment.options(
            max_ongoing_requests=MAX_ONGOING, request_router_config=router, ray_actor_options={"num_cpus": 1}
        )
        return deployment.bind(AppArguments.model_validate_json(os.environ["BENCH_ARGS"]))
    if APP == "plain":

        @serve.deployment(**options)
        class Plain:
            def __init__(self) -> None:
                from model import Classifier

                self.classifier = Classifier()

            async def __call__(self, request: Any) -> Any:
                sent = await request.json()
                if "texts" in sent:
                    return {"results": [self.classifier.one(text) for text in sent["texts"]]}
                return self.classifier.one(sent["text"])

        return Plain.bind()
    size = int(APP.split(":")[1])

    @serve.deployment(**options)
    class Batched:
        def __init__(self) -> None:
            from model import Classifier

            self.classifier = Classifier()

        @serve.batch(max_batch_size=size, batch_wait_timeout_s=0.01)
        async def classify(self, texts: list[str]) -> list[dict[str, Any]]:
            return self.classifier.many(texts)

        async def __call__(self, request: Any) -> Any:
            import asyncio

            sent = await request.json()
            if "texts" in sent:
                return {"results": list(await asyncio.gather(*(self.classify(text) for text in sent["texts"])))}
            return await self.classify(sent["text"])

    return Batched.bind()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hb") as name:
        os.environ.update(environment(Path(name)))
        import ray
        from ray import serve

        ray.init(num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=str(Path(name) / "r"))
        serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": 120})
        serve.run(application(), route_prefix="/classify", name="bench")
        print("ready", flush=True)
        sys.stdin.read()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
