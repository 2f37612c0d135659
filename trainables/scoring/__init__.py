"""Retrieval scores of a model on a held-out set, at rungs by our scorer and at the end by mteb.

`metric` names scores and says what `--metric` means, `measures` computes measures per query and their mean, `heldout`
reads a BEIR folder, `corpus` keeps its token ids and `pool` the part that rungs are scored on, `settings` is how texts
are encoded and which arguments decide that, `encoding` embeds texts, `frozen` keeps what does not change, `ranking`
finds the nearest passages, `scorer` scores all heads, `mteb_judge` scores with mteb, `checkpoint` loads a model folder
for either.

Uses: memory, process, config, files, linear.
"""
