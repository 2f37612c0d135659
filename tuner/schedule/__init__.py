"""What runs next: which trial, which finalist, what is scored, within time and disk.

`agenda` hands out jobs and takes in what became of them, each from and to its stage: `search_stage` for what
`suggestions` asks the study for, `retraining_stage` for the finalists, `scoring_stages` for guards and test. `jobs` is
what runs and a row of the table, `retries` tries a failed job again and waits for storage that is away,
`weights` says which checkpoints stay, `time_budget`, `time_left` and `disk` when to wait and when to end, `pool` what
rungs are scored on.

Uses: verdict, study, data, request, run_dir. Knows no Ray: `tuner.cluster` executes.
"""
