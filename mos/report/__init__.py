"""From run folders to the paper's tables, claims, plots and report."""
