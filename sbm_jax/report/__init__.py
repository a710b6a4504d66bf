"""The report: one offline HTML page with a cortex viewer, and static figures. Takes plain arrays; no jax here."""
