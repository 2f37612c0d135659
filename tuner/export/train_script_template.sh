#!/usr/bin/env bash
# Trains this model again with {{ called }} alone, into ./trained.
#
# It needs
#   - {% for package, version in packages.items() %}{{ package }} {{ version }}{{ ", " if not loop.last }}{% endfor %}: in the active environment, or of PYTHON=.venv/bin/python
#   - {{ step.workers }} worker{{ "s" if step.workers > 1 }}{{ ", on CPUs (on GPUs give --use_cpu False)" if on_cpus else (", one GPU each" if step.workers > 1 else ", on a GPU") }}
#   - the {{ rows }} training rows: {{ files | join(", ") | one_line }}
#     in data/train beside this script (`python -m tuner.export RUN_DIR --with_data --to DIR` puts them there), in the
#     run directory whose `best` this is, or in TRAIN_DATA=FOLDER; other rows: --train_data FILE...
{% if hub %}
#   - the base model {{ hub | one_line }}: from the Hugging Face Hub or its cache; a copy: --model_name_or_path FOLDER
{% endif %}
{% for name, model in folders.items() %}
#   - a copy of {{ model | one_line }}: {{ name | upper }}=FOLDER, or --{{ name }} FOLDER
{% endfor %}
{% for line in memory_note %}
#   {{ "- " if loop.first else "  " }}{{ line }}
{% endfor %}
# Flags given to this script win over those below: bash train.sh --output_dir elsewhere
# {{ step.workers }} worker{{ "s" if step.workers > 1 }}, {{ step }}.
# Another number of workers is another model: python -m tuner.export RUN_DIR --gpus N --to DIR keeps it the same.
{% if has_adapters %}
# FlagEmbedding has LoRA for decoder models only, and cannot train this one: the command below is the search's own, of
# FlagEmbedding's flags. What it saves has the adapters merged, and opens in FlagEmbedding as any other model.
{% endif %}
{% if alpha is not none %}
# The weights beside this script are base + {{ alpha | general }} * (trained - base); this trains what was mixed.
{% endif %}
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
needs=()
given() {
  local flag="$1" word
  shift
  for word in "$@"; do
    case "$word" in "$flag" | "$flag="*) return 0 ;; esac
  done
  return 1
}
"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("{{ package }}") is None)' ||
  needs+=("{{ called }}, which $python does not have: activate its environment, or PYTHON=.venv/bin/python")
data="${TRAIN_DATA:-}"
for folder in "$here/data/train" "$here/../data/train"; do
  if [ -z "$data" ] && [ -d "$folder" ]; then data="$folder"; fi
done
if ! given --train_data "$@"; then
  for file in {{ files | map("word") | join(" ") }}; do
    [ -e "$data/$file" ] || needs+=("the training rows $file: TRAIN_DATA=FOLDER that has them, or --train_data FILE...")
  done
fi
{% for name, model in folders.items() %}
[ -n "${{ '{' }}{{ name | upper }}:-}" ] || given --{{ name }} "$@" ||
  needs+=({{ ("a copy of " ~ model ~ ": " ~ name | upper ~ "=FOLDER, or --" ~ name ~ " FOLDER") | word }})
{% endfor %}
{% if tokens_note %}
given --model_name_or_path "$@" || given --unified_finetuning "$@" ||
  needs+=({{ tokens_note | word }})
{% endif %}
if [ -n "${needs[*]:-}" ]; then
  echo "train.sh needs" >&2
  printf '  - %s\n' "${needs[@]}" >&2
  exit 2
fi
exec "$python" -m torch.distributed.run --standalone --nproc_per_node {{ step.workers }} \
  -m {{ module }} \
{% for name, words in flags.items() %}
  --{{ name }} {{ words }} \
{% endfor %}
  --output_dir ./trained \
  "$@"
