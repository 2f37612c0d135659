"""What runs next: which trial, which finalist, what is scored, within time and disk.

`agenda` hands out jobs and takes in what became of them, `stages` follows the search with finalists, guards and test,
`jobs` is a row of the table, `retries` tries a failed job again, `time_budget`, `disk` and `outage` say when to wait
and when to end.

Uses: verdict, study, data, request, run_dir. Knows no Ray: `tuner.cluster` executes.
"""
