"""A configuration without a fault, and edits of it."""

GOOD = """\
model:
  name: small_resnet
  options: {num_classes: 10, in_channels: 1}
data:
  name: digits
  batch_size: 32
optimizer:
  name: SGD
  options: {lr: 0.05}
lr_schedule: {name: OneCycleLR, interval: step, options: {max_lr: 0.1}}
training:
  epochs: 1
  device: cpu
evolution:
  schedule: {name: every, options: {epochs: 1}}
  policy: {name: round_robin}
  operators:
    - {name: residual, sites: [stage2], options: {init: zero}}
    - name: deepen
  limits: {params: 300000}
output:
  dir: RUN
plugins: []
"""


def edit(old, new):
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)
