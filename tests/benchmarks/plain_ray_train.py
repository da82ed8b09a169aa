"""The intent job as one writes it with Ray Train alone: the other side of recovery.py.

Nothing of Heliostat's is at work but the model, the data, the recipe's step and a spool file that notes when each step
was completed.

    python plain_ray_train.py RUN TOTAL-STEPS CHECKPOINT-EVERY        (inside a cluster)
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch.nn.parallel import DistributedDataParallel


def train(config: dict[str, Any]) -> None:
    from heliostat.events import Spool
    from heliostat.inference.encoder import IntentClassifier, load_pretrained, load_tokenizer, pretrained_folder
    from heliostat.settings import load
    from train_jobs import intent_classifier, intents
    from train_jobs import recipe as pieces

    settings, recipe = load(), pieces.V1
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    attempt = uuid.uuid4().hex[:12]
    spool = Spool(settings.spool, f"plain-{config['run']}-{rank}-{attempt}")
    node = ray.get_runtime_context().get_node_id()
    spool.emit("worker_started", run=config["run"], rank=rank, attempt=attempt, node=node)

    torch.manual_seed(0)
    training = config["training"]
    labels = intents.labels(training)
    targets = [labels.index(example.label) for example in training]
    tokens = load_tokenizer(pretrained_folder())([example.text for example in training])
    encoder = load_pretrained(pretrained_folder(), dropout=recipe.dropout)
    model = IntentClassifier(encoder, classes=len(labels), dropout=recipe.dropout)
    optimizer = pieces.make_optimizer(model, recipe)
    done = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            done = state["step"]
    model.train()
    # prepare_model looks at Ray's resources, where the GPUs of a laptop are only declared.
    parallel = prepare_model(model) if torch.cuda.is_available() else DistributedDataParallel(model)
    if rank == 0:
        spool.emit("train_resumed" if done else "train_started", run=config["run"], attempt=attempt, step=done)

    step = 0
    for epoch in itertools.count():
        for batch in pieces.batches(targets, recipe, seed=0, epoch=epoch):
            step += 1
            if step <= done:
                continue
            if step > config["total"]:
                return
            share = batch[rank::world] or batch[:1]
            pieces.set_rate(optimizer, pieces.learning_rate(step - 1, config["total"], recipe))
            loss = intent_classifier._step(
                parallel, optimizer, [tokens[i] for i in share], [targets[i] for i in share], recipe, 1.0
            )
            if rank == 0:
                spool.emit("step", run=config["run"], attempt=attempt, step=step, total=config["total"], loss=loss)
            if step % config["every"] == 0:
                with tempfile.TemporaryDirectory() as folder:
                    saved = None
                    if rank == 0:
                        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                        torch.save(state, Path(folder) / "state.pt")
                        saved = Checkpoint.from_directory(folder)
                    ray.train.report({"loss": loss}, checkpoint=saved)


def filesystem(settings: Any) -> Any:
    from pyarrow.fs import S3FileSystem

    scheme, _, host = settings.store.endpoint.partition("://")
    return S3FileSystem(
        region=settings.store.region,
        access_key=settings.store.access_key_id,
        secret_key=settings.store.secret_access_key.get_secret_value(),
        endpoint_override=host,
        scheme=scheme,
    )


def main(run: str, total: int, every: int) -> None:
    from heliostat.settings import load
    from train_jobs import intents

    settings = load()
    training, _ = intents.split(intents.sample(per_intent=120, seed=0), seed=0)
    TorchTrainer(
        train,
        train_loop_config={"run": run, "total": total, "every": every, "training": training},
        scaling_config=ScalingConfig(
            num_workers=2,
            use_gpu=True,
            resources_per_worker={"GPU": 1, "CPU": 1},
            placement_strategy="SPREAD",
            label_selector={"heliostat.io/group": "train"},
        ),
        torch_config=TorchConfig(backend="gloo" if os.environ.get("HELIOSTAT_LOGICAL_GPUS") == "1" else "nccl"),
        run_config=RunConfig(
            name=run,
            storage_path=f"{settings.store.bucket}/plain",
            storage_filesystem=filesystem(settings),
            # The one setting that is not the default: with it, a lost node would end the run.
            failure_config=FailureConfig(max_failures=-1),
        ),
    ).fit()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
