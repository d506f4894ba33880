"""Maximum-likelihood training of TarFlows.

`config` says what is trained, `data` draws its batches, `likelihood` measures bits per dimension, `loop` trains, and
`release` writes what is kept: the weights, the model card, the samples. The loop's devices, precision and
distribution are those of accelerate.
"""
