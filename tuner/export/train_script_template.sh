#!/usr/bin/env bash
# Trains this model again with FlagEmbedding alone, into ./trained. Flags given to this script win over those below:
#   bash train.sh --train_data other.jsonl --output_dir elsewhere
# {{ step.workers }} worker(s), {{ step }}.
# Another number of workers is another model: python -m tuner.export RUN_DIR --gpus N --to DIR keeps it the same.
{% if on_cpus %}
# Trained on CPUs, where workers find each other only with --use_cpu True; on GPUs give --use_cpu False.
{% endif %}
{% for line in memory_note %}
# {{ line }}
{% endfor %}
{% if alpha is not none %}
# The weights beside this script are base + {{ alpha | general }} * (trained - base); this trains what was mixed.
{% endif %}
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
"$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("FlagEmbedding") is None)' || {
  echo "$python does not have FlagEmbedding: activate its environment, or name its python: PYTHON=.venv/bin/python" >&2
  exit 2
}
{% if tokens_note %}
case " $* " in
  *" --model_name_or_path "* | *" --unified_finetuning "*) ;;
  *) echo {{ tokens_note | word }} >&2; exit 2 ;;
esac
{% endif %}
{% for name, model in absent.items() %}
{{ name | upper }}=${{ '{' }}{{ name | upper }}:?{{ ("must name a folder with a copy of " ~ model) | word }}}
{% endfor %}
exec "$python" -m torch.distributed.run --standalone --nproc_per_node {{ step.workers }} \
  -m {{ module }} \
{% for name, words in flags.items() %}
  --{{ name }} {{ words }} \
{% endfor %}
  --output_dir ./trained \
  "$@"
