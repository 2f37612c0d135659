"""Where trials run: Ray on this machine or on a cluster, its slots, and the workers in them.

`connection` starts or joins Ray, in a `private_folder` and by a `process_group` of the search's own, `slot` holds one
trial's worker group, `executor` lets Ray Tune run the agenda's jobs, `staging` brings a job's inputs to its machine,
`in_use` frees that machine's disk again, `machines` looks at those there are, `autoscaling` says which may come,
`orphans` frees GPUs that a dead search still held, `submit` sends a search as a Ray job, `spot` hears that AWS will
take a machine away.

Uses: schedule and all rooms below. Only this room and trainables.worker import Ray.
"""
