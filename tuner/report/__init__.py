"""report.html and live.html: what a search did and what it is worth, on one self-contained page.

`page` gathers what is shown, and `live` the same while the search runs: `findings` says the verdict, `advice` what to
try next, `about` what the search ran on, `queries` those that gained and lost most. `standings` are the trials, `scene`
their shared axes and colours, `figures` makes each picture, `drawing` writes it as SVG, `templates` fills in the page.
`command` is ``python -m tuner.report``.

Uses: verdict, study, data, request, run_dir. Reads a run directory and never knows Ray or torch.
"""
