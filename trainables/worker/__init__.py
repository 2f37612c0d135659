"""A slot's worker group: processes that outlive trials, fed through a mailbox.

`loop` is what runs on every worker.

Uses: trial and all below; with tuner.cluster the only room that imports Ray.
"""
