"""Scanners: programs of others that look for vulnerabilities in what was pulled, run behind."""
