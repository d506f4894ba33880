"""Training of flows: one loop over targets, one release.

`config` says what is trained and for how long, a target of `targets` what is minimised and how it is judged, `loop`
trains, and `release` writes what is kept: the weights, the model card, the samples. The loop's devices, precision and
distribution are those of accelerate. `features` trains the small networks that FID compares by.
"""
