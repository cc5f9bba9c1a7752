"""Random events of PMM for Hypothesis: (kind, content, meta), with the metas that its functions look at."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

texts = st.sampled_from(
    [
        "write the report",
        "Write  the REPORT",
        "plan launch",
        "writing reports now",
        "",
        " ",
        "x y",
        "名前 を",
        "alpha budget",
    ]
)
cids = st.sampled_from(["a", "b", "c", "7", "None", "", 7, 0, None])
odd_cids = st.sampled_from([1.5, True, "a", 7])
projects = st.sampled_from(["p", "q", "", 5, None, "alpha-budget"])
_json = st.sampled_from([None, "", 0, 3, "3", "x", [], {}, True, 2.5, "done"])


def _commitment(cids: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, str, dict[str, Any]]]:
    return st.one_of(
        st.tuples(
            st.just("commitment_open"),
            texts,
            st.fixed_dictionaries(
                {"cid": cids},
                optional={
                    "text": st.one_of(texts, st.none(), st.just(5)),
                    "project_id": projects,
                    "reason": st.sampled_from(["reflection", "x", None]),
                },
            ),
        ),
        st.tuples(
            st.sampled_from(["commitment_close", "commitment_expire"]),
            st.just(""),
            st.fixed_dictionaries({}, optional={"cid": cids, "source": st.sampled_from(["reflection", "x"])}),
        ),
        st.tuples(
            st.just("commitment_snooze"),
            st.just(""),
            st.fixed_dictionaries({"cid": cids}, optional={"until_tick": _json}),
        ),
        st.tuples(
            st.just("evidence_candidate"),
            st.just(""),
            st.fixed_dictionaries({"cid": cids, "snippet": st.one_of(texts, st.just(5))}),
        ),
        st.tuples(
            st.just("project_assign"),
            st.just(""),
            st.fixed_dictionaries({}, optional={"cid": cids, "project_id": projects}),
        ),
    )


_other = st.one_of(
    st.just(("autonomy_tick", "", {})),
    st.just(("autonomy_tick", "", {})),
    st.tuples(
        st.sampled_from(["project_open", "project_close"]),
        st.just(""),
        st.fixed_dictionaries({"project_id": projects}),
    ),
    st.tuples(
        st.just("policy_update"),
        st.just(""),
        st.dictionaries(
            st.sampled_from(["src_id", "source_event_id"]), st.sampled_from([1, 2, "3", 4, None, 0, "x", 9])
        ),
    ),
    st.tuples(
        st.just("stage_update"),
        st.just(""),
        st.dictionaries(st.sampled_from(["from", "to"]), st.sampled_from(["S1", "", None, 3])),
    ),
    st.tuples(
        st.just("identity_adopt"),
        st.sampled_from(["Echo", " ", "Ada "]),
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["Echo", "", None, 7]),
                "sanitized": st.sampled_from(["E", ""]),
                "confidence": st.sampled_from([0.9, 0.6, "0.7", "x", None, 0.59, 1, 2]),
            },
        ),
    ),
    st.tuples(
        st.just("scene_compact"),
        st.just("s"),
        st.fixed_dictionaries(
            {"window": st.one_of(st.none(), st.fixed_dictionaries({}, optional={"start": _json, "end": _json}))}
        ),
    ),
    st.tuples(
        st.just("directive"),
        st.sampled_from(["on", "off", ""]),
        st.fixed_dictionaries(
            {"name": st.sampled_from(["ngram_repeat_telemetry", " NGRAM_repeat_telemetry ", "x", None])},
            optional={
                "value": st.sampled_from(["on", " OFF", True, 1, 0, "", None]),
                "state": st.sampled_from(["yes", "no"]),
            },
        ),
    ),
    st.tuples(st.sampled_from(["user", "response", "reflection", "other"]), texts, st.just({})),
)
event = st.one_of(_commitment(cids), _commitment(cids), _other)
odd_event = st.one_of(_commitment(odd_cids), _other)
