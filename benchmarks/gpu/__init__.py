"""The sections of `python -m benchmarks.gpu_suite` and what runs, keeps and reports them."""
