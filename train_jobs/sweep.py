"""Search for good numbers of a recipe: Ray Tune with ASHA, each trial a training of its own on the spot group.

    heliostat job submit sweep -- --trials 8
    python -m train_jobs.sweep --recipe v1 --epochs 4 --trials 8 --at-once 2        (inside a cluster)

A trial is a run like any other, `<sweep>-<trial>`: it survives reclaims by its own checkpoints. ASHA ends those whose
smoothed loss lags behind at the same step. The best finished one by held-out macro-F1 becomes the output of the sweep's
own run, so that it is published as any model is. The same run name again goes on with the sweep where it stood.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import uuid
from typing import Any

from heliostat.commit import commit
from heliostat.errors import HeliostatError, JobFailed, ObjectExists
from heliostat.settings import Settings, load
from heliostat.store import Store
from heliostat.train.context import OUTPUT_META
from heliostat.train.job import RUN, TrainedModel, run, trained_model
from heliostat.train.ray_train import filesystem
from train_jobs import intent_classifier
from train_jobs.intent_classifier import Config

SCORE = "macro_f1"
SMOOTHING = 0.9


def space() -> dict[str, Any]:
    """What is drawn for each trial: fields of the recipe."""
    from ray import tune

    return {
        "encoder_rate": tune.loguniform(2e-5, 1e-3),
        "head_rate": tune.loguniform(5e-4, 1e-2),
        "layer_decay": tune.choice([0.7, 0.85, 1.0]),
    }


def trial(drawn: dict[str, Any], config: Config, sweep: str, every: int) -> None:
    """One trial, in an actor of its own: drives the training's workers, and reports to Tune what they say."""
    from ray import tune

    recipe = dataclasses.replace(config.recipe, **drawn)
    smooth: float | None = None
    last = 0.0

    def report(progress: dict[str, float]) -> None:
        nonlocal smooth, last
        if progress["step"] == last:
            return
        last = progress["step"]
        smooth = progress["loss"] if smooth is None else SMOOTHING * smooth + (1 - SMOOTHING) * progress["loss"]
        tune.report({"loss": smooth, "step": int(last)})

    trained = run(
        intent_classifier.train,
        dataclasses.replace(config, recipe=recipe),
        name="sweep",
        workers=1,
        checkpoint_every=every,
        run_name=trial_run(sweep, tune.get_context().get_trial_id()),
        on_progress=report,
    )
    tune.report({"loss": smooth or 0.0, "step": int(last) + 1, SCORE: trained.metrics[SCORE]})


def trial_run(sweep: str, trial_id: str) -> str:
    return f"{sweep}-{trial_id.replace('_', '-')}"


def search(config: Config, options: argparse.Namespace, sweep: str, settings: Settings) -> list[dict[str, Any]]:
    """Run the trials, or those that are left of an interrupted sweep. Returns a row for each."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    steps = options.steps
    trainable = tune.with_resources(
        tune.with_parameters(trial, config=config, sweep=sweep, every=options.checkpoint_every),
        # Beside the driver: a trial's own actor must not take the CPU of a node that its worker needs.
        tune.PlacementGroupFactory([{"CPU": 0.01}], bundle_label_selector=[{"heliostat.io/role": "head"}]),
    )
    place = f"{settings.store.bucket}/runs/{sweep}/tune"
    files = filesystem(settings.store)
    if tune.Tuner.can_restore(f"{place}/{sweep}", storage_filesystem=files):
        tuner = tune.Tuner.restore(
            f"{place}/{sweep}",
            trainable=trainable,
            storage_filesystem=files,
            resume_unfinished=True,
            resume_errored=True,
            param_space=space(),
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space(),
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=options.trials,
                max_concurrent_trials=options.at_once,
                scheduler=ASHAScheduler(
                    time_attr="step", max_t=10**9, grace_period=max(1, steps // 4), reduction_factor=2
                ),
            ),
            run_config=tune.RunConfig(
                name=sweep,
                storage_path=place,
                storage_filesystem=files,
                failure_config=tune.FailureConfig(max_failures=3),
                verbose=1,
            ),
        )
    return [
        {
            "run": trial_run(sweep, (result.metrics or {}).get("trial_id", "")),
            "score": (result.metrics or {}).get(SCORE),
            "steps": (result.metrics or {}).get("step"),
            "drawn": result.config,
            "error": str(result.error) if result.error else None,
        }
        for result in tuner.fit()
    ]


def hand_in(store: Store, sweep: str, rows: list[dict[str, Any]]) -> TrainedModel:
    """Make the best finished trial's output that of the sweep's run. Raises JobFailed where none has finished."""
    finished = [row for row in rows if row["score"] is not None]
    if not finished:
        raise JobFailed("no trial has finished", where=f"run {sweep}", do="read the job's log above")
    best = max(finished, key=lambda row: float(row["score"]))
    trained = trained_model(store, best["run"])
    if trained is None:
        raise JobFailed(f"trial {best['run']} left no output", where=f"run {sweep}", do="submit the same run again")
    lineage = {**trained.lineage, "sweep": {"run": best["run"], "trials": rows}}
    about = {"run": sweep, "metrics": trained.metrics, "lineage": lineage}
    folder = f"runs/{sweep}/output"
    files = {**trained.read(store), OUTPUT_META: json.dumps(about).encode()}
    with contextlib.suppress(ObjectExists):  # of this sweep, from before its driver was killed
        commit(store, folder, files, manifest_key=f"{folder}/manifest.json", attempt=uuid.uuid4().hex[:12])
    made = trained_model(store, sweep)
    if made is None:
        raise JobFailed("the sweep's output is gone", where=f"run {sweep}", do="submit the same run again")
    return made


def parse(arguments: list[str]) -> tuple[Config, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m train_jobs.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=2, help="trials that train at the same time, a node each")
    parser.add_argument("--steps", type=int, default=60, help="about the length of a trial: ASHA's first cut is at 1/4")
    options, rest = parser.parse_known_args(arguments)
    config, inner = intent_classifier.parse(rest)
    options.checkpoint_every = inner.checkpoint_every
    return config, options


def main(arguments: list[str]) -> int:
    import ray

    try:
        config, options = parse(arguments)
        settings = load()
        store = Store.connect(settings.store)
        sweep = os.environ.get(RUN) or f"sweep-{uuid.uuid4().hex[:8]}"
        made = trained_model(store, sweep)
        if made is None:
            if not ray.is_initialized():
                ray.init(logging_level="warning")
            training, test = intent_classifier.load_data(config)
            config = dataclasses.replace(config, data=(tuple(training), tuple(test)))
            rows = search(config, options, sweep, settings)
            for row in rows:
                print(json.dumps(row))
            made = hand_in(store, sweep, rows)
    except (HeliostatError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"run": made.run, "metrics": made.metrics}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
