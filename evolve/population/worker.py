"""What runs in a worker: the evaluator of a search space, orders in, answers out."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import ValidationError

from evolve.errors import EvolveError, NoRoomError, UnknownNameError, described
from evolve.plugins import import_callable, import_from, is_import_path, load_plugins
from evolve.population.blobs import BlobFolder
from evolve.population.jobs import Blobs, Evaluator, Json, Setup
from evolve.population.space import Space, spaces

logger = logging.getLogger(__name__)

_HOMES = {"networks": "evolve.population.networks:Networks"}  # imported where asked for: it needs torch, others may not
_LOOK = 1.0  # seconds between two looks for the parent process, should its end of the pipe be held by another one


def create_evaluator(setup: Setup) -> Evaluator:
    """Returns the evaluator of a search space, in the process that is to use it.

    The plugins of the configuration are imported before, and modules are also looked for in its folder.

    Raises:
        EvolveError: If there is no such space, or it refuses its options or the configuration.
    """
    if folder := setup.config.get("import_from"):
        import_from(Path(folder))
    load_plugins(setup.config.get("plugins", ()))
    space = build_space(setup.space["name"], setup.space.get("options", {}))
    try:
        evaluator = space.evaluator(setup)
    except EvolveError:
        raise
    except Exception as error:  # of anybody's code
        logger.debug("A search space without an evaluator", exc_info=True)
        raise EvolveError(f"The search space '{setup.space['name']}' has no evaluator: {described(error)}") from error
    torch = sys.modules.get("torch")  # a space that does without is not made to import it
    if torch is not None and setup.threads is not None:
        torch.set_num_threads(setup.threads)
    return evaluator


def build_space(name: str, options: Json) -> Space:
    """Returns a search space.

    Raises:
        EvolveError: If there is none of this name, or it cannot be made with these options.
    """
    cls = find_space(name)
    try:
        return cls(**options)
    except ValidationError as error:
        raise EvolveError(f"The search space '{name}' refuses its options {options}: {error}") from error
    except EvolveError:
        raise
    except Exception as error:  # of anybody's code
        logger.debug("A search space that cannot be made", exc_info=True)
        raise EvolveError(f"The search space '{name}' cannot be made with {options}: {described(error)}") from error


def find_space(name: str, trusted: bool = True) -> type[Space]:
    """Returns the class of a search space.

    Args:
        name: A registered name, or an import path `package.module:Class`.
        trusted: Whether an import path comes from the user; one that is found in a run folder may be anybody's.

    Raises:
        UnknownNameError: If there is none.
    """
    if name in _HOMES:
        return _space(_HOMES[name])
    return _space(name, trusted) if is_import_path(name) else spaces.get(name)


def respond(evaluator: Evaluator, blobs: Blobs, message: bytes) -> bytes:
    """Returns the answer to an order; an error of the evaluator becomes one, and is told in full by the log.

    Where nothing can be written the child is not to blame: the answer says that the search cannot go on.

    Args:
        evaluator: Who does it.
        blobs: Where weights lie.
        message: Method and order, as `encode` writes them.
    """
    method, order = json.loads(message)
    try:
        return encode(evaluator.make(order, blobs) if method == "make" else evaluator.train(order, blobs))
    except NoRoomError as error:
        return encode({"stuck": str(error)})
    except EvolveError as error:  # says what there is to say
        logger.warning("Individual %s: %s", order.get("individual"), error)
        return encode({"error": str(error)})
    except (Exception, SystemExit) as error:  # whatever a child's code raises is the end of that child alone
        logger.exception("Individual %s: an error where it was to %s", order.get("individual"), method)
        return encode({"error": described(error)})


def encode(value: Json | list[object]) -> bytes:
    """Returns a JSON value as it crosses a process border."""
    return json.dumps(value).encode()


def refusal(error: Exception) -> Json:
    """Returns what a worker says that cannot begin."""
    return {"refused": str(error) if isinstance(error, EvolveError) else described(error)}


def serve(descriptor: int, parent: int) -> None:
    """Runs a worker process: answers what comes through a pipe, and ends with its driver, whatever it is doing.

    Args:
        descriptor: The end of a socket pair.
        parent: The driver's process id.
    """
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages, parent), daemon=True).start()
    first = json.loads(messages.get())
    logging.basicConfig(level=first["level"], format=f"worker {first['worker']}: %(message)s")
    try:
        evaluator = create_evaluator(Setup(**first["setup"]))
    except Exception as error:  # of anybody's code; the driver tells it
        logger.debug("A worker that cannot begin", exc_info=True)
        connection.send_bytes(encode(refusal(error)))
        return
    connection.send_bytes(encode({"ready": True}))
    blobs = BlobFolder(Path(first["blobs"]))
    with suppress(OSError):  # the driver is gone
        while True:
            connection.send_bytes(respond(evaluator, blobs, messages.get()))
    _end()


def end_with(parent: int) -> None:
    """Ends this process, whatever it is doing, once it is no longer the child of that one; for a thread."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    _end()


def _listen(connection: Connection, messages: queue.SimpleQueue[bytes], parent: int) -> None:
    with suppress(EOFError, OSError):
        while os.getppid() == parent:
            if connection.poll(_LOOK):
                messages.put(connection.recv_bytes())
    _end()


def _end() -> None:
    with suppress(OSError):
        os.killpg(os.getpid(), signal.SIGKILL)  # with the processes that load its data
    os._exit(1)


def _space(path: str, trusted: bool = True) -> type[Space]:
    found = import_callable(path, spaces.kind, trusted)
    if not (isinstance(found, type) and issubclass(found, Space)):
        raise UnknownNameError(f"'{path}' is no search space: it has to be a class that inherits from Space.")
    if open_ends := sorted(getattr(found, "__abstractmethods__", ())):
        raise UnknownNameError(f"'{path}' is no search space yet: it lacks {', '.join(open_ends)}.")
    return found
