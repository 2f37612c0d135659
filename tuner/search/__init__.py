"""The command: every room composed into one search, from the request to the last line.

`run` is the way from the command line to a plan, `driver` the way from there to the verdict, both in one `session`.
`place` is where a search goes, `progress` says what goes on in the terminal and `live` on a page, `provenance` writes
down where it ran, `conclusion` ends it, `dashboard_note` tells optuna-dashboard. ``python -m tuner.search`` is its
door.

Uses: every room of tuner.
"""
