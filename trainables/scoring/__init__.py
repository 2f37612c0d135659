"""Retrieval scores of a model on a held-out set, at rungs by our scorer and at the end by mteb.

`metric` names scores and says what `--metric` means, `measures` adds up queries, `heldout` reads a BEIR folder,
`settings` is how texts are encoded and which arguments decide that, `encoding` embeds texts, `ranking` finds the
nearest passages, `scorer` scores all heads, `mteb_judge` lets mteb judge, `libraries` opens a bundle as its users do,
`mining` finds passages near to training queries.

Uses: process, config, files, linear.
"""
