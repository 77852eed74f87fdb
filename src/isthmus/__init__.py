"""Fit PyTorch networks onto several devices joined by narrow links.

The package reads in the order in which the data flows:

* ``graph``     what is computed: capture a model, cost its nodes, find its cuts
* ``platform``  on what: devices and links, from a YAML file
* ``models``    the networks that are known by name, and how to load your own
* ``data``      data sets as plain arrays
* ``plan``      which device computes what, and what crosses each link
* ``wire``      what a codec is in bytes: packing and frames, numpy only
* ``links``     how tensors cross: the differentiable halves of each codec
* ``split``     the model as separable stages joined by codecs
* ``train``     fit the base model and the crossings
* ``backends``  what runs a stage's program: onnxruntime, openvino, torch
* ``bundle``    the exported plan on disk
* ``export``    write a bundle and verify it
* ``run``       execute a bundle, one process per device
* ``study``     the whole chain, once or many times
* ``report``    one self-contained page
* ``cli``       the command line

Import from the stage: ``from isthmus.plan import partition``.
"""

__version__ = "0.1.0"
