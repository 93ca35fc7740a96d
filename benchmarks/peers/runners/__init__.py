"""What runs inside the environments of peers, which have no Engine: started as modules, with this package's folder on PYTHONPATH."""
