"""What a training step takes on a device, and the fastest way to compute it there.

`shape` holds the sizes of a model and of its texts, `step` the bytes of a step, `plan` chooses how a step is computed,
`device` says how much of its GPU's memory this process has.

Uses: config. Only `device` needs torch.
"""
