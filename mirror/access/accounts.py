"""Users and tokens that a mirror of a fleet tells the others of: the hashes that are kept of them, never a password or a token."""

from __future__ import annotations

import logging
from pathlib import Path

from mirror.access.tokens import kept_token, parse_kept, read_tokens, remove_token, take_token
from mirror.access.users import read_users, remove_user, set_hash
from mirror.fleet_documents import Change, Outcome

log = logging.getLogger(__name__)


class Accounts:
    """The users and tokens of one mirror. All methods block."""

    def __init__(self, users_file: Path, tokens: Path) -> None:
        """`tokens` is the folder of tokens."""
        self.users_file = users_file
        self.tokens = tokens

    def users(self) -> dict[str, str]:
        """Returns what is kept of each user. Raises OSError."""
        return {name: hashed.decode() for name, hashed in read_users(self.users_file).hashes.items()}

    def token_names(self) -> list[str]:
        """Returns the tokens. Raises OSError."""
        return sorted(token.name for token in read_tokens(self.tokens).by_digest.values())

    def kept_of_token(self, name: str) -> str | None:
        """Returns what is kept of a token; None if there is none of that name. Raises OSError."""
        return kept_token(self.tokens, name)

    def take(self, change: Change, name: str) -> Outcome:
        """Makes a change of `ACCOUNT_ACTIONS` that another mirror tells of."""
        try:
            outcome = self._take(change, name)
        except ValueError as error:
            return Outcome(name, str(error))
        except OSError as error:
            where = f"the file of users {self.users_file}" if change.action.endswith("user") else f"the folder {self.tokens}"
            return Outcome(name, f"{where} cannot be changed by the mirror there: {error.strerror or error}")
        if not outcome.fault:
            log.info("%s %s: by %s", change.action, name, change.who)
        return outcome

    def _take(self, change: Change, name: str) -> Outcome:
        """Raises OSError, ValueError."""
        kind = change.action.rpartition("-")[2]
        match change.action:
            case "set-user":
                done = set_hash(self.users_file, name, change.kept, replaces=change.force)
            case "set-token":
                token = parse_kept(name, change.kept)
                if token.user is not None and token.user not in read_users(self.users_file):
                    return Outcome(
                        name, f"there is no user {token.user}, whose token it is: mirror user send {token.user} adds it"
                    )
                done = take_token(self.tokens, token, replaces=change.force)
            case "remove-user":
                return Outcome(name) if remove_user(self.users_file, name) else _absent(kind, name)
            case _:
                return Outcome(name) if remove_token(self.tokens, name) else _absent(kind, name)
        if done:
            return Outcome(name)
        return Outcome(name, f"there is another {kind} {name}: mirror {kind} send {name} replaces it")


def _absent(kind: str, name: str) -> Outcome:
    return Outcome(name, f"there is no {kind} {name}", absent=True)
