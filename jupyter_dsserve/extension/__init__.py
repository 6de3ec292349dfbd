"""In the Jupyter server: starts, watches and stops the gateway, and forwards ``/dsserve/*`` to it."""
