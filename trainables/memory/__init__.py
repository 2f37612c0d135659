"""What a training step takes on a device, and the fastest way to compute it there.

`shape` is the sizes of a model and of its texts, `step` the bytes of a step, `plan` the way chosen by them, `device`
what there is of this process's card.

Uses: config. Only `device` needs torch.
"""
