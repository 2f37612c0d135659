"""Training data and held-out sets: read, checked, split, hashed, and written where trials read them.

`rows` checks one row, `sources` opens every format, `findings` are what is wrong with it, `dataset` makes RUN/data,
`splits` holds out dev and test, `survey` reads large files, `beir` writes and reads BEIR folders, `inputs` and `models`
fetch what lies in buckets or on the hub, `guard_data` checks guards, `example` is the embedded example, `mining/` adds
negatives. `command_line` is ``python -m tuner.data check`` and ``mine``.

Uses: run_dir, errors. Knows nothing of Optuna, Ray or torch.
"""
