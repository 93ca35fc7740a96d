"""Loads an artifact and runs it. Import the modules: this package itself loads nothing, torch least of all."""
