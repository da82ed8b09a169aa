"""heliostat plan: what a model takes, before anything is started."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliostat.cli import plan_offers
from heliostat.cli.plan_offers import PlanGroup
from heliostat.plan.workload import Dtype, Loss, Method, Optimizer, Precision, Recompute
from heliostat.show import print_json, print_progress, print_table

if TYPE_CHECKING:
    from heliostat.plan.catalogue import Offer
    from heliostat.plan.params import ModelShape
    from heliostat.plan.size import CardRow, Sizing
    from heliostat.plan.workload import Serving, Training
    from heliostat.store import Store

plan = typer.Typer(cls=PlanGroup, help="What fits where, what it costs, and what to ask for.", no_args_is_help=True)
plan.command("need")(plan_offers.plan_need)
plan.command("serve")(plan_offers.plan_serve)
plan.command("train")(plan_offers.plan_train)
plan.command("pack")(plan_offers.plan_pack)
plan.command("quota")(plan_offers.plan_quota)
plan.command("refresh")(plan_offers.plan_refresh)

SHARDS = {"fsdp": "zero3", "zero3": "zero3", "zero2": "zero2", "zero1": "zero1", "ddp": "ddp"}


@plan.command("size")
def plan_size(
    model: Annotated[
        str, typer.Argument(help="A size (7B), a folder or file of Hugging Face, or name@alias in the registry.")
    ],
    train: Annotated[Method | None, typer.Option(help="Size training by this method; serving if not given.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once; in training the micro batch of one GPU.")] = 1,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; of the frozen ones in LoRA.")] = None,
    kv_dtype: Annotated[Dtype | None, typer.Option("--kv-dtype", help="Serving: of the KV cache.")] = None,
    prefill: Annotated[int | None, typer.Option(min=1, help="Serving: tokens of a chunk; uncut if not given.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the model.")] = 1,
    shard: Annotated[str | None, typer.Option(help="Over the GPUs: tp, or in training fsdp, zero1..3, ddp.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Training: of the weights that learn.")] = None,
    optimizer: Annotated[Optimizer | None, typer.Option(help="Training: the optimizer.")] = None,
    recompute: Annotated[Recompute | None, typer.Option(help="Training: which activations are recomputed.")] = None,
    loss: Annotated[Loss | None, typer.Option(help="Training: how cross-entropy is computed.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Training: of LoRA.")] = None,
    on: Annotated[str | None, typer.Option("--on", help="One accelerator alone, such as L4.")] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Whose registry; the current one if not given.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """GPU memory of a model term by term, the accelerators and MIG slices that hold it, and their prices."""
    from heliostat.plan.catalogue import load
    from heliostat.plan.size import size

    training = {"precision": precision, "optimizer": optimizer, "recompute": recompute, "loss": loss, "rank": rank}
    serving = {"kv_dtype": kv_dtype, "prefill": prefill}
    _refuse_other_words(train, dtype, training, serving)
    common = {"context": context, "batch": batch, "dtype": dtype}
    workload = (
        make_training(train, gpus, shard, common | training) if train else make_serving(gpus, shard, common | serving)
    )
    shape = find_shape(model, cluster)
    if shape.max_context and context > shape.max_context:
        print_progress(
            f"warning: {shape.name} has positions for {shape.max_context} tokens, and {context} are asked for"
        )
    sizing = size(shape, workload, load(), on=on)
    today = dt.datetime.now(dt.UTC).date()
    if json:
        print_json(as_json(sizing, today))
    else:
        print_sizing(sizing, today)


def _refuse_other_words(
    train: Method | None, dtype: Dtype | None, training: dict[str, Any], serving: dict[str, Any]
) -> None:
    """Nothing that was asked for is left out in silence."""
    from heliostat.errors import UsageError

    def given(options: dict[str, Any]) -> str:
        return ", ".join(f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None)

    if train is None and given(training):
        raise UsageError(f"{given(training)} means training", do="add --train full, lora or qlora")
    if train is not None and given(serving):
        raise UsageError(f"{given(serving)} means serving", do="leave it out, or leave out --train")
    if train == "full" and (dtype or training["rank"]):
        raise UsageError("--dtype and --rank are of LoRA, and --train full freezes nothing", do="use --precision")
    if train in ("lora", "qlora") and training["precision"]:
        raise UsageError("--precision is of --train full: adapters learn in fp32", do="use --dtype for frozen weights")


def make_serving(gpus: int, shard: str | None, options: dict[str, Any]) -> Serving:
    """Tensor parallel over the GPUs; options that are None take the defaults."""
    from heliostat.errors import UsageError
    from heliostat.plan.workload import Serving

    if shard not in (None, "tp"):
        raise UsageError(f"--shard {shard} means training", do="serve with --shard tp, or add --train")
    return Serving(tensor=gpus, **_given(options))


def make_training(method: Method, gpus: int, shard: str | None, options: dict[str, Any]) -> Training:
    """FSDP over the GPUs where no other sharding is named."""
    from heliostat.errors import UsageError
    from heliostat.plan.workload import QUANTISED, Training

    frozen = options["dtype"] or ("nf4" if method == "qlora" else "bf16")
    if method != "full" and (method == "qlora") != (frozen in QUANTISED):
        raise UsageError(f"--train {method} with --dtype {frozen}", do="lora: bf16, fp16, fp32; qlora: nf4, int4, int8")
    if shard not in (None, "tp", *SHARDS):
        raise UsageError(f"--shard {shard} is not known", do=f"one of: tp, {', '.join(SHARDS)}")
    over: dict[str, Any] = {"tensor": gpus} if shard == "tp" else {"gpus": gpus}
    if shard != "tp" and (shard or gpus > 1):
        over["shard"] = SHARDS[shard or "fsdp"]
    return Training(method=method, **over, **_given(options | {"dtype": frozen}))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def find_shape(model: str, cluster: str | None) -> ModelShape:
    """Of a path, a registry reference or a size, in that order. Raises UsageError with what may be given."""
    from heliostat.errors import UsageError
    from heliostat.plan.params import read_shape, shape_of_size

    path = Path(model)
    if path.exists():
        return read_shape(path)
    if "@" in model or ":" in model:
        from heliostat.sdk import Platform

        return registered_shape(Platform.connect(cluster).store, model)
    try:
        return shape_of_size(model)
    except UsageError as error:
        raise UsageError(
            f"{model!r} is neither a file, nor a size, nor name@alias: {error.what}",
            do=error.do or "give 7B, ./folder, ./config.json, ./model.safetensors or name@production",
        ) from error


def registered_shape(store: Store, reference: str) -> ModelShape:
    """From the headers of the artifact's safetensors files: a few kilobytes of each are read."""
    from heliostat.errors import UsageError
    from heliostat.names import version_name
    from heliostat.plan.params import Header, fetch_header, merge_headers, shape_from_header
    from heliostat.registry import resolve

    artifact = resolve(store, reference)
    keys = [artifact.manifest.key(name) for name in artifact.manifest.files if name.endswith(".safetensors")]
    label = f"{artifact.name} {version_name(artifact.version)}"
    if not keys:
        raise UsageError(f"{label} has no safetensors file", do="give a size, or the folder the model came from")

    def header_of(key: str) -> Header:
        return fetch_header(lambda start, length: store.get_range(key, start, length), where=key)

    return shape_from_header(merge_headers(map(header_of, keys)), name=label)


# --- printing


_COLUMNS = (
    "accelerator", "sees", "", "left", "KV tokens", "MIG slice", "instance", "$/h", "spot $/h", "age", "to make it fit",
)  # fmt: skip


def print_sizing(sizing: Sizing, today: dt.date) -> None:
    """The terms, then the cards; warnings on stderr."""
    from heliostat.plan.params import human_params
    from heliostat.plan.size import wants_bf16
    from heliostat.units import human_bytes

    shape, need = sizing.shape, sizing.need
    about = f"{shape.name}, {human_params(shape.params)} parameters{'' if shape.exact else ' (as said)'}"
    rows: list[tuple[object, ...]] = [
        (t.name, human_bytes(t.bytes), f"{t.doubt:.0%}", t.formula, t.source) for t in need.terms
    ]
    rows.append(("total", human_bytes(need.total), human_bytes(need.doubt), f"at its peak, the {need.peak}", ""))
    print_table(("one GPU holds", "bytes", "+-", "formula", "source"), rows, title=f"{about}: {_words(sizing)}")
    _print_columns(_COLUMNS, [_card_cells(row, today) for row in sizing.cards])
    if wants_bf16(sizing.workload) and (without := [row.card.name for row in sizing.cards if row.card.lacks_bf16]):
        print_progress(f"warning: no bf16 on {', '.join(without)}: use fp16 there, which takes as much memory")
    _warn_of_prices([offer for row in sizing.cards for offer in (row.on_demand, row.spot) if offer], today)


def _print_columns(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Without the columns that are empty in every row."""
    used = [index for index in range(len(columns)) if any(row[index] is not None for row in rows)]
    print_table([columns[index] for index in used], [[row[index] for index in used] for row in rows])


def _warn_of_prices(offers: list[Offer], today: dt.date) -> None:
    from heliostat.plan.catalogue import STALE_DAYS

    stale = sum(offer.price.is_stale(today) for offer in offers)
    if stale:
        print_progress(f"warning: {stale} of {len(offers)} prices are older than {STALE_DAYS} days (!): check them")
    if any(offer.price.verdict == "doubtful" for offer in offers):
        print_progress("warning: prices with ~ are doubtful; --json tells why")


def _words(sizing: Sizing) -> str:
    from heliostat.plan.workload import Serving

    w = sizing.workload
    if isinstance(w, Serving):
        over = f", tensor parallel over {w.tensor}" if w.tensor > 1 else ""
        return f"serving in {w.dtype}, {w.batch} x {w.context} tokens{over}"
    over = f", {w.shard} over {w.gpus}" if w.gpus > 1 else f", tensor parallel over {w.tensor}" if w.tensor > 1 else ""
    frozen = f" on {w.dtype}" if w.method != "full" else f" in {w.precision} precision"
    return f"training ({w.method}{frozen}, {w.optimizer}), {w.batch} x {w.context} tokens{over}"


def _card_cells(row: CardRow, today: dt.date) -> tuple[object, ...]:
    from heliostat.units import human_bytes

    best = row.smallest_slice
    offer = row.on_demand or row.spot
    return (
        row.card.name,
        f"{row.card.usable_gib:g} GiB",
        row.fit.answer,
        human_bytes(row.fit.margin),
        f"{row.kv_tokens:,}" if row.kv_tokens is not None else None,
        best.profile.profile if best else None,
        _machines(offer) if offer else None,
        _dollars(row.on_demand),
        _dollars(row.spot, beside=row.on_demand),
        _age(offer, today) if offer else None,
        row.change.what if row.change else None,
    )


def _machines(offer: Offer) -> str:
    return f"{offer.instances} x {offer.instance.name}" if offer.instances > 1 else offer.instance.name


def _age(offer: Offer, today: dt.date) -> str:
    price = offer.price
    at_most = "" if price.date.count("-") == 2 else "<="
    return f"{at_most}{price.age_days(today)} d{' !' if price.is_stale(today) else ''}"


def _dollars(offer: Offer | None, *, beside: Offer | None = None) -> str | None:
    """The price of all machines an hour; with their name where it is not the one that stands beside."""
    if offer is None:
        return None
    name = "" if beside is None or beside.instance == offer.instance else f" {_machines(offer)}"
    return f"{'~' if offer.price.verdict == 'doubtful' else ''}{offer.usd_per_hour:.2f}{name}"


def as_json(sizing: Sizing, today: dt.date) -> dict[str, Any]:  # Any: JSON
    """What the tables show, with bytes and sources."""
    from heliostat.plan.size import gpus_of

    need = sizing.need
    return {
        "model": sizing.shape,
        "workload": sizing.workload,
        "gpus": gpus_of(sizing.workload),
        "per_gpu": {"terms": need.terms, "total": need.total, "doubt": need.doubt, "peak": need.peak},
        "accelerators": [_card_json(row, today) for row in sizing.cards],
    }


def _card_json(row: CardRow, today: dt.date) -> dict[str, Any]:  # Any: JSON
    return {
        "accelerator": row.card.name,
        "memory": row.card.usable_bytes,
        "lacks_bf16": row.card.lacks_bf16,
        "answer": row.fit.answer,
        "margin": row.fit.margin,
        "kv_tokens": row.kv_tokens,
        "mig_slices": [
            {
                "profile": part.profile.profile,
                "memory": part.fit.memory,
                "answer": part.fit.answer,
                "margin": part.fit.margin,
                "kv_tokens": part.kv_tokens,
            }
            for part in row.slices
        ],
        "on_demand": _offer_json(row.on_demand, today),
        "spot": _offer_json(row.spot, today),
        "change": row.change and {"what": row.change.what, "costs": row.change.costs, "need": row.change.need.total},
    }


def _offer_json(offer: Offer | None, today: dt.date) -> dict[str, Any] | None:  # Any: JSON
    if offer is None:
        return None
    price = offer.price
    return {
        "cloud": price.cloud,
        "instance": price.instance,
        "instances": offer.instances,
        "region": price.region,
        "usd_per_hour": float(offer.usd_per_hour),
        "source": price.source,
        "date": price.date,
        "age_days": price.age_days(today),
        "stale": price.is_stale(today),
        "verdict": price.verdict,
        "reason": price.reason,
    }
