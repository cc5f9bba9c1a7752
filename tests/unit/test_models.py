"""`model()`: the self-model, read-only at every depth, without a copy."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from typing import Any

import pytest

from pmm_shm import limits
from pmm_shm.folds.self_model import SelfModelFold
from pmm_shm.folds.state import State
from pmm_shm.frozen import thawed
from pmm_shm.ledger.rows import Event
from pmm_shm_client import Cache, connect


def opened(cid: Any, text: Any = "t", **meta: Any) -> tuple[str, str, dict[str, Any]]:
    return "commitment_open", "", {"cid": cid, "text": text, **meta}


def assert_as_self_model(source: Any) -> None:
    model, plain = source.model(), source.self_model()
    assert model.name == plain["identity"]["name"]
    assert list(model.traits.items()) == list(plain["identity"]["traits"].items())
    assert list(model.open.items()) == list(plain["commitments"]["open"].items())
    assert list(model.expired.items()) == list(plain["commitments"]["expired"].items())
    assert json.dumps(model.open) == json.dumps(plain["commitments"]["open"])


def test_a_model_is_the_self_model(cache: Cache) -> None:
    assert_as_self_model(cache)
    cache.append_many(
        [
            opened("a", ["deep", {"x": [1, {"y": None}]}], source="user"),
            opened(7),
            opened("b"),
            ("commitment_expire", "", {"cid": "b"}),
            ("identity_adopt", "Ada", {}),
            ("trait_update", "", {"trait": "openness", "delta": 0.2}),
        ]
    )
    model = cache.model()
    assert_as_self_model(cache)
    assert_as_self_model(cache.frame())
    assert (model.name, model.as_of, list(model.open), list(model.expired)) == ("Ada", 6, ["a", 7], ["b"])
    assert (model.traits["openness"], model.strict_traits["openness"]) == (0.7, 0.55)
    assert cache.model() is model
    assert cache.frame().model() == model


def test_nothing_of_a_model_can_be_changed(cache: Cache) -> None:
    cache.append_many([opened("a", {"x": [1]}), opened("b"), ("commitment_expire", "", {"cid": "b"})])
    model: Any = cache.model()
    before = thawed(model.open)
    for change in (
        lambda: model.open.clear(),
        lambda: model.open.__setitem__("c", {}),
        lambda: model.open["a"].update(text=""),
        lambda: model.open["a"]["text"].pop("x"),
        lambda: model.open["a"]["text"]["x"].append(2),
        lambda: model.expired["b"].setdefault("x", 1),
        lambda: model.traits.update(openness=1.0),
        lambda: model.strict_traits.popitem(),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    for attribute in ("name", "as_of", "open", "_view"):
        with pytest.raises(AttributeError):
            setattr(model, attribute, None)
    assert model.open == before
    plain = copy.deepcopy(model.open)
    plain["a"]["text"]["x"].append(2)
    assert cache.model().open == before


def test_a_model_elsewhere(cache: Cache) -> None:
    cache.append_many([opened("a", {"x": [1]}), ("identity_adopt", "Ada", {})])
    cache.model()
    cache.append(*opened("b"))
    model = cache.model()
    assert json.loads(model.to_json()) == model.to_dict()
    assert list(model.to_dict()) == ["name", "traits", "strict_traits", "open", "expired", "as_of"]
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other == model
    assert repr(model) == "<Model 'Ada', 2 open, as_of=3>"
    assert model != cache.identity()


def test_models_of_earlier_reads_stay_as_they_were(cache: Cache) -> None:
    wanted: list[Any] = []
    for n in range(40):
        cache.append(*opened(f"c{n % 15}", f"text {n}"))
        if n % 3 == 0:
            cache.append("commitment_close", "", {"cid": f"c{n % 7}"})
        if n % 5 == 0:
            cache.append("commitment_expire", "", {"cid": f"c{n % 4}"})
        wanted.append((cache.model(), cache.self_model()["commitments"]))
    # The newest ones first: the others' changes are still only noted.
    for model, commitments in wanted[::-1]:
        assert json.dumps([model.open, model.expired]) == json.dumps([commitments["open"], commitments["expired"]])


def patched_and_whole(steps: int) -> tuple[Any, Any]:
    """Views after many patches that nobody has looked at, and the view made of the state at once."""
    fold, state = SelfModelFold(), State()
    view = fold.view(state)
    for n in range(1, steps + 1):
        kind = ("commitment_open", "commitment_open", "commitment_close", "commitment_expire")[n % 4]
        fold.apply(Event(n, "", kind, "", {"cid": f"c{n * 7 % 50}", "text": f"t{n}"}), state)
        view = fold.patch(view, state, state.take_touched())
    return view, fold.view(state)


@pytest.mark.parametrize("steps", [1, 50, limits.TOUCHED_KEYS_MAX * 3])
def test_many_patches_that_nobody_has_looked_at(steps: int) -> None:
    patched, whole = patched_and_whole(steps)
    # Nothing of earlier patches is kept for ever.
    count, entries = 0, patched.open_entries
    while (entries := entries._before) is not None:
        count += 1
    assert 0 < count <= limits.TOUCHED_KEYS_MAX + 1
    assert list(patched.open.items()) == list(whole.open.items())
    assert list(patched.expired.items()) == list(whole.expired.items())
    assert patched.open_entries._before is None


def test_threads_look_at_patches_at_the_same_time() -> None:
    for _ in range(20):
        patched, whole = patched_and_whole(60)
        chain = [patched.open_entries]
        while (before := chain[-1]._before) is not None:
            chain.append(before)
        wrong: list[Any] = []

        def look(entries: list[Any], wrong: list[Any] = wrong) -> None:
            try:
                for one in entries:
                    len(one.mapping)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=look, args=(order,)) for order in (chain, chain[::-1], chain[::2])]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert wrong == []
        assert list(patched.open.items()) == list(whole.open.items())


def test_a_model_costs_no_copy(ledger: str) -> None:
    with connect(ledger) as cache:
        cache.append_many([opened(f"c{n}") for n in range(500)])
        cache.model()
        before = cache.model().open
        cache.append("identity_adopt", "Ada", {})
        assert cache.model().name == "Ada"
        assert cache.model().open is before is cache.commitments().open
