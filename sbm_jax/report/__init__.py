"""The report: one offline HTML page with a cortex viewer, and static figures. Plain arrays in; no jax."""
