"""Proposals to merge commitments that say the same."""

import hashlib
import re

from pmm.storage.eventlog import EventLog
from pmm.work import whole


class CommitmentRestructurer:
    def __init__(self, log: EventLog):
        self.log = log

    def _get_open_commitments(self):
        """`[(cid, text)]`; expiry does not count."""
        texts = {}
        closed = set()
        for event in whole("_get_open_commitments", self.log.read_all()):
            meta = event.get("meta") or {}
            cid = meta.get("cid")
            if not cid:
                continue
            if event["kind"] == "commitment_open":
                texts[cid] = meta.get("text") or event.get("content")
                closed.discard(cid)
            elif event["kind"] == "commitment_close":
                closed.add(cid)
        return [(cid, text) for cid, text in texts.items() if cid not in closed]

    def _text_similarity(self, first, second):
        words = set(re.findall(r"\w+", first.lower()))
        others = set(re.findall(r"\w+", second.lower()))
        if not words and not others:
            return 1.0
        if not words or not others:
            return 0.0
        return len(words & others) / len(words | others)

    def consolidate_similar(self, threshold=0.9):
        """`[{"op": "merge", "cids", "new_cid"}]`, of all pairs."""
        open_ = self._get_open_commitments()
        used = set()
        merges = []
        for place, (cid, text) in enumerate(open_):
            if cid in used:
                continue
            group = [cid]
            for other, other_text in open_[place + 1 :]:
                if other not in used and self._text_similarity(text, other_text) >= threshold:
                    group.append(other)
            if len(group) > 1:
                used.update(group)
                cids = sorted(group)
                digest = hashlib.sha256("".join(cids).encode("utf-8")).hexdigest()
                merges.append({"op": "merge", "cids": cids, "new_cid": f"merged_{digest[:8]}"})
        return merges
