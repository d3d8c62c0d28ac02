"""``report.html``: what a run was, on one page that needs nothing else."""
