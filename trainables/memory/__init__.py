"""What a training step takes on a device, and the fastest way to compute it there.

`shape` holds the sizes of a model and of its texts, `step` the bytes of a step, `plan` chooses how a step is computed,
`device` says how much of its GPU's memory this process has, `host_copies` takes a training's state to the host's memory
on its way to the disk.

Uses: config. Only `device` and `host_copies` need torch.
"""
