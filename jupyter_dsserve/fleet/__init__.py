"""Who runs and who gets the traffic. Never imports engine or worker: it launches `python -m jupyter_dsserve.worker`."""
