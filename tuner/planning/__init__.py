"""From a request to a plan: everything that can be checked and reckoned before anything expensive starts.

`plan` puts data in their place and composes what every trial trains with, `limits`, `own_checks` and `adapters` say
what cannot be trained, `space` tries the search space out beforehand, `caches` are the folders that libraries write
to, `estimate` reckons memory, hours and money.

Uses: study, data, request, run_dir; trainables.memory.
"""
