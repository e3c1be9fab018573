"""The kernels in Triton.

`operators` holds what `fastsep.ops` calls, `launch` how the work is shared, `tiles` and `tuning`
which tile a kernel uses, `shared` what the kernels share, `load`, `forward` and `backward` the
kernels.
Only `fastsep.kernels` imports this, at the first call on a GPU: Triton takes long to import.
"""
