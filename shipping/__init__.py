"""Artifacts to and from a hub. Import the modules: the hub's own library is loaded when the first of them talks to one."""
