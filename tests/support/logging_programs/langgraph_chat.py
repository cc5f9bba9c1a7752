"""A graph of LangGraph on its SQLite checkpointer: one line on stdin is one run of the graph.

    run THREAD TEXT      a message to the conversation THREAD
    delete THREAD        its checkpoints are deleted, as an application would
    stop

Each line is answered by the number of checkpoints.
"""

import operator
import sqlite3
import sys
from typing import Annotated, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph


class Chat(TypedDict):
    messages: Annotated[list[str], operator.add]


def main() -> None:
    builder = StateGraph(Chat)
    builder.add_node("answer", lambda state: {"messages": [state["messages"][-1].upper()]})
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    connection = sqlite3.connect(sys.argv[1], check_same_thread=False)
    saver = SqliteSaver(connection)
    saver.setup()
    graph = builder.compile(checkpointer=saver)
    for line in sys.stdin:
        verb, *words = line.split(maxsplit=2)
        if verb == "stop":
            break
        if verb == "run":
            graph.invoke({"messages": [words[1].strip()]}, {"configurable": {"thread_id": words[0]}})
        else:
            saver.delete_thread(words[0])
        print(connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0], flush=True)
    connection.close()


main()
