"""One process around one engine. `python -m jupyter_dsserve.worker` reads its `WorkerLaunch` from stdin."""
