"""report.html: what a search did and what it is worth, on one self-contained page.

`page` gathers what is shown, `figures` draws it, `queries` shows those that gained and lost most. ``python -m
tuner.report`` is its door.

Uses: verdict, study, data, request, run_dir. Reads a run directory and never knows Ray or torch.
"""
