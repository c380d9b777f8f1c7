"""Benchmarks of fastsmtp beside other servers: run `python -m benchmarks`; README.md tells more."""
