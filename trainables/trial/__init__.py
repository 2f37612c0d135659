"""One trial from its configuration to its scores, on any machine, without Ray.

`trial` is its face (`run_trial`), `training` trains, `rungs` scores and reports on the way, `judging` scores without
training, `states` saves what a training goes on from, `records` what was reported, `reporting` serves experiment
trackers, `probe` times a few steps.

Uses: m3, scoring, process, config, files.
"""
