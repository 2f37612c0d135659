"""A slot's worker group: processes that outlive trials; jobs come to them as messages.

`loop` is what runs on every worker.

Uses: trial and all below. Only this room and tuner.cluster import Ray.
"""
