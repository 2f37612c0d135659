"""Whether fine-tuning helped: who won, by how much, and how sure that is.

`statistics` holds bootstrap, permutation and pooled deviations, `encoding` finds settings that change how texts are
encoded and not the weights, `selection` chooses the winner on dev and guards, `judge` compares it on test with the base
model under the same encoding settings, `decision` is the rule, `result` is what result.json holds, `range_ends` finds
winning values at the end of their range, `advice` decides what to try next, `time_spent` adds up where the time went.

Uses: study, data, request, run_dir. Reads a run directory and never knows Ray or torch.
"""
