"""A whole search of the user's line, on a model of bge-m3's size: does it run on a card, in what time and memory?

The model has random weights, and a row's query is words of its positive, so that the scores say nothing about BGE-M3.
Flags that this program does not know go to ``python -m tuner.search``; a share of a card stands for a smaller one. The
last line is one JSON object: the search's seconds, by what they went to, and its verdict.

    python benchmarks/gpu_search.py FOLDER --bf16 True --gpus_per_trial 0.17 --num_trials 5
    python benchmarks/gpu_search.py FOLDER --fp16 True --deepspeed ds_stage0.json --num_trials 3
    python benchmarks/gpu_search.py FOLDER --tiny --num_trials 3      # on a CPU: does it run?
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import SHORT, Bench, random_rows

USERS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "temperature": 0.02,
    "train_group_size": 8,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "unified_finetuning": True,
    "use_self_distill": True,
    "normalize_embeddings": True,
}
"""What a user's line has, of FlagEmbedding's arguments."""
ROWS = 400


def main() -> None:
    """Writes model and rows, searches, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for model, rows and run directory")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--tiny", action="store_true", help="a model that a CPU trains in moments")
    asked, flags = parser.parse_known_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, tiny=asked.tiny)
    size = bench.sizes["large"]
    data, run_dir = folder / "dataset.jsonl", folder / "run"
    data.write_text("".join(random_rows(asked.rows, SHORT // 15 if asked.tiny else SHORT)))
    given = USERS | {
        "model_name_or_path": bench.model("large", 0.1),
        "train_data": data,
        "query_max_len": size.query_max_len,
        "passage_max_len": size.passage_max_len,
        "run_dir": run_dir,
    }
    line = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "tuner.search", *line, *flags], check=True, stdout=sys.stderr)
    result = json.loads((run_dir / "result.json").read_text())
    print(json.dumps({"seconds": result["seconds"], "trials": result["trials"], "verdict": result["verdict"]}))


if __name__ == "__main__":
    main()
