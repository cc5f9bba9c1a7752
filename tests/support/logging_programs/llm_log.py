"""simonw's `llm`, offline: one line on stdin is one logged response of a model that echoes.

    prompt MODEL TEXT    a response in the conversation of the program
    alone MODEL TEXT     one without a conversation
    again                the last response is logged once more, as `llm` may do: INSERT OR REPLACE
    stop

Each line is answered by the number of turns.
"""

import sys

import llm
import sqlite_utils


class Echo(llm.Model):
    needs_key = None
    can_stream = False

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    def execute(self, prompt, stream, response, conversation):
        response.set_usage(input=len(prompt.prompt.split()), output=len(prompt.prompt))
        yield prompt.prompt.upper()


def main() -> None:
    database = sqlite_utils.Database(sys.argv[1])
    models = {name: Echo(name) for name in ("echo-1", "echo-2")}
    conversations = {name: model.conversation() for name, model in models.items()}
    response = None
    for line in sys.stdin:
        verb, *words = line.split(maxsplit=2)
        if verb == "stop":
            break
        if verb != "again":
            asked = conversations[words[0]] if verb == "prompt" else models[words[0]]
            response = asked.prompt(words[1].strip(), stream=False)
            response.text()
        response.log_to_db(database)
        print(database["turns"].count, flush=True)


main()
