"""Results as others take them: `json`, FastAPI, Flask, pandas and pydantic, with field names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from pmm_shm_client import Cache, Commitments, EventLog, Identity, Metrics, Recent, Stage, Stats, connect
from pmm_shm_client.results import History
from tests.support.fork_daemon import ForkedDaemon
from tests.support.hazards import event

READS = {
    "identity": Identity,
    "commitments": Commitments,
    "metrics": Metrics,
    "stage": Stage,
    "recent": Recent,
    "history": History,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    """A cache beside a daemon, over a ledger in which every answer has something."""
    path = tmp_path_factory.mktemp("frameworks") / "agent.db"
    with EventLog(path) as log:
        log.append_many([event(number) for number in range(60)])
        log.append("commitment_open", "", {"cid": "a", "text": "call", "nested": {"list": [1, {"two": 2}]}})
        log.append("autonomy_tick", "", {"telemetry": {"IAS": 0.5, "GAS": 0.25}, "stage": "S1"})
        log.append("user", "a red apple")
    with ForkedDaemon(path), connect(path) as opened:
        opened.wait_for(opened.metrics().as_of)
        yield opened


def results_of(cache: Cache) -> dict[str, Any]:
    found = {name: getattr(cache, name)() for name in READS}
    found |= {"frame": cache.frame(), "context": cache.context("apple", recall=2), "verify": cache.verify()}
    found |= {"search": cache.search("apple"), "recall": cache.recall("apple"), "event": cache.events(limit=1)[0]}
    found |= {"hit": found["search"][0], "recollection": found["recall"][0], "point": cache.history().points[0]}
    found |= {"entry": cache.recent().messages[0], "telemetry": cache.recent().telemetry}
    return found


def is_plain(value: Any) -> bool:
    """Whether this is what JSON knows, and nothing more, down to the leaves."""
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if type(value) is list else value is None or type(value) in (str, int, float, bool)


def test_every_result_has_its_fields_by_name(cache: Cache) -> None:
    for name, result in results_of(cache).items():
        fields = result.to_dict()
        assert is_plain(fields), name
        assert json.loads(result.to_json()) == fields == json.loads(json.dumps(fields)), name
        assert set(getattr(result, "_fields", fields)) == set(fields), name
    assert cache.metrics().to_dict() == cache.metrics()._asdict()
    assert cache.commitments().to_dict()["open"]["a"]["nested"] == {"list": [1, {"two": 2}]}
    assert cache.recent().to_dict()["messages"][-1] == cache.recent().messages[-1]._asdict()
    hits = cache.recall("apple", k=1)
    assert hits.to_dict() == {
        "hits": [{"event_id": hits[0].event_id, "similarity": hits[0].similarity, "event": hits[0].event}],
        "as_of": hits.as_of,
        "is_complete": True,
        "embedded_here": 0,
        "indexed_here": 0,
        "model": "local-bow",
        "mode": "meaning",
        "problem": None,
    }


def check_keys(numbers: Any, shape: Any, path: str = "stats") -> None:
    """`numbers` has the keys of the TypedDict `shape`, and so have those within it."""
    hints = get_type_hints(shape)
    assert shape.__required_keys__ <= set(numbers) <= set(hints), path
    for name, value in numbers.items():
        own = next((one for one in (hints[name], *get_args(hints[name])) if is_typeddict(one)), None)
        if own is not None and value is not None:
            origin = get_origin(hints[name])
            for one in value.values() if origin is dict else value if origin is list else [value]:
                check_keys(one, own, f"{path}.{name}")


def test_the_stats_have_the_keys_of_their_type(cache: Cache) -> None:
    cache.search("apple")
    stats = cache.stats()
    assert stats["daemon"] is not None
    assert stats["daemon"]["embeddings"]["tables"]
    check_keys(stats, Stats)


def test_a_dict_is_the_callers_own(cache: Cache) -> None:
    cache.commitments().to_dict()["open"]["a"]["nested"]["list"].append(2)
    cache.frame().to_dict()["commitments"]["open"]["a"]["text"] = "changed"
    assert cache.commitments().open["a"] == {"cid": "a", "text": "call", "nested": {"list": [1, {"two": 2}]}}  # type: ignore[typeddict-item]


def test_a_frame_has_all_answers_of_one_position(cache: Cache) -> None:
    frame = cache.frame()
    fields = frame.to_dict()
    assert {name: fields[name]["as_of"] for name in READS} == dict.fromkeys(READS, frame.as_of)
    assert fields["as_of"] == frame.as_of
    assert fields["self_model"] == cache.self_model()
    assert (fields["directives"], fields["active_directives"]) == (cache.directives(), cache.active_directives())


def test_json_knows_no_infinity(tmp_path: Path) -> None:
    with connect(tmp_path / "agent.db", create=True) as cache:
        cache.append("commitment_open", "", {"cid": "a", "text": [math.nan, {"x": -math.inf}, 1.5]})
        assert json.loads(cache.commitments().to_json())["open"]["a"]["text"] == [None, {"x": None}, 1.5]
        assert math.isnan(cache.commitments().to_dict()["open"]["a"]["text"][0])


def test_reprs_are_short_and_say_where_they_stand(cache: Cache) -> None:
    frame, hits = cache.frame(), cache.search("apple")
    assert repr(frame) == f"<Frame as_of={frame.as_of}>"
    assert repr(hits) == f"<Hits of local-bow: {len(hits)}, best 63 (0.746), as_of={hits.as_of}>"
    assert repr(cache) == f"<Cache {cache.path}, exact>"
    with EventLog(cache.path) as log:
        assert repr(log) == f"<EventLog {cache.path}>"
    other = connect(cache.path, consistency="snapshot")
    assert repr(other).endswith("snapshot>")
    other.close()
    assert repr(other).endswith("closed>")


def test_fastapi_answers_with_field_names_and_describes_them(cache: Cache) -> None:
    fastapi = pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    app = fastapi.FastAPI()
    for name, kind in READS.items():
        app.get(f"/{name}", response_model=kind)(getattr(cache, name))
    # As its users write it: the annotation is the model.
    exec(
        "@app.get('/events')\ndef events() -> list[Event]:\n    return cache.events(limit=2)\n"
        "@app.get('/recall')\ndef recall() -> list[Recollection]:\n    return cache.recall('apple', k=1)\n"
        "@app.get('/frame')\ndef frame() -> dict:\n    return cache.frame().to_dict()\n",
        {"app": app, "cache": cache, **_names()},
    )
    with TestClient(app) as client:
        for name in READS:
            answer = client.get(f"/{name}")
            assert (answer.status_code, answer.json()) == (200, getattr(cache, name)().to_dict()), name
        assert client.get("/events").json() == [one.to_dict() for one in cache.events(limit=2)]
        assert client.get("/recall").json() == [one.to_dict() for one in cache.recall("apple", k=1)]
        assert client.get("/frame").json() == cache.frame().to_dict()
        described = client.get("/openapi.json").json()
    schema = described["paths"]["/metrics"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert schema["type"] == "object"
    assert {name: part["type"] for name, part in schema["properties"].items()} == {
        "ias": "number",
        "gas": "number",
        "as_of": "integer",
    }


def _names() -> dict[str, Any]:
    from pmm_shm_client import Event, Recollection

    return {"Event": Event, "Recollection": Recollection}


def test_pydantic_reads_back_what_it_wrote(cache: Cache) -> None:
    pydantic = pytest.importorskip("pydantic")
    for name, kind in READS.items():
        adapter = pydantic.TypeAdapter(kind)
        result = getattr(cache, name)()
        assert adapter.validate_python(result) is result
        again = adapter.validate_json(adapter.dump_json(result))
        assert (type(again), again) == (kind, result), name
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(Metrics).validate_python({"ias": 0.5})


def test_flask_answers_with_field_names(cache: Cache) -> None:
    flask = pytest.importorskip("flask")
    app = flask.Flask("agent")
    for name in ("frame", *READS):
        app.get(f"/{name}", endpoint=name)(lambda name=name: flask.jsonify(getattr(cache, name)().to_dict()))
    app.get("/model")(lambda: flask.jsonify(cache.self_model()))
    client = app.test_client()
    for name in ("frame", *READS):
        assert client.get(f"/{name}").get_json() == getattr(cache, name)().to_dict(), name
    assert client.get("/model").get_json() == cache.self_model()


def test_pandas_takes_rows_with_field_names(cache: Cache) -> None:
    pandas = pytest.importorskip("pandas")
    events = pandas.DataFrame(cache.events())
    assert list(events.columns) == ["id", "ts", "kind", "content", "meta"]
    assert list(events.id) == [one.id for one in cache.events()]
    hits = pandas.DataFrame(cache.search("apple", k=3))
    assert list(hits.columns) == ["event_id", "similarity"]
    assert hits.similarity.dtype == float
    assert list(pandas.DataFrame(cache.history().points).columns)[:2] == ["first_id", "last_id"]
    assert list(pandas.DataFrame(cache.recent().messages).kind) == [one.kind for one in cache.recent().messages]
    commitments = pandas.DataFrame.from_dict(cache.commitments().open, orient="index")
    assert commitments.loc["a", "text"] == "call"
    directives = pandas.DataFrame(cache.directives())
    assert len(directives) == len(cache.directives())
