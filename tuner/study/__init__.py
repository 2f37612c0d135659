"""The Optuna study: the one source of truth about trials, rung scores, states and constraints.

`study` asks and tells, `samplers` decides what is tried and what is stopped, `storage` opens where a study is kept,
`patience` waits for a storage that is away, `trials` names the attributes of a trial, `guards` reads what was scored
on guards.

Uses: request, data, run_dir, and search_spaces. Knows nothing of Ray or torch.
"""
