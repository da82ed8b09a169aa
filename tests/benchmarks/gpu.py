"""What only a GPU can show: the parts of this benchmark, each beside what one would write without Heliostat.

    python tests/benchmarks/gpu.py encoder     the packed encoder beside padding, and beside transformers in fp32
    python tests/benchmarks/gpu.py vram        the estimate of plan/vram.py beside what the card says
    python tests/benchmarks/gpu.py generate    continuous batching beside transformers' generate
    python tests/benchmarks/gpu.py load        a model from the S3 server into the card's memory
    python tests/benchmarks/gpu.py train       checkpoints of state on the card, resumed runs, FSDP2 on NCCL
    python tests/benchmarks/gpu.py texts FILE  token lists for `encoder`, for a machine without the recipes' packages

Each prints tables and then one line of JSON. `--device cpu --tiny` goes the same way at tiny sizes, to find mistakes
where there is no GPU; its figures mean nothing. docs/gpu.md holds the figures of one H100.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/ is a folder, not an installed package

PARTS = ("encoder", "vram", "generate", "load", "train")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "texts"), nargs="+", help="one or more, run one after another")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes that a laptop runs in seconds")
    parser.add_argument("--tokens", type=Path, help="what `texts` writes and `encoder` reads instead of drawing texts")
    parser.add_argument("--weights", type=Path, help="folder of the encoder; the one of its package if not given")
    parser.add_argument("--before", type=Path, help="an older encoder.py, to be timed beside the one that is here")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way of loading runs")
    parser.add_argument("--size-mib", type=int, default=4096, help="of the model that is loaded")
    parser.add_argument("--only", default="", help="cases of `vram` and `train` whose name holds this")
    parser.add_argument("--held-out", action="store_true", help="of `vram`: the cases no formula was corrected on")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    options = parser.parse_args()
    if options.part == ["texts"]:
        return write_texts(options)
    if options.device == "cuda" and not has_cuda():
        parser.error("this machine has no CUDA device; --device cpu --tiny finds mistakes, and measures nothing")
    warnings.simplefilter("ignore")  # transformers renames much; its words would drown the tables
    failed = 0
    for part in options.part:
        try:
            found = importlib.import_module(f"tests.benchmarks.gpu_{part}").run(options)
        except Exception:  # noqa: BLE001  # the parts share one machine's time: one that fails must not cost the others
            traceback.print_exc()
            failed += 1
            continue
        tell({"benchmark": f"gpu {part}", **about(options), **found}, options, part)
    return 1 if failed else 0


def write_texts(options: argparse.Namespace) -> int:
    from heliostat.inference.encoder import load_tokenizer, pretrained_folder
    from tests.benchmarks.packed_equals_padded import draw

    tokens = load_tokenizer(pretrained_folder())(draw(8000, 0))
    options.tokens.write_text(json.dumps(tokens, separators=(",", ":")))
    return 0


def has_cuda() -> bool:
    """Without making a CUDA context in this process, whose children are to begin without one."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    return torch.cuda.is_available()


def about(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    found = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count(), "card": "none"}
    if options.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["card"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return found


def tell(found: dict[str, Any], options: argparse.Namespace, part: str) -> None:
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{part}.json").write_text(json.dumps(found, indent=1))
    print(json.dumps({key: value for key, value in found.items() if key != "cases"}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
