"""What runs next: which trial, which finalist, what is scored, within time and disk.

`agenda` asks the stages for jobs and gives their results back to them: `search_stage` for what `suggestions` asks the
study for, `retraining_stage` for the finalists, `scoring_stages` for guards and test. `jobs` holds the running jobs and
their rows of the progress table, `retries` tries a failed job again and waits for storage that cannot be reached,
`weights` says which checkpoints stay, `time_budget`, `time_left` and `disk` when to wait and when to end, `pool` what
rungs are scored on.

Uses: verdict, study, data, request, run_dir. Knows no Ray: `tuner.cluster` executes.
"""
