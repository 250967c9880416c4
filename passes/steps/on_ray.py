"""Carries out graphs of work as tasks of a Ray cluster: the one that runs here, else one of this machine alone for as long as it is needed.

Workers share the folders of work and of models with this process (one machine, or a network file system). What makes results the same is
told to them: the folder they work in, threads, and the environment. A task whose worker was killed is tried again, elsewhere maybe, and
goes on where the steps' keys say that it ended.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import networkx as nx

from passes.errors import InputError, TightfitError
from passes.steps.executor import Ended, Executor, carried_out, order

#: How often a task is tried again after its worker died.
_RETRIES = 3
#: What of the environment decides what a worker computes with.
_HANDED_ON = ("TIGHTFIT_", "HF_", "OMP_", "MKL_", "OPENBLAS_", "TQDM_")
#: Seconds that a cluster has to let a connection in.
_ANSWER_SECONDS = 10.0
#: Bytes of the store that a cluster of this machine alone has for what tasks return, which are a few words each: the least that Ray takes.
_STORE_BYTES = 80 << 20


class WorkerLostError(TightfitError):
    """A piece of work whose workers died each time, or whose code failed."""

    exit_code = 4


@contextmanager
def on_ray(cards: int = 0) -> Iterator[Executor]:
    """Yield an executor on the cluster that runs here (RAY_ADDRESS, `ray start`), else on one of its own. `cards`: of a task."""
    import ray

    with redirect_stdout(
        sys.stderr
    ):  # Ray prints what happens to workers, some of it as it ends, and stdout is for results
        begun = not ray.is_initialized()
        if begun:
            _begin(ray)
        try:
            yield _Ray(cards)
        finally:
            if begun:
                ray.shutdown()


def _begin(ray: Any) -> None:
    """Connect to the cluster that is named or runs here, else begin one. Raises InputError for one that is named and does not let us in."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    named = os.environ.get("RAY_ADDRESS")
    try:
        _look(ray, named)
        ray.init(address="auto", **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if named:
            raise InputError(
                f"no Ray cluster can be used at {named} (RAY_ADDRESS): {_last_line(error)}",
                remedy="start it there (`ray start --head`), with the same RAY_AUTH_MODE as here and the Ray of this environment; or "
                "unset RAY_ADDRESS for a cluster of this machine alone",
            ) from None
        if not isinstance(error, ConnectionError):
            raise
        _begin_here(ray, quiet)


def _begin_here(ray: Any, quiet: Mapping[str, Any]) -> None:
    """Begin a cluster of this machine. Raises TightfitError where it does not come up, as on a machine that is too busy: Ray raises a bare
    Exception then.
    """
    try:
        ray.init(address="local", include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, RuntimeError | OSError | ray.exceptions.RayError):
            raise
        raise TightfitError(
            f"Ray does not start here: {_last_line(error)}",
            remedy="run the same command again when the machine is less busy: finished work is kept; or leave --executor ray out",
        ) from error


def _look(ray: Any, named: str | None) -> None:
    """Raise ConnectionError where nothing answers at the address of the cluster that would be used: one that was ended hard leaves its own
    behind (`ray_current_cluster`), and Ray tries that for a quarter of an hour.
    """
    if named and "://" in named:
        return  # its client has limits of its own
    address = ray._private.services.canonicalize_bootstrap_address("auto")
    if address is None:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers at {address}: {error}") from None


def _last_line(error: Exception) -> str:
    """The end of an error's text, which of several says most."""
    return next(iter(str(error).strip().splitlines()[::-1]), type(error).__name__)[:300]


class _Ray:
    """Every piece a task, as soon as what it needs has ended."""

    apart = True

    def __init__(self, cards: int) -> None:
        self._cards = cards

    def carry_out(self, graph: nx.DiGraph[str]) -> Iterator[Ended]:
        """Carry out what is ready side by side, as far as the cluster has processors and cards."""
        import ray

        task = ray.remote(_in_a_worker).options(
            max_retries=_RETRIES, num_cpus=1, num_gpus=self._cards, runtime_env={"env_vars": _environment()}
        )  # fmt: skip
        needs = {name: set(graph.predecessors(name)) for name in order(graph)}
        running: dict[Any, str] = {}
        while needs or running:
            for name in [name for name, waits in needs.items() if not waits]:
                del needs[name]
                running[task.remote(name, graph.nodes[name]["make"], Path.cwd())] = name
            finished, _ = ray.wait(list(running), num_returns=1)
            name = running.pop(finished[0])
            try:
                ended: Ended = ray.get(finished[0])
            except ray.exceptions.RayTaskError as error:  # a defect of ours, as it would be raised here
                raise error.cause or error from None
            except ray.exceptions.RayError as error:
                ended = Ended(name, error=_lost(name, error))
            if ended.error is not None:
                needs = {other: waits for other, waits in needs.items() if other not in nx.descendants(graph, name)}
            for waits in needs.values():
                waits.discard(name)
            yield ended


def _lost(name: str, error: Exception) -> WorkerLostError:
    return WorkerLostError(
        f"{name}: the worker was lost, {_RETRIES + 1} times: {_last_line(error)}",
        remedy="see Ray's logs (/tmp/ray/session_latest/logs): often memory ran out; what was finished is kept, so apply again",
    )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_HANDED_ON)}


def _in_a_worker(name: str, make: Any, folder: Path) -> Ended:
    os.chdir(folder)
    return carried_out(name, make)
