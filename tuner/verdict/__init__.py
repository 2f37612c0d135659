"""Whether fine-tuning helped: who won, by how much, and how sure that is.

`statistics` holds bootstrap, permutation and pooled deviations, `encoding` tells what a space varies that is no
training, `selection` chooses the winner on dev and guards, `judge` compares it on test with the base model encoded
alike, `decision` says the verdict and why, `result` is what result.json holds, `time_spent` adds up where the time
went.

Uses: study, data, request, run_dir. Reads a run directory and never knows Ray or torch.
"""
