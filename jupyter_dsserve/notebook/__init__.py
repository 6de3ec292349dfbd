"""In the kernel: `Client`, the ``%dsserve`` magics, figures and panels."""
