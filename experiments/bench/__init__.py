"""Parts of the benchmark of solvers: targets whose score is known, other libraries' solvers, and the report."""
