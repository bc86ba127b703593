"""One portion of the namespace `space`: there is no `space/__init__.py`."""
