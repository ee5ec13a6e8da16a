"""The catalog: what is known about the content, for pulls and for people."""
