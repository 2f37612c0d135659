"""The Optuna study: the one source of truth about trials, rung scores, states and constraints.

`study` hands trials out, `telling` takes in what became of them, `samplers` and `priors` decide what is tried,
`pruners` and `stopping` when to stop, as `strategy` says. `claim` holds what a search is over, `storage` opens where a
study is kept and waits for one that is away, `trials` names the attributes of a trial, `guards` reads what was scored
on guards, `lessons` what earlier searches have found.

Uses: request, data, run_dir, and search_spaces. Knows nothing of Ray or torch.
"""
