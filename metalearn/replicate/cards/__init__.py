"""Cards of replications, the published rows that they are held against, and what comes of it."""
