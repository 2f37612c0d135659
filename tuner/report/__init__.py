"""report.html: what a search did and what it is worth, on one self-contained page.

`page` gathers what is shown: `findings` says the verdict, `advice` what to try next, `about` what the search ran on,
`queries` those that gained and lost most; `figures` draws a `scene` of `standings` through `drawing`,
which writes SVG. ``python -m tuner.report`` is its door.

Uses: verdict, study, data, request, run_dir. Reads a run directory and never knows Ray or torch.
"""
