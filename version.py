"""The version of Engine: what `engine --version` prints and every manifest records."""

__version__ = "0.1.0"
