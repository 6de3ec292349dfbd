"""The registry's schema, step by step: each file in ``versions/`` brings a database from one state to the next.

A file that has landed never changes. To change a table: change it in `fleet/registry.py`, add a file here whose
``down_revision`` is the last one's, and `tests/fleet/test_migrations.py` says whether both agree.
"""
