"""What bench/compare, bench/growth and bench/run-k6 share. Python's standard library only."""
