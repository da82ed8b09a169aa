"""The version of this package, for what must tell it without importing the rest."""

VERSION = "0.1.0"
