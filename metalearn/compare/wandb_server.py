"""What W&B's server says before anything is sent: whose key it is, which projects there are."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from metalearn.registry import UserError, closest
from metalearn.unattended import no_questions

SECONDS = 20  # that a request may take
KEY = "publish: W&B wants a key: set WANDB_API_KEY or run `wandb login`"
NOTHING = "nothing was sent"


class Server:
    """W&B's public API with the user's key. Raises UserError: no key, a wrong one, no network."""

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"publish needs the package wandb ({error}): uv sync") from None
        _check_network(str(wandb.setup().settings.base_url))
        with _told(), no_questions():
            self._api: Any = wandb.Api(timeout=SECONDS)
            self._viewer: Any = self._api.viewer

    def entity(self, wanted: str) -> str:
        """The user or team that is written to; the key's own where none is wanted. Raises UserError."""
        with _told():
            own = str(self._api.default_entity or "")
            there = sorted({own, str(self._viewer.username), *map(str, self._viewer.teams)} - {"", "None"})
        if not wanted and own:
            return own
        if wanted not in there:
            raise UserError(
                f"publish: this key writes to no entity {wanted!r}; --entity is one of: "
                f"{', '.join(closest(wanted, there))}; {NOTHING}"
            )
        return wanted

    def check_project(self, entity: str, project: str, named: bool) -> None:
        """Raises UserError for a project that --project names and that does not exist.

        The one that runs name by themselves is made by their upload, as W&B does it.
        """
        if not named:
            return
        with _told():
            there = sorted(str(one.name) for one in self._api.projects(entity))
        if project not in there:
            raise UserError(
                f"publish: {entity} has no project {project!r}; it has: "
                f"{', '.join(closest(project, there)) or 'none'}; make it at W&B first, or leave out "
                f"--project for the one that the runs name; {NOTHING}"
            )

    def address(self, entity: str, project: str) -> str:
        """Of the project's page."""
        import wandb

        host = wandb.Settings(base_url=str(self._api.settings["base_url"])).app_url
        return f"{host.rstrip('/')}/{entity}/{project}"


def _check_network(server: str) -> None:
    """Raises UserError at once where no way leads to the server: W&B's own library tries for minutes."""
    address = urlsplit(server)
    if getproxies():
        return
    try:
        socket.create_connection((address.hostname or "", address.port or 443), SECONDS).close()
    except OSError as error:
        raise UserError(f"publish: W&B is out of reach at {server} ({error}); {NOTHING}") from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """W&B's errors, those of its requests and of its service, as one message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0].rstrip(". ")
        low = text.lower()
        if "api key" in low or "api_key" in low or "401" in low or "not logged in" in low:
            raise UserError(f"{KEY}; W&B says: {text}; {NOTHING}") from None
        raise UserError(f"publish: W&B is out of reach ({type(error).__name__}: {text}); {NOTHING}") from None
