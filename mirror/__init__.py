"""A pull-through caching mirror for container images.

The way of a request, left to right, each folder knowing only the one to its right::

    client --HTTP--> api --> cache --> upstream --HTTP--> registry / CDN
"""

__version__ = "0.2.0"
