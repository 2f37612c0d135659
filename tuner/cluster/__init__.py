"""Where trials run: Ray on this machine or on a cluster, its slots, and the workers in them.

`connection` starts or joins Ray, `slot` holds one trial's worker group, `executor` lets Ray Tune run the agenda's
jobs, `staging` brings a job's inputs to its machine, `autoscaling` says what machines there are and may come,
`orphans` gives back what a dead search held, `submit` sends a search as a Ray job, `spot` is AWS's notice before a machine is taken away.

Uses: schedule and all rooms below. With trainables.worker the only room that imports Ray.
"""
