"""What the benchmarked servers run: other servers' scripts, and handlers for fastsmtp."""
