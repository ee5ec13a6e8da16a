"""The command line. Knows settings and the application; of the cache nothing."""

from __future__ import annotations

import click

from mirror import __version__
from mirror.cli.configure import configure
from mirror.cli.doctor import doctor
from mirror.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mirror")
def main() -> None:
    """A pull-through caching mirror for container images."""


main.add_command(serve)
main.add_command(configure)
main.add_command(doctor)
