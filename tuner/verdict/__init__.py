"""Whether fine-tuning helped: who won, by how much, and how sure that is.

`statistics` holds bootstrap, permutation and pooled deviations, `selection` chooses the winner on dev and guards,
`result` judges it on test and makes result.json, `time_spent` adds up where the time went.

Uses: study, data, request, run_dir. Reads a run directory and never knows Ray or torch.
"""
