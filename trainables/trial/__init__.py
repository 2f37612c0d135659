"""One trial from its configuration to its scores, on any machine, without Ray.

`trial` is its entry point (`run_trial`), `planning` chooses how steps are computed, `training` trains, `rungs` scores
and reports during training, `judging` scores without training, `states` is what is saved so that training can
continue and `saving` when, `records` what was reported and is due, `reporting` serves experiment trackers, `probe`
times a few steps.

Uses: m3, scoring, memory, process, config, files.
"""
