"""From a request to a plan: everything that can be checked and estimated before anything expensive starts.

`plan` writes the data into the run directory and composes what every trial trains with, `limits`, `own_checks` and
`adapters` find what cannot be trained, `gpus` what is not there, `conventions` what the model was made for otherwise,
`space` tests the search space, `caches` are the folders that libraries write to, `probe` times the first steps,
`estimate` says memory, hours and money.

Uses: study, data, request, run_dir; trainables.memory.
"""
