"""Results are values: they can be pickled, deep-copied, written as JSON and handed to a spawned worker."""

from __future__ import annotations

import copy
import inspect
import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_shm import errors
from pmm_shm.errors import ClosedError, PmmShmError
from pmm_shm_client import Cache, EventLog, connect
from tests.support.answers import everything
from tests.support.fork_daemon import ForkedDaemon
from tests.support.hazards import event

COPIES: tuple[Callable[[Any], Any], ...] = (
    copy.copy,
    copy.deepcopy,
    *(lambda value, number=number: pickle.loads(pickle.dumps(value, number)) for number in range(2, 6)),  # type: ignore[misc]
)
READS = ("identity", "commitments", "metrics", "stage", "recent", "history", "directives", "self_model")
FOLDS = ("self_model", "metrics", "stage", "directives", "recent", "history")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    """A cache beside a daemon, over a ledger in which every answer has something."""
    path = tmp_path_factory.mktemp("copies") / "agent.db"
    with EventLog(path) as log:
        log.append_many([event(number) for number in range(60)])
        log.append("commitment_open", "", {"cid": "a", "text": "call", "nested": {"list": [1, {"two": 2}]}})
        log.append("commitment_close", "", {"cid": "never opened"})
        log.append("user", "a red apple")
    with ForkedDaemon(path), connect(path) as opened:
        opened.wait_for(opened.metrics().as_of)
        yield opened


def results_of(cache: Cache) -> dict[str, Any]:
    found = {name: getattr(cache, name)() for name in READS}
    found |= {f"fold {name}": cache.fold(name) for name in FOLDS if name not in ("directives", "self_model")}
    found["open"], found["traits"] = cache.commitments().open, cache.identity().traits
    found["search"], found["recall"] = cache.search("apple"), cache.recall("apple", k=2)
    found["context"] = cache.context("apple", recall=3, messages=5)
    found["verify"], found["stats"] = cache.verify(), cache.stats()
    found["event"] = cache.recall("apple", k=1)[0].event
    return found


@pytest.mark.parametrize("made", range(len(COPIES)))
def test_every_result_can_be_copied_and_pickled(cache: Cache, made: int) -> None:
    for name, result in results_of(cache).items():
        again = COPIES[made](result)
        assert again == result, name
        assert str(again) == str(result) or isinstance(result, dict), name
        for attribute in ("as_of", "is_complete", "embedded_here", "model"):
            assert getattr(again, attribute, None) == getattr(result, attribute, None), name


@pytest.mark.parametrize("made", range(1, len(COPIES)))
def test_views_and_frames_can_be_copied_and_pickled(cache: Cache, made: int) -> None:
    """A copy of a frame answers as the frame does; whatever would need its cache says so."""
    frame = cache.frame()
    again = COPIES[made](frame)
    assert everything(again) == everything(frame)
    reported: list[dict[str, Any]] = []
    again.self_model(on_warn=reported.append)
    assert len(reported) == frame.fold("self_model").warning_count > 0
    with pytest.raises(ClosedError):
        again.self_model(strict=True, max_trait_delta=0.2)
    with pytest.raises(AttributeError):
        again.as_of = 0
    assert COPIES[made](cache.fold("directives")).rows() == cache.directives()
    assert COPIES[made](cache.fold("self_model")).open == cache.commitments().open
    assert np.array_equal(COPIES[made](cache.embed("apple")), cache.embed("apple"))


def test_mappings_in_results_stay_read_only_and_become_json(cache: Cache) -> None:
    for mapping in (cache.identity().traits, cache.commitments().open, cache.commitments().open["a"]):
        with pytest.raises(TypeError):
            mapping["openness"] = 1  # type: ignore[index]
        assert json.loads(json.dumps(mapping)) == mapping
    thawed = copy.deepcopy(cache.commitments().open)
    thawed["a"]["text"] = "mine"  # type: ignore[index]
    assert cache.commitments().open["a"]["text"] == "call"


def test_every_error_can_be_pickled() -> None:
    """A worker of a pool sends its errors back in this way."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, PmmShmError)]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind("identity") if kind is errors.ProjectionInvariantError else kind("agent.db: said so")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (kind, str(error))


def _strings(results: dict[str, Any]) -> dict[str, str]:
    return {name: str(result) for name, result in results.items()}


def test_results_go_to_a_spawned_worker_and_come_back(cache: Cache, tmp_path: Path) -> None:
    results = results_of(cache)
    del results["stats"]
    results["frame"] = cache.frame()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        said = pool.apply(_strings, (results,))
        back = pool.apply(copy.copy, (results,))
    frame, again = results.pop("frame"), back.pop("frame")
    assert everything(again) == everything(frame)
    assert back == results
    assert said["context"] == str(results["context"])


def test_a_cache_or_a_log_is_not_copied_and_the_error_says_what_to_pass(cache: Cache) -> None:
    """They belong to their process: a copy would share the connection, and close it."""
    with EventLog(cache.path) as log:
        for made in COPIES:
            with pytest.raises(TypeError, match="a Cache cannot be pickled or copied: pass its path"):
                made(cache)
            with pytest.raises(TypeError, match="an EventLog cannot be pickled or copied: pass its path"):
                made(log)
