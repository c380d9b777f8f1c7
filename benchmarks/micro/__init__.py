"""Micro benchmarks of the compiled core, without sockets: `pytest benchmarks/micro`."""
