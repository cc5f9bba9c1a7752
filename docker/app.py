"""A web application of an agent: each worker process has one cache, and all read the same published state."""

from flask import Flask, jsonify, request

from pmm_shm_client import connect

cache = connect(create=True)  # the ledger that PMM_DB names
app = Flask(__name__)


@app.post("/messages")
def message():
    text = request.get_json()["text"]
    event_id = cache.append("user", text)
    return jsonify(id=event_id, prompt=str(cache.context(text, messages=2)))


@app.get("/agent")
def agent():
    frame = cache.frame()  # all answers at one position
    return jsonify(name=frame.identity().name, as_of=frame.as_of, open=frame.commitments().to_dict()["open"])


@app.post("/commitments/<cid>/close")
def close(cid):
    def decide(frame):
        return [("commitment_close", "", {"cid": cid})] if cid in frame.commitments().open else None

    return jsonify(closed=bool(cache.decide(decide)))  # true for one request only, whichever workers are asked
