"""The command ``python -m tuner.search``: it connects all rooms, from the request to the last line.

`run` is the way from the command line to a plan, `driver` the way from there to the verdict, both in one `session`.
`place` is where a search goes, `progress` says what goes on in the terminal, in the words of `wording`, and `live` on a
page, `provenance` writes down where it ran, `conclusion` ends it with the `next_steps`, `terminal` prints,
`dashboard_note` tells optuna-dashboard.

Uses: every room of tuner.
"""
