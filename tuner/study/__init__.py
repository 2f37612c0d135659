"""The Optuna study: the one source of truth about trials, rung scores, states and constraints.

`study` hands trials out, `telling` records how they ended, `samplers` and `priors` decide what is tried, `pruners` and
`stopping` when to stop, as `strategy` says. `claim` records what the search is about and compares it on resume,
`storage` opens the study and waits for a database that does not answer, `trials` names the attributes of a trial,
`guards` reads what was scored on guards, `lessons` what earlier searches have found.

Uses: request, data, run_dir, and search_spaces. Knows nothing of Ray or torch.
"""
